"""One schedule of real processes: an edge, devices and a proxy that are killed, frozen and thawed by signals.

Each device is a process that writes one text and sends it over a pipe. The edge may be killed in the middle of a pass;
another one then takes its port, without any memory. What a device loses is only its connection. A device that is killed
takes its own text with it, and nobody else's.
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import socket
import time

from tests.chaos import proxy, world

from multispin.demo.forks import PRELOAD
from multispin.protocol import SESSION_PATH, Request
from multispin.speculation import SamplingParams

DEVICES = 3
LIMIT_S = 90.0
"""A text that has not come by then is stuck."""
LEAST_TOKENS, MOST_TOKENS = 60, 300
FAULTS = ("freeze the edge", "kill the edge", "freeze a device", "kill a device", "freeze the proxy", "kill the proxy")
_server = multiprocessing.get_context("forkserver")


def _run_edge(port, mode, slots):
    async def serve():
        async with world.an_edge(port, mode, slots):
            await asyncio.Event().wait()

    asyncio.run(serve())


def _run_device(port, name, seed, prompt, count, text_to):
    async def write():
        client = world.client_of(f"ws://127.0.0.1:{port}{SESSION_PATH}", name, seed)
        text = await client.generate(Request(prompt, SamplingParams(), count))
        client.close()
        return text, client.counters.reconnects

    text_to.send(asyncio.run(write()))


def _run_proxy(port, edge_port, seed):
    asyncio.run(proxy.main(edge_port, seed, port))


class Cast:
    """The processes of one schedule."""

    def __init__(self, seed, mode):
        self.rng = random.Random(seed)
        self.mode, self.seed = mode, seed
        with contextlib.ExitStack() as held:  # all at once, so that they differ
            found = [held.enter_context(socket.socket()) for _ in range(2)]
            for each in found:
                each.bind(("127.0.0.1", 0))
            self.edge_port, self.proxy_port = (each.getsockname()[1] for each in found)
        self.edge = self.begin(_run_edge, self.edge_port, mode, self.rng.choice([1, 2, 4]))
        self.proxy = self.begin(_run_proxy, self.proxy_port, self.edge_port, seed) if self.rng.random() < 0.5 else None
        self.devices, self.texts, self.wanted, self.killed = [], [], [], set()
        for k in range(DEVICES):
            prompt = [self.rng.randrange(world.V) for _ in range(self.rng.choice([1, 5, 90]))]
            self.wanted.append((prompt, self.rng.randrange(LEAST_TOKENS, MOST_TOKENS)))
            here, there = multiprocessing.Pipe(duplex=False)
            port = self.edge_port if self.proxy is None else self.proxy_port
            self.devices.append(self.begin(_run_device, port, f"d{k}", seed + k, *self.wanted[-1], there))
            there.close()
            self.texts.append(here)

    @staticmethod
    def begin(target, *arguments):
        process = _server.Process(target=target, args=arguments, daemon=True)
        process.start()
        return process

    def fault(self):
        """Do one thing to one process; says what."""
        what = self.rng.choice(FAULTS)
        match what.split():
            case "freeze", *_, "edge":
                self._freeze(self.edge)
            case "kill", *_, "edge":
                self._end(self.edge)
                time.sleep(self.rng.choice([0.0, 0.1, 0.5]))
                self.edge = self.begin(_run_edge, self.edge_port, self.mode, self.rng.choice([1, 2, 4]))
            case "freeze", *_, "device":
                self._freeze(self.rng.choice(self.devices))
            case "kill", *_, "device" if not self.killed:
                k = self.rng.randrange(DEVICES)
                if self.devices[k].is_alive():
                    self.killed.add(k)
                    self._end(self.devices[k])
            case "freeze", *_, "proxy" if self.proxy is not None:
                self._freeze(self.proxy)
            case "kill", *_, "proxy" if self.proxy is not None:
                self._end(self.proxy)
                self.proxy = self.begin(_run_proxy, self.proxy_port, self.edge_port, self.rng.randrange(2**31))
            case _:
                return ""
        return what

    def _freeze(self, process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(self.rng.choice([0.05, 0.3, 1.0]))
            os.kill(process.pid, signal.SIGCONT)

    @staticmethod
    def _end(process):
        process.kill()
        process.join()

    def check(self, own_text):
        """Every text that survived must be `own_text`; returns the number of reconnections."""
        reconnects, until_s = 0, time.monotonic() + LIMIT_S
        for k, (pipe, (prompt, count)) in enumerate(zip(self.texts, self.wanted, strict=True)):
            here = f"schedule {self.seed} ({self.mode}, processes): text {k}"
            assert pipe.poll(max(0.0, until_s - time.monotonic())), f"{here} did not end in {LIMIT_S:.0f} s"
            try:
                text, again = pipe.recv()
            except EOFError:
                assert k in self.killed, f"{here} was lost: its device ended with {self.devices[k].exitcode}"
                continue
            assert text == own_text(prompt, count), f"{here} differs"
            reconnects += again
        return reconnects

    def end(self):
        for process in (*self.devices, self.edge, self.proxy):
            if process is not None:
                process.kill()
                process.join()


def play(seed, mode, own_text=world.undisturbed):
    """Play one schedule; returns what it was. AssertionError if a text is not `own_text`, or does not end."""
    multiprocessing.set_forkserver_preload([*PRELOAD, "tests.chaos.world", "tests.chaos.proxy"])
    cast = Cast(seed, mode)
    faults = []
    try:
        time.sleep(cast.rng.uniform(0.0, 0.5))
        while any(process.is_alive() for process in cast.devices) and len(faults) < 6:
            faults.append(cast.fault())
            time.sleep(cast.rng.choice([0.05, 0.2, 0.6]))
        reconnects = cast.check(own_text)
    finally:
        cast.end()
    done = ", ".join(each for each in faults if each) or "nothing"
    return f"processes, {mode}, {'a proxy' if cast.proxy else 'no proxy'}: {done}; {reconnects} reconnections"
