"""Time that an edge's process spends per pass outside its engine, with many devices and HTTP clients at once.

The engine is a stub that writes the same token for ever and takes no time. The devices and the HTTP clients are real
ones in a process of their own, over real sockets. What is measured is the processor time of the edge's process, less
that of the stub, per pass and per member of a pass. Processor time does not count what other processes take meanwhile,
so that it can be compared on a busy machine; but caches are shared, so compare within one run.

    python benchmarks/bench_server.py
    python benchmarks/bench_server.py --devices 50 --http 10 --mode plain
"""

import argparse
import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import time

import aiohttp

from multispin.device import DeviceClient
from multispin.edge import Access, EdgeServer, Gate, Metrics, listening
from multispin.edge.door import Door
from multispin.edge.gate import raise_descriptors
from multispin.gateway import Gateway, guard, local_sessions
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile, Request
from multispin.speculation import ID_RULES, NoDrafter, Outcome, SamplingParams, SlotTable

VOCABULARY = 32_000
MAX_LENGTH = 4096


class Stub(SlotTable):
    """A target that always writes token 1, and knows its own processor time."""

    max_length, vocabulary_size, rules = MAX_LENGTH, VOCABULARY, ID_RULES

    def __init__(self, slots):
        super().__init__(slots)
        self.passes = self.members = 0
        self.cpu_s = 0.0

    def verify(self, feeds):
        began_s = time.thread_time()
        self.take(feeds)
        found = [None if feed.params is None else Outcome(len(feed.tokens) - 1, 1) for feed in feeds]
        self.passes += 1
        self.members += len(feeds)
        self.cpu_s += time.thread_time() - began_s
        return found


class Ones(NoDrafter):
    """Drafts what the stub writes."""

    def draft(self, committed, length, params):
        return [1] * length


class StubWords:
    """One character for one token."""

    stop_ids = ()
    size = VOCABULARY

    def encode(self, text):
        return [ord(each) % VOCABULARY for each in text]

    def encode_messages(self, messages, variables):
        return self.encode("".join(message["content"] for message in messages))

    def token_bytes(self, token):
        return b"x"

    def decode(self, ids):
        return "x" * len(ids)


async def play_clients(url, devices, http, seconds):
    """Devices and HTTP clients that ask for one text after the other."""
    hello = Hello(PROTOCOL_VERSION, "stub", "device", "ones", True, Profile(0.001, 5.0))

    async def device(number):
        client = DeviceClient(url, hello, Ones())
        try:
            while True:
                await client.generate(Request((2, 3, 4 + number % 100), SamplingParams(), 512))
        finally:
            client.close()

    async def browser(session):
        while True:
            body = {"prompt": "hello", "max_tokens": 512, "stream": True, "ignore_eos": True}
            async with session.post("/v1/completions", json=body) as answer:
                async for _ in answer.content:
                    pass

    base = url.replace("ws://", "http://").removesuffix(SESSION_PATH)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(base, connector=connector) as session:
        tasks = [asyncio.create_task(device(number)) for number in range(devices)]
        tasks += [asyncio.create_task(browser(session)) for _ in range(http)]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(devices, http, mode, seconds, warm_up_s):
    slots = devices + http
    engine = Stub(slots)
    settings = ControllerSettings("fixed", 1e9, 15, 4, mode=mode)
    limits = Limits(max_sessions=2 * slots, max_waiting=slots, prefill_tokens_per_round=4096)
    passes = Passes(engine, Controller(settings), "stub", limits)
    access = Access(door=Door(most=4 * slots, most_per_address=4 * slots))
    server = EdgeServer(passes, access=access)
    application = server.application()
    words = StubWords()
    source = local_sessions(server, "stub", words.decode, slots, MAX_LENGTH)
    Gateway(source, words, "stub").add_routes(application, guard(access))
    metrics = Metrics("stub", server.counts)
    server.audience.add(metrics.tell)
    async with listening(application, port=0, gate=Gate(most_per_address=65536)) as port:
        arguments = ["--play", f"ws://127.0.0.1:{port}{SESSION_PATH}", "--devices", str(devices), "--http", str(http)]
        clients = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, *arguments, "--seconds", str(seconds + warm_up_s + 60)),
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(120):
                while len(passes.sessions) < slots:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            await asyncio.sleep(warm_up_s)
            before = (engine.passes, engine.members, engine.cpu_s, time.process_time(), time.monotonic())
            await asyncio.sleep(seconds)
            after = (engine.passes, engine.members, engine.cpu_s, time.process_time(), time.monotonic())
        finally:
            with contextlib.suppress(ProcessLookupError):
                clients.kill()
            await clients.communicate()
    count, members, engine_s, process_s, wall_s = (new - old for new, old in zip(after, before, strict=True))
    outside_ms = 1e3 * (process_s - engine_s) / max(1, count)
    return {
        "devices": devices,
        "http": http,
        "mode": mode,
        "passes": count,
        "members_per_pass": round(members / max(1, count), 1),
        "outside_ms_per_pass": round(outside_ms, 2),
        "outside_ms_per_member": round(1e3 * (process_s - engine_s) / max(1, members), 4),
        "busy": round(process_s / wall_s, 2),
        "failed_listeners": server.audience.failures,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 50, 200, 1000])
    parser.add_argument("--http", type=int, help="HTTP clients beside them; default a tenth of the devices")
    parser.add_argument("--mode", default="rounds")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--play", help=argparse.SUPPRESS)
    options = parser.parse_args()
    raise_descriptors()
    logging.disable()  # of clients that are cut off in the end
    if options.play:
        asyncio.run(play_clients(options.play, options.devices[0], options.http or 0, options.seconds))
        return
    for devices in options.devices:
        http = devices // 10 if options.http is None else options.http
        print(json.dumps(asyncio.run(measure(devices, http, options.mode, options.seconds, 3.0))), flush=True)


if __name__ == "__main__":
    main()
