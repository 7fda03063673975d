"""Proportional fairness against brute force, and that it is fairer."""

import math

import numpy as np
import pytest

from multispin.control import Cell, Device, InfeasibleError, Scenario, Verification, plan
from multispin.control.exact.objective import LogGoodput
from multispin.control.problem import as_problem


@pytest.mark.parametrize("seed", range(2))
def test_equals_brute_force(seed, draw, brute_force):
    random = np.random.default_rng(100 + seed)
    compared = 0
    for _ in range(40):
        size = int(random.integers(1, 5))
        scenario = draw(random, size, int(random.integers(1, (25, 9, 5, 3)[size - 1] + 1)), minimum=True)
        best = brute_force(scenario, fair=True)
        if best == -math.inf:
            with pytest.raises(InfeasibleError):
                plan(scenario, "fair")
            continue
        made = plan(scenario, "fair")
        problem = as_problem(scenario)
        lengths = np.array([device.draft_length for device in made.devices])
        score = float(LogGoodput(problem).score(lengths, np.asarray(made.round_s)))
        assert score == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert made.status == "optimal"
        assert made.upper_bound_tokens_per_s is None
        compared += 1
    assert compared > 20


def test_the_weakest_get_more_and_the_sum_is_smaller():
    devices = (
        *(Device(f"good-{k}", 0.006, 7, 0.95) for k in range(4)),
        *(Device(f"weak-{k}", 0.01, 2, 0.4) for k in range(4)),
    )
    scenario = Scenario(Cell(3e6, 31744), Verification(0.1, 0.01), devices)
    fair, summed = plan(scenario, "fair"), plan(scenario, relative_gap=0)
    weakest = [min(d.expected_tokens for d in made.devices) / made.round_s for made in (fair, summed)]
    assert weakest[0] > weakest[1]
    assert fair.goodput_tokens_per_s < summed.goodput_tokens_per_s


def test_equal_devices_are_treated_alike_and_as_by_the_sum():
    devices = tuple(Device(f"d{k}", 0.008, 5, 0.8) for k in range(4))
    scenario = Scenario(Cell(5e6, 31744), Verification(0.1, 0.01), devices)
    fair = plan(scenario, "fair")
    assert len({d.draft_length for d in fair.devices}) == 1
    assert fair.goodput_tokens_per_s == pytest.approx(plan(scenario).goodput_tokens_per_s, rel=1e-3)
