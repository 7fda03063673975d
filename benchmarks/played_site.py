"""An edge and its devices without sockets, for `bench_server.py`: a virtual clock, and processor time by part.

The edge's passes, the devices' state machines and their frames are the real ones. Frames take no time on their way.
What reading the processor's clock takes is not counted: two microseconds for each frame would be a third of it.
"""

import heapq
import itertools
import time
from concurrent.futures import Executor, Future
from functools import partial

from multispin.edge import Metrics
from multispin.edge.account import Account
from multispin.edge.metrics import Counts
from multispin.passes import Controller, Passes, Send, Sleep, Verify
from multispin.protocol import Open, decode_uplink, encode, websocket_frame_bytes
from played_clients import PlayedDevice


class Clock:
    """A virtual clock: what is to be done at which time."""

    def __init__(self):
        self.now_s = 0.0
        self._heap, self._order = [], itertools.count()

    def call_later(self, delay_s, work):
        """Have something done after so long [s]."""
        timer = Timer(work)
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._order), timer))
        return timer

    def step(self):
        """Do what comes next."""
        self.now_s, _, timer = heapq.heappop(self._heap)
        if not timer.cancelled:
            timer.work()


class Timer:
    """What is to be done, unless it is cancelled."""

    def __init__(self, work):
        self.work, self.cancelled = work, False

    def cancel(self):
        self.cancelled = True


class Planning(Executor):
    """Does work at once, and counts its processor time [s]; what was found is there after as long on the clock."""

    def __init__(self, clock):
        self.spent_s = 0.0
        self._clock = clock

    def submit(self, work, /, *arguments, **named):
        future, began_s = Future(), time.thread_time()
        found = work(*arguments, **named)
        spent_s = time.thread_time() - began_s
        self.spent_s += spent_s
        self._clock.call_later(spent_s, partial(future.set_result, found))
        return future


def clock_s():
    """What a look at the processor time of this thread takes [s]."""
    looks = [time.thread_time() for _ in range(1000)]
    return min(after - before for before, after in itertools.pairwise(looks))


class Site:
    """An edge and so many devices.

    Attributes:
        passes: passes that have ended.
        members: sessions in them.
        frames: frames that came.
        spent_s: processor time by part [s].

    Args:
        engine: verifies; its time counts by `pass_s` only.
        controller: plans.
        limits: bounds of the edge.
        devices: number of devices.
        pass_s: time of a pass [s].
        token_s: time that a device takes to draft a token [s].

    """

    def __init__(self, engine, controller: Controller, limits, devices, pass_s, token_s):
        self.passes = self.members = self.frames = 0
        self.spent_s = dict.fromkeys(("receive", "advance", "settle", "send", "events", "planning"), 0.0)
        self._clock, self._looks, self._devices = Clock(), False, {}
        self._clock_s = clock_s()
        self._planning = Planning(self._clock)
        controller.plan_in(self._planning, time.thread_time)
        self._edge = Passes(engine, controller, "stub", limits)
        self._account = Account(self._edge)
        self._metrics = Metrics("stub", lambda: Counts(0, 0, (), 0, 0, 0.0, 0, 0))
        self._pass_s, self._until_s = pass_s, None
        for number in range(devices):  # one after the other, as they would come
            self._clock.call_later(0.001 * number, partial(self._arrive, number, token_s))

    def run(self, passes):
        """Go on until so many more passes have ended."""
        until = self.passes + passes
        while self.passes < until:
            self._clock.step()

    def _arrive(self, number, token_s):
        device = PlayedDevice(number, token_s, lambda frame: self._greeted(device, frame), self._clock.call_later)
        device.begin()

    def _greeted(self, device, frame):
        number, answers = self._edge.connect(decode_uplink(frame), self._clock.now_s)
        self._devices[number] = device
        device._send_frame = lambda frame: self._received(number, frame)
        for answer in answers:
            self._hear(number, encode(answer))

    def _hear(self, number, frame):
        self._clock.call_later(0.0, partial(self._devices[number].hear, frame))

    def _received(self, number, frame):
        """What the server does with a frame."""
        now_s, began_s = self._clock.now_s, time.thread_time()
        message = decode_uplink(frame)
        self._edge.session(number).awaits(message)
        answers = [
            encode(each)
            for each in self._edge.receive(number, message, websocket_frame_bytes(len(frame), masked=True), now_s)
        ]
        waits = self._edge.waits(now_s)
        self.spent_s["receive"] += time.thread_time() - began_s - self._clock_s
        self.frames += 1
        if isinstance(message, Open):
            self._metrics.tell(self._account.opened(number, "", now_s))
        for answer in answers:
            self._hear(number, answer)
        if not waits and not self._looks:
            self._looks = True
            self._clock.call_later(0.0, self._look)

    def _look(self):
        """What the server does with what the passes ask for."""
        self._looks = False
        while True:
            planned_s, began_s = self._planning.spent_s, time.thread_time()
            step = self._edge.advance(self._clock.now_s)
            ended_s = time.thread_time()
            planned_s = self._planning.spent_s - planned_s
            self.spent_s["planning"] += planned_s
            self.spent_s["advance"] += ended_s - began_s - planned_s
            if isinstance(step, Send):
                self._send(step)
            elif isinstance(step, Verify):
                self._account.batch(step.batch, self._clock.now_s)
                findings = self._edge.verify(step.batch)
                self._clock.call_later(self._pass_s, partial(self._verified, step.batch, findings))
                return
            else:
                assert isinstance(step, Sleep)
                if step.until_s is not None and step.until_s != self._until_s:
                    self._until_s = step.until_s
                    self._clock.call_later(max(0.0, step.until_s - self._clock.now_s), self._look)
                return

    def _verified(self, batch, findings):
        began_s = time.thread_time()
        self._edge.verified(batch, findings, self._pass_s, self._clock.now_s)
        self.spent_s["settle"] += time.thread_time() - began_s
        self.passes += 1
        self.members += len(batch.jobs)
        self._look()

    def _send(self, step):
        began_s = time.thread_time()
        frames = [(number, encode(message)) for number, message in step.messages]
        ended_s = time.thread_time()
        self.spent_s["send"] += ended_s - began_s
        if step.report is not None:
            self._metrics.tell(self._account.round(step.report, self._clock.now_s))
            for number in step.report.members:
                if (event := self._account.finished(number, self._clock.now_s)) is not None:
                    self._metrics.tell(event)
            self.spent_s["events"] += time.thread_time() - ended_s
        for number, frame in frames:
            self._hear(number, frame)
