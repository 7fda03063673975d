"""One device that lies or stalls costs the others at most a tenth of their tokens per second; nobody honest goes."""

import pytest

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.simulation.liars import LIES
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site

pytestmark = pytest.mark.long

SCENARIO = Scenario(
    Cell(5e5, 16, max_draft_length=8, min_draft_length=0),
    Verification(0.05, 0.005, 0.0005),
    tuple(Device(f"d{k}", 0.006 + 0.001 * k, 3.0 + 0.2 * k, 0.8 - 0.02 * k, delay_s=0.003) for k in range(5)),
    EdgeDrafter(0.01, 0.0004, 0.3),
)


def honest_tokens_per_s(mode, policy, lie, begin_s=4.0, watched_s=12.0):
    site = Site(Setup(SCENARIO, Behaviour(frame_bits=176)), policy, 1, mode=mode, lies={4: lie} if lie else {})
    honest = site.devices[:4]
    before = None
    while site.queue.now_s < begin_s + watched_s and site.queue.step():
        if before is None and site.queue.now_s >= begin_s:
            before = [device.record.tokens for device in honest]
    assert [device.number for device in honest] == [1, 2, 3, 4]  # nobody honest was sent away
    return sum(d.record.tokens - tokens for d, tokens in zip(honest, before, strict=True)) / watched_s


@pytest.mark.parametrize(
    ("mode", "policy"),
    [
        ("rounds", "heterogeneous"),
        ("rounds", "fixed"),
        ("mixture", "heterogeneous"),
        ("auto", "heterogeneous"),  # with this drafter of the edge, the same as streams
    ],
)
def test_one_liar_costs_the_others_at_most_a_tenth(mode, policy):
    honest = honest_tokens_per_s(mode, policy, None)
    shares = {lie: honest_tokens_per_s(mode, policy, lie) / honest for lie in LIES}
    assert min(shares.values()) >= 0.9, shares


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_who_breaks_the_protocol_is_sent_away_and_may_come_again(mode):
    """In streams it leaves out a part of a chain and goes on, which no link that keeps the order can do."""
    lie = "silent for ten drafts in twenty"
    site = Site(Setup(SCENARIO, Behaviour(frame_bits=176)), "heterogeneous", 1, mode=mode, lies={4: lie})
    site.run(200)
    *honest, liar = site.devices
    assert [device.number for device in honest] == [1, 2, 3, 4]
    assert (liar.number > 5) == (mode == "streams")
    record = liar.record
    assert record.drafted == record.accepted + record.rejected + record.dropped + record.wasted + record.under_way
