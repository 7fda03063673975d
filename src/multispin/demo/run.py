"""The demo's processes: one edge, several devices, each a real process that talks over a real socket.

This process starts them, reads the JSON lines that they write, and keeps what a person or a script wants to know.
Every child has its standard input tied to this process: when this one ends, however it ends, so do they.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from multispin.errors import InputError

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 5.0
MAX_LINE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class DeviceSpec:
    """One device of the demo, and what it pretends to be."""

    name: str
    drafter: str
    seconds_per_token: float
    spectral_efficiency: float
    task: str
    prompt: str
    seed: int


@dataclass
class DeviceState:
    """What is known of a running device."""

    spec: DeviceSpec
    text: str = ""
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    acceptance_rate: float | None = None
    length: int = 0
    bandwidth_hz: float = 0.0
    done: dict[str, Any] | None = None
    lost: str = ""


@dataclass
class DemoState:
    """What is known of the whole run; filled while it goes on.

    Attributes:
        devices: by name.
        rounds: verified so far.
        began_s: monotonic time of the start signal.
        ended_s: … and of the last text's end.
        first_s: edge's clock when the first grants went out.
        last_s: … and when the last verdicts did.
        delivered: tokens committed between the two.
        planned_tokens: what the plans of those rounds promised.
        planned_s: the time that those plans took for it.
        log: what the edge told of each round, prompts' rounds included.

    """

    devices: dict[str, DeviceState] = field(default_factory=dict)
    rounds: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0
    delivered: int = 0
    planned_tokens: float = 0.0
    planned_s: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)
    _plan: tuple[float, float] | None = None

    def edge_event(self, event: dict[str, Any]) -> None:
        """Take in a JSON line of the edge."""
        if event["event"] != "round":
            return
        for row in event["devices"]:
            self.devices[row["name"]].acceptance_rate = row["acceptance_rate"]
        self.log.append(
            {
                "time_s": event["time_s"],
                "planned_round_s": self._plan[1] if self._plan else None,
                "verify_s": event["verify_s"],
                "prompt_tokens": event["prompt_tokens"],
                "drafted": {row["name"]: row["drafted"] for row in event["devices"]},
                "tokens": {row["name"]: row["tokens"] for row in event["devices"]},
                "seconds_per_token": {row["name"]: row["seconds_per_token"] for row in event["devices"]},
            }
        )
        if event["devices"] and self._plan is not None:
            self.rounds += 1
            self.delivered += sum(row["tokens"] for row in event["devices"])
            self.last_s = event["time_s"]
            self.planned_tokens += self._plan[0]
            self.planned_s += self._plan[1]
        if event["planned_round_s"] is not None:
            if self.first_s is None:
                self.first_s = event["time_s"]
            round_s = event["planned_round_s"]
            self._plan = (event["planned_goodput_tokens_per_s"] * round_s, round_s)
            for row in event["grants"]:
                device = self.devices[row["name"]]
                device.length, device.bandwidth_hz = row["length"], row["bandwidth_hz"]
        else:
            self._plan = None

    def device_event(self, device: DeviceState, event: dict[str, Any]) -> None:
        """Take in a JSON line of a device."""
        if event["event"] in ("progress", "done"):
            device.text, device.tokens = event["text"], event["tokens"]
            device.drafted, device.accepted = event["drafted"], event["accepted"]
        if event["event"] == "done":
            device.done = event

    @property
    def goodput_tokens_per_s(self) -> float:
        """Tokens committed per second between the first grant and the last verdict, at the edge."""
        if self.first_s is None or self.last_s <= self.first_s:
            return 0.0
        return self.delivered / (self.last_s - self.first_s)

    @property
    def predicted_goodput_tokens_per_s(self) -> float:
        """What the controller's plans promised for the same rounds, as a mean over their planned time."""
        return self.planned_tokens / self.planned_s if self.planned_s > 0 else 0.0


