"""Coroutines in virtual time: the clock runs only while everybody sleeps, so that a test waits for nothing."""

import asyncio
import selectors


class _NoWaiting(selectors.SelectSelector):
    """Never waits: what would have been waited for is added to the loop's clock."""

    def select(self, timeout=None):
        found = super().select(0)
        if not found and timeout != 0:
            if timeout is None:
                raise RuntimeError("nothing will ever happen: every task waits for another")
            self.loop.now_s += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock runs only while everybody sleeps, and whose threads take no time."""

    def __init__(self):
        selector = _NoWaiting()
        super().__init__(selector)
        selector.loop, self.now_s = self, 0.0

    def time(self):
        return self.now_s

    def run_in_executor(self, executor, function, *arguments):
        future = self.create_future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def run(scenario):
    """Run a coroutine in an event loop whose clock starts at 0 s."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario)
