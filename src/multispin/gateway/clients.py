"""Texts through device sessions: the same client that a person's device runs, one for each text at once.

On a device the sessions go to a distant edge, and the device's drafter drafts. On the edge they stay inside the
process, and no device drafts.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from multispin.device import DeviceClient
from multispin.gateway.places import TextPlaces
from multispin.gateway.source import Piece
from multispin.protocol import Progress, RefusedError, Request
from multispin.protocol.limits import FINISH_TEXTS_S

MAX_UNREAD_TOKENS = 2**17
"""Most tokens of all texts that may wait for readers: 25 MB, or 350 MB with 20 log probabilities for each."""


class SessionPool:
    """A `TextSource` over device sessions.

    Args:
        make: function that makes a client; its argument is called with every advance of the client's text.
        size: most texts that are written at once; further requests wait for their turn.
        max_length: most tokens of a text, prompt included.
        pieces: the pieces of a message, given the number of its session; by default one, of what the client drafted.
        max_unread_tokens: most tokens that wait for readers, of all texts together; default `MAX_UNREAD_TOKENS`.
        most_of_one: most texts of one origin that are written at once; default all.
        origin: function that returns whom the request that is being served counts as; by default all are one.

    Attributes:
        unread_tokens: tokens of all texts that wait for readers.

    """

    def __init__(
        self,
        make: Callable[[Callable[[Progress], None]], DeviceClient],
        size: int,
        max_length: int,
        pieces: "Callable[[int, Progress], Sequence[Piece]] | None" = None,
        max_unread_tokens: int = MAX_UNREAD_TOKENS,
        most_of_one: int | None = None,
        origin: Callable[[], str] = lambda: "",
    ) -> None:
        self.max_length = max_length
        self._make = make
        self._pieces = pieces or _one_piece
        self._max_unread_tokens = max_unread_tokens
        self._free: list[tuple[DeviceClient, _Relay]] = []
        self._unread: set[_Pieces] = set()  # of texts that have not been read to their end
        self.unread_tokens = 0
        self._stopping = False
        self._left = asyncio.Event()  # a text has ended
        self._places, self._origin = TextPlaces(size, most_of_one), origin

    async def write(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Write one text. Closing the iterator ends its session at the edge. RefusedError if this pool is stopping.

        The text is written as fast as the edge can, however slowly it is read, and waits here. So a reader that stops
        does not hold up other requests. If more than `max_unread_tokens` wait, a text of the origin that has most of
        them is refused, the one with most.
        """
        pieces = _Pieces(self._origin())
        self._unread.add(pieces)
        pieces.writing = writing = asyncio.create_task(self._generate(request, pieces))
        try:
            finish = ""
            while not finish and (piece := await pieces.get()) is not None:
                if isinstance(piece, RefusedError):
                    raise piece
                finish = piece.finish
                self._count(pieces, -len(piece.tokens))
                yield piece
            await writing
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await writing
            self._count(pieces, -pieces.tokens)
            self._unread.discard(pieces)
            self._left.set()

    async def _generate(self, request: Request, pieces: "_Pieces") -> None:
        """Wait for a turn, and generate one text. The turn ends with the text's session."""
        try:
            async with self._places.place(pieces.origin):
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
        """Refuse new texts, and let the others end; those that take longer than `texts_s` [s] are refused, too."""
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

    def _take(self, pieces: "_Pieces", piece: Piece) -> None:
        """Keep a piece for its reader."""
        pieces.put_nowait(piece)
        self._count(pieces, len(piece.tokens))
        if self.unread_tokens > self._max_unread_tokens:
            of = Counter[str]()
            for each in self._unread:
                of[each.origin] += each.tokens
            most = max(self._unread, key=lambda each: (of[each.origin], each.tokens))
            self._count(most, -most.tokens)
            most.give_up()

    def _count(self, pieces: "_Pieces", tokens: int) -> None:
        pieces.tokens += tokens
        self.unread_tokens += tokens

    def _new(self) -> "tuple[DeviceClient, _Relay]":
        relay = _Relay(self._pieces, self._take)
        client = self._make(relay.tell)
        relay.number = lambda: 0 if client.session.welcome is None else client.session.welcome.session
        return client, relay


def _stopping() -> RefusedError:
    return RefusedError("shutdown", "this server is stopping: try another one, or this one again later")


def _one_piece(_: int, progress: Progress) -> list[Piece]:
    return [Piece(progress.tokens, progress.drafted, progress.accepted, progress.finish, progress.scores)]


class _Pieces(asyncio.Queue[Piece | RefusedError | None]):
    """The pieces of one text that wait for its reader; None marks its end, an error its failure.

    Attributes:
        origin: whom the text counts as.
        tokens: number of tokens that wait here.
        writing: task that generates the text.

    Args:
        origin: whom the text counts as; default empty.

    """

    writing: asyncio.Task[None]

    def __init__(self, origin: str = "") -> None:
        super().__init__()
        self.origin, self.tokens = origin, 0

    def give_up(self) -> None:
        """Drop all pieces, refuse the text, and end its session."""
        while not self.empty():
            self.get_nowait()
        self.put_nowait(RefusedError("full", "too much text waits to be read, most of it here: read the answer faster"))
        self.writing.cancel()


class _Relay:
    """Passes what a client reports on to the reader of its present text.

    Attributes:
        number: number of the client's session; 0 while it has none.
        pieces: queue for the pieces of its present text.

    """

    def __init__(
        self, pieces_of: Callable[[int, Progress], Sequence[Piece]], take: Callable[[_Pieces, Piece], None]
    ) -> None:
        self.number: Callable[[], int] = lambda: 0
        self.pieces = _Pieces()
        self._pieces_of, self._take = pieces_of, take

    def tell(self, progress: Progress) -> None:
        """Pass on the new tokens of a message from the edge."""
        for piece in self._pieces_of(self.number(), progress):
            self._take(self.pieces, piece)
