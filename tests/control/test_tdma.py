"""One after the other over the whole band: the order, the plan against brute force, and what makes no sense there."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from multispin.cli.main import run
from multispin.control import dump_scenario, parse_scenario, plan
from multispin.control.bandwidth import makespan, start_times
from multispin.control.problem import as_problem
from multispin.errors import InputError


def turns(scenario):
    return replace(scenario, cell=replace(scenario.cell, multiple_access="tdma"))


def best_of_all(scenario):
    """Best weighted goodput over all lengths and all orders, from the definition."""
    problem, verifier = as_problem(scenario), scenario.verifier
    best = 0.0
    for lengths in itertools.product(
        *(range(a, b + 1) for a, b in zip(problem.shortest, problem.longest, strict=True))
    ):
        ready = np.array(lengths) * problem.seconds_per_token
        air = np.array(lengths) * problem.upload_s
        phi = np.inf
        for order in itertools.permutations(range(len(lengths))):
            free = 0.0
            for k in order:
                if air[k] > 0:
                    free = max(free, ready[k]) + air[k]
            phi = min(phi, max(free, max(ready)))
        tokens = len(lengths) * (max(lengths) + 1) if verifier.padded else sum(lengths) + len(lengths)
        round_s = phi + verifier.fixed_s + len(lengths) * verifier.per_device_s + tokens * verifier.per_token_s
        expected = sum(problem.weight[k] * problem.tokens[n, k] for k, n in enumerate(lengths))
        best = max(best, expected / round_s)
    return best


def test_the_order_of_readiness_has_the_least_makespan():
    random = np.random.default_rng(3)
    for _ in range(200):
        ready, air = random.uniform(0, 1, 4), random.uniform(0, 0.6, 4)
        spans = []
        for order in itertools.permutations(range(4)):
            free = 0.0
            for k in order:
                free = max(free, ready[k]) + air[k]
            spans.append(free)
        assert makespan(ready, air) == pytest.approx(min(spans), rel=1e-12)
        start = start_times(ready, air)
        assert (start >= ready).all()
        assert (start + air).max() == pytest.approx(min(spans), rel=1e-12)
        by_start = np.argsort(start)
        assert (start[by_start][1:] >= (start + air)[by_start][:-1] - 1e-12).all()  # never two at once


@pytest.mark.parametrize("seed", range(4))
def test_no_choice_of_lengths_and_orders_is_better(draw, seed):
    random = np.random.default_rng(seed)
    for size, longest in ((1, 12), (2, 7), (3, 4), (2, 6)):
        scenario = turns(draw(random, size, longest))
        made, best = plan(scenario), best_of_all(scenario)
        assert made.goodput_tokens_per_s == pytest.approx(best, rel=1e-9)
        assert made.upper_bound_tokens_per_s >= best * (1 - 1e-12)


@pytest.mark.parametrize("policy", ["homogeneous", "fixed", "fair", "p2p"])
def test_other_policies_plan_too_and_are_no_better(paper_scenario, policy):
    scenario = turns(paper_scenario(1, 4))
    made, best = plan(scenario, policy), plan(scenario)
    assert made.goodput_tokens_per_s <= best.goodput_tokens_per_s * (1 + 1e-9)
    if policy in ("homogeneous", "fixed"):
        assert len({device.draft_length for device in made.devices}) == 1


def test_a_plan_says_when_each_begins_and_fits_its_round(paper_scenario):
    scenario = turns(paper_scenario(2, 6))
    made = plan(scenario, relative_gap=0.02)
    problem = as_problem(scenario)
    lengths = np.array([device.draft_length for device in made.devices])
    begin = np.array([device.start_s for device in made.devices])
    end = begin + lengths * problem.upload_s
    order = np.argsort(begin)
    assert (begin >= lengths * problem.seconds_per_token - 1e-12).all()
    assert (begin[order][1:] >= end[order][:-1] - 1e-12).all()
    verifier = scenario.verifier
    assert made.round_s == pytest.approx(end.max() + verifier.fixed_s + 6 * verifier.per_device_s, rel=1e-9)
    assert {device.bandwidth_hz for device in made.devices} == {scenario.cell.bandwidth_hz}


@pytest.mark.parametrize("policy", ["algorithm1", "uniform-bandwidth", "goodput-argmax"])
def test_policies_that_split_the_band_are_refused(paper_scenario, policy):
    with pytest.raises(InputError, match="tdma"):
        plan(turns(paper_scenario(1, 3)), policy)


def test_a_scenario_file_says_so_and_the_command_prints_when(paper_scenario, tmp_path, capsys):
    scenario = turns(paper_scenario(1, 3))
    text = dump_scenario(scenario)
    assert parse_scenario(text) == scenario
    with pytest.raises(InputError, match="fdma, tdma"):
        parse_scenario(text.replace('"tdma"', '"cdma"'))
    path = tmp_path / "turns.toml"
    path.write_text(text)
    assert run(["plan", str(path), "--json"]) == 0
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert all(device["start_s"] >= 0 for device in devices)
    assert run(["plan", str(path)]) == 0
    assert "starts at" in capsys.readouterr().out
