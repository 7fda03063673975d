"""Streams: whatever is drafted, late, cut or ended, both ends hold the target's text, and every token is counted once.

Both state machines stand at the ends of a wire. Beside them runs a naive model, which compares whole texts where the
protocol compares epochs and positions.
"""

import random
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from multispin.errors import InputError
from multispin.protocol import (
    PROTOCOL_VERSION,
    Chunk,
    Commit,
    DeviceSession,
    EdgeSession,
    Error,
    Grant,
    Hello,
    Open,
    Profile,
    ProtocolError,
    Request,
    Resume,
    SessionGoneError,
    Streaming,
    Tail,
    Verdict,
    Welcome,
    Window,
    decode_downlink,
    decode_uplink,
    edge_stream,
    encode,
)
from multispin.protocol.device_stages import Waiting, Welcomed
from multispin.protocol.device_stream import Chains
from multispin.protocol.device_stream import Streaming as Ahead
from multispin.speculation import Rule, SamplingParams, Score, accept_matching, pack_ids

V, PROMPT = 8, (1, 2, 3)
HELLO = Hello(PROTOCOL_VERSION, "abc", "phone", "q5", True, Profile(0.05, 3.0))


def following(token, place):
    """The target: the token after `token`, at `place`."""
    return (3 * token + place) % V


def truth(prompt, length):
    text = list(prompt)
    while len(text) < len(prompt) + length:
        text.append(following(text[-1], len(text)))
    return text


