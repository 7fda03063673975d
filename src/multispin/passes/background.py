"""Long work in the background; the last result is used until the next one is ready."""

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Generic, TypeVar

Result = TypeVar("Result")

Clock = Callable[[], float]

log = logging.getLogger(__name__)


class Background(Generic[Result]):
    """Does one piece of work at a time, at once or in a thread.

    A simulation plans at once, since its clock stands still meanwhile. A server plans in a thread: nobody waits.

    Args:
        share: largest share of a processor's time that work in a thread may take; default 1. The first work is not
            counted, since it loads libraries.

    """

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._clock: Clock = _uncounted
        self._executor: Executor | None = None
        self._future: Future[tuple[Result, float]] | None = None
        self._done = 0
        self._rests_until_s = 0.0

    def use(self, executor: Executor, clock: Clock | None = None) -> None:
        """Do work in another thread from now on.

        Args:
            executor: executor with one thread.
            clock: returns the processor time of the calling thread [s]; default none: work costs nothing.

        """
        self._executor, self._clock = executor, clock or _uncounted

    @property
    def idle(self) -> bool:
        """Whether no work is running."""
        return self._future is None

    def rested(self, now_s: float) -> bool:
        """Whether no work is running, and the last one has not exceeded its share of the time."""
        return self.idle and now_s >= self._rests_until_s

    def begin(self, work: Callable[[], Result]) -> None:
        """Begin some work; none may be running."""
        assert self._future is None
        if self._executor is not None:
            self._future = self._executor.submit(partial(self._timed, work))
            return
        self._future = Future()
        self._future.set_result((work(), 0.0))

    def take(self, now_s: float = 0.0) -> Result | None:
        """The result, returned once; None while there is none. A failure in the thread is logged and has no result."""
        future = self._future
        if future is None or not future.done():
            return None
        self._future = None
        if future.cancelled():
            return None
        if (error := future.exception()) is not None:
            log.error("planning failed; the last plan stays in use", exc_info=error)
            return None
        result, took_s = future.result()
        self._done += 1
        if self._done > 1:
            self._rests_until_s = now_s + took_s * (1.0 / self._share - 1.0)
        return result

    def _timed(self, work: Callable[[], Result]) -> tuple[Result, float]:
        began_s = self._clock()
        return work(), self._clock() - began_s


def _uncounted() -> float:
    return 0.0
