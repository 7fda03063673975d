"""An edge for a long time, with devices and HTTP clients that come and go: no growth in memory, descriptors or tasks.

python -m tests.chaos.soak [SECONDS [DEVICES [MODE]]]      `make soak` runs half an hour with 20 devices

The edge is a process of its own, and says in `/metrics` what it holds. Every text is compared with the undisturbed one.
The time is cut into ten stretches. After each of them everybody leaves, and what edge and crowd then hold is looked at.
PYTHONTRACEMALLOC=5 in the environment has the edge say at the end where memory has been allocated since the first look.
"""

import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import aiohttp
from tests.chaos import world

from multispin.demo.forks import PRELOAD
from multispin.protocol import SESSION_PATH, Request
from multispin.speculation import SamplingParams

STRETCHES = 10
FIRST = 3
"""Looks after which memory may not grow any more: interpreter and C library take some while to warm up."""
MOST_GROWTH = 0.02
"""Share by which memory may grow from that look to the last."""
SPARE_BYTES = 4 * 2**20
SPARE = 2
"""Descriptors and tasks may differ by so many: a look has a connection of its own."""
GRACE_S = 2.0
"""The edge forgets a device that has been lost for so long."""
SETTLE_S = 2.0
"""After a stretch a look waits for that, and for so long again."""


class Look(NamedTuple):
    """What a process holds."""

    memory_bytes: int
    descriptors: int
    tasks: int


class Done(NamedTuple):
    """What the crowd got."""

    device: list[int]
    http: list[int]
    given_up: list[int]


# The edge, in a process of its own ------------------------------------------------------------------------------------


def run_edge(port_to, mode, slots, grace_s):
    """An edge until SIGTERM; sends its port when it listens."""
    asyncio.run(_edge(port_to, mode, slots, grace_s))


async def _edge(port_to, mode, slots, grace_s):
    stop, before = asyncio.Event(), []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: before.append(tracemalloc.take_snapshot()))
    async with world.an_edge(0, mode, slots, grace_s=grace_s) as port:
        port_to.send(port)
        await stop.wait()
        if before:
            print(*tracemalloc.take_snapshot().compare_to(before[0], "lineno")[:20], sep="\n", file=sys.stderr)


async def of_edge(http):
    """What the edge says of itself."""
    async with http.get("/metrics") as answer:
        assert answer.status == 200
        lines = (await answer.text()).splitlines()
    names = ("process_resident_memory_bytes", "process_open_fds", "multispin_event_loop_tasks")
    values = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(names)}
    return Look(*(int(values[name]) for name in names))


# The crowd, in this process -------------------------------------------------------------------------------------------