class Wire:
    """A device and an edge, what is in flight between them, and the naive model of both."""

    def __init__(self, length=12, stop_ids=()):
        self.length, self.stop_ids = length, stop_ids
        self.device, self.edge = DeviceSession(HELLO), None
        self.device.begin(Request(PROMPT, SamplingParams(logprobs=0), length, stop_ids=stop_ids))
        self.scores = []  # what the device was told of its tokens: here each token's own number
        self.up, self.down = deque(), deque()
        self.ghosts = []  # frames of a lost connection that come after all
        self.connected = self.greeted = False
        self.begun = None  # what the device's thread works at
        self.made = self.accepted = self.rejected = 0  # by what the device was told
        self.chain = []  # naive edge: the whole text that the newest chunk belongs to
        self.believed = None  # naive device: the whole text that it drafts after

    # What can happen ------------------------------------------------------------------------------------------------

    def connect(self):
        self.connected = True
        self.up.append((encode(self.device.greet()), None))

    def cut(self):
        self.connected = self.greeted = False
        self.ghosts = [message for message in map(decode_uplink, (frame for frame, _ in self.up))
                       if isinstance(message, Chunk)]  # fmt: skip
        self.up.clear()
        self.down.clear()
        self.device.lose()
        self.believed = None

    def hear_up(self):
        (frame, text), self.greeted = self.up.popleft(), True
        message = decode_uplink(frame)
        match message:
            case Hello():
                self.edge, self.chain = EdgeSession(1, "secret", message, V), []
                self.tell(Welcome(1, "secret", 5, V, 100, 30.0))
            case Resume():
                if self.edge.request is None:  # the Open was lost
                    self.tell(Error("no-request", "nothing to go on with"))
                    return
                self.tell(Welcome(1, "secret", 5, V, 100, 30.0), *self.edge.catch_up(message.length))
                self.chain = []
            case Open():
                self.edge.open(message, 100)
            case Chunk():
                assert self.edge.awaits(message) or not self.edge.request.finish
                self.edge.receive_chunk(message)
                self.chain = text

    def haunted(self):
        """Whether the edge has seen the chain of a ghost, as it has of all that come before a Resume was heard."""
        stage = self.streaming() if self.greeted else None
        return stage is not None and self.ghosts and self.ghosts[0].epoch <= stage.epoch

    def haunt(self):
        self.edge.receive_chunk(self.ghosts.pop(0))

    def tell(self, *messages):
        if self.greeted:
            self.down += [(encode(message), list(self.edge.request.committed) if self.edge.request else None)
                          for message in messages]  # fmt: skip

    def may_stream(self):
        edge = self.edge
        return edge is not None and edge.request is not None and not edge.request.finish and self.greeted

    def stream(self, length, chunk):
        self.tell(self.edge.stream(length, chunk, 1e4))

    def may_take(self):
        return self.streaming() is not None and self.streaming().riding is None

    def streaming(self):
        stage = self.edge.stage if self.edge is not None else None
        return stage if isinstance(stage, Streaming) else None

    def take(self, count):
        self.streaming().take(min(count, self.edge.room))

    def take_of_edge(self, count, ids):
        stage, room = self.streaming(), self.edge.room
        count = min(count, room, len(stage.pending))
        stage.take(count, ids[: room - count])

    def may_settle(self):
        return self.streaming() is not None and self.streaming().riding is not None

    def settle(self):
        ids, text = self.streaming().riding.ids, self.edge.request.committed
        own = [following(token, len(text) + i) for i, token in enumerate([text[-1], *ids])]
        outcome = accept_matching(list(ids), own)
        scores = tuple(Score(float(token)) for token in own[: outcome.accepted + 1])
        commit, _ = self.edge.settle_stream(outcome._replace(scores=scores))
        self.tell(commit)

    def hear_down(self):
        frame, text = self.down.popleft()
        message = decode_downlink(frame)
        try:
            progress = self.device.receive(message)
        except SessionGoneError:
            self.cut()
            return
        self.accepted += progress.accepted
        self.scores += progress.scores
        self.rejected += progress.drafted - progress.accepted
        if isinstance(self.device.stage, Welcomed):
            self.up.append((encode(self.device.open()), None))
        if isinstance(self.device.stage, Ahead):
            if self.believed is None or (
                isinstance(message, Commit) and self.believed[: len(text)] != text[: len(self.believed)]
            ):
                self.believed = list(self.device.committed)
            if len(self.believed) < len(self.device.committed):
                self.believed = list(self.device.committed)

    def may_begin(self):
        return self.begun is None and self.device.room_ahead > 0

    def begin(self):
        self.begun = self.device.epoch, self.device.ahead

    def end(self, right):
        (epoch, text), self.begun = self.begun, None
        token = following(text[-1], len(text))
        token = token if right else (token + 1) % V
        self.made += 1
        current = epoch == self.device.epoch  # a new chain inherits nothing, not even what would fit
        self.device.drafted(epoch, len(text), [token], 0.01)
        if current and self.believed == text:
            self.believed = [*text, token]
        while (chunk := self.device.chunk()) is not None:
            self.up.append((encode(chunk), self.device.ahead[: chunk.start + chunk.length]))

    # What must hold -------------------------------------------------------------------------------------------------

    def check(self):
        whole = truth(PROMPT, self.length)
        assert self.device.committed == whole[: len(self.device.committed)]
        assert self.scores == [Score(float(token)) for token in self.device.generated]
        if self.edge is None or self.edge.request is None:
            return
        text = self.edge.request.committed
        assert text == whole[: len(text)]
        counts, stage = self.edge.counts, self.streaming()
        under_way = 0
        if stage is not None:
            assert stage.pending == (self.chain[len(text) :] if self.chain[: len(text)] == text else [])
            under_way = len(stage.pending)
            if stage.riding is not None and not stage.riding.known:
                under_way += stage.riding.own
        assert counts.accepted + counts.rejected + counts.wasted + under_way == counts.received
        ahead = self.device.stage
        own = len(ahead.ids) if isinstance(ahead, Ahead) else 0
        assert self.accepted + self.rejected + self.device.wasted + own == self.made
        if isinstance(ahead, Ahead) and self.believed is not None:
            assert self.device.ahead == self.believed

    # A schedule -----------------------------------------------------------------------------------------------------

    def step(self, rng, accuracy, loss):
        """Something that can happen, drawn at random."""
        if not self.connected:
            self.connect()
            return
        if rng.random() < loss:
            self.cut()
            return
        able = [name for name, test in [
            ("hear_up", self.up), ("hear_down", self.down), ("begin", self.may_begin()), ("end", self.begun),
            ("take", self.may_take()), ("settle", self.may_settle()), ("haunt", self.haunted()),
        ] if test]  # fmt: skip
        if self.may_stream() and (self.streaming() is None or rng.random() < 0.05):
            able = ["stream"]
        match rng.choice(able or ["settle"]):
            case "stream":
                self.stream(rng.randint(1, 6), rng.randint(1, 4))
            case "end":
                self.end(rng.random() < accuracy)
            case "take" if rng.random() < 0.1:
                self.take_of_edge(rng.randint(0, 3), [rng.randrange(V) for _ in range(3)])
            case "take":
                self.take(rng.randint(0, 6))
            case name:
                getattr(self, name)()

    def play(self, seed, accuracy, loss=0.02, steps=3000):
        rng = random.Random(seed)
        for _ in range(steps):
            if self.device.finish:
                break
            self.step(rng, accuracy, loss)
            self.check()
        assert self.device.finish == "length"
        assert self.device.committed == truth(PROMPT, self.length) == self.edge.request.committed
        return self


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.9, 1.0])
def test_the_text_is_the_targets_whatever_is_drafted_late_or_cut(accuracy):
    for seed in range(150):
        Wire().play(seed, accuracy)


