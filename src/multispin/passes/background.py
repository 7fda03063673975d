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
    """

    def __init__(self) -> None:
        self._executor: Executor | None = None
        self._future: Future[Result] | None = None

    def use(self, executor: Executor) -> None:
        """Have work done there from now on."""
        self._executor = executor

    @property
    def idle(self) -> bool:
        """Whether no work is under way."""
        return self._future is None

    def begin(self, work: Callable[[], Result]) -> None:
        """Begin some work; there must be none under way."""
        assert self._future is None
        if self._executor is not None:
            self._future = self._executor.submit(work)
            return
        self._future = Future()
        self._future.set_result(work())

    def take(self) -> Result | None:
        """What was found, once; None while there is nothing. Work that failed in its thread is logged, and is over."""
        future = self._future
        if future is None or not future.done():
            return None
        self._future = None
        if future.cancelled():
            return None
        if (error := future.exception()) is not None:
            log.error("planning failed, and the last plan goes on", exc_info=error)
            return None
        return future.result()
