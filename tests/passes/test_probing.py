"""Probes of many devices together cost no more than a fixed share of the goodput, however long they take."""

import random

import pytest

from multispin.passes.probing import LOAN, SHARE, Costs, Probes


@pytest.mark.parametrize("devices", [1, 8, 60])
@pytest.mark.parametrize("wrong", [0.1, 1.0, 5.0])
def test_what_probes_cost_everybody_is_bounded(devices, wrong):
    """Each takes a tenth of the band while it lasts; how long it will last is guessed wrongly by a factor."""
    rng, probes, now_s, lost, lost_s, longest_s = random.Random(devices), Probes(), 0.0, 0.1, 0.0, 0.0
    ends_s: dict[int, float] = {}
    while now_s < 400.0:
        for key in [key for key, end_s in ends_s.items() if end_s <= now_s]:
            probes.end(key, now_s)
            del ends_s[key]
        for key in range(devices):
            took_s = rng.uniform(0.2, 2.0)
            if probes.due(key, now_s) and probes.costs.allow(lost * wrong * took_s, now_s):
                probes.begin(key, now_s, lost, wrong * took_s)
                ends_s[key], longest_s = now_s + took_s, max(longest_s, took_s)
        now_s += 0.05
        lost_s += lost * 0.05 * len(ends_s)
    assert lost_s <= SHARE * now_s + (LOAN * max(1.0, wrong) + 1.0) * lost * longest_s * min(devices, 1.0 / wrong + 4.0)
    if devices == 60:
        assert lost_s > 0.5 * SHARE * now_s  # who is many uses what there is


def test_a_probe_that_costs_nobody_anything_is_always_allowed():
    costs = Costs()
    costs.spend(100.0, 0.0)
    assert costs.allow(0.0, 1.0)
    assert not costs.allow(0.5, 1.0)
    assert costs.allow(0.5, 100.0 / SHARE)
