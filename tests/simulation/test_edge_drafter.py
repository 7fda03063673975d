"""The simulated drafter of an edge."""

from dataclasses import replace

from tests.simulation.test_modes import SITES

from multispin.control import EdgeDrafter
from multispin.simulation.engine import SimulatedEdgeDrafter
from multispin.speculation import DraftAsk, SamplingParams


def test_it_says_which_tokens_it_has_not_read():
    site = replace(SITES["each session costs much"], edge_drafter=EdgeDrafter(0.004, 0.0, 0.7))
    drafter = SimulatedEdgeDrafter(site, 1)
    slot = drafter.open()
    assert drafter.unread(slot, range(10)) == 9  # all but the newest
    drafter.draft_for(site.devices[0], DraftAsk(slot, tuple(range(10)), 2, SamplingParams()))
    assert drafter.unread(slot, range(13)) == 3
    assert drafter.unread(slot, range(4)) == 3  # another text
