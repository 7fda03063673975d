"""The paper's baselines and the practitioners' heuristics against their definitions."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import lambertw

from multispin.control import Cell, Device, Scenario, Verification, next_length, plan, plan_for_lengths
from multispin.control.algorithm1 import algorithm1, log_lambert_w, relaxed_lengths
from multispin.control.goodput import expected_tokens
from multispin.control.policies import plans_for_lengths
from multispin.control.problem import as_problem
from multispin.errors import InputError


def equal_goodput(scenario, lengths):
    """Goodput with B/K each, from the formulas."""
    problem = as_problem(scenario)
    lengths = np.asarray(lengths)
    able = max(1, int((problem.longest > 0).sum()))
    latency = (lengths * (problem.seconds_per_token + able * problem.upload_s)).max()
    return float(problem.expected(lengths) @ problem.weight) / (latency + float(problem.verification_s(lengths)))


def test_fixed_is_eight_tokens_and_equal_bands(paper_scenario):
    scenario = paper_scenario(0, 5)
    made = plan(scenario, "fixed")
    assert [(d.draft_length, d.bandwidth_hz) for d in made.devices] == [(8, 2e6)] * 5
    assert made.goodput_tokens_per_s == pytest.approx(equal_goodput(scenario, [8] * 5))


def test_uniform_bandwidth_is_the_best_of_all_lengths(draw, all_lengths):
    random = np.random.default_rng(0)
    for _ in range(80):
        scenario = draw(random, int(random.integers(1, 4)), int(random.integers(1, 7)))
        best = max(equal_goodput(scenario, lengths) for lengths in all_lengths(as_problem(scenario)))
        assert plan(scenario, "uniform-bandwidth").goodput_tokens_per_s == pytest.approx(best, rel=1e-9)


def test_goodput_argmax_is_the_best_common_length(paper_scenario):
    scenario = paper_scenario(1, 12)
    made = plan(scenario, "goodput-argmax")
    assert len({d.draft_length for d in made.devices}) == 1
    assert made.goodput_tokens_per_s == pytest.approx(max(equal_goodput(scenario, [n] * 12) for n in range(1, 26)))


def test_p2p_serves_the_best_device_alone():
    devices = (Device("a", 0.010, 4, 0.7), Device("b", 0.008, 5, 0.9), Device("c", 0.012, 2, 0.5))
    scenario = Scenario(Cell(1e6, 31744), Verification(0.05, 0.02), devices)
    made = plan(scenario, "p2p")
    best = max(
        float(expected_tokens(d.acceptance_rate, n))
        / (n * (d.seconds_per_token + 31744 / (1e6 * d.spectral_efficiency)) + 0.07)
        for d, n in itertools.product(devices, range(1, 26))
    )
    assert made.goodput_tokens_per_s == pytest.approx(best)
    assert [d.bandwidth_hz for d in made.devices] == [0, 1e6, 0]
    assert [d.expected_tokens for d in made.devices][::2] == [0, 0]


def test_centralized_drafts_on_the_server():
    devices = (Device("a", 0.010, 4, 0.7), Device("b", 0.008, 5, 0.9))
    with pytest.raises(InputError, match=r"verifier\.draft_seconds_per_token"):
        plan(Scenario(Cell(1e6, 31744), Verification(0.05, 0.02), devices), "centralized")
    made = plan(
        Scenario(Cell(1e6, 31744), Verification(0.05, 0.02, draft_seconds_per_token=0.01), devices), "centralized"
    )
    best = max(float(expected_tokens([0.7, 0.9], n).sum()) / (n * 0.01 + 0.09) for n in range(1, 26))
    assert made.goodput_tokens_per_s == pytest.approx(best)
    assert [d.bandwidth_hz for d in made.devices] == [0, 0]


def test_proposition_1_solves_its_stationarity_condition():
    devices = tuple(
        Device(f"d{k}", 0.004 + 0.002 * k, 3.0 + k, alpha) for k, alpha in enumerate((0.3, 0.74, 0.99, 1.0))
    )
    problem = as_problem(Scenario(Cell(5e6, 31744), Verification(0.2, 0.01), devices))
    for phi, price in itertools.product((0.05, 0.2, 3.0), (1e-3, 1.0, 50.0)):
        length = relaxed_lengths(problem, np.array([phi]), np.array([price]))[0]
        alpha = problem.acceptance_rate
        with np.errstate(divide="ignore", invalid="ignore"):
            worth = np.where(alpha < 1, -np.log(alpha) / (1 - alpha), 1.0) * alpha ** (length + 1)
        cost = price * problem.upload_s * phi / (phi - length * problem.seconds_per_token) ** 2
        assert worth == pytest.approx(cost, rel=1e-5)


@given(st.floats(0.02, 0.97), st.floats(1.005, 1.03), st.floats(0.02, 3), st.floats(1e-3, 50))
@settings(max_examples=200, deadline=None)
def test_remark_2_higher_acceptance_is_rewarded_with_band(alpha, factor, phi, price):
    devices = (Device("less", 0.008, 5, alpha), Device("more", 0.008, 5, min(alpha * factor, 1.0)))
    problem = as_problem(Scenario(Cell(5e6, 31744), Verification(0.2, 0.01), devices))
    length = relaxed_lengths(problem, np.array([phi]), np.array([price]))[0]
    band = problem.upload_s * length / (phi - length * problem.seconds_per_token)
    assume(length[0] > 0)
    assert length[1] > length[0]
    assert band[1] > band[0]


def test_lambert_w_in_the_log_domain():
    x = np.array([1e-200, 1e-3, 1.0, math.e, 50.0, 1e200])
    assert np.exp(log_lambert_w(np.log(x))) == pytest.approx(lambertw(x).real, rel=1e-12)
    assert np.isfinite(log_lambert_w(np.array([-1e9, 1e9]))).all()


def test_algorithm1_finds_nearly_the_optimum_and_needs_its_grid(paper_scenario):
    for seed in range(3):
        scenario = paper_scenario(seed)
        problem = as_problem(scenario)
        exact = plan(scenario, relative_gap=0).goodput_tokens_per_s
        fine = float(problem.goodput(algorithm1(problem)[0]))
        coarse = float(problem.goodput(algorithm1(problem, 5)[0]))
        assert 0.97 * exact < fine <= exact * (1 + 1e-12)
        assert coarse < fine


@pytest.mark.parametrize("alpha", [0.0, 1e-9, 0.5, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("seconds", [1e-9, 0.01, 1e3])
def test_algorithm1_stays_finite(alpha, seconds):
    devices = (Device("a", seconds, 4, alpha), Device("b", 0.01, 5, 0.8), Device("c", 0.01, 5, None, (0.9, 0.5)))
    made = plan(Scenario(Cell(1e6, 31744), Verification(0.05, 0.02), devices), "algorithm1")
    assert math.isfinite(made.goodput_tokens_per_s)
    assert made.goodput_tokens_per_s > 0


def test_two_more_or_one_fewer():
    assert next_length(5, 5, 5, longest=25) == 7
    assert next_length(5, 5, 4, longest=25) == 4
    assert next_length(1, 1, 0, longest=25) == 1
    assert next_length(24, 24, 24, longest=25) == 25
    assert next_length(5, 0, 0, longest=25) == 5
    # A draft cut short by its device's limit, but accepted whole, still counts as whole.
    assert next_length(8, 3, 3, longest=25) == 10
    with pytest.raises(InputError, match=r"accepted is 6; it must be in \[0, 5\]"):
        next_length(5, 5, 6, longest=25)


def test_a_plan_for_given_lengths(paper_scenario):
    scenario = paper_scenario(0, 4)
    best = plan(scenario, relative_gap=0)
    lengths = [d.draft_length for d in best.devices]
    assert plan_for_lengths(scenario, lengths).goodput_tokens_per_s == pytest.approx(best.goodput_tokens_per_s)
    equal = plan_for_lengths(scenario, lengths, equal_bands=True)
    assert equal.goodput_tokens_per_s == pytest.approx(equal_goodput(scenario, lengths))
    assert [d.draft_length for d in plan_for_lengths(scenario, [0, 1, 99, 5]).devices] == [1, 1, 25, 5]
    with pytest.raises(InputError, match="draft_lengths has 2 values; it must have 4"):
        plan_for_lengths(scenario, [1, 2])


@pytest.mark.parametrize("equal_bands", [False, True])
def test_of_several_given_choices_a_device_without_a_draft_counts_as_one_that_cannot_draft(draw, equal_bands):
    random = np.random.default_rng(0)
    for _ in range(50):
        scenario = draw(random, 4, 6)
        problem = as_problem(scenario)
        lengths = random.integers(0, problem.longest + 1, (3, problem.size)).tolist()
        made = list(plans_for_lengths(scenario, lengths, policy="fixed", equal_bands=equal_bands))
        for chosen, each in zip(lengths, made, strict=True):
            devices = tuple(
                device if length else replace(device, max_draft_length=0, min_draft_length=0)
                for device, length in zip(scenario.devices, chosen, strict=True)
            )
            able = replace(scenario, devices=devices)
            assert each == plan_for_lengths(able, chosen, policy="fixed", equal_bands=equal_bands)


def test_a_policy_that_breaks_a_minimum_says_so():
    devices = (Device("a", 0.05, 2, 0.5, min_goodput_tokens_per_s=5.0), Device("b", 0.01, 5, 0.95))
    scenario = Scenario(Cell(1e6, 31744), Verification(0.05, 0.02), devices)
    assert plan(scenario, "fixed").status == "infeasible"
    assert plan(scenario, "p2p").status == "infeasible"
    assert plan(scenario).status == "optimal"
