"""Weights of streams that are fair."""

import math

import numpy as np
import pytest

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.control.exact.fluid import fluid
from multispin.control.fairness import fairly_weighted


def site(weights: tuple[float, ...] = (1.0,) * 6, edge: EdgeDrafter | None = None) -> Scenario:
    devices = tuple(
        Device(f"d{k}", 0.01, 3.0, 0.4 + 0.1 * k, delay_s=0.002, weight=weight) for k, weight in enumerate(weights)
    )
    return Scenario(Cell(1e6, 16, 16, 0), Verification(0.02, 0.02), devices, edge)


def value(weights: tuple[float, ...], goodputs: list[float]) -> float:
    return sum(weight * math.log(max(rate, 1e-9)) for weight, rate in zip(weights, goodputs, strict=True))


def found(scenario: Scenario, times: int = 12) -> list[float]:
    before: dict[str, float] = {}
    for _ in range(times):
        _, before = fairly_weighted(scenario, before)
    return [before[device.name] for device in scenario.devices]


@pytest.mark.parametrize("weights", [(1.0,) * 6, (1.0, 1.0, 3.0, 1.0, 1.0, 2.0)])
@pytest.mark.parametrize("edge", [None, EdgeDrafter(0.004, 0.0, 0.6)])
def test_no_rates_are_fairer(weights: tuple[float, ...], edge: EdgeDrafter | None) -> None:
    """Σ w log g is concave and the rates form a convex set: no mixture with other best rates may be greater."""
    scenario = site(weights, edge)
    goodputs = found(scenario)
    generator = np.random.default_rng(3)
    for _ in range(20):
        draw = Scenario(
            scenario.cell,
            scenario.verifier,
            site(tuple(generator.uniform(0.05, 5.0, 6).tolist())).devices,
            edge,
        )
        other = [each.tokens_per_s for each in fluid(draw, [0.0] * 6).devices]
        mixed = [0.9 * mine + 0.1 * each for mine, each in zip(goodputs, other, strict=True)]
        assert value(weights, mixed) < value(weights, goodputs) + 0.01


def test_it_is_fairer_than_the_greatest_sum_and_does_not_wander() -> None:
    scenario = site()
    greatest = [each.tokens_per_s for each in fluid(scenario, [0.0] * 6).devices]
    goodputs = found(scenario)
    assert min(goodputs) > min(greatest)
    assert sum(goodputs) < sum(greatest)
    weighted, after = fairly_weighted(scenario, dict(zip((d.name for d in scenario.devices), goodputs, strict=True)))
    assert list(after.values()) == pytest.approx(goodputs, rel=0.05)
    by_need = [device.weight for device in weighted.devices]
    assert by_need == sorted(by_need, reverse=True)  # who is seldom right has least, and counts most
