"""Mistakes that one could make in a stream: each must be noticed by whoever compares whole texts."""

import pytest
from msgspec.structs import replace
from tests.protocol.stream_wire import Wire

from multispin.errors import InputError
from multispin.protocol import (
    DeviceSession,
    EdgeSession,
    Streaming,
    edge_stream,
)
from multispin.protocol.device_stream import Chains, DeviceStreaming


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
    patch.setattr(Chains, "begin", lambda self, window: DeviceStreaming(window, max(1, self.epoch)))


def device_keeps_what_is_contradicted(patch):
    def follow(self, tokens):
        written = min(len(self.ids), len(tokens))
        del self.ids[:written]
        self.sent = max(0, self.sent - written)
        return written

    patch.setattr(DeviceStreaming, "follow", follow)


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


def device_remembers_a_lost_edge(patch):
    patch.setattr(DeviceSession, "forget_edge", DeviceSession.lose)


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
    device_remembers_a_lost_edge,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_way_to_take_what_is_stale_is_noticed(mutant, monkeypatch):
    mutant(monkeypatch)

    def play():
        for seed in range(100):
            Wire().play(seed, 0.6, loss=0.04)

    with pytest.raises((AssertionError, InputError)):
        play()
