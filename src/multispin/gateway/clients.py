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
        self._at_work: set[_Relay] = set()
        self._stopping = False
        self._left = asyncio.Event()  # a text has ended
        self._turns = asyncio.Semaphore(size)

    async def write(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Write one text; closing the iterator ends its session at the edge. RefusedError if this pool ends."""
        async with self._turns:
            if self._stopping:
                raise _stopping()
            client, relay = self._free.pop() if self._free else self._new()
            pieces = relay.listen()
            self._at_work.add(relay)
            writing = asyncio.create_task(client.generate(request))
            writing.add_done_callback(lambda _: pieces.put_nowait(None))
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
                self._free.append((client, relay))
                self._at_work.discard(relay)
                self._left.set()

    async def finish(self, texts_s: float = FINISH_TEXTS_S) -> None:
        """Take no new text, and let those under way end; what has not ended after `texts_s` is refused [s]."""
        self._stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(texts_s):
                while self._at_work:
                    self._left.clear()
                    await self._left.wait()
        for relay in self._at_work:
            relay.stop()

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


class _Relay:
    """Hands what a client reports to whoever reads its present text.

    Attributes:
        number: number of the client's session; 0 while it has none.

    """

    def __init__(self, pieces_of: Callable[[int, Progress], Sequence[Piece]]) -> None:
        self.number: Callable[[], int] = lambda: 0
        self._pieces_of = pieces_of
        self._pieces: asyncio.Queue[Piece | RefusedError | None] = asyncio.Queue()

    def listen(self) -> "asyncio.Queue[Piece | RefusedError | None]":
        """A new queue for a new text."""
        self._pieces = asyncio.Queue()
        return self._pieces

    def stop(self) -> None:
        """Refuse what is left of the present text."""
        self._pieces.put_nowait(_stopping())

    def tell(self, progress: Progress) -> None:
        """Pass on what a message from the edge brought."""
        for piece in self._pieces_of(self.number(), progress):
            self._pieces.put_nowait(piece)
