"""The demo's processes: one edge and several devices, each a real process that talks over a real socket.

This process starts them and reads their events as JSON lines. Each child's standard input is a pipe from this process.
When this one ends, for whatever reason, the children see the end of their input and stop, too.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from multispin.demo.crew import DeviceSpec
from multispin.demo.forks import ForkedProcess
from multispin.demo.state import DemoState, DeviceState
from multispin.errors import InputError
from multispin.protocol.events import Begin, Event, Listening, Order, Ready, Tried, Try, as_order, from_line

Expected = TypeVar("Expected", Listening, Ready, Tried)
Result = TypeVar("Result")

CORES = os.cpu_count() or 1
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 5.0
YIELDING = 5
"""Additional niceness of the devices' processes. At a real site each device has its own machine. Here all share one,
and a late pass of the edge delays everybody, while a late token of a device delays only that device."""
MAX_EVENT_BYTES = 4 * 2**20


class _Child:
    """One process and its JSON lines."""

    def __init__(self, process: asyncio.subprocess.Process | ForkedProcess) -> None:
        self._process = process
        self._errors: list[str] = []
        self._reader = asyncio.create_task(self._read_errors())

    @classmethod
    async def start(cls, arguments: Sequence[str], threads: int, forks: bool, yielding: int = 0) -> "_Child":
        """Start `multispin ARGUMENTS --json --attended` in a session of its own, forked or as a new program.

        Ctrl-C reaches only this process, which then ends the others in order.

        Args:
            arguments: the command and its options.
            threads: threads of its model.
            forks: whether it is forked from a process that has imported PyTorch.
            yielding: increase of its niceness; default 0.

        """
        arguments = [*arguments, "--threads", str(threads), "--json", "--attended"]
        if forks:
            return cls(await ForkedProcess.start(arguments, MAX_EVENT_BYTES, yielding))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "multispin", *arguments),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            limit=MAX_EVENT_BYTES,
            start_new_session=True,
        )
        if hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + yielding)
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def event(self) -> Event | None:
        """The next event; None at the end."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return from_line(line) if line else None

    async def expect(self, kind: type[Expected]) -> Expected:
        """Wait for an event of this kind; InputError with the child's own message if it ends before."""
        while (event := await self.event()) is not None:
            if isinstance(event, kind):
                return event
        raise InputError(await self.why())

    async def why(self) -> str:
        """The last line that the process wrote, or how it ended."""
        code = await self._process.wait()
        await self._reader
        said = [line for line in self._errors if line.strip()]
        return said[-1].removeprefix("multispin: ") if said else f"a process of the demo ended with exit code {code}"

    def tell(self, order: Order) -> None:
        """Send an order; nothing happens if the process has ended."""
        assert self._process.stdin is not None
        if self._process.returncode is None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(as_order(order))

    async def stop(self) -> None:
        """End the process: close its input, then send a signal, then kill it."""
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


class Crew:
    """The processes of a demo: the same devices for all plays, and one edge for each play.

    Args:
        specs: descriptions of the devices.
        device: arguments of `multispin device` that all of them share.
        started: called with the name and id of every process.
        forks: whether processes may be forked from one that has imported PyTorch, which saves seconds for each. This
            does not work if one of them computes on a GPU or starts its own workers.

    """

    def __init__(
        self, specs: Sequence[DeviceSpec], device: Sequence[str], started: Callable[[str, int], None], forks: bool
    ) -> None:
        self._forks = forks and sys.platform == "linux"
        self._specs = specs
        self._device = device
        self._started = started
        self._devices: dict[str, _Child] = {}
        self._edges: list[_Child] = []

    async def start(self) -> None:
        """Start the devices, and wait until they have loaded their drafters and read their prompts."""
        for spec in self._specs:
            self._devices[spec.name] = child = await _Child.start(
                ["device", *_arguments(spec), *self._device], 1, self._forks, YIELDING
            )
            self._started(spec.name, child.pid)
        await _in_time(asyncio.gather(*(child.expect(Ready) for child in self._devices.values())))

    async def time_drafting(self, tokens: int) -> dict[str, float]:
        """Let all devices draft at once, and return their real time per drafted token by name [s]."""
        for child in self._devices.values():
            child.tell(Try(tokens))
        found = await _in_time(asyncio.gather(*(child.expect(Tried) for child in self._devices.values())))
        return {name: tried.seconds_per_token for name, tried in zip(self._devices, found, strict=True)}

    async def play(self, serve: Sequence[str], slower: float, state: DemoState) -> None:
        """One play, from the start of its edge to the end of the last text.

        Args:
            serve: arguments of `multispin serve`, without the port.
            slower: factor by which the devices' emulated times are longer than specified.
            state: filled during the play.

        Raises:
            InputError: the edge fails.

        """
        edge = await _Child.start(["serve", "--port", "0", *serve], CORES, self._forks)
        self._edges.append(edge)
        self._started("edge", edge.pid)
        listening = await _in_time(edge.expect(Listening))
        begin = Begin(f"ws://127.0.0.1:{listening.port}", slower)
        state.began_s = time.monotonic()
        for child in self._devices.values():
            child.tell(begin)
        watching = asyncio.create_task(_watch_edge(state, edge))
        following = asyncio.create_task(_follow_all(state, self._devices))
        try:
            await asyncio.wait([watching, following], return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                watching.result()  # raises the error of an event, if that was the reason
                raise InputError(f"the edge stopped: {await edge.why()}")
            following.result()
            state.ended_s = time.monotonic()
            await edge.stop()
            await asyncio.wait([watching], timeout=STOP_TIMEOUT_S)  # for the events of the last pass
        finally:
            watching.cancel()
            following.cancel()

    async def stop(self) -> None:
        """End every process."""
        await asyncio.gather(*(child.stop() for child in (*self._devices.values(), *self._edges)))


async def _in_time(waiting: Awaitable[Result]) -> Result:
    """Wait for the processes' first events; InputError after `START_TIMEOUT_S`."""
    try:
        return await asyncio.wait_for(waiting, START_TIMEOUT_S)
    except TimeoutError:
        raise InputError(f"the demo's processes were not ready within {START_TIMEOUT_S:.0f} s: try again") from None


async def _watch_edge(state: DemoState, edge: _Child) -> None:
    while (event := await edge.event()) is not None:
        state.edge_event(event)


async def _follow_all(state: DemoState, crew: Mapping[str, _Child]) -> None:
    await asyncio.gather(*(_follow(state, state.devices[name], child) for name, child in crew.items()))


async def _follow(state: DemoState, known: DeviceState, child: _Child) -> None:
    while known.done is None and (event := await child.event()) is not None:
        state.device_event(known, event)
    if known.done is None:
        known.lost = await child.why()


def _arguments(spec: DeviceSpec) -> list[str]:
    return [
        *("--name", spec.name, "--draft", spec.drafter, f"--prompt={spec.prompt}", "--seed", str(spec.seed)),
        *("--seconds-per-token", str(spec.seconds_per_token)),
        *("--spectral-efficiency", str(spec.spectral_efficiency), "--delay-s", str(spec.delay_s)),
    ]
