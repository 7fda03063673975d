"""Who had a turn when, so that of several who have equally much now, whoever had none for longest is next."""

from collections import OrderedDict

MAX_ORIGINS = 4096
"""So many origins' last turns are remembered; then those that had none for longest are forgotten."""


class Rotation:
    """Remembers the last turn of each origin, which is a token or an address."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()
        self._turns = 0

    def last(self, origin: str) -> int:
        """The number of its last turn; 0 if it had none."""
        return self._last.get(origin, 0)

    def served(self, origin: str) -> None:
        """It has a turn now."""
        self._turns += 1
        self._last[origin] = self._turns
        self._last.move_to_end(origin)
        if len(self._last) > MAX_ORIGINS:
            self._last.popitem(last=False)
