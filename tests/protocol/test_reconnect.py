"""Connections that break at every point of a conversation: before, during and after every transition of a session.

Both real state machines stand at the ends of a wire that can be cut. What is in flight is lost then; the drafter goes
on meanwhile, as a device's thread does. However often that happens, the text is the one of an unbroken wire.
"""

from collections import deque
from functools import cache

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from multispin.protocol import (
    PROTOCOL_VERSION,
    Ask,
    DeviceSession,
    Distribution,
    Draft,
    EdgeSession,
    Error,
    Hello,
    Idle,
    Open,
    Pending,
    Profile,
    ProtocolError,
    Request,
    Resume,
    SessionGoneError,
    Welcome,
    decode_downlink,
    decode_uplink,
    encode,
)
from multispin.protocol.device_stages import Welcomed
from multispin.speculation import Rule, SamplingParams, certain_distribution, draw, judge, scores

V, PROMPT, LENGTH = 20, (1, 2, 3), 7
HELLO = Hello(PROTOCOL_VERSION, "abc", "phone", "q5", True, Profile(0.05, 3.0))
LOGITS = 3.0 * torch.randn(V, V, generator=torch.Generator().manual_seed(4))
"""The target: next-token logits by the newest token."""


@cache
def truth(params):
    text = list(PROMPT)
    while len(text) < len(PROMPT) + LENGTH:
        text += draw(LOGITS[text[-1]][None], [len(text)], params)
    return text


class Wire:
    """A device and an edge that keeps its session, and what is in flight between them."""

    def __init__(self, by, **edge):
        self.edge_options = edge
        logprobs = None if by in (Rule.REJECTION_UP, Rule.REJECTION_DOWN) else 2
        self.params = SamplingParams(0.0 if by is Rule.GREEDY else 1.0, seed=8, logprobs=logprobs)
        self.scores = []  # what the device was told of its tokens
        self.device, self.edge = DeviceSession(HELLO), None
        self.device.begin(Request(PROMPT, self.params, LENGTH, rule=by))
        self.up, self.down = deque(), deque()
        self.connected = self.greeted = False  # the edge sends nothing on a connection that has not greeted
        self.round = self.edges = 0
        self.drafting = None  # what the device's thread works at: the grant, and the text at its beginning

    # The wire ---------------------------------------------------------------------------------------------------

    def say_up(self, message):
        if self.connected:
            self.up.append(encode(message))

    def say_down(self, *messages):
        if self.greeted:
            self.down.extend(encode(message) for message in messages)

    def connect(self):
        self.connected = True
        self.say_up(self.device.greet())

    def cut(self):
        self.connected = self.greeted = False
        self.up.clear()
        self.down.clear()
        self.device.lose()

    def lose_edge(self):
        self.cut()
        self.edge = None

    # The edge ---------------------------------------------------------------------------------------------------

    def hear_up(self):
        message, self.greeted = decode_uplink(self.up.popleft()), True
        try:
            match message:
                case Hello():
                    self.edges += 1
                    self.edge = EdgeSession(self.edges, f"secret {self.edges}", message, V, **self.edge_options)
                    self.say_down(self.welcome())
                case Resume():
                    if self.edge is None or self.edge.resume_token != message.resume_token:
                        raise ProtocolError("unknown-session", "nothing to resume")
                    self.say_down(self.welcome(), *self.edge.catch_up(message.length))
                case Open():
                    if self.edge.open(message, 100).finish:
                        self.say_down(self.edge.tail(message.prompt_tokens))
                case Draft():
                    self.say_down(*self.edge.receive(message))
                case Distribution():
                    self.say_down(self.edge.receive_distribution(message))
        except ProtocolError as error:
            self.say_down(Error(error.code, str(error)))

    def welcome(self):
        return Welcome(self.edge.number, self.edge.resume_token, 5, V, 100, 30.0)

    def may_grant(self):
        edge = self.edge
        return edge is not None and edge.request and not edge.request.finish and isinstance(edge.stage, Idle)

    def grant(self, length):
        self.round += 1
        self.say_down(self.edge.give(self.round, min(length, self.edge.room), 1e4))

    def may_verify(self):
        return self.edge is not None and isinstance(self.edge.stage, Pending)

    def verify(self):
        edge = self.edge
        stage, request = edge.stage, edge.request
        rows = LOGITS[[request.committed[-1], *stage.draft]]
        self.say_down(edge.settle(judge(stage.draft, stage.evidence, rows, len(request.committed), request.params)))

    # The device -------------------------------------------------------------------------------------------------

    def hear_down(self):
        message = decode_downlink(self.down.popleft())
        try:
            self.scores += self.device.receive(message).scores
        except SessionGoneError:
            self.cut()
            return
        if isinstance(self.device.stage, Welcomed):
            self.say_up(self.device.open())
        if isinstance(message, Ask):
            self.say_up(self.device.distribution(message))
        if (again := self.device.unsent()) is not None:
            self.say_up(again)

    def may_begin_draft(self):
        return self.device.wants_draft and self.drafting != (self.device.grant, len(self.device.committed))

    def begin_draft(self):
        self.drafting = (self.device.grant, len(self.device.committed))

    def end_draft(self):
        device, (grant, base) = self.device, self.drafting
        self.drafting = None
        if device.grant != grant or len(device.committed) != base:
            return
        right = [0] * base + truth(self.params)[base:]
        count = 0 if device.over else grant.length
        ids = [(right[base + i] if i < 2 else 7) % V for i in range(min(count, len(right) - base))]  # the third is bad
        distributions = [certain_distribution(token, device.form) for token in ids]
        message = device.answer(ids, 0.1, distributions)
        if device.joined:
            self.say_up(message)

    # A schedule -------------------------------------------------------------------------------------------------

    def step(self):
        """Whatever comes first of what can happen on an unbroken wire."""
        if not self.connected:
            self.connect()
        elif self.up:
            self.hear_up()
        elif self.down:
            self.hear_down()
        elif self.drafting:
            self.end_draft()
        elif self.may_begin_draft():
            self.begin_draft()
        elif self.may_verify():
            self.verify()
        else:
            self.grant(3)

    def finish(self):
        steps = 0
        while not self.device.finish and steps < 1000:
            steps += 1
            self.step()
        assert self.device.finish == "length"
        assert len(self.device.generated) == LENGTH
        if self.edge is not None:
            assert self.device.committed == self.edge.request.committed
        if self.device.rule in (Rule.GREEDY, Rule.COUPLED):
            assert self.device.committed == truth(self.params)
        if self.params.logprobs is not None:
            assert self.scores == list(scores(LOGITS[self.device.committed[2:-1]], self.device.generated, 2))
        return steps


