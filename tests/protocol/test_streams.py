"""Streams: whatever is drafted, late, cut or ended, both ends hold the target's text, and a token is counted once."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.protocol.stream_wire import V, Wire


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

    @precondition(lambda self: self.wire.connected and not self.wire.device.finish)
    @rule()
    def edge_is_lost(self):
        self.wire.lose_edge()

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

    @precondition(lambda self: self.wire.device.finish)
    @rule()
    def the_text_has_ended(self):
        """Nothing else may be left to do then, and a machine without a rule is an error of hypothesis's."""

    @invariant()
    def holds(self):
        if hasattr(self, "wire"):
            self.wire.check()

    def teardown(self):
        if hasattr(self, "wire") and not self.wire.device.finish:
            self.wire.play(1, 0.7, loss=0.0)


Conversation.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestConversation = Conversation.TestCase
