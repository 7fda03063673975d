"""Who gets a slot, and what becomes of a text that loses its own."""

import pytest
from tests.chaos import world

from multispin.passes import Limits
from multispin.passes.seats import Seats
from multispin.protocol import PROTOCOL_VERSION, EdgeSession, Hello, Idle, Profile, Streaming
from multispin.protocol.request import Request
from multispin.speculation import SamplingParams


class Edge:
    """Seats of an engine, and sessions that come from several origins."""

    def __init__(self, slots):
        self.engine = world.Engine(slots)
        self.seats = Seats(self.engine, Limits(slot_grace_s=5.0))
        self._number = 0

    def asks(self, origin, drafts=False):
        """The seat of a new session whose text waits for a slot."""
        self._number += 1
        hello = Hello(PROTOCOL_VERSION, world.MODEL, "client", "none", drafts, Profile(0.1, 3.0))
        session = EdgeSession(self._number, f"secret {self._number}", hello, world.V)
        self.seats.add(session, 0.0, origin)
        seat = self.seats[self._number]
        session.open(Request((3, 4), SamplingParams(), 50).to_open(self._number, [], world.V), world.MAX_LENGTH)
        self.seats.wait(seat)
        return seat

    def serves(self, *seats):
        """Give out slots; each of these texts has one afterwards, and is written in a stream."""
        self.seats.fill()
        for seat in seats:
            assert seat.slot is not None
            if isinstance(seat.session.stage, Idle):
                seat.session.stream(0, 1, 0.0)


def test_the_newest_text_of_whoever_has_most_makes_way_and_ends_its_stream():
    edge = Edge(2)
    first, second = edge.asks("many"), edge.asks("many")
    edge.serves(first, second)
    newcomer = edge.asks("few")
    edge.serves(newcomer, first)
    assert second.slot is None
    assert isinstance(second.session.stage, Idle)  # its next slot begins anew: nothing of the old one is in the cache
    assert isinstance(first.session.stage, Streaming)


def test_a_text_that_made_way_gets_the_next_slot_before_others_whose_origin_has_fewer():
    edge = Edge(4)
    many, other = [edge.asks("many") for _ in range(3)], edge.asks("other")
    edge.serves(*many, other)
    newcomer = edge.asks("few")
    edge.serves(newcomer)
    assert many[2].slot is None
    later = edge.asks("few")  # "few" has one slot, "many" has two
    edge.seats.remove(other.session.number)
    edge.serves(many[2])
    assert later.slot is None
    edge.seats.remove(many[0].session.number)
    edge.serves(later)


@pytest.mark.parametrize("again", [False, True], ids=["waits", "comes back"])
def test_a_lost_device_whose_slot_was_taken_comes_before_texts_that_never_had_one(again):
    edge = Edge(1)
    lost = edge.asks("a", drafts=True)
    edge.serves(lost)
    lost.connected, lost.lost_at_s = False, 0.0
    first, second = edge.asks("b"), edge.asks("c")
    edge.seats.evict(now_s=4.0)
    assert lost.slot is not None  # it may come back for a while
    edge.seats.evict(now_s=6.0)
    assert lost.slot is None
    assert isinstance(lost.session.stage, Idle)
    edge.serves(first)
    if again:
        edge.seats.come_back(lost, 7.0)
    edge.seats.remove(first.session.number)
    edge.serves(lost if again else second)
    assert (second if again else lost).slot is None