@pytest.mark.parametrize("by", list(Rule))
@pytest.mark.parametrize("loss", [Wire.cut, Wire.lose_edge])
def test_a_cut_before_or_after_any_step_changes_nothing(by, loss):
    cut_everywhere(by, loss)


def cut_everywhere(by, loss, **edge):
    steps = Wire(by, **edge).finish()
    assert steps > 15
    for first in range(steps):
        for second in range(0, 12, 2) if first % 4 == 0 else (0, 3):
            wire = Wire(by, **edge)
            for stretch in (first, second):
                for _ in range(stretch):
                    if not wire.device.finish:
                        wire.step()
                if not wire.device.finish:
                    loss(wire)
            wire.finish()


def test_log_probabilities_that_were_missed_come_in_several_messages():
    cut_everywhere(Rule.COUPLED, Wire.cut, scored_tail=2)
    wire = Wire(Rule.COUPLED, scored_tail=2)
    wire.finish()
    tails = wire.edge.catch_up(len(PROMPT))
    assert [len(tail.scores) for tail in tails] == [tail.count for tail in tails] == [2, 2, 2, 1]
    assert [tail.finish for tail in tails] == ["", "", "", "length"]


class Conversation(RuleBasedStateMachine):
    """Anything that can happen, in any order."""

    @initialize(by=st.sampled_from(list(Rule)))
    def begin(self, by):
        self.wire = Wire(by)

    @precondition(lambda self: not self.wire.connected)
    @rule()
    def connect(self):
        self.wire.connect()

    @precondition(lambda self: self.wire.up)
    @rule()
    def edge_hears(self):
        self.wire.hear_up()

    @precondition(lambda self: self.wire.down and not self.wire.device.finish)
    @rule()
    def device_hears(self):
        self.wire.hear_down()

    @precondition(lambda self: self.wire.may_grant())
    @rule(length=st.integers(0, 5))
    def edge_grants(self, length):
        self.wire.grant(length)

    @precondition(lambda self: self.wire.may_verify())
    @rule()
    def edge_verifies(self):
        self.wire.verify()

    @precondition(lambda self: self.wire.may_begin_draft())
    @rule()
    def device_begins_a_draft(self):
        self.wire.begin_draft()

    @precondition(lambda self: self.wire.drafting)
    @rule()
    def device_ends_its_draft(self):
        self.wire.end_draft()

    @precondition(lambda self: not self.wire.device.finish)
    @rule()
    def connection_breaks(self):
        self.wire.cut()

    @precondition(lambda self: not self.wire.device.finish)
    @rule()
    def edge_is_lost(self):
        self.wire.lose_edge()

    @invariant()
    def device_knows_a_text_that_the_edge_may_go_on_with(self):
        wire = getattr(self, "wire", None)
        if wire is not None and wire.device.rule in (Rule.GREEDY, Rule.COUPLED):
            assert truth(wire.params)[: len(wire.device.committed)] == wire.device.committed

    def teardown(self):
        if hasattr(self, "wire"):
            self.wire.finish()


Conversation.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestConversation = Conversation.TestCase