def test_some_drafts_are_accepted_and_some_chains_survive_a_pass():
    counts = [Wire(60).play(seed, 0.9, loss=0.0).edge.counts for seed in range(20)]
    assert sum(each.accepted for each in counts) > 0.1 * sum(each.received for each in counts) > 20
    assert all(each.accepted + each.rejected + each.wasted == each.received for each in counts)


class Conversation(RuleBasedStateMachine):
    """Anything that can happen, in any order."""

    @initialize()
    def start(self):
        self.wire = Wire()

    @precondition(lambda self: not self.wire.connected)
    @rule()
    def connect(self):
        self.wire.connect()

    @precondition(lambda self: self.wire.connected and not self.wire.device.finish)
    @rule()
    def cut(self):
        self.wire.cut()

    @precondition(lambda self: self.wire.up)
    @rule()
    def edge_hears(self):
        self.wire.hear_up()

    @precondition(lambda self: self.wire.haunted())
    @rule()
    def a_ghost_comes(self):
        self.wire.haunt()

    @precondition(lambda self: self.wire.down and not self.wire.device.finish)
    @rule()
    def device_hears(self):
        self.wire.hear_down()

    @precondition(lambda self: self.wire.may_stream())
    @rule(length=st.integers(0, 6), chunk=st.integers(1, 4))
    def edge_grants_a_window(self, length, chunk):
        self.wire.stream(length, chunk)

    @precondition(lambda self: self.wire.may_take())
    @rule(count=st.integers(0, 6))
    def edge_begins_a_pass(self, count):
        self.wire.take(count)

    @precondition(lambda self: self.wire.may_take())
    @rule(count=st.integers(0, 3), ids=st.lists(st.integers(0, V - 1), max_size=3))
    def edge_drafts_itself(self, count, ids):
        self.wire.take_of_edge(count, ids)

    @precondition(lambda self: self.wire.may_settle())
    @rule()
    def edge_ends_its_pass(self):
        self.wire.settle()

    @precondition(lambda self: self.wire.may_begin())
    @rule()
    def device_begins_a_token(self):
        self.wire.begin()

    @precondition(lambda self: self.wire.begun)
    @rule(right=st.booleans())
    def device_ends_a_token(self, right):
        self.wire.end(right)

    @invariant()
    def holds(self):
        if hasattr(self, "wire"):
            self.wire.check()

    def teardown(self):
        if hasattr(self, "wire") and not self.wire.device.finish:
            self.wire.play(1, 0.7, loss=0.0)


Conversation.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestConversation = Conversation.TestCase


# Mistakes that one could make: each must be noticed -------------------------------------------------------------------


def old_epoch_is_taken(patch):
    was = edge_stream.Streaming.receive

    def receive(self, message, ids, committed):
        return was(self, replace(message, epoch=max(message.epoch, self.epoch)), ids, committed)

    patch.setattr(edge_stream.Streaming, "receive", receive)


def dead_chain_lives_on(patch):
    was = edge_stream.Streaming.kill

    def kill(self):
        alive = self.alive
        was(self)
        self.alive = alive

    patch.setattr(edge_stream.Streaming, "kill", kill)


def overlap_is_not_compared(patch):
    was = edge_stream.Streaming.receive

    def receive(self, message, ids, committed):
        written = committed[message.start : message.start + len(ids)]
        return was(self, message, [*written, *ids[len(written) :]], committed)

    patch.setattr(edge_stream.Streaming, "receive", receive)


