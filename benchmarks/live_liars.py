"""What one bad device costs four honest ones, with real processes and sockets: the live half of bench_liars.py.

    OMP_NUM_THREADS=1 python benchmarks/live_liars.py [MODE ...] [--repeats 3] [--watched-s 10]

Each play is an edge (`multispin serve`) and four devices (`multispin device`), each a process of its own, with a tiny
random model and emulated speeds. The fifth one is absent, honest, a user without a drafter, or one of `LIARS`, in turn.
The edge is new in each play and knows nothing beforehand. Counted are the tokens of the four after the 20th pass with
all of them, by the edge's own events. A row gives their tokens per second as a ratio to those beside an honest fifth
device: all repeats together, and the least and largest of the repeats. "away" counts honest devices that lost their
session.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests know how to make a tiny model

from multispin.demo.forks import ForkedProcess
from multispin.device import DeviceClient, Emulation, LinkLostError, Patience, WebSocketLink
from multispin.errors import InputError
from multispin.models.draft_source import load_drafter
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Chunk, Draft, Hello, Profile, Request, decode_uplink
from multispin.protocol.events import Begin, Expired, Lost, Refused, Round, as_order, from_line
from multispin.speculation import SamplingParams

HONEST = 4
PASSES = 20
"""Passes with all honest devices before tokens are counted."""
TOKENS, MAX_LENGTH = 4000, 4096
TEMPERATURE = 1.0
DRAFTER = "q6"
PROMPT = "the quick brown fox"
EFFICIENCY, DELAY_S = 3.0, 0.003
EDGE = (
    *("--bandwidth-hz", "500000", "--max-draft-length", "12", "--slots", "8", "--max-length", str(MAX_LENGTH)),
    *("--threads", "1"),
)
MAX_LINE_BYTES = 2**22
LIMIT_S = 60.0
"""A play that takes longer is stuck."""
LATE_S = 0.4
PAPER_S = 0.0227, 0.0127, 0.0
"""Time of a pass of the paper's Llama pair: fixed, for each session, for each token [s]."""


def seconds_per_token(place: int) -> float:
    """Time that a device takes to draft a token [s]."""
    return 0.006 + 0.001 * place


ORDINARY = Profile(seconds_per_token(HONEST), EFFICIENCY)


@dataclass(frozen=True)
class Liar:
    """What a bad device says and does.

    Attributes:
        profile: what it claims; default what it is.
        silent: whether it sends no drafts.
        late_s: how long it holds back each draft [s].
        learns: whether it becomes later until it misses a round, and less late then.

    """

    profile: Profile = ORDINARY
    silent: bool = False
    late_s: float = 0.0
    learns: bool = False


LIARS = {
    "claims 3,600 s per token, silent": Liar(Profile(3600.0, EFFICIENCY), silent=True),
    "claims 1e-9 bit/s/Hz, silent": Liar(Profile(seconds_per_token(HONEST), 1e-9), silent=True),
    "0.4 s late every time": Liar(late_s=LATE_S),
    "just under the deadline": Liar(late_s=0.05, learns=True),
}
KINDS = ("absent", "honest", "without a drafter", *LIARS)
"""1e-9 is the least that the protocol lets a device claim: a Hello with less is refused."""


class LyingLink(WebSocketLink):
    """A WebSocket that holds drafts back, or swallows them."""

    def __init__(self, liar: Liar) -> None:
        super().__init__()
        self._liar, self._late_s, self._round = liar, liar.late_s, 0

    async def send(self, frame: bytes) -> None:
        """Send a frame, unless it is a draft that the liar keeps."""
        message = decode_uplink(frame)
        if isinstance(message, Draft | Chunk):
            if self._liar.silent:
                return
            if self._liar.learns and isinstance(message, Draft):
                # Each round has a number: if one was left out, the draft before missed its round.
                self._late_s *= 1.05 if message.round <= self._round + 1 else 0.8
                self._round = message.round
            await asyncio.sleep(self._late_s)
        await super().send(frame)


async def lie(liar: Liar, url: str, folder: str) -> None:
    """Be the bad device for as long as the edge lets it."""
    drafter, tokenizer = load_drafter(DRAFTER, folder, MAX_LENGTH)
    hello = Hello(PROTOCOL_VERSION, tokenizer.fingerprint, "liar", DRAFTER, True, liar.profile)
    client = DeviceClient(
        url + SESSION_PATH,
        hello,
        drafter,
        Emulation(seconds_per_token(HONEST), EFFICIENCY, DELAY_S),
        link=LyingLink(liar),
        patience=Patience(LIMIT_S, LIMIT_S),
    )
    request = Request(tuple(tokenizer.encode(PROMPT)), SamplingParams(TEMPERATURE, seed=HONEST), TOKENS)
    try:
        while True:
            try:
                await client.generate(request)
            except (InputError, LinkLostError):  # sent away: it comes again
                await asyncio.sleep(0.1)
    finally:
        client.close()


