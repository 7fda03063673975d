"""Random schedules of faults: every request that survives ends with exactly the text that it ends with undisturbed.

python -m tests.chaos.schedules [SCHEDULES [SEED]]      `make chaos` runs two hundred

Sockets, protocol, sessions, passes and clients are the real ones. Every fourth schedule is one of real processes
(`processes.py`). In the others devices are killed, cut, delayed and frozen at their links, or by a proxy in a process
of its own, and the edge stops and comes back without any memory.
"""

import asyncio
import contextlib
import random
import socket
import sys
import time
from pathlib import Path

from tests.chaos import processes, world

from multispin.protocol import SESSION_PATH, Request
from multispin.simulation.workers import workers
from multispin.speculation import SamplingParams

DEVICES = 3
AT_ONCE = 8
LIMIT_S = 240.0
"""A schedule that has not ended by then is stuck. Alone it takes some seconds, but many run at once."""
OF_PROCESSES = 4
"""Every so many schedules, one is of real processes."""
CYCLE = OF_PROCESSES * len(world.MODES)
"""A schedule's number in this cycle says its mode and its kind."""


async def _edge(port, mode, rng, stop):
    """An edge that now and then stops, and comes back as a new one."""
    while not stop.is_set():
        async with world.an_edge(port, mode, rng.choice([1, 2, 4])):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), rng.uniform(0.3, 1.5) if rng.random() < 0.7 else 20.0)
        await asyncio.sleep(rng.choice([0.0, 0.05, 0.3]))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def schedule(seed: int, mode: str, own_text=world.undisturbed) -> str:
    """Play one schedule; returns what it was. AssertionError if a text is not `own_text`, or nothing ends."""
    rng = random.Random(seed)
    through_proxy = rng.random() < 0.5
    port, stop, proxy = free_port(), asyncio.Event(), None
    edge = asyncio.create_task(_edge(port, mode, random.Random(rng.random()), stop))
    try:
        if through_proxy:
            script = str(Path(__file__).with_name("proxy.py"))
            proxy = await asyncio.create_subprocess_exec(
                sys.executable, script, str(port), str(seed), stdout=asyncio.subprocess.PIPE
            )
            port = int(await proxy.stdout.readline())
        url = f"ws://127.0.0.1:{port}{SESSION_PATH}"
        prompts = [[rng.randrange(world.V) for _ in range(rng.choice([1, 5, 90]))] for _ in range(DEVICES)]
        counts = [rng.randrange(20, 90) for _ in range(DEVICES)]
        clients = [
            world.client_of(
                url, f"d{k}", seed + k, None if through_proxy else world.BadLink(random.Random(rng.random()))
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
            assert task.result() == own_text(prompt, count), f"schedule {seed} ({mode}): text {k} differs"
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


def play(seed: int, own_text=world.undisturbed) -> str:
    """One schedule: of processes, or in an event loop of its own. Its number says which, and in which mode."""
    mode, kind = world.MODES[seed % len(world.MODES)], seed % CYCLE // len(world.MODES)
    if kind == 0:
        return processes.play(seed, mode, own_text)
    return asyncio.run(schedule(seed, mode, own_text))


def main(schedules: int, seed: int) -> None:
    began_s, faults = time.monotonic(), 0
    numbers = range(seed, seed + schedules)
    with workers(AT_ONCE) as pool:  # they wait most of the time
        for done, (number, what) in enumerate(zip(numbers, pool.map(play, numbers), strict=True), 1):
            faults += what.startswith("processes")
            print(f"{done} of {schedules}: schedule {number}: {what}", flush=True)
    print(
        f"{schedules} schedules, {faults} of them of real processes, in {time.monotonic() - began_s:.0f} s: every "
        "surviving text is the undisturbed one"
    )


if __name__ == "__main__":
    main(*(int(each) for each in (sys.argv[1:] + ["200", "1"][len(sys.argv) - 1 :])))
