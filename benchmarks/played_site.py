"""An edge and its devices without sockets, for `bench_server.py`: a virtual clock, and processor time by part.

The edge's passes, the devices' state machines and their frames are the real ones. Frames take no time on their way.
What reading the processor's clock takes is not counted: two microseconds for each frame would be a third of it.
"""

import itertools
import time
from concurrent.futures import Executor, Future
from functools import partial

from multispin.edge.account import Account, Counts
from multispin.edge.metrics import Metrics
from multispin.passes import Controller, Passes
from multispin.protocol import Open, decode_uplink, encode, websocket_frame_bytes
from multispin.simulation.clock import EventQueue
from multispin.simulation.driver import VirtualDriver
from played_clients import PlayedDevice


class Timer:
    """What is to be done, unless it is cancelled."""

    def __init__(self, work):
        self._work = work

    def cancel(self):
        self._work = None

    def end(self):
        if self._work is not None:
            self._work()


class Planning(Executor):
    """Does work at once, and counts its processor time [s]; what was found is there after as long on the clock."""

    def __init__(self, queue):
        self.spent_s, self._queue = 0.0, queue

    def submit(self, work, /, *arguments, **named):
        future, began_s = Future(), time.thread_time()
        found = work(*arguments, **named)
        spent_s = time.thread_time() - began_s
        self.spent_s += spent_s
        self._queue.at(self._queue.now_s + spent_s, partial(future.set_result, found))
        return future


class TimedPasses(Passes):
    """Passes that count their processor time [s]; that of planning is a part of `advance_s`."""

    advance_s = settle_s = 0.0

    def advance(self, now_s):
        began_s = time.thread_time()
        step = super().advance(now_s)
        self.advance_s += time.thread_time() - began_s
        return step

    def verified(self, *arguments):
        began_s = time.thread_time()
        super().verified(*arguments)
        self.settle_s += time.thread_time() - began_s


def clock_s():
    """What a look at the processor time of this thread takes [s]."""
    looks = [time.thread_time() for _ in range(1000)]
    return min(after - before for before, after in itertools.pairwise(looks))


class Site(VirtualDriver):
    """An edge and so many devices.

    Attributes:
        ended: passes that have ended.
        members: sessions in them.
        frames: frames that came.

    Args:
        engine: verifies; its time counts by `pass_s` only.
        controller: plans.
        limits: bounds of the edge.
        devices: number of devices.
        pass_s: time of a pass [s].
        token_s: time that a device takes to draft a token [s].

    """

    def __init__(self, engine, controller: Controller, limits, devices, pass_s, token_s):
        super().__init__(EventQueue(), TimedPasses(engine, controller, "stub", limits))
        self.ended = self.members = self.frames = 0
        self._receive_s = self._send_s = self._events_s = 0.0
        self._clock_s, self._pass_s = clock_s(), pass_s
        self._planning = Planning(self.queue)
        controller.plan_in(self._planning, time.thread_time)
        self._account = Account(self.passes)
        self._metrics = Metrics("stub", lambda: Counts(0, 0, (), 0, 0, 0.0, 0, 0))
        self._sessions = {}  # of each device, by its number
        self._devices = {}  # by session
        self._players = [
            PlayedDevice(number, token_s, partial(self._received, number), self._later) for number in range(devices)
        ]
        for number, device in enumerate(self._players):
            self.queue.at(0.001 * number, device.begin)  # one after the other, as they would come

    @property
    def spent_s(self):
        """Processor time by part [s]."""
        return {
            "receive": self._receive_s,
            "advance": self.passes.advance_s - self._planning.spent_s,
            "settle": self.passes.settle_s,
            "send": self._send_s,
            "events": self._events_s,
            "planning": self._planning.spent_s,
        }

    def run(self, passes):
        """Go on until so many more passes have ended."""
        until = self.ended + passes
        while self.ended < until:
            self.queue.step()

    def _later(self, delay_s, work):
        timer = Timer(work)
        self.queue.at(self.queue.now_s + delay_s, timer.end)
        return timer

    def _received(self, device, frame):
        """What the server does with a frame; the first one of a device is its greeting."""
        now_s, began_s, message = self.queue.now_s, time.thread_time(), decode_uplink(frame)
        number = self._sessions.get(device)
        if number is None:
            number, answers = self.passes.connect(message, now_s)
            self._sessions[device], self._devices[number] = number, self._players[device]
            for answer in answers:
                self._hear(number, encode(answer))
            return
        self.passes.session(number).awaits(message)
        frame_bytes = websocket_frame_bytes(len(frame), masked=True)
        answers = [encode(each) for each in self.passes.receive(number, message, frame_bytes, now_s)]
        waits = self.passes.waits(now_s)
        self._receive_s += time.thread_time() - began_s - self._clock_s
        self.frames += 1
        if isinstance(message, Open):
            self._metrics.tell(self._account.opened(number, "", now_s))
        for answer in answers:
            self._hear(number, answer)
        if not waits:
            self.wake()

    def _hear(self, number, frame):
        self.queue.at(self.queue.now_s, partial(self._devices[number].hear, frame))

    def tell(self, number, message):
        began_s = time.thread_time()
        frame = encode(message)
        self._send_s += time.thread_time() - began_s - self._clock_s
        self._hear(number, frame)

    def pass_s(self, batch):
        self._account.batch(batch, self.queue.now_s)
        return self._pass_s, self._pass_s

    def draft_here(self, step):
        raise NotImplementedError("the edge has no drafter of its own")

    def reported(self, report):
        began_s, now_s = time.thread_time(), self.queue.now_s
        self._metrics.tell(self._account.round(report, now_s))
        for number in report.members:
            if (event := self._account.finished(number, now_s)) is not None:
                self._metrics.tell(event)
        self._events_s += time.thread_time() - began_s

    def verified(self, batch, findings, verify_s):
        self.ended += 1
        self.members += len(batch.jobs)
        super().verified(batch, findings, verify_s)