def overlap_is_not_cut(patch):
    was = edge_stream.Streaming.receive

    def receive(self, message, ids, committed):
        before = len(self.pending)
        arrival = was(self, message, ids, committed)
        if self.alive and len(self.pending) - before < len(ids):
            self.pending[before:] = ids
        return arrival

    patch.setattr(edge_stream.Streaming, "receive", receive)


def resume_inherits(patch):
    patch.setattr(EdgeSession, "catch_up", lambda self, base: [self.tail(base), self.stage.window]
                  if isinstance(self.stage, Streaming) else [self.tail(base)])  # fmt: skip


def accepted_of_a_dead_chain_is_named(patch):
    was = edge_stream.Streaming.kill

    def kill(self):
        riding = self.riding
        was(self)
        if riding is not None and riding.ids:
            riding.known = True

    patch.setattr(edge_stream.Streaming, "kill", kill)


def next_token_is_not_compared(patch):
    was = edge_stream.Streaming.settle

    def settle(self, outcome, request):
        if outcome.accepted < len(self.pending):
            self.pending[outcome.accepted] = outcome.next_token
        return was(self, outcome, request)

    patch.setattr(edge_stream.Streaming, "settle", settle)


def device_never_starts_over(patch):
    patch.setattr(Chains, "begin", lambda self, window: Ahead(window, max(1, self.epoch)))


def device_keeps_what_is_contradicted(patch):
    def follow(self, tokens):
        written = min(len(self.ids), len(tokens))
        del self.ids[:written]
        self.sent = max(0, self.sent - written)
        return written

    patch.setattr(Ahead, "follow", follow)


def device_takes_a_token_of_an_old_chain(patch):
    was = DeviceSession.drafted
    patch.setattr(DeviceSession, "drafted", lambda self, epoch, *more: was(self, self.epoch, *more))


def device_takes_a_token_for_another_place(patch):
    was = DeviceSession.drafted
    patch.setattr(DeviceSession, "drafted",
                  lambda self, epoch, start, *more: was(self, epoch, len(self.ahead), *more))  # fmt: skip


def device_inherits_an_old_connection(patch):
    was = DeviceSession.greet

    def greet(self):
        self._chains.epoch -= self.epoch > 0
        return was(self)

    patch.setattr(DeviceSession, "greet", greet)


MUTANTS = [
    old_epoch_is_taken,
    dead_chain_lives_on,
    overlap_is_not_compared,
    overlap_is_not_cut,
    resume_inherits,
    accepted_of_a_dead_chain_is_named,
    next_token_is_not_compared,
    device_never_starts_over,
    device_keeps_what_is_contradicted,
    device_takes_a_token_of_an_old_chain,
    device_takes_a_token_for_another_place,
    device_inherits_an_old_connection,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_way_to_take_what_is_stale_is_noticed(mutant, monkeypatch):
    mutant(monkeypatch)

    def play():
        for seed in range(100):
            Wire().play(seed, 0.6, loss=0.04)

    with pytest.raises((AssertionError, InputError)):
        play()


# What is refused ------------------------------------------------------------------------------------------------------


def pair(length=12):
    """A device and an edge with an open text that streams: windows of 4 tokens, frames of 2."""
    wire = Wire(length)
    wire.connect()
    for _ in range(2):
        wire.hear_up()
        while wire.down:
            wire.hear_down()
    wire.stream(4, 2)
    wire.hear_down()
    return wire


def chunk(epoch, start, *ids):
    return Chunk(epoch, start, len(ids), pack_ids(ids, V), 10)


def test_what_no_honest_device_sends_is_refused_by_code():
    wire = pair()
    for message, code in [(chunk(1, 4, 5), "gap"), (chunk(1, 3, 1, 2, 3, 4, 5), "too-many")]:
        with pytest.raises(ProtocolError) as refusal:
            wire.edge.receive_chunk(message)
        assert refusal.value.code == code
        wire = pair()
    wire.edge.receive_chunk(chunk(1, 3, 5, 6))
    with pytest.raises(ProtocolError) as refusal:  # sent twice
        wire.edge.receive_chunk(chunk(1, 3, 5, 6))
    assert refusal.value.code == "gap"
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
        (Commit(3, 1, 0, 0, (1,), "bored"), "not known here"),
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
    assert isinstance(wire.device.stage, Ahead)
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
