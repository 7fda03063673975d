"""Acceptance rule and draft length as one choice: against brute force, and what other policies make of modes."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy.optimize import brentq

from multispin.control import (
    POLICIES,
    Cell,
    Device,
    Mode,
    Scenario,
    Verification,
    dump_scenario,
    parse_scenario,
    plan,
    plan_for_lengths,
)
from multispin.control.exact.objective import LogGoodput, SumGoodput
from multispin.control.exact.relaxation import Intervals, relax
from multispin.control.goodput import expected_tokens
from multispin.control.problem import as_problem
from multispin.errors import InputError

IDS = Mode("coupled", acceptance_rate=0.6, bits_per_token=15)
DISTRIBUTIONS = Mode("rejection", acceptance_rate=0.8, bits_per_token=31744)
LATE = Mode("rejection-up", acceptance_rate=0.8, bits_per_token=31, bits_per_rejection=31744)


def with_modes(scenario, random, most=3):
    """The scenario with one to `most` modes for some devices, profiles and costs of a refusal among them."""
    devices = []
    for device in scenario.devices:
        modes = []
        for index in range(int(random.integers(0, most + 1))):
            alpha = float(np.clip(random.uniform(-0.05, 1.05), 0, 1))
            profile = tuple(np.clip(random.uniform(0, 1.05, 3), 0, 1).tolist())
            modes.append(
                Mode(
                    f"m{index}",
                    *((alpha, None) if random.random() < 0.7 else (None, profile)),
                    bits_per_token=float(10 ** random.uniform(1, 5)),
                    bits_per_rejection=float(random.choice([0.0, 10 ** random.uniform(3, 5.5)])),
                    seconds_per_rejection=float(random.choice([0.0, 0.01])),
                )
            )
        if modes:
            device = dataclasses.replace(
                device, modes=tuple(modes), acceptance_rate=None, acceptance_profile=None, bits_per_token=None
            )
        devices.append(device)
    return dataclasses.replace(scenario, devices=tuple(devices))


def round_of(scenario, choice):
    """Expected tokens [K] and expected round time of a choice of (mode, length) per device, from the definitions."""
    cell, verifier = scenario.cell, scenario.verifier
    loads, after, tokens = [], 0.0, []
    for device, (mode, length) in zip(scenario.devices, choice, strict=True):
        profile = (mode.acceptance_rate,) if mode.acceptance_profile is None else mode.acceptance_profile
        survival = np.cumprod([1.0] + [profile[min(j, len(profile) - 1)] for j in range(length)])
        tokens.append(survival.sum())
        rate = device.rate_bits_per_s(cell.bandwidth_hz)
        after += (1 - survival[-1]) * (mode.bits_per_rejection / rate + mode.seconds_per_rejection)
        bits = cell.bits_per_token if mode.bits_per_token is None else mode.bits_per_token
        if length:
            loads.append((length * device.seconds_per_token, length * bits / rate))
    phi = 0.0
    if loads:
        low = max(busy for busy, _ in loads)
        phi = low + brentq(
            lambda x: sum(upload / (x + low - busy) for busy, upload in loads) - 1.0,
            1e-3 * min(upload for _, upload in loads) / len(loads),
            2 * sum(upload for _, upload in loads),
            xtol=1e-18,
            rtol=1e-15,
        )
    lengths = [length for _, length in choice]
    verified = len(lengths) * (max(lengths) + 1) if verifier.padded else sum(lengths) + len(lengths)
    fixed = verifier.fixed_s + len(lengths) * verifier.per_device_s + verified * verifier.per_token_s
    return np.array(tokens), phi + fixed + after


def choices_of(scenario):
    options = [
        [(mode, length) for mode in device.ways for length in range(low, high + 1)]
        for device, (low, high) in zip(scenario.devices, map(scenario.limits, scenario.devices), strict=True)
    ]
    return itertools.product(*options)


@pytest.mark.parametrize("policy", ["heterogeneous", "fair"])
def test_equals_brute_force(policy, draw):
    random = np.random.default_rng(21)
    mixed = 0
    for _ in range(40):
        size = int(random.integers(1, 4))
        scenario = with_modes(
            draw(random, size, int(random.integers(1, (12, 5, 3)[size - 1] + 1))), random, (3, 3, 2)[size - 1]
        )
        weight = np.array([d.weight for d in scenario.devices])
        scores = []
        for choice in choices_of(scenario):
            tokens, time = round_of(scenario, choice)
            scores.append(weight @ np.log(tokens / time) if policy == "fair" else weight @ tokens / time)
        best = max(scores)
        made = plan(scenario, policy)
        assert made.status == "optimal"
        named = [
            (next((m for m in d.modes if m.name == p.mode), d.ways[0]), p.draft_length)
            for d, p in zip(scenario.devices, made.devices, strict=True)
        ]
        tokens, time = round_of(scenario, named)
        assert made.round_s == pytest.approx(time, rel=1e-9)
        if policy == "fair":
            assert float(weight @ np.log(tokens / time)) == pytest.approx(best, rel=1e-9, abs=1e-9)
        else:
            assert made.goodput_tokens_per_s == pytest.approx(best, rel=1e-9)
            assert best * (1 - 1e-12) <= made.upper_bound_tokens_per_s <= best * (1 + 1e-8)
            mixed += len({p.mode for p in made.devices}) > 1
    assert policy == "fair" or mixed > 3


@pytest.mark.parametrize("kind", [SumGoodput, LogGoodput])
def test_bound_of_any_interval_covers_every_choice_in_it(kind, draw):
    random = np.random.default_rng(22)
    checked = 0
    for _ in range(150):
        scenario = with_modes(draw(random, int(random.integers(1, 4)), int(random.integers(2, 5))), random, 2)
        problem = as_problem(scenario)
        within = [np.flatnonzero(problem.within[:, k]) for k in range(problem.size)]
        choices = np.array(list(itertools.product(*within)))
        round_s, phi = problem.round_s(choices), problem.draft_time(choices)
        if phi.max() == 0:
            continue
        objective = kind(problem)
        scores = objective.score(choices, round_s)
        start = float(phi.max()) * random.uniform(0, 1)
        end = start + float(phi.max()) * 10 ** random.uniform(-4, 0)
        level = objective.goal(float(scores.max()), random.uniform(-0.7, 0.2))
        cap, one = int(problem.longest.max()), np.ones(1)
        interval = Intervals(start * one, end * one, 0 * one, np.inf * one, np.array([cap]), 0 * one)
        relaxed = relax(problem, objective, level, interval, problem.shortest)
        bound = objective.bound(level, relaxed.excess(), relaxed.earliest, relaxed.latest)[0]
        inside = (phi >= start) & (phi <= end)
        if problem.padded and problem.per_token_s:
            inside &= problem.drafted(choices).max(axis=-1) == cap
        if inside.any():
            checked += 1
            assert scores[inside].max() <= bound
    assert checked > 30


def test_more_modes_never_hurt_and_one_mode_is_a_plain_device(draw):
    random = np.random.default_rng(23)
    for _ in range(25):
        scenario = with_modes(draw(random, 6, 9), random)
        every = plan(scenario)
        assert every.status == "optimal"
        first = tuple(dataclasses.replace(d, modes=d.modes[:1]) for d in scenario.devices)
        assert plan(dataclasses.replace(scenario, devices=first)).goodput_tokens_per_s <= every.goodput_tokens_per_s * (
            1 + 1e-9
        )
        warm = plan(scenario, warm_start=every)
        assert warm.goodput_tokens_per_s == pytest.approx(every.goodput_tokens_per_s, rel=1e-9)
    plain = Scenario(Cell(5e6, 31744), Verification(0.1, 0.01), (Device("a", 0.01, 5, 0.8),))
    named = dataclasses.replace(plain, devices=(Device("a", 0.01, 5, modes=(Mode("rejection", 0.8),)),))
    assert plan(named).goodput_tokens_per_s == plan(plain).goodput_tokens_per_s
    assert [plan(named).devices[0].mode, plan(plain).devices[0].mode] == ["rejection", None]


def test_distributions_win_where_bits_are_free_and_ids_where_they_are_dear():
    devices = tuple(Device(f"d{k}", 0.008, 5, modes=(IDS, DISTRIBUTIONS, LATE)) for k in range(4))
    verifier = Verification(0.02, 0.01)
    assert {d.mode for d in plan(Scenario(Cell(1e10, 1), verifier, devices)).devices} <= {"rejection", "rejection-up"}
    assert {d.mode for d in plan(Scenario(Cell(2e4, 1), verifier, devices)).devices} == {"coupled"}


def test_other_policies_take_the_first_mode_and_charge_its_refusals(draw):
    devices = tuple(Device(f"d{k}", 0.01, 4, modes=(LATE, IDS)) for k in range(3))
    scenario = Scenario(Cell(2e6, 1), Verification(0.05, 0.01, draft_seconds_per_token=0.02), devices)
    refusal_s = 31744 / 8e6
    for policy in POLICIES:
        made = plan(scenario, policy)
        if policy in ("heterogeneous", "fair", "centralized", "p2p"):
            continue
        assert {d.mode for d in made.devices} == {"rejection-up"}
        lengths = np.array([d.draft_length for d in made.devices])
        bands = np.array([d.bandwidth_hz for d in made.devices])
        drafting = (lengths * (0.01 + 31 / (4 * bands))).max()
        after = ((1 - 0.8**lengths) * refusal_s).sum()
        assert made.round_s == pytest.approx(drafting + 0.08 + after)
        assert made.goodput_tokens_per_s == pytest.approx(expected_tokens(0.8, lengths).sum() / made.round_s)
    assert plan_for_lengths(scenario, [5, 5, 5]).devices[0].mode == "rejection-up"
    alone = plan(scenario, "p2p")
    length = max(d.draft_length for d in alone.devices)
    assert alone.round_s == pytest.approx(length * (0.01 + 31 / 8e6) + 0.06 + (1 - 0.8**length) * refusal_s)


def test_uniform_bandwidth_is_the_best_for_equal_bands_with_refusals_too(draw):
    random = np.random.default_rng(24)
    for _ in range(40):
        scenario = with_modes(draw(random, int(random.integers(1, 4)), int(random.integers(1, 6))), random, 1)
        limits = [range(low, high + 1) for low, high in map(scenario.limits, scenario.devices)]
        best = max(
            plan_for_lengths(scenario, lengths, equal_bands=True).goodput_tokens_per_s
            for lengths in itertools.product(*limits)
        )
        assert plan(scenario, "uniform-bandwidth").goodput_tokens_per_s == pytest.approx(best, rel=1e-9)


def test_files_come_back_equal_and_refusals_say_where(draw):
    random = np.random.default_rng(25)
    for _ in range(10):
        scenario = with_modes(draw(random, 5), random)
        assert parse_scenario(dump_scenario(scenario)) == scenario
    text = dump_scenario(Scenario(Cell(1e6, 1), Verification(1, 0), (Device("a", 0.01, 5, modes=(IDS, LATE)),)))
    for old, new, message in (
        ("bits_per_rejection", "bits_per_refusal", r"line 23: unknown key 'bits_per_refusal' in \[\[device.mode\]\]"),
        ("0.6", "1.6", "line 16: mode 'coupled': acceptance_rate is 1.6"),
        ('name = "rejection-up"', 'name = "coupled"', "two modes have the same name"),
        (
            "seconds_per_token",
            "bits_per_token = 5\nseconds_per_token",
            "bits_per_token is given beside modes; give it in each mode",
        ),
        ("[[device.mode]]", "[device.mode]", "not valid TOML"),
    ):
        assert old in text
        with pytest.raises(InputError, match=message):
            parse_scenario(text.replace(old, new))
    with pytest.raises(InputError, match=r"modes are written \[\[device.mode\]\]"):
        parse_scenario(text[: text.index("[[device.mode]]")] + "mode = 1\n")


def test_least_goodputs_and_a_choice_of_modes_are_refused_together():
    device = Device("a", 0.01, 5, modes=(IDS, LATE), min_goodput_tokens_per_s=1.0)
    scenario = Scenario(Cell(1e6, 1), Verification(0.1, 0), (device,))
    with pytest.raises(
        InputError, match="min_goodput_tokens_per_s cannot be kept where a device chooses between modes"
    ):
        plan(scenario)
    assert math.isfinite(
        plan(dataclasses.replace(scenario, devices=(dataclasses.replace(device, modes=(LATE,)),))).round_s
    )
