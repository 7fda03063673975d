"""Places for texts that are written at once, and who has the next one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from multispin.passes.rotation import Rotation


class TextPlaces:
    """A number of places. Where several texts wait, one of whoever has the fewest places is next, and of these, of
    whoever got none for longest.

    Args:
        count: number of places.
        most_of_one: most places of one origin, which is a token or an address; default: all.

    """

    def __init__(self, count: int, most_of_one: int | None = None) -> None:
        self._free, self._most_of_one = count, count if most_of_one is None else most_of_one
        self._held: Counter[str] = Counter()
        self._rotation = Rotation()
        self._waiting: dict[asyncio.Future[None], str] = {}  # origins of those who wait, who came first is first

    @asynccontextmanager
    async def place(self, origin: str) -> AsyncIterator[None]:
        """Hold a place while the block runs, when there is one."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = origin
        self._give()
        try:
            await turn
            yield
        finally:
            if self._waiting.pop(turn, None) is None:  # it had its place
                self._free += 1
                self._held[origin] -= 1
                if not self._held[origin]:
                    del self._held[origin]
                self._give()

    def _give(self) -> None:
        """Give free places away."""
        while self._free and (
            able := [turn for turn, of in self._waiting.items() if self._held[of] < self._most_of_one]
        ):
            turn = min(able, key=lambda turn: (self._held[of := self._waiting[turn]], self._rotation.last(of)))
            origin = self._waiting.pop(turn)
            self._rotation.served(origin)
            self._free -= 1
            self._held[origin] += 1
            turn.set_result(None)
