"""Texts through device sessions: the same client that a person's device runs, one for each text at once.

On a device the sessions go to a distant edge and the device's drafter helps. On the edge they stay inside the process
and nobody's device drafts.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from multispin.device import DeviceClient
from multispin.gateway.source import Piece
from multispin.protocol import Progress, RefusedError, Request
from multispin.protocol.limits import FINISH_TEXTS_S


class SessionPool:
    """A `TextSource` over device sessions.

    Args:
        make: function that makes a client; its argument is the function that gets every advance of the client's text.
        size: texts that are written at once; further requests wait for their turn.
        max_length: most tokens of a text, prompt included.
        pieces: the pieces of a message, given the number of its session; by default one, of what the client drafted.

    """

    def __init__(
        self,
        make: Callable[[Callable[[Progress], None]], DeviceClient],
        size: int,
        max_length: int,
        pieces: "Callable[[int, Progress], Sequence[Piece]] | None" = None,
    ) -> None:
        self.max_length = max_length
        self._make = make
        self._pieces = pieces or _one_piece
        self._free: list[tuple[DeviceClient, _Relay]] = []
        self._unread: set[_Pieces] = set()  # of texts that are not read to their end
        self._stopping = False
        self._left = asyncio.Event()  # a text has ended
        self._turns = asyncio.Semaphore(size)

    async def write(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Write one text; closing the iterator ends its session at the edge. RefusedError if this pool ends.

        The text is written as fast as the edge can, however slowly it is read, and waits here; its length is bounded
        by the request. So a reader that stands still keeps nobody from a turn.
        """
        pieces = _Pieces()
        self._unread.add(pieces)
        writing = asyncio.create_task(self._generate(request, pieces))
        try:
            finish = ""
            while not finish and (piece := await pieces.get()) is not None:
                if isinstance(piece, RefusedError):
                    raise piece
                finish = piece.finish
                yield piece
            await writing
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await writing
            self._unread.discard(pieces)
            self._left.set()

    async def _generate(self, request: Request, pieces: "_Pieces") -> None:
        """Have one text generated in its turn, which ends when its session has ended."""
        try:
            async with self._turns:
                if self._stopping:
                    raise _stopping()
                client, relay = self._free.pop() if self._free else self._new()
                relay.pieces = pieces
                try:
                    await client.generate(request)
                finally:
                    self._free.append((client, relay))
        finally:
            pieces.put_nowait(None)

    async def finish(self, texts_s: float = FINISH_TEXTS_S) -> None:
        """Take no new text, and let those under way end; what has not ended after `texts_s` is refused [s]."""
        self._stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(texts_s):
                while self._unread:
                    self._left.clear()
                    await self._left.wait()
        for pieces in self._unread:
            pieces.put_nowait(_stopping())

    def close(self) -> None:
        """Stop the drafters of all sessions."""
        for client, _ in self._free:
            client.close()

    def _new(self) -> "tuple[DeviceClient, _Relay]":
        relay = _Relay(self._pieces)
        client = self._make(relay.tell)
        relay.number = lambda: 0 if client.session.welcome is None else client.session.welcome.session
        return client, relay


def _stopping() -> RefusedError:
    return RefusedError("shutdown", "this server is stopping")


def _one_piece(_: int, progress: Progress) -> list[Piece]:
    return [Piece(progress.tokens, progress.drafted, progress.accepted, progress.finish, progress.scores)]


_Pieces = asyncio.Queue[Piece | RefusedError | None]
"""The pieces of one text on their way to its reader; None is its end, an error why it has no more."""


class _Relay:
    """Hands what a client reports to whoever reads its present text.

    Attributes:
        number: number of the client's session; 0 while it has none.
        pieces: where the pieces of its present text go.

    """

    def __init__(self, pieces_of: Callable[[int, Progress], Sequence[Piece]]) -> None:
        self.number: Callable[[], int] = lambda: 0
        self.pieces = _Pieces()
        self._pieces_of = pieces_of

    def tell(self, progress: Progress) -> None:
        """Pass on what a message from the edge brought."""
        for piece in self._pieces_of(self.number(), progress):
            self.pieces.put_nowait(piece)
