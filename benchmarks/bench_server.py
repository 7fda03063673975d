"""Processor time that an edge spends per pass outside its engine, with many devices and HTTP clients at once.

The engine is a stub that takes the time of a pass and next to no processor. Its clients are in a process of their own,
over real sockets: devices with the protocol's real state machine and a drafter that is right four times in five, and
HTTP clients that read streamed completions. Measured is the processor time of the edge's process less the engine's,
once warm, per pass. Processor time does not count what other processes take meanwhile, but caches and cores are
shared: compare within one run. `idle_ms` is time on the clock, for which other processes count: the median of the
times for which the engine stands idle between two passes without being told to wait (`WatchedPasses`), and
`idle_95_ms` is their 95th percentile.

The first row of each number of devices is the floor: a bare aiohttp server that sends one frame to each of as many
WebSockets and receives the answers, and does nothing else. There all answers come at once; in `floor-apart` each comes
at its own time within a pass, as those of real devices do, and wakes the server for itself. `floor-streams` is `floor`
with as many answers as devices send in streams: of up to 66 devices each of the six tokens that one drafts in a pass
comes in a frame of its own, of 200 and more there are two frames. In `floor-streams-apart` each device sends them at
its own time. `floor-bare` is the same without a WebSocket library: once a connection is made, its frames are read by
the shortest code that does it, which checks nothing. What it saves is about the most that another library could.

With `--without-sockets` the same edge and devices are in this process, under a virtual clock: what is left is the
protocol, the scheduler, events and metrics, each with its own processor time (`played_site`).

    python benchmarks/bench_server.py
    python benchmarks/bench_server.py --devices 50 --http 5 --mode mixture --json
    python benchmarks/bench_server.py --devices 50 --http 5 --prompt-tokens 6000
    python benchmarks/bench_server.py --devices 50 --mode streams --profile
    python benchmarks/bench_server.py --without-sockets
"""

import argparse
import asyncio
import contextlib
import cProfile
import gc
import json
import logging
import pstats
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import aiohttp
import numpy as np
from aiohttp import web

from multispin.cli.main import RARELY
from multispin.edge import Access, EdgeServer, Gate, listening, new_event_loop
from multispin.edge.door import Door
from multispin.edge.gate import raise_descriptors
from multispin.edge.metrics import Metrics
from multispin.gateway import Gateway, guard, local_sessions
from multispin.passes import Controller, ControllerSettings, Limits, Passes, Sleep
from multispin.passes.flows import FRAMES
from multispin.protocol import SESSION_PATH
from multispin.protocol.events import Lost, Round
from multispin.speculation import ID_RULES, Outcome, SlotTable
from played_clients import play, right_token
from played_site import Site

VOCABULARY = 32_000
MAX_LENGTH = 8192
WARM_UP_PASSES = 40
WARM_UP_SESSIONS = 8000
"""Less is warmed up where there are many sessions: in rounds of 1,000 a pass and the drafting before it take 4 s."""
TOKENS_PER_PASS = 6
FLOORS = ("floor", "floor-apart", "floor-streams", "floor-streams-apart", "floor-bare")
FLOOR_FRAME = b"x" * 24
LIMIT_S = 600.0
"""A part of the benchmark may take so long [s]."""


def pass_s(devices):
    """Time of a pass of the stub [s]. It grows with the devices, so that one process of clients can keep up."""
    return 0.03 + 0.0015 * devices


def token_s(devices):
    """Time that a device takes to draft a token [s]."""
    return pass_s(devices) / TOKENS_PER_PASS