class Processes:
    """The processes of one play; all end with the block."""

    def __init__(self) -> None:
        self._running: list[ForkedProcess] = []
        self._reading: list[asyncio.Task[None]] = []
        self._said: list[str] = []

    async def __aenter__(self) -> "Processes":
        return self

    async def start(self, *arguments: str) -> ForkedProcess:
        """Start `multispin ARGUMENTS --json`; what it complains of is kept."""
        process = await ForkedProcess.start([*arguments, "--json", "--attended"], MAX_LINE_BYTES)
        self._running.append(process)
        self._reading.append(asyncio.create_task(self._read(process.stderr, self._said)))
        return process

    def ignore(self, process: ForkedProcess) -> None:
        """Read what a process tells, and forget it."""
        self._reading.append(asyncio.create_task(self._read(process.stdout, [])))

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            print(*self._said[-20:], sep="\n", file=sys.stderr)
        for process in reversed(self._running):
            process.kill()
            await process.wait()
            process.stdin.close()
        for task in self._reading:
            task.cancel()

    @staticmethod
    async def _read(stream: asyncio.StreamReader, into: list[str]) -> None:
        while line := await stream.readline():
            into.append(line.decode().rstrip())


async def play(kind: str, mode: str, folder: str, watched_s: float, pass_s: Sequence[float]) -> tuple[float, int]:
    """Tokens per second of the honest four beside one kind of fifth device, and how many of them lost a session."""
    async with asyncio.timeout(LIMIT_S), Processes() as processes:
        emulated = ["--emulated-verification-s", *map(str, pass_s)]
        edge = await processes.start("serve", "--port", "0", "--target", folder, "--mode", mode, *EDGE, *emulated)
        port = json.loads(await edge.stdout.readline())["port"]
        url = f"ws://127.0.0.1:{port}"
        names = [f"d{place}" for place in range(HONEST + (kind in ("honest", "without a drafter")))]
        devices = [
            await processes.start(
                "device", url, "--name", name, *_device(place, folder, place < HONEST or kind == "honest")
            )
            for place, name in enumerate(names)
        ]
        for device in devices:
            await device.stdout.readline()  # it is ready
        for device in devices:
            device.stdin.write(as_order(Begin()))
            processes.ignore(device)
        liar = asyncio.create_task(lie(LIARS[kind], url, folder)) if kind in LIARS else None
        try:
            return await _count(edge.stdout, set(names[:HONEST]), watched_s)
        finally:
            if liar is not None:
                liar.cancel()
                await asyncio.gather(liar, return_exceptions=True)


def _device(place: int, folder: str, drafts: bool) -> list[str]:
    return [
        *(
            "--draft",
            DRAFTER if drafts else "none",
            "--target",
            folder,
            "--raw",
            "--prompt",
            PROMPT,
            "--max-tokens",
            str(TOKENS),
        ),
        *("--temperature", str(TEMPERATURE), "--seed", str(place), "--min-tokens", str(TOKENS), "--threads", "1"),
        *("--seconds-per-token", str(seconds_per_token(place))),
        *("--spectral-efficiency", str(EFFICIENCY), "--delay-s", str(DELAY_S)),
    ]


async def _count(told: asyncio.StreamReader, honest: set[str], watched_s: float) -> tuple[float, int]:
    """Follow the edge's events until enough was seen."""
    passes, tokens, away, begin_s, seen = 0, 0, 0, 0.0, set[str]()
    while line := await told.readline():
        event = from_line(line)
        if isinstance(event, Lost | Expired | Refused):
            away += event.name in honest
        if not isinstance(event, Round):
            continue
        members = {each.name: each.tokens for each in event.devices if each.name in honest}
        seen |= members.keys()
        passes += seen == honest
        if passes == PASSES:
            begin_s = event.time_s
        elif passes > PASSES:
            tokens += sum(members.values())
            if event.time_s >= begin_s + watched_s:
                return tokens / (event.time_s - begin_s), away
    raise SystemExit("the edge ended")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", default=["rounds", "streams", "auto"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--watched-s", type=float, default=10.0)
    parser.add_argument("--pass-s", type=float, nargs=3, default=PAPER_S, metavar=("FIXED", "PER_DEVICE", "PER_TOKEN"))
    options = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        for repeat in range(options.repeats):
            for mode in options.modes:
                # In another order each time, so that no kind always has the machine's better moments.
                for kind in (*KINDS[repeat % len(KINDS) :], *KINDS[: repeat % len(KINDS)]):
                    row = await play(kind, mode, folder, options.watched_s, options.pass_s)
                    found.setdefault((mode, kind), []).append(row)
                    print(f"{repeat} {mode:8} {kind:34} {row[0]:6.1f} tokens/s, {row[1]} away", flush=True)
    for mode in options.modes:
        beside_honest = [rate for rate, _ in found[mode, "honest"]]
        print(f"{mode}: {statistics.mean(beside_honest):.0f} tokens/s beside an honest device")
        for kind in KINDS:
            base, rates = statistics.mean(beside_honest), [rate for rate, _ in found[mode, kind]]
            shares, away = [rate / base for rate in rates], sum(gone for _, gone in found[mode, kind])
            print(f"  {kind:34} {statistics.mean(shares):5.2f} ({min(shares):.2f} to {max(shares):.2f}), {away} away")


def save_model(folder: str) -> None:
    """The tests' tiny model, with room for long texts."""
    from tests.conftest import save_tiny_model

    save_tiny_model(folder)
    file = Path(folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": MAX_LENGTH}))


if __name__ == "__main__":
    asyncio.run(main())
