"""Weights and least goodputs of a scenario act in every mode that decides, while everything else is learned."""

from functools import cache

import pytest

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.control.streams import choose
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site

pytestmark = pytest.mark.long

# In rounds devices compete for the band, in streams for the engine: so it is scarce in the former.
BAND_HZ = {"rounds": 2e4, "mixture": 2e4, "auto": 1e6, "auto, narrow": 2e4}


@cache
def rates(where, rate=0.75, passes=150, **asked):
    """Tokens per second of each of six devices, of which the first has this acceptance rate and asks for something."""
    first = Device("first", 0.012, 3.0, rate, delay_s=0.003, **asked)
    others = tuple(Device(f"d{k}", 0.012, 3.0, 0.75, delay_s=0.003) for k in range(5))
    cell, edge = Cell(BAND_HZ[where], 16, 12, 0), EdgeDrafter(0.008, 0.001, 0.4)
    scenario = Scenario(cell, Verification(0.02, 0.015), (first, *others), edge)
    site = Site(Setup(scenario, Behaviour(frame_bits=176)), "heterogeneous", 1, mode=where.split(",")[0])
    site.run(60)
    since_s, before = site.queue.now_s, [device.record.tokens for device in site.devices]
    site.run(60 + passes)
    return [
        (device.record.tokens - had) / (site.queue.now_s - since_s)
        for device, had in zip(site.devices, before, strict=True)
    ]


@pytest.mark.parametrize("mode", BAND_HZ)
def test_who_counts_more_gets_more(mode):
    alike, more = rates(mode), rates(mode, weight=10.0)
    assert more[0] / sum(more) > 1.1 * alike[0] / sum(alike)


@pytest.mark.parametrize("mode", BAND_HZ)
def test_a_least_goodput_is_kept(mode):
    alike = rates(mode, 0.5, 600)  # in 150 passes chance moves either by a tenth
    asked_per_s = 1.15 * alike[0]
    asked = rates(mode, 0.5, 600, min_goodput_tokens_per_s=asked_per_s)
    assert asked[0] > 0.92 * asked_per_s
    assert sum(asked[1:]) < sum(alike[1:])


@pytest.mark.parametrize("mode", BAND_HZ)
def test_what_nobody_can_have_stops_nobody(mode):
    most = rates(mode, min_goodput_tokens_per_s=1e6)
    assert min(most) > 0.3 * min(rates(mode))


def test_a_text_that_drafts_in_grants_counts_by_its_weight_too():
    weights = {}

    def seen(ready, *more):
        weights.update({each.session: each.worth.weight for each in ready})
        return choose(ready, *more)

    devices = tuple(Device(f"d{k}", 0.012, 3.0, 0.75, weight=1.0 + k) for k in range(3))
    scenario = Scenario(Cell(1e7, 2000, 12, 0), Verification(0.02, 0.015), devices, EdgeDrafter(0.008, 0.001, 0.4))
    site = Site(Setup(scenario, Behaviour(distributions=True)), "heterogeneous", 1, mode="auto", decide=seen)
    site.run(30)
    assert weights == {device.number: device.truth.weight for device in site.devices}
