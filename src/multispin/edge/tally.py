"""How often strangers do something wrong, for a log that they cannot fill."""

import asyncio
from collections.abc import Callable

LOG_PERIOD_S = 10.0
"""Time between two lines of the log about mistakes of peers [s]; a line says how many there were."""


class Tally:
    """Counts mistakes of one kind: the first is told at once, those that follow within `LOG_PERIOD_S` in one line.

    Args:
        tell: logs this many mistakes.

    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell, self._untold = tell, 0
        self._quiet: asyncio.TimerHandle | None = None  # until the next line may follow

    def add(self) -> None:
        """One more."""
        self._untold += 1
        if self._quiet is None:
            self._go_on()

    def close(self) -> None:
        """Tell what no line has told: the program ends."""
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        self._tell_untold()

    def _go_on(self) -> None:
        self._quiet = asyncio.get_running_loop().call_later(LOG_PERIOD_S, self._go_on) if self._tell_untold() else None

    def _tell_untold(self) -> bool:
        """Whether there was anything to tell."""
        untold, self._untold = self._untold, 0
        if untold:
            self._tell(untold)
        return untold > 0