def of_crowd():
    """What this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return Look(pages * os.sysconf("SC_PAGE_SIZE"), descriptors, len(asyncio.all_tasks()))


def wanted(rng):
    """A prompt, a number of tokens, and after how long the text is given up, if it is."""
    prompt = [rng.randrange(world.V) for _ in range(rng.choice([1, 5, 90]))]
    return prompt, rng.randrange(10, 60), rng.uniform(0.0, 0.5) if rng.random() < 0.2 else None


async def pause(rng):
    await asyncio.sleep(rng.choice([0.0, 0.1, 0.5]))


async def device(url, number, until_s, done):
    """Texts, one after the other; some are given up, some come over a bad link."""
    rng = random.Random(number)
    while asyncio.get_running_loop().time() < until_s:
        link = world.BadLink(random.Random(rng.random())) if rng.random() < 0.3 else None
        client = world.client_of(url, f"d{number}", number, link)
        prompt, count, patience_s = wanted(rng)
        try:
            async with asyncio.timeout(patience_s):
                text = await client.generate(Request(prompt, SamplingParams(), count))
            assert text == world.undisturbed(prompt, count), f"a text of device {number} differs"
            done.device[0] += 1
        except TimeoutError:
            done.given_up[0] += 1
        finally:
            client.close()
        await pause(rng)


async def client(http, number, until_s, done):
    """Completions, whole or streamed; some clients hang up in the middle."""
    rng, letters = random.Random(-number), world.Letters()
    while asyncio.get_running_loop().time() < until_s:
        prompt, count, patience_s = wanted(rng)
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "stream": rng.random() < 0.5}
        try:
            async with asyncio.timeout(patience_s), http.post("/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                text = await _streamed(answer) if body["stream"] else (await answer.json())["choices"][0]["text"]
            assert text == letters.decode(world.undisturbed(prompt, count)), f"a text of client {number} differs"
            done.http[0] += 1
        except TimeoutError:
            done.given_up[0] += 1
        await pause(rng)


async def _streamed(answer):
    text = ""
    async for line in answer.content:
        if line.startswith(b"data: {"):
            document = json.loads(line[6:])
            assert "choices" in document, document
            text += "".join(choice["text"] for choice in document["choices"])
    return text


async def soak(seconds, devices, port, said=lambda _: None, stretches=STRETCHES, quiet_s=GRACE_S + SETTLE_S):
    """Let a crowd use the edge at `port` for so long; returns the texts that ended and the looks at edge and crowd."""
    done, looks = Done([0], [0], [0]), []
    url, base = f"ws://127.0.0.1:{port}{SESSION_PATH}", f"http://127.0.0.1:{port}"
    connector = aiohttp.TCPConnector(force_close=True)  # each request has a connection of its own, as arrivals do
    async with aiohttp.ClientSession(base, connector=connector) as http:
        for stretch in range(stretches):
            until_s = asyncio.get_running_loop().time() + seconds / stretches
            crowd = [device(url, k, until_s, done) for k in range(devices)]
            crowd += [client(http, k, until_s, done) for k in range(max(1, devices // 4))]
            await asyncio.gather(*crowd)
            await asyncio.sleep(quiet_s)
            looks.append((await of_edge(http), of_crowd()))
            edge, crowd = looks[-1]
            said(f"{stretch + 1} of {stretches}: {_texts(done)}; edge {_shown(edge)}; crowd {_shown(crowd)}")
    return done, looks


def check(looks):
    """AssertionError if anything grew from the third look to the last."""
    for who, first, last in zip(("edge", "crowd"), looks[FIRST - 1], looks[-1], strict=True):
        change = f"{_shown(first)} → {_shown(last)}"
        most = first.memory_bytes * (1 + MOST_GROWTH) + SPARE_BYTES
        assert last.memory_bytes <= most, f"memory of the {who} grew: {change}"
        assert last.descriptors <= first.descriptors + SPARE, f"descriptors of the {who} grew: {change}"
        assert last.tasks <= first.tasks + SPARE, f"tasks of the {who} grew: {change}"


def _texts(done):
    return f"{done.device[0]} texts of devices, {done.http[0]} of HTTP clients, {done.given_up[0]} given up"


def _shown(look):
    return f"{look.memory_bytes / 2**20:.1f} MiB, {look.descriptors} descriptors, {look.tasks} tasks"


@contextlib.contextmanager
def edge_process(mode, slots, grace_s=GRACE_S):
    """An edge in a process of its own; gives its port and its process."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("forkserver").Process(
        target=run_edge, args=(there, mode, slots, grace_s), daemon=True
    )
    process.start()
    try:
        yield here.recv(), process
    finally:
        process.terminate()
        process.join(60)
        process.kill()


def main(seconds, devices, mode):
    began_s = time.monotonic()
    with edge_process(mode, max(1, devices // 2)) as (port, process):

        def said(line):
            print(line, flush=True)
            if line.startswith(f"{FIRST} ") and tracemalloc.is_tracing():
                os.kill(process.pid, signal.SIGUSR1)

        done, looks = asyncio.run(soak(seconds, devices, port, said))
    check(looks)
    print(f"{_texts(done)}, none wrong; nothing grew after look {FIRST}; {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload([*PRELOAD, "tests.chaos.world"])
    given, usual = sys.argv[1:], ["1800", "20", "auto"]
    seconds, devices, mode = given + usual[len(given) :]
    main(float(seconds), int(devices), mode)
