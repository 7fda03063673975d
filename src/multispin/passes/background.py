"""Work that takes long and may be late: the last result serves until the next one is there."""

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Background(Generic[Result]):
    """Does one piece of work at a time: at once, or in a thread once it has been given one.

    A simulation plans at once, as its clock stands still meanwhile. A server plans in a thread, so that nobody waits.

    Args:
        share: of the time in which work may be under way; default all of it.

    """

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._executor: Executor | None = None
        self._future: Future[Result] | None = None
        self._began_s = self._rests_until_s = 0.0

    def use(self, executor: Executor) -> None:
        """Have work done there from now on."""
        self._executor = executor

    @property
    def idle(self) -> bool:
        """Whether no work is under way."""
        return self._future is None

    def rested(self, now_s: float) -> bool:
        """Whether no work is under way, and what was done last has not taken more than its share of the time."""
        return self.idle and now_s >= self._rests_until_s

    def begin(self, work: Callable[[], Result], now_s: float = 0.0) -> None:
        """Begin some work; there must be none under way."""
        assert self._future is None
        self._began_s = now_s
        if self._executor is not None:
            self._future = self._executor.submit(work)
            return
        self._future = Future()
        self._future.set_result(work())

    def take(self, now_s: float = 0.0) -> Result | None:
        """What was found, once; None while there is nothing. Work that failed in its thread is logged, and is over."""
        future = self._future
        if future is None or not future.done():
            return None
        self._future = None
        self._rests_until_s = self._began_s + (now_s - self._began_s) / self._share
        if future.cancelled():
            return None
        if (error := future.exception()) is not None:
            log.error("planning failed, and the last plan goes on", exc_info=error)
            return None
        return future.result()
