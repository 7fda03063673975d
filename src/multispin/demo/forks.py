"""Starts `python -m multispin …` by forking a process that has already imported PyTorch and transformers.

These imports take seconds, and a demo starts up to ten processes that need them, so one process imports them for all.
"""

import asyncio
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from io import FileIO
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any

PRELOAD = (
    *("torch", "transformers", "uvloop"),
    *("multispin.models.verifier", "multispin.cli.serve", "multispin.cli.device", "multispin.cli.drafting"),
)
"""Modules that the first process imports for all. A module that is not installed is left out."""


class ForkedProcess:
    """A forked process, with the part of `asyncio.subprocess.Process`'s interface that a demo needs.

    Attributes:
        pid: number of the process.
        stdin: its standard input.
        stdout: its standard output.
        stderr: its standard error.

    """

    def __init__(
        self,
        process: BaseProcess,
        stdin: FileIO,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
    ) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._process = process
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(process.sentinel, self._end)

    @classmethod
    async def start(cls, arguments: Sequence[str], limit: int, yielding: int = 0) -> "ForkedProcess":
        """Start a process in a session of its own.

        Args:
            arguments: arguments after `python -m multispin`.
            limit: longest line that is read from it [bytes].
            yielding: increase of the process's niceness; default 0.

        """
        _import_once()
        (theirs_in, ours_in), (ours_out, theirs_out), (ours_err, theirs_err) = (os.pipe() for _ in range(3))
        # The first start waits for the imports.
        process = await asyncio.to_thread(_start, arguments, (theirs_in, theirs_out, theirs_err), yielding)
        stdin = os.fdopen(ours_in, "wb", buffering=0)
        return cls(process, stdin, await _reader(ours_out, limit), await _reader(ours_err, limit))

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    async def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        await self._ended.wait()
        code = self.returncode
        assert code is not None
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it."""
        self._process.kill()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._process.join()
        self._ended.set()


class Pipes:
    """File descriptors that are passed to a new process.

    Args:
        ends: descriptors for its standard input, output and error.

    """

    def __init__(self, *ends: int) -> None:
        self._ends: Sequence[int] = ends

    def __getstate__(self) -> list[Any]:
        return [DupFd(end) for end in self._ends]

    def __setstate__(self, state: list[Any]) -> None:
        self._ends = [end.detach() for end in state]

    def take(self) -> None:
        """Make them the standard streams of this process."""
        for number, end in enumerate(self._ends):
            os.dup2(end, number)
            os.close(end)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)


def be_multispin(arguments: Sequence[str], pipes: Pipes, yielding: int = 0) -> None:
    """Turn a new process into `python -m multispin ARGUMENTS` in a session of its own; `yielding`: more niceness."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.nice(yielding)
    pipes.take()
    sys.argv = ["multispin", *arguments]
    runpy.run_module("multispin", run_name="__main__")


def _import_once() -> None:
    """Start the process that does the imports, if it is not running yet."""
    multiprocessing.set_forkserver_preload(list(PRELOAD))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # only this process handles Ctrl-C
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(arguments: Sequence[str], ends: Sequence[int], yielding: int) -> BaseProcess:
    process = multiprocessing.get_context("forkserver").Process(
        target=be_multispin, args=(arguments, Pipes(*ends), yielding), daemon=True
    )
    try:
        process.start()
    finally:
        for end in ends:
            os.close(end)
    return process


async def _reader(end: int, limit: int) -> asyncio.StreamReader:
    reader, pipe = asyncio.StreamReader(limit), os.fdopen(end, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader
