"""What each end of a stream refuses, and what becomes of tokens and chains in single cases."""

import random

import pytest
from msgspec.structs import replace
from tests.protocol.stream_wire import HELLO, PROMPT, V, Wire, chunk, pair, truth

from multispin.errors import InputError
from multispin.protocol import (
    Chunk,
    Commit,
    DeviceSession,
    EdgeSession,
    Grant,
    ProtocolError,
    Request,
    Tail,
    Verdict,
    Welcome,
    Window,
    decode_downlink,
    decode_uplink,
)
from multispin.protocol.device_stages import Waiting
from multispin.protocol.device_stream import DeviceStreaming
from multispin.speculation import Rule, SamplingParams, Score


def test_what_no_honest_device_sends_is_refused_by_code():
    wire = pair()
    for message, code in [(chunk(1, 4, 5), "gap"), (chunk(1, 3, 1, 2, 3, 4, 5), "too-many")]:
        with pytest.raises(ProtocolError) as refusal:
            wire.edge.receive_chunk(message)
        assert refusal.value.code == code
        assert code != "gap" or "starts at 4, but the text and its drafts end at 3" in str(refusal.value)
        wire = pair()
    wire.edge.receive_chunk(chunk(1, 3, 5, 6))
    with pytest.raises(ProtocolError) as refusal:  # sent twice
        wire.edge.receive_chunk(chunk(1, 3, 5, 6))
    assert refusal.value.code == "gap"
    assert "starts at 3, but the last one ended at 5" in str(refusal.value)
    with pytest.raises(ProtocolError, match="starts at 4, but the last one ended at 5"):  # one of them sent twice
        wire.edge.receive_chunk(chunk(1, 4, 6))
    with pytest.raises(InputError, match="bytes"):
        wire.edge.receive_chunk(Chunk(1, 5, 1, b"\xff\xff", 10))
    fresh = EdgeSession(7, "secret", HELLO, V)
    with pytest.raises(ProtocolError, match="before any request"):
        fresh.receive_chunk(chunk(1, 3, 1))
    fresh.open(wire.device.request.to_open(7, [], V), 100)
    with pytest.raises(ProtocolError, match="does not stream"):
        fresh.receive_chunk(chunk(1, 3, 1))


def test_a_device_that_streams_believes_no_nonsense():
    for message, sentence in [
        (Commit(3, 1, 1, 1, (2,)), "never sent"),
        (Commit(9, 1, 0, 0, (2,)), "never sent"),
        (Commit(3, 1, 0, 0, (V,)), "outside its vocabulary"),
        (Commit(3, 1, 0, 0, (1,), "bored"), "the unknown reason"),
        (Commit(3, 1, 0, 0, (1,) * 13), "more than the 12"),
        (Grant(1, 1, 2, 1e4), "a text that streams"),
        (Verdict(1, 1, 3, 0, 1), "a text that streams"),
        (Tail(1, 3, b"", 0), "a text that streams"),
        (Window(1, 4, 2, float("nan")), "band"),
    ]:
        device = pair().device
        with pytest.raises(InputError, match=sentence):
            device.receive(message)
        assert device.generated == []


def test_a_text_under_a_rejection_rule_does_not_stream():
    wire = Wire()
    wire.device = DeviceSession(HELLO)
    wire.device.begin(Request(PROMPT, SamplingParams(1.0), 12, rule=Rule.REJECTION))
    wire.connect()
    for _ in range(2):
        wire.hear_up()
        while wire.down:
            wire.hear_down()
    with pytest.raises(InputError, match="cannot stream"):
        wire.device.receive(Window(1, 4, 2, 1e4))


def test_only_what_an_honest_device_may_send_is_awaited():
    wire = pair()
    edge = wire.edge
    assert edge.awaits(chunk(1, 3, 5, 6))
    edge.receive_chunk(chunk(1, 3, 5, 6))
    assert edge.awaits(chunk(1, 5, 5, 6))
    assert not edge.awaits(chunk(2, 3, 5, 6))  # the chain is alive, so why start over?
    wire.take(0)
    wire.settle()  # the next token is another one: the chain is dead
    for _ in range(2):
        assert edge.awaits(chunk(1, 5, 5, 6))
        edge.receive_chunk(chunk(1, 5, 5, 6))
    assert not edge.awaits(chunk(1, 9, 5, 6))  # a window's worth has come
    assert edge.awaits(chunk(2, 4, 5, 6))


