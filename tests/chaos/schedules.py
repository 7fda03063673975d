"""Random schedules of faults: every request that survives ends with exactly the text that it ends with undisturbed.

python tests/chaos/schedules.py [SCHEDULES [SEED]]      `make chaos` runs two hundred

Sockets, protocol, sessions, passes and clients are the real ones. The target is a function of position and token, so
that a token lost, doubled or out of place shows in all that follow. Devices are killed, cut, delayed and frozen at
their links, or by a proxy in a process of its own; the edge stops and comes back without any memory.
"""

import asyncio
import contextlib
import random
import socket
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from multispin.device import DeviceClient, Patience
from multispin.device.link import LinkLostError, WebSocketLink
from multispin.edge import EdgeServer, listening
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile, Request
from multispin.speculation import ID_RULES, NoDrafter, Outcome, SamplingParams, SlotTable

V, DEVICES = 97, 3
MODES = ("plain", "rounds", "auto", "streams")
AT_ONCE = 8
LIMIT_S = 60.0
"""A schedule that has not ended by then is stuck."""


def following(position: int, token: int) -> int:
    """The target's token after `token`, which stands at `position`."""
    return (31 * token + 7 * position + 3) % V


def undisturbed(prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    while len(text) < len(prompt) + count:
        text.append(following(len(text) - 1, text[-1]))
    return text[len(prompt) :]


class Engine(SlotTable):
    """The target, at 4 ms a pass."""

    max_length, vocabulary_size, rules = 4096, V, ID_RULES

    def verify(self, feeds):
        self.take(feeds)
        time.sleep(0.004)
        return [None if feed.params is None else self._judged(feed.start, feed.tokens) for feed in feeds]

    @staticmethod
    def _judged(start, tokens):
        own = [following(start + place, token) for place, token in enumerate(tokens)]
        accepted = 0
        while accepted < len(tokens) - 1 and tokens[accepted + 1] == own[accepted]:
            accepted += 1
        return Outcome(accepted, own[accepted])


class Guesser(NoDrafter):
    """Right about three tokens of four."""

    def __init__(self, seed):
        self._rng = random.Random(seed)

    def draft(self, committed, length, params):
        text = list(committed)
        for _ in range(length):
            text.append((following(len(text) - 1, text[-1]) + (self._rng.random() < 0.25)) % V)
        return text[len(committed) :]


class BadLink(WebSocketLink):
    """A WebSocket that is cut, delayed and frozen at random."""

    def __init__(self, rng):
        super().__init__()
        self._rng = rng

    async def _trouble(self):
        chance = self._rng.random()
        if chance < 0.03:
            raise LinkLostError("cut")
        if chance < 0.2:
            await asyncio.sleep(self._rng.choice([0.002, 0.02, 0.3]))

    async def send(self, frame):
        await self._trouble()
        await super().send(frame)

    async def receive(self):
        frame = await super().receive()
        await self._trouble()
        return frame


async def _edge(port, mode, rng, stop):
    """An edge that now and then stops, and comes back as a new one."""
    while not stop.is_set():
        controller = Controller(ControllerSettings("heterogeneous", 1e6, 7, 8, mode=mode))
        limits = Limits(resume_grace_s=2.0, slot_grace_s=0.3, deadline_slack_s=0.05, draft_timeout_s=5.0)
        server = EdgeServer(Passes(Engine(rng.choice([1, 2, 4])), controller, "chaos", limits))
        async with listening(server.application(), "127.0.0.1", port):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), rng.uniform(0.3, 1.5) if rng.random() < 0.7 else 20.0)
        await asyncio.sleep(rng.choice([0.0, 0.05, 0.3]))


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def schedule(seed: int) -> str:
    """Play one schedule; returns what it was. AssertionError if a text differs, or nothing ends."""
    rng = random.Random(seed)
    mode, through_proxy = MODES[seed % len(MODES)], rng.random() < 0.5
    port, stop, proxy = _free_port(), asyncio.Event(), None
    edge = asyncio.create_task(_edge(port, mode, random.Random(rng.random()), stop))
    try:
        if through_proxy:
            script = str(Path(__file__).with_name("proxy.py"))
            proxy = await asyncio.create_subprocess_exec(
                sys.executable, script, str(port), str(seed), stdout=asyncio.subprocess.PIPE
            )
            port = int(await proxy.stdout.readline())
        url = f"ws://127.0.0.1:{port}{SESSION_PATH}"
        prompts = [[rng.randrange(V) for _ in range(rng.choice([1, 5, 90]))] for _ in range(DEVICES)]
        counts = [rng.randrange(20, 90) for _ in range(DEVICES)]
        clients = [
            DeviceClient(
                url,
                Hello(PROTOCOL_VERSION, "chaos", f"d{k}", "q5", True, Profile(0.001, 5.0)),
                Guesser(seed + k),
                link=WebSocketLink() if through_proxy else BadLink(random.Random(rng.random())),
                patience=Patience(LIMIT_S, LIMIT_S, 0.02, 0.2),
            )
            for k in range(DEVICES)
        ]
        tasks = [
            asyncio.create_task(client.generate(Request(prompt, SamplingParams(), count)))
            for client, prompt, count in zip(clients, prompts, counts, strict=True)
        ]
        killed = rng.randrange(DEVICES) if rng.random() < 0.3 else None
        if killed is not None:
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            tasks[killed].cancel()
        _, stuck = await asyncio.wait(tasks, timeout=LIMIT_S)
        assert not stuck, f"schedule {seed} ({mode}): {len(stuck)} of {DEVICES} texts did not end in {LIMIT_S:.0f} s"
        for k, (task, prompt, count) in enumerate(zip(tasks, prompts, counts, strict=True)):
            if k == killed and task.cancelled():
                continue
            assert task.result() == undisturbed(prompt, count), f"schedule {seed} ({mode}): text {k} differs"
        for client in clients:
            client.close()
        cuts = sum(client.counters.reconnects for client in clients)
        return f"{mode}, {'a proxy' if through_proxy else 'bad links'}, {cuts} reconnections"
    finally:
        stop.set()
        if proxy is not None:
            proxy.kill()
            await proxy.wait()
        await asyncio.wait([edge], timeout=10.0)


def play(seed: int) -> str:
    """`schedule`, in an event loop of its own."""
    return asyncio.run(schedule(seed))


def main(schedules: int, seed: int) -> None:
    began_s = time.monotonic()
    numbers = range(seed, seed + schedules)
    with ProcessPoolExecutor(AT_ONCE) as pool:  # they wait most of the time
        for number, what in zip(numbers, pool.map(play, numbers), strict=True):
            print(f"{number}: {what}", flush=True)
    print(f"{schedules} schedules in {time.monotonic() - began_s:.0f} s: every surviving text is the undisturbed one")


if __name__ == "__main__":
    main(*(int(each) for each in (sys.argv[1:] + ["200", "1"][len(sys.argv) - 1 :])))
