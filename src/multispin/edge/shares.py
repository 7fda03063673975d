"""Places of which one token, or one address, may have a share, so that there is room for somebody else."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from multispin.passes.limits import most_of_one


class FullHouseError(Exception):
    """There is no place, or none for this origin; the sentence is for whoever asked."""


class SharedPlaces:
    """A number of places, each of which is held for a while.

    Args:
        count: number of places.
        max_share: share of the places that all others leave which one origin may have; default 1.0.

    """

    def __init__(self, count: int, max_share: float = 1.0) -> None:
        self._count, self._max_share = count, max_share
        self._held: Counter[str] = Counter()  # by origin

    @property
    def held(self) -> int:
        """Places that are held."""
        return self._held.total()

    @contextmanager
    def place(self, origin: str, what: str) -> Iterator[None]:
        """Hold a place while the block runs.

        Args:
            origin: whom it counts as (`Caller.origin`).
            what: what holds the places, for the sentence, such as "requests".

        Raises:
            FullHouseError: there is none.

        """
        own, held = self._held[origin], self.held
        if held >= self._count:
            raise FullHouseError(f"there are {held} {what}, the limit: try again later")
        if own >= most_of_one(self._count, held - own, self._max_share):
            raise FullHouseError(f"{own} {what} come from this address or token, its limit: try again later")
        self._held[origin] += 1
        try:
            yield
        finally:
            self._held[origin] -= 1
            if not self._held[origin]:
                del self._held[origin]