def test_a_chain_whose_last_token_the_edge_has_found_itself_goes_on_and_no_other_is_awaited():
    wire, whole = pair(), truth(PROMPT, 12)
    wire.edge.receive_chunk(chunk(1, 3, *whole[3:6]))
    wire.take(2)
    wire.settle()
    assert wire.edge.request.committed == whole[:6]
    assert not wire.edge.awaits(chunk(2, 6, 5))
    assert wire.edge.awaits(chunk(1, 6, 5))
    counts = wire.edge.counts
    assert (counts.received, counts.accepted, counts.rejected, counts.wasted) == (3, 2, 0, 1)


def test_what_stands_in_a_chain_behind_a_stop_id_is_rejected_and_not_named_to_the_device():
    whole = truth(PROMPT, 12)
    wire = Wire(12, stop_ids=(whole[4],))
    wire.connect()
    for _ in range(2):
        wire.hear_up()
        while wire.down:
            wire.hear_down()
    wire.stream(4, 4)
    wire.hear_down()
    wire.edge.receive_chunk(chunk(1, 3, *whole[3:6]))  # an honest device drafts nothing after the stop id
    wire.take(3)
    wire.settle()
    assert wire.edge.request.finish == "stop"
    told = decode_downlink(wire.down[0][0])
    assert (told.verified, told.accepted, told.ids, told.finish) == (3, 2, (), "stop")
    counts = wire.edge.counts
    assert (counts.received, counts.accepted, counts.rejected, counts.wasted) == (3, 2, 1, 0)


def test_a_device_that_begins_one_chain_after_the_other_unasked_makes_noise():
    wire = pair()
    awaited = 0
    for epoch in range(1, 300):  # each is wrong where the text is written, and so ends at once
        awaited += wire.edge.awaits(chunk(epoch, 0, 7))
        wire.edge.receive_chunk(chunk(epoch, 0, 7))
    assert awaited <= 3
    wire.take(0)
    wire.settle()
    assert wire.edge.awaits(chunk(300, 4, 5))  # it was told something: it may start over once
    wire.edge.receive_chunk(chunk(300, 0, 7))
    assert not wire.edge.awaits(chunk(301, 4, 5))


def test_what_was_on_its_way_when_the_text_ended_is_dropped_and_the_next_text_streams_anew():
    wire = pair(length=1)
    wire.edge.stage.change(Window(1, 4, 2, 1e4))
    wire.take(0)
    wire.settle()
    assert wire.edge.request.finish == "length"
    assert wire.edge.awaits(chunk(1, 3, 5, 6))
    wire.edge.receive_chunk(chunk(1, 3, 5, 6))
    assert wire.edge.counts.wasted == 2
    wire.hear_down()
    wire.device.begin(Request(PROMPT, SamplingParams(), 12))
    wire.edge.open(wire.device.open(), 100)
    wire.device.receive(wire.edge.stream(4, 1, 1e4))
    assert isinstance(wire.device.stage, DeviceStreaming)
    wire.begin()
    wire.end(True)
    frame, _ = wire.up.pop()
    wire.edge.receive_chunk(decode_uplink(frame))
    assert len(wire.edge.stage.pending) == 1


def test_a_stop_id_ends_the_text_inside_a_chain_and_nothing_is_drafted_after_it():
    whole = truth(PROMPT, 12)
    place = next(i for i in range(5, 15) if whole[i] not in whole[3:i])
    wire = Wire(12, stop_ids=(whole[place],))
    wire.connect()
    rng = random.Random(4)
    for _ in range(2000):
        if wire.device.finish:
            break
        wire.step(rng, 1.0, 0.0)
    assert wire.device.finish == "stop"
    assert wire.device.committed == whole[: place + 1]
    counts = wire.edge.counts
    assert counts.received == counts.accepted + counts.rejected + counts.wasted


