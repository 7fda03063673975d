"""The order in which the loop of an edge works: the engine comes first."""

import threading

import pytest

from multispin.edge.account import Account
from multispin.edge.audience import Audience
from multispin.edge.pass_loop import PassLoop
from multispin.passes import Controller, ControllerSettings, Passes
from multispin.protocol import Commit, DeviceSession, Request, Verdict
from multispin.protocol.events import Round
from multispin.speculation import SamplingParams


class OneDevice:
    """A device within this process: the `Post` of a loop whose only text is its own.

    Args:
        hello: its greeting.
        engine: the edge's engine.
        mode: who drafts at the edge.
        tokens: number of tokens of its text.
        on_result: called with each result of a pass that has reached the device.

    """

    def __init__(self, hello, engine, mode, tokens, on_result):
        self.passes = Passes(engine, Controller(ControllerSettings("fixed", 1e6, 7, 8, mode=mode)), "stub")
        self.device, self.rounds, self._on_result = DeviceSession(hello), [], on_result
        self.device.begin(Request((1, 2), SamplingParams(), tokens))
        self._loop = PassLoop(self.passes, Account(self.passes), Audience(self._hear))

    def _hear(self, event):
        if isinstance(event, Round):
            self.rounds.append(event)

    async def run(self):
        self.number, answers = self.passes.connect(self.device.greet(), 0.0)
        for answer in answers:
            self.device.receive(answer)
        self.say(self.device.open())
        await self._loop.run(self)
        self._loop.close()
        assert self.device.finish == "length"

    def say(self, message):
        assert not self.passes.receive(self.number, message, 40, 0.0)
        self._loop.wake()

    def send(self, number, message):
        self.device.receive(message)
        if self.device.finish:
            self._loop.end()
        elif isinstance(message, Commit | Verdict):
            self._on_result(self)

    def spend(self, number, tokens, now_s):
        pass


@pytest.mark.parametrize("mode", ["plain", "streams"])
def test_the_next_pass_has_begun_when_the_results_of_the_last_one_are_sent(stub_site, run, mode):
    class Counting(stub_site.Engine):
        begun, more = 0, threading.Condition()

        def verify(self, feeds):
            with self.more:
                self.begun += 1
                self.more.notify_all()
            return super().verify(feeds)

        def has_begun(self, passes):
            with self.more:
                return self.more.wait_for(lambda: self.begun >= passes, timeout=5.0)

    engine, in_time, tokens = Counting(1), [], 5
    hello = stub_site().hello(drafts=False)
    run(OneDevice(hello, engine, mode, tokens, lambda one: in_time.append(engine.has_begun(len(one.rounds) + 2))).run())
    assert in_time == [True] * (tokens - 1)


def test_a_pass_is_told_with_its_own_drafters_although_the_next_one_has_begun(stub_site, run):
    def drafts_now_and_then(one):
        if len(one.rounds) % 6 == 5 and one.device.room_ahead:
            one.device.drafted(one.device.epoch, len(one.device.ahead), [1] * one.device.room_ahead, 0.001)
            while (chunk := one.device.chunk()) is not None:
                one.say(chunk)

    one = OneDevice(stub_site().hello(), stub_site.Engine(1), "streams", 60, drafts_now_and_then)
    run(one.run())
    rows = [row for each in one.rounds for row in each.devices]
    assert sum(row.tokens for row in rows) == 60
    assert [row.drafter for row in rows] == ["device" if row.drafted else "nobody" for row in rows]