def warm_up_passes(slots):
    """Passes that are not measured."""
    return max(8, min(WARM_UP_PASSES, WARM_UP_SESSIONS // slots))


class Stub(SlotTable):
    """A target whose text is known beforehand, and which knows how much processor time it takes itself."""

    max_length, vocabulary_size, rules = MAX_LENGTH, VOCABULARY, ID_RULES

    def __init__(self, slots, least_s):
        super().__init__(slots)
        self._least_s = least_s
        self.passes = self.members = 0
        self.cpu_s = self.done_s = 0.0

    def verify(self, feeds):
        began_s, began_cpu_s = time.monotonic(), time.thread_time()
        self.take(feeds)
        found = [None if feed.params is None else self._judge(feed) for feed in feeds]
        self.passes += 1
        self.members += len(feeds)
        self.cpu_s += time.thread_time() - began_cpu_s
        self.done_s = max(time.monotonic(), began_s + self._least_s)  # of the pass, before this thread gets to know
        time.sleep(max(0.0, self.done_s - time.monotonic()))
        return found

    def _judge(self, feed):
        place, accepted = feed.start + 1, 0
        for token in feed.tokens[1:]:
            if token != right_token(place + accepted):
                break
            accepted += 1
        return Outcome(accepted, right_token(place + accepted))


class WatchedPasses(Passes):
    """Passes that note for how long the engine stands idle between two of them although nothing is waited for.

    Where the scheduler waits within a gap between two passes, two parts of the gap count: until the results of the pass
    are sent, and from the end of the last wait, which is its time or a message that ends it.

    Attributes:
        gaps_s: such times [s].

    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gaps_s = []
        self._done_s = self._told_s = self._awake_s = None  # since the end of the last pass
        self._sleep = None

    def hear(self, event):
        """Note that the results of a pass are sent: the event is told afterwards."""
        if isinstance(event, Round):
            self._told_s = time.monotonic()

    def advance(self, now_s):
        if self._sleep is not None and self._awake_s is None:
            self._awake_s = min(time.monotonic(), self._sleep.until_s or float("inf"))
        self._sleep = None
        step = super().advance(now_s)
        if isinstance(step, Sleep):
            self._sleep, self._awake_s = step, None
        return step

    def waits(self, now_s):
        waits = super().waits(now_s)
        if not waits and self._sleep is not None and self._awake_s is None:
            self._awake_s = time.monotonic()
        return waits

    def verify(self, batch):
        began_s = time.monotonic()
        if self._done_s is not None:
            waited_s = 0.0 if self._awake_s is None else self._awake_s - self._told_s
            self.gaps_s.append(began_s - self._done_s - max(0.0, waited_s))
        self._awake_s = None
        found = super().verify(batch)
        self._done_s = self.engine.done_s
        return found


class StubWords:
    """One character for one token."""

    stop_ids = ()
    size = VOCABULARY

    def encode(self, text, special_tokens=True):
        return [ord(each) % VOCABULARY for each in text]

    def encode_messages(self, messages, variables, tools=None, answered=True, special_tokens=False):
        return self.encode("".join(message["content"] for message in messages))

    def token_bytes(self, token):
        return b"x"

    def decode(self, ids, special_tokens=False):
        return "x" * len(ids)


@contextlib.asynccontextmanager
async def clients(url, devices, http, token_s, prompt_tokens=5, frames=1, apart_s=0.0):
    """A process of clients for as long as the block runs; gives the `Clients`."""
    arguments = ["--play", url, "--devices", str(devices), "--http", str(http), "--token-s", str(token_s)]
    arguments += ["--prompt-tokens", str(prompt_tokens), "--frames", str(frames), "--apart-s", str(apart_s)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Clients(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


class Clients:
    """A process of clients."""

    def __init__(self, process):
        self._process = process

    async def spent_s(self):
        """Its processor time so far [s]."""
        self._process.stdin.write(b"\n")
        return float(await self._process.stdout.readline())

    async def play_until(self, test):
        """Wait until something is so; end the benchmark if it cannot come to be so any more."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not test():
                    if self._process.returncode is not None:
                        raise SystemExit("the process of clients has ended by itself; its complaint stands above")
                    await asyncio.sleep(0.3)
        except TimeoutError:
            sentence = f"the site did not come so far within {LIMIT_S:.0f} s: take fewer clients, or a quieter machine"
            raise SystemExit(sentence) from None


async def longest_stretch(test):
    """Most processor time of the event loop between two looks [s]; with nothing to do, it looks every 2 ms."""
    longest_s, before_s = 0.0, time.thread_time()
    while not test():
        await asyncio.sleep(0.002)
        now_s = time.thread_time()
        longest_s, before_s = max(longest_s, now_s - before_s), now_s
    return longest_s


class Meter:
    """Processor time of this process by thread [s]."""

    def __init__(self, engine):
        self._engine = engine

    def read(self):
        planning = [each for each in threading.enumerate() if each.name.startswith("planning")]
        planning_s = sum(time.clock_gettime(time.pthread_getcpuclockid(each.ident)) for each in planning)
        return {
            "passes": self._engine.passes,
            "members": self._engine.members,
            "all_s": time.process_time() - self._engine.cpu_s,
            "loop_s": time.thread_time(),
            "planning_s": planning_s,
        }


def edge_of(slots, mode, least_s):
    """Engine, controller and limits of an edge for so many sessions."""
    limits = Limits(max_sessions=2 * slots, max_waiting=slots, prefill_tokens_per_round=4096, deadline_slack_s=5.0)
    return Stub(slots, least_s), Controller(ControllerSettings("heterogeneous", 1e9, 15, 8, mode=mode)), limits


def measure_without_sockets(devices, mode, passes_wanted, profile=None):
    """One row: the same without sockets, by part."""
    engine, controller, limits = edge_of(devices, mode, 0.0)
    site = Site(engine, controller, limits, devices, pass_s(devices), token_s(devices))
    site.run(warm_up_passes(devices))
    before, ended, members, frames = site.spent_s, site.ended, site.members, site.frames
    with profile or contextlib.nullcontext():
        site.run(passes_wanted)
    count = site.ended - ended
    spent = {part: round(1e3 * (spent_s - before[part]) / count, 3) for part, spent_s in site.spent_s.items()}
    return {
        "devices": devices,
        "http": 0,
        "mode": mode,
        "passes": count,
        "sessions_per_pass": round((site.members - members) / count, 1),
        "frames_per_pass": round((site.frames - frames) / count, 1),
        "edge_ms": round(sum(spent.values()), 2),
        **{f"{part}_ms": spent_ms for part, spent_ms in spent.items()},
    }


async def measure(devices, http, mode, passes_wanted, profile=None, prompt_tokens=5):
    """One row: an edge with so many clients."""
    slots = devices + http
    engine, controller, limits = edge_of(slots, mode, pass_s(slots))
    passes = WatchedPasses(engine, controller, "stub", limits)
    access = Access(door=Door(most=4 * slots, most_per_address=4 * slots))
    server = EdgeServer(passes, passes.hear, access)
    application = server.application()
    words = StubWords()
    source = local_sessions(server, "stub", words.decode, slots, MAX_LENGTH)
    Gateway(source, words, "stub").add_routes(application, guard(access))
    metrics = Metrics("stub", server.counts)
    server.audience.add(metrics.tell)
    lost = 0

    def hear(event):
        nonlocal lost
        lost += isinstance(event, Lost)

    server.audience.add(hear)
    async with listening(application, port=0, gate=Gate(most_per_address=65536)) as port:
        url = f"http://127.0.0.1:{port}{SESSION_PATH}"
        async with clients(url, devices, http, token_s(slots), prompt_tokens) as played:
            await played.play_until(lambda: len(passes.sessions) == slots)
            first = engine.passes
            await played.play_until(lambda: engine.passes >= first + warm_up_passes(slots))
            meter = Meter(engine)
            before, client_before_s = meter.read(), await played.spent_s()
            passes.gaps_s.clear()
            with profile or contextlib.nullcontext():
                await played.play_until(lambda: engine.passes >= before["passes"] + passes_wanted)
            after, client_after_s = meter.read(), await played.spent_s()
            gaps_s = np.array(passes.gaps_s)
            longest_s = await longest_stretch(lambda: engine.passes >= after["passes"] + passes_wanted // 2)
            broken = lost  # those that end with the block are not counted
    spent = {key: after[key] - before[key] for key in before}
    count = spent["passes"]
    return {
        "devices": devices,
        "http": http,
        "mode": mode,
        "passes": count,
        "sessions_per_pass": round(spent["members"] / count, 1),
        "edge_ms": round(1e3 * spent["all_s"] / count, 2),
        "loop_ms": round(1e3 * spent["loop_s"] / count, 2),
        "planning_ms": round(1e3 * spent["planning_s"] / count, 2),
        "client_ms": round(1e3 * (client_after_s - client_before_s) / count, 2),
        "longest_ms": round(1e3 * longest_s, 1),
        "idle_ms": round(1e3 * float(np.median(gaps_s)), 2),
        "idle_95_ms": round(1e3 * float(np.quantile(gaps_s, 0.95)), 2),
        "lost": broken,
        "failed_listeners": server.audience.failures,
    }


class BareFrames(asyncio.Protocol):
    """Reads small whole frames of an honest WebSocket client, and tells of each."""

    def __init__(self, transport, tell):
        self._transport, self._tell = transport, tell
        self.lost = asyncio.Event()

    def data_received(self, data):
        while data:
            end = 6 + (data[1] & 0x7F)
            payload, mask = int.from_bytes(data[6:end]), (data[2:6] * (end // 4))[: end - 6]
            self._tell((payload ^ int.from_bytes(mask)).to_bytes(end - 6))
            data = data[end:]

    async def send_bytes(self, frame):
        self._transport.write(bytes((0x82, len(frame))) + frame)

    def connection_lost(self, error):
        self.lost.set()


async def measure_floor(devices, mode, passes_wanted):
    """What sockets and aiohttp alone cost for a frame to each device, and one back or as many as in streams."""
    sockets, answers, complete = [], 0, asyncio.Event()
    streams = mode not in ("floor", "floor-apart")
    frames = min(TOKENS_PER_PASS, max(2, FRAMES // devices)) if streams else 1
    apart_s = pass_s(devices) / frames if mode in ("floor-apart", "floor-streams-apart", "floor-bare") else 0.0
    rest_s = pass_s(devices) if mode == "floor" else 0.0  # elsewhere the answers take as long

    def came(_):
        nonlocal answers
        answers += 1
        if answers == devices * frames:
            complete.set()

    async def handler(request):
        bare = mode == "floor-bare"
        socket = web.WebSocketResponse(compress=False, heartbeat=None if bare else 15.0)
        await socket.prepare(request)
        if bare:
            frames_only = BareFrames(request.transport, came)
            request.transport.set_protocol(frames_only)
            sockets.append(frames_only)
            await frames_only.lost.wait()
            return socket
        sockets.append(socket)
        while (frame := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
            came(frame.data)
        return socket

    async def one_pass():
        nonlocal answers
        answers = 0
        complete.clear()
        for each in sockets:
            await each.send_bytes(FLOOR_FRAME)
        await complete.wait()
        await asyncio.sleep(rest_s)

    application = web.Application()
    application.router.add_get("/floor", handler)
    async with (
        listening(application, port=0, gate=Gate(most_per_address=65536)) as port,
        clients(f"http://127.0.0.1:{port}/floor", devices, 0, pass_s(devices) / frames, 5, frames, apart_s) as played,
    ):
        await played.play_until(lambda: len(sockets) == devices)
        await one_pass()
        began_s, client_began_s = time.process_time(), await played.spent_s()
        for _ in range(passes_wanted):
            await one_pass()
        edge_s, client_s = time.process_time() - began_s, await played.spent_s() - client_began_s
    return {
        "devices": devices,
        "http": 0,
        "mode": mode,
        "passes": passes_wanted,
        "sessions_per_pass": devices,
        "edge_ms": round(1e3 * edge_s / passes_wanted, 2),
        "client_ms": round(1e3 * client_s / passes_wanted, 2),
    }


COLUMNS = (
    "devices",
    "http",
    "mode",
    "passes",
    "sessions_per_pass",
    "edge_ms",
    "loop_ms",
    "planning_ms",
    "client_ms",
    "longest_ms",
    "idle_ms",
    "idle_95_ms",
    "lost",
)
PARTS = (
    *("devices", "mode", "passes", "sessions_per_pass", "frames_per_pass", "edge_ms"),
    *("receive_ms", "advance_ms", "settle_ms", "send_ms", "events_ms", "planning_ms"),
)


def rows(options) -> "list[tuple[int, int, str]]":
    """What is measured: each number of devices in each mode, and once with HTTP clients beside."""
    found = []
    for devices in options.devices:
        if options.without_sockets:
            found += [(devices, 0, mode) for mode in options.mode if mode not in FLOORS]
            continue
        found += [(devices, 0 if mode in FLOORS else options.http or 0, mode) for mode in options.mode]
        if options.http is None and "rounds" in options.mode:
            found.append((devices, max(1, devices // 10), "rounds"))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 20, 50, 200, 1000])
    parser.add_argument("--http", type=int, help="HTTP clients beside; default: one more row with a tenth as many")
    parser.add_argument("--prompt-tokens", type=int, default=5, help="length of HTTP clients' prompts; default 5")
    parser.add_argument("--mode", nargs="+", default=[*FLOORS, "rounds", "mixture", "streams"])
    parser.add_argument("--passes", type=int, help="default: fewer for many devices")
    parser.add_argument("--without-sockets", action="store_true", help="devices in this process, under a virtual clock")
    parser.add_argument("--json", action="store_true", help="one JSON object for each row")
    parser.add_argument("--profile", action="store_true", help="print where the event loop's time goes")
    parser.add_argument("--play", help=argparse.SUPPRESS)
    parser.add_argument("--token-s", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--apart-s", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    raise_descriptors()
    gc.set_threshold(*RARELY)  # as `multispin serve` has it
    logging.disable()  # of clients that are cut off in the end
    if options.play:
        what = (options.devices[0], options.http, options.token_s, options.prompt_tokens)
        asyncio.run(play(options.play, *what, options.frames, options.apart_s))
        return
    columns = PARTS if options.without_sockets else COLUMNS
    if not options.json:
        print("  ".join(f"{each:>{max(11, len(each))}}" for each in columns))
    for devices, http, mode in rows(options):
        passes_wanted = options.passes or max(8, min(200, 6000 // devices))
        profile = cProfile.Profile(time.thread_time) if options.profile else None
        if options.without_sockets:
            row = measure_without_sockets(devices, mode, passes_wanted, profile)
        else:
            work: Callable = measure_floor if mode in FLOORS else measure
            what: tuple = (devices, http, mode, passes_wanted, profile, options.prompt_tokens)
            what = (devices, mode, passes_wanted) if mode in FLOORS else what
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                row = runner.run(work(*what))
        cells = (f"{row.get(each, ''):>{max(11, len(each))}}" for each in columns)
        print(json.dumps(row) if options.json else "  ".join(cells), flush=True)
        if profile is not None and mode not in FLOORS:
            pstats.Stats(profile).sort_stats("tottime").print_stats(60)


if __name__ == "__main__":
    main()