def test_a_drafter_with_nothing_to_say_is_asked_again_when_the_text_goes_on():
    wire = pair()
    wire.device.drafted(1, 3, [], 0.0)
    assert wire.device.room_ahead == 0
    wire.take(0)
    wire.settle()
    wire.hear_down()
    assert wire.device.room_ahead == 4
    wire.device.drafted(1, 4, [V], 0.0)  # a special token that the target lacks
    assert wire.device.room_ahead == 0
    assert wire.device.wasted == 1
    assert wire.device.ahead == wire.device.committed
    assert wire.device.chunk() is None


def test_each_frame_says_how_long_its_own_tokens_took():
    device = pair().device
    device.drafted(1, 3, [5, 6, 7], 0.3)
    assert device.chunk().draft_us == 200_000  # two of the three
    device.drafted(1, 6, [4], 0.5)
    assert device.chunk().draft_us == 600_000


def test_a_stage_before_the_stream_is_waiting_again_after_a_loss():
    wire = pair()
    wire.begin()
    wire.end(True)
    wire.cut()
    assert wire.device.wasted == 1
    wire.connect()
    wire.hear_up()
    wire.hear_down()
    wire.hear_down()
    assert isinstance(wire.device.stage, Waiting)
    wire.hear_down()
    assert wire.device.epoch == 2


def test_a_device_with_a_window_of_nothing_sends_nothing_and_keeps_what_it_was_drafting():
    wire = pair()
    wire.device.receive(Window(1, 0, 1, 0.0))
    wire.device.drafted(wire.device.epoch, 3, [5, 6], 0.1)  # it was at it when the window came
    assert wire.device.chunk() is None
    wire.device.receive(Window(1, 4, 2, 1e4))
    frame = wire.device.chunk()
    assert frame is not None
    assert (frame.start, frame.length) == (3, 2)


def test_all_that_a_device_may_have_on_its_way_when_a_text_ends_is_awaited():
    """A window of its chain, and one of the chain that it began when it was contradicted."""
    wire = pair(length=1)
    wire.take(0)
    wire.settle()
    assert wire.edge.request.finish == "length"
    for message in (chunk(1, 3, 5, 6), chunk(1, 5, 5, 6), chunk(2, 4, 5, 6), chunk(2, 6, 5, 6)):
        assert wire.edge.awaits(message)
        wire.edge.receive_chunk(message)
    awaited = 0
    while wire.edge.awaits(chunk(2, 8, 5, 6)) and awaited < 100:
        awaited += 2
        wire.edge.receive_chunk(chunk(2, 8, 5, 6))
    assert awaited <= 4 * 4  # a window for each chain that it might have begun


def test_a_device_drafts_no_token_that_the_edge_alone_can_add():
    assert pair(length=3).device.room_ahead == 2
    assert pair(length=1).device.room_ahead == 0


def test_a_device_drafts_nothing_behind_a_stop_id():
    device = pair().device
    device.lose()
    device.begin(Request(PROMPT, SamplingParams(), 12, stop_ids=(5,)))
    device.greet()
    device.receive(Welcome(1, "secret", 5, V, 100, 30.0))
    device.open()
    device.receive(Window(1, 4, 2, 1e4))
    device.drafted(device.epoch, 3, [6], 0.1)
    assert device.room_ahead == 3
    device.drafted(device.epoch, 4, [5], 0.1)
    assert device.room_ahead == 0
    assert device.chunk().length == 2


def test_a_text_with_an_undecided_draft_does_not_begin_to_stream():
    wire = Wire()
    wire.connect()
    for _ in range(2):
        wire.hear_up()
        while wire.down:
            wire.hear_down()
    wire.edge.give(1, 2, 1e4)
    with pytest.raises(ValueError, match="undecided draft"):
        wire.edge.stream(4, 2, 1e4)


@pytest.mark.parametrize("drafts", [True, False])
def test_the_word_to_a_device_that_waits_is_its_window_only_if_it_drafts(drafts):
    edge = EdgeSession(7, "secret", replace(HELLO, drafts=drafts), V)
    edge.open(pair().device.request.to_open(7, [], V), 100)
    window = edge.stream(4 if drafts else 0, 1, 1e4)
    assert edge.word() == (window if drafts else Tail(7, 3, b"", 0))


