"""The drafter of a simulated edge."""

from collections import Counter
from dataclasses import replace

from tests.simulation.test_modes import SITES

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.protocol import Grant
from multispin.simulation.engine import SimulatedEdgeDrafter
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site
from multispin.speculation import DraftAsk, SamplingParams


def test_it_says_which_tokens_it_has_not_read():
    site = replace(SITES["each session costs much"], edge_drafter=EdgeDrafter(0.004, 0.0, 0.7))
    drafter = SimulatedEdgeDrafter(site, 1)
    slot = drafter.open()
    assert drafter.unread(slot, range(10)) == 9  # all but the newest
    drafter.draft_for(site.devices[0], DraftAsk(slot, tuple(range(10)), 2, SamplingParams()))
    assert drafter.unread(slot, range(13)) == 3
    assert drafter.unread(slot, range(4)) == 3  # another text


class _Grants(Site):
    """A site that counts how often each grant is told."""

    def __init__(self, *arguments, **options):
        self.told = Counter()
        super().__init__(*arguments, **options)

    def tell(self, number, message):
        grant = message if isinstance(message, Grant) else getattr(message, "grant", None)
        if grant is not None:
            self.told[number, grant.round] += 1
        super().tell(number, message)


def test_a_grant_is_told_once():
    """Where the edge drafted for a text whose device is to draft next, the Tail has the grant."""
    devices = tuple(Device(f"d{k}", 0.006 + 0.002 * k, 3.0, 0.6 + 0.05 * k) for k in range(4))
    scenario = Scenario(Cell(2e4, 16, 12, 0), Verification(0.02, 0.012), devices, EdgeDrafter(0.004, 0.0002, 0.5))
    site = _Grants(Setup(scenario, Behaviour(frame_bits=176)), "heterogeneous", 1, mode="mixture")
    site.run(100)
    assert len(site.told) > 50
    assert set(site.told.values()) == {1}
