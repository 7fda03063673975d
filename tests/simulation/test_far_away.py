"""Mode `rounds` where all devices are far away: what a learning edge makes in its first seconds."""

import pytest

from multispin.control import Cell, Device, Scenario, Verification
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site

USERS = 8


def tokens(delay_s: float, mode: str, from_s: float, to_s: float) -> int:
    """Tokens that a site writes between two times, with plain decoding or in rounds that may leave devices out."""
    devices = tuple(Device(f"d{k}", 0.01, 3.0, 0.75, delay_s=delay_s) for k in range(USERS))
    scenario = Scenario(Cell(2e6, 16, min_draft_length=0), Verification(0.125, 0.001, 0.0005), devices)
    site = Site(Setup(scenario, Behaviour(prompt_tokens=(16, 120), frame_bits=176)), "heterogeneous", 1, mode=mode)
    counts = []
    for end_s in (from_s, to_s):
        while site.queue.now_s < end_s and site.queue.step():
            pass
        counts.append(sum(device.record.tokens for device in site.devices))
    return counts[1] - counts[0]


def test_an_edge_that_learns_leaves_out_devices_that_are_far_away_within_seconds():
    """Drafts come a second after their grants, and plain decoding takes an eighth of that."""
    assert tokens(0.5, "rounds", 4.0, 8.0) >= 0.8 * tokens(0.5, "plain", 4.0, 8.0)


@pytest.mark.parametrize("delay_s", [0.0, 0.003])
def test_near_devices_are_used_from_the_start(delay_s):
    assert tokens(delay_s, "rounds", 0.0, 4.0) >= 1.5 * tokens(delay_s, "plain", 0.0, 4.0)
