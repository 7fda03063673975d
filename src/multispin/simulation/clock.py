"""The virtual clock: callbacks in the order of their times."""

import heapq
from collections.abc import Callable


class EventQueue:
    """Callbacks in the order of their times; the clock jumps from one to the next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time_s: float, callback: Callable[[], None]) -> None:
        """Call back at `time_s`; events of one time come in the order of their making."""
        self._count += 1
        heapq.heappush(self._heap, (time_s if time_s > self.now_s else self.now_s, self._count, callback))

    def step(self) -> bool:
        """Run the next event; False if there is none."""
        if not self._heap:
            return False
        self.now_s, _, callback = heapq.heappop(self._heap)
        callback()
        return True
