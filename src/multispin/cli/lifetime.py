"""Start and end of `serve` and `device`: orders of a parent process, its end, and signals."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from multispin.cli.main import end_signals


class Parent:
    """The parent process behind standard input: each line is an order, and the end of input means that it is gone.

    Args:
        attended: whether there is such a parent; a process that a user started does not read standard input.

    """

    def __init__(self, attended: bool) -> None:
        self._attended = attended
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Begin to read standard input."""
        if self._attended:
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
            self._reading = asyncio.create_task(self._read(reader))

    async def orders(self) -> AsyncIterator[str]:
        """The parent's lines until it is gone; one empty line for a process that a user started."""
        if not self._attended:
            yield ""
        while self._attended:
            line, gone = asyncio.ensure_future(self._lines.get()), asyncio.ensure_future(self._gone.wait())
            await asyncio.wait([line, gone], return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not line.done():
                line.cancel()
                return
            yield line.result()

    async def gone(self) -> None:
        """Wait until standard input ends; for ever in a process that a user started."""
        await self._gone.wait()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self._lines.put_nowait(line.decode().strip())
        self._gone.set()


def stop_signal() -> asyncio.Event:
    """An event that is set by SIGTERM, SIGINT and the end of the terminal.

    This also works in a script's background process, for which the shell ignores SIGINT.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (*end_signals(), signal.SIGINT):
        # Windows has no such handlers, and only a main thread may set them.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop.set)
    return stop


async def end_in_order(finish: Callable[[float], Awaitable[None]], texts_s: float, stop: asyncio.Event) -> None:
    """Let a server end; a second signal ends the unfinished texts at once.

    Args:
        finish: coroutine function that refuses new texts, and returns when the others have ended or their time is over.
        texts_s: longest time for these texts [s].
        stop: event of `stop_signal`, set by the first signal.

    """
    stop.clear()
    finishing, again = asyncio.ensure_future(finish(texts_s)), asyncio.ensure_future(stop.wait())
    await asyncio.wait([finishing, again], return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not finishing.done():
        finishing.cancel()
        await asyncio.wait([finishing])
        await finish(0.0)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Let a signal to end cancel the running task, so that a device can say goodbye. The exit code is the signal's.

    Otherwise the signal would end whatever code runs at that moment.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    asked: list[int] = []

    def end(number: int) -> None:
        asked.append(number)
        task.cancel()

    for number in end_signals():
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # as in `stop_signal`
            loop.add_signal_handler(number, end, number)
    try:
        yield
    except asyncio.CancelledError:
        if asked:
            raise SystemExit(128 + asked[0]) from None
        raise