def commit(base, epoch, verified, accepted, *ids):
    return Commit(base, epoch, verified, accepted, ids, scores=(Score(-1.0),) * (accepted + len(ids)))


def sent_two():
    """A device that has sent two tokens of its first chain, and has drafted a third."""
    device = pair().device
    device.drafted(1, 3, [5, 6, 7], 0.1)
    assert device.chunk().length == 2
    return device


@pytest.mark.parametrize(
    "impossible", [commit(3, 2, 1, 1), commit(3, 0, 1, 1), commit(3, 1, 3, 0, 1), commit(3, 1, 1, 2, 1)]
)
def test_only_tokens_of_this_chain_that_were_sent_can_have_been_accepted(impossible):
    with pytest.raises(InputError, match="never sent"):
        sent_two().receive(impossible)
    device = sent_two()
    device.receive(commit(3, 1, 2, 1, 7))
    assert device.generated == [5, 7]


def test_a_commit_that_a_tail_has_overtaken_is_known_already():
    device = sent_two()
    device.receive(commit(3, 1, 2, 1, 7))
    epoch = device.epoch
    for repeated in (commit(3, 1, 2, 1, 7), commit(3, 1, 0, 0, 5), commit(4, epoch, 0, 0, 7)):
        assert device.receive(repeated).tokens == ()
    assert device.generated == [5, 7]
    assert device.epoch == epoch


def test_what_a_device_drafts_for_places_that_are_written_meanwhile_counts_only_as_far_as_it_agrees():
    for drafted, kept in [([1, 5], [5]), ([2, 5], []), ([1, 2, 3], [2, 3]), ([1], [])]:
        device = pair().device
        device.receive(commit(3, 1, 0, 0, 1))  # nothing was drafted yet: the chain goes on
        device.drafted(1, 3, drafted, 0.1)
        assert device.ahead == [*PROMPT, 1, *kept]
        assert device.wasted == len(drafted) - len(kept)


def test_a_chain_that_a_device_begins_unasked_replaces_the_one_before():
    edge = pair().edge
    edge.receive_chunk(chunk(1, 3, 5, 6))
    edge.receive_chunk(chunk(2, 3, 7))
    assert edge.stage.pending == [7]
    edge.receive_chunk(chunk(1, 5, 5))
    assert edge.stage.pending == [7]
    assert edge.counts.wasted == 3


def test_a_text_that_loses_its_slot_wastes_what_was_pending_and_takes_nothing_of_that_chain_later():
    edge = pair().edge
    edge.receive_chunk(chunk(4, 3, 5, 6))
    edge.withdraw()
    assert edge.counts.wasted == edge.counts.received == 2
    edge.stream(4, 2, 1e4)
    for late in (chunk(4, 5, 5), chunk(3, 3, 5), chunk(4, 3, 5)):
        edge.receive_chunk(late)
    assert edge.stage.pending == []
    assert edge.counts.wasted == edge.counts.received == 5
    edge.receive_chunk(chunk(5, 3, 7))
    assert edge.stage.pending == [7]


def test_the_next_text_of_a_session_takes_nothing_of_the_chains_of_the_text_before():
    wire = pair(length=1)
    wire.device.drafted(1, 3, [5], 0.1)
    wire.edge.receive_chunk(chunk(1, 3, 5))
    wire.take(1)
    wire.settle()
    wire.hear_down()
    assert wire.device.finish == "length"
    wire.device.begin(Request(PROMPT, SamplingParams(), 12))
    wire.edge.open(wire.device.open(), 100)
    wire.device.receive(wire.edge.stream(4, 1, 1e4))
    wire.edge.receive_chunk(chunk(1, 3, 6))  # of the text before
    assert wire.edge.stage.pending == []
    wire.device.drafted(wire.device.epoch, 3, [2], 0.1)
    wire.edge.receive_chunk(wire.device.chunk())
    assert wire.edge.stage.pending == [2]