class _Child:
    """One process and its JSON lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._errors: list[str] = []
        self._reader = asyncio.create_task(self._read_errors())

    @classmethod
    async def start(cls, arguments: Sequence[str], threads: int) -> "_Child":
        """Start `multispin ARGUMENTS --json --attended` with its threads set."""
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "multispin", *arguments),
                *("--threads", str(threads), "--json", "--attended"),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=environment,
                limit=MAX_LINE_BYTES,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
            )
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    async def event(self) -> dict[str, Any] | None:
        """The next JSON line; None at the end."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            return None
        event: dict[str, Any] = json.loads(line)
        return event

    async def expect(self, kind: str) -> dict[str, Any]:
        """Wait for an event of this kind; InputError with the child's own words if it ends before."""
        while (event := await self.event()) is not None:
            if event["event"] == kind:
                return event
        raise InputError(await self.why())

    async def why(self) -> str:
        """What the process said last, or how it ended."""
        code = await self._process.wait()
        await self._reader
        said = [line for line in self._errors if line.strip()]
        return said[-1].removeprefix("multispin: ") if said else f"a process ended with code {code}"

    def go(self) -> None:
        """Tell it to begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def stop(self) -> None:
        """End it: by the end of its input, by a signal, by force."""
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            for end in (self._process.terminate, self._process.kill):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
                    break
                with contextlib.suppress(ProcessLookupError):
                    end()
            await self._process.wait()
        self._reader.cancel()

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._errors = [*self._errors[-20:], line.decode(errors="replace").rstrip()]


async def run_demo(
    state: DemoState, serve: Sequence[str], device: Sequence[str], started: Callable[[str, int], None]
) -> None:
    """Run one edge and all devices of `state` to the end; InputError if the edge or a start fails.

    Args:
        state: holds the devices; filled while the run goes on.
        serve: further arguments of `multispin serve`.
        device: further arguments of `multispin device`, the same for all.
        started: told the name and process id of every process.

    """
    children: list[_Child] = []
    try:
        edge = await _Child.start(["serve", "--port", "0", *serve], os.cpu_count() or 1)
        children.append(edge)
        started("edge", edge.pid)
        listening = await asyncio.wait_for(edge.expect("listening"), START_TIMEOUT_S)
        url = f"ws://127.0.0.1:{listening['port']}"
        crew: list[tuple[DeviceState, _Child]] = []
        for known in state.devices.values():
            child = await _Child.start(["device", url, *_arguments(known.spec), *device], 1)
            children.append(child)
            crew.append((known, child))
            started(known.spec.name, child.pid)
        await asyncio.wait_for(asyncio.gather(*(child.expect("ready") for _, child in crew)), START_TIMEOUT_S)
        state.began_s = time.monotonic()
        for _, child in crew:
            child.go()
        watching = asyncio.create_task(_watch_edge(state, edge))
        following = asyncio.create_task(_follow_all(state, crew))
        await asyncio.wait([watching, following], return_when=asyncio.FIRST_COMPLETED)
        if not following.done():
            following.cancel()
            raise InputError(f"the edge stopped: {await edge.why()}")
        following.result()
        state.ended_s = time.monotonic()
        watching.cancel()
    except TimeoutError:
        raise InputError(f"the processes were not ready within {START_TIMEOUT_S:.0f} s") from None
    finally:
        await asyncio.gather(*(child.stop() for child in children))


async def _watch_edge(state: DemoState, edge: _Child) -> None:
    while (event := await edge.event()) is not None:
        state.edge_event(event)


async def _follow_all(state: DemoState, crew: Sequence[tuple[DeviceState, _Child]]) -> None:
    await asyncio.gather(*(_follow(state, known, child) for known, child in crew))


async def _follow(state: DemoState, known: DeviceState, child: _Child) -> None:
    while known.done is None and (event := await child.event()) is not None:
        state.device_event(known, event)
    if known.done is None:
        known.lost = await child.why()


def _arguments(spec: DeviceSpec) -> list[str]:
    return [
        *("--name", spec.name, "--draft", spec.drafter, f"--prompt={spec.prompt}", "--seed", str(spec.seed)),
        *("--seconds-per-token", str(spec.seconds_per_token)),
        *("--spectral-efficiency", str(spec.spectral_efficiency)),
    ]
