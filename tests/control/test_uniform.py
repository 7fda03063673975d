"""Theorem 1 against its stationarity condition, bounded minimisation and plain search."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from multispin.control import Cell, Device, Scenario, Verification, plan
from multispin.control.goodput import expected_tokens
from multispin.control.problem import as_problem
from multispin.control.uniform import candidates, homogeneous, stationary_length


@given(st.floats(1e-6, 1 - 1e-9), st.floats(1e-6, 1e9))
@settings(max_examples=500, deadline=None)
def test_stationarity(alpha, ratio):
    length = stationary_length(alpha, ratio)
    b = -math.log(alpha)
    if length == 0.0:
        assert ratio <= (1 - alpha) / (alpha * b) * (1 + 1e-12)
        return
    u = b * (length + 1)
    # b (L̃ + t) + 1 = e^u, without the cancellation for small u.
    assert math.expm1(u) - u == pytest.approx(b * (ratio - 1), rel=1e-8, abs=1e-300)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.74, 0.95, 0.999])
@pytest.mark.parametrize("ratio", [0.5, 3.0, 20.0, 300.0])
def test_closed_form_is_the_bounded_minimum_and_lambert_w(alpha, ratio):
    length = stationary_length(alpha, ratio)
    found = minimize_scalar(
        lambda x: -float(expected_tokens(alpha, x)) / (x + ratio), bounds=(0, 5000), options={"xatol": 1e-9}
    )
    best = -found.fun
    assert float(expected_tokens(alpha, length)) / (length + ratio) >= best * (1 - 1e-12)
    argument = -(alpha ** (ratio - 1)) / math.e
    if length > 0 and argument < -1e-300:
        paper = -math.log(-lambertw(argument, -1).real) / math.log(alpha) - 1
        assert length == pytest.approx(paper, rel=1e-6, abs=1e-6)


def test_limits_of_alpha():
    assert stationary_length(0.0, 100.0) == 0.0
    assert stationary_length(1e-12, 1e6) >= 0.0
    assert stationary_length(1.0, 2.0) == math.inf
    assert stationary_length(1.0, 0.5) == 0.0
    b = 1e-10
    assert stationary_length(math.exp(-b), 101.0) + 1 == pytest.approx(math.sqrt(2 * 100 / b), rel=1e-3)
    assert stationary_length(0.9, 1e300) > 1000


@given(st.floats(0.05, 0.99), st.floats(0.5, 500))
@settings(max_examples=200, deadline=None)
def test_best_length_grows_with_alpha_and_verification_time(alpha, ratio):
    length = stationary_length(alpha, ratio)
    assert stationary_length(alpha, ratio * 1.05) >= length
    assert stationary_length(min(alpha * 1.01, 0.999), ratio) >= length - 1e-9


@pytest.mark.parametrize("per_token", [0.0, 3e-4, 1e-2])
@pytest.mark.parametrize("padded", [False, True])
def test_closed_form_equals_search_over_all_lengths(per_token, padded):
    random = np.random.default_rng(1)
    for _ in range(100):
        alpha = float(random.choice([0.0, 1.0, random.uniform(0, 1)]))
        devices = tuple(
            Device(f"d{k}", float(random.uniform(0.002, 0.05)), float(random.uniform(1, 9)), alpha) for k in range(6)
        )
        verifier = Verification(float(random.uniform(0, 0.3)) + 1e-6, 0.001, per_token, padded)
        problem = as_problem(Scenario(Cell(5e6, 31744, 25, int(random.integers(0, 2))), verifier, devices))
        best = problem.goodput(candidates(problem)).max()
        assert float(problem.goodput(homogeneous(problem))) == pytest.approx(best, rel=1e-12)


def test_goodput_over_length_is_unimodal():
    random = np.random.default_rng(2)
    for _ in range(50):
        alpha = float(random.uniform(0.3, 0.97))
        values = expected_tokens(alpha, np.arange(1, 60)) / (np.arange(1, 60) + random.uniform(1, 60))
        signs = np.sign(np.diff(values))
        assert (np.diff(signs) <= 0).all()


def test_lengths_are_common_but_for_devices_that_cannot():
    devices = (Device("a", 0.01, 5, 0.8), Device("b", 0.01, 5, 0.7), Device("c", 0.01, 5, 0.7, max_draft_length=0))
    made = plan(Scenario(Cell(10e6, 31744), Verification(0.1, 0.01), devices), "homogeneous")
    lengths = [device.draft_length for device in made.devices]
    assert lengths[0] == lengths[1] > 0
    assert lengths[2] == 0
    assert made.devices[2].bandwidth_hz == 0
