"""Texts through device sessions: the same client that a person's device runs, one for each text at once.

On a device the sessions go to a distant edge and the device's drafter helps. On the edge they stay inside the process
and nobody's device drafts.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from multispin.device import DeviceClient
from multispin.gateway.source import Piece
from multispin.protocol import Progress, Request


class SessionPool:
    """A `TextSource` over device sessions.

    Args:
        make: makes a client, given who is to be told of every advance of its text.
        size: texts that are written at once; further requests wait for their turn.
        max_length: most tokens of a text, prompt included.

    """

    def __init__(self, make: Callable[[Callable[[Progress], None]], DeviceClient], size: int, max_length: int) -> None:
        self.max_length = max_length
        self._make = make
        self._free: list[tuple[DeviceClient, _Relay]] = []
        self._turns = asyncio.Semaphore(size)

    async def write(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Write one text; closing the iterator ends its session at the edge."""
        async with self._turns:
            client, relay = self._free.pop() if self._free else self._new()
            pieces = relay.listen()
            writing = asyncio.create_task(client.generate(request))
            writing.add_done_callback(lambda _: pieces.put_nowait(None))
            try:
                finish = ""
                while not finish and (piece := await pieces.get()) is not None:
                    finish = piece.finish
                    yield piece
                await writing
            finally:
                writing.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await writing
                self._free.append((client, relay))

    def close(self) -> None:
        """Stop the drafters of all sessions."""
        for client, _ in self._free:
            client.close()

    def _new(self) -> "tuple[DeviceClient, _Relay]":
        relay = _Relay()
        return self._make(relay.tell), relay


class _Relay:
    """Hands what a client reports to whoever reads its present text."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

    def listen(self) -> "asyncio.Queue[Piece | None]":
        """A new queue for a new text."""
        self._pieces = asyncio.Queue()
        return self._pieces

    def tell(self, progress: Progress) -> None:
        """Pass on what a message from the edge brought."""
        self._pieces.put_nowait(
            Piece(progress.tokens, progress.drafted, progress.accepted, progress.finish, progress.scores)
        )
