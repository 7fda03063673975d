"""The demo's processes: one edge and several devices, each a real process that talks over a real socket.

This process starts them and reads the events that they write as JSON lines. Each child's standard input is a pipe from
this process: when this one ends, however it ends, the children see the end of their input and stop too.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from multispin.demo.crew import DeviceSpec
from multispin.demo.state import DemoState, DeviceState
from multispin.errors import InputError
from multispin.protocol.events import Event, Listening, Ready, from_line

Expected = TypeVar("Expected", Listening, Ready)

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 5.0
MAX_LINE_BYTES = 4 * 2**20


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

    async def event(self) -> Event | None:
        """The next event; None at the end."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return from_line(line) if line else None

    async def expect(self, kind: type[Expected]) -> Expected:
        """Wait for an event of this kind; InputError with the child's own words if it ends before."""
        while (event := await self.event()) is not None:
            if isinstance(event, kind):
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
        listening = await asyncio.wait_for(edge.expect(Listening), START_TIMEOUT_S)
        url = f"ws://127.0.0.1:{listening.port}"
        crew: list[tuple[DeviceState, _Child]] = []
        for known in state.devices.values():
            child = await _Child.start(["device", url, *_arguments(known.spec), *device], 1)
            children.append(child)
            crew.append((known, child))
            started(known.spec.name, child.pid)
        await asyncio.wait_for(asyncio.gather(*(child.expect(Ready) for _, child in crew)), START_TIMEOUT_S)
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
