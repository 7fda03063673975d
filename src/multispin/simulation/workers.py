"""Processes of this machine that compute for a command, and end when it does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

_HELD = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that compute what is submitted to them, while the block runs.

    Where the block is left by an exception, as at SIGTERM and Ctrl-C, what waits is dropped and what runs is ended: the
    executor itself would wait for both. The processes also end when this one is killed.

    Args:
        count: how many processes, at least 1.

    """
    others = multiprocessing.active_children()
    pool = _Pool(count, initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        # The pool's thread is waited for: it closes a pipe that the interpreter writes to as it ends.
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


class _Pool(ProcessPoolExecutor):
    """Starts its processes in `submit`, and holds back signals that come meanwhile."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().submit(fn, *args, **kwargs)
        # What a signal's handler raises in the middle of a fork is dropped, and the command would go on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """In a worker: end at SIGTERM at once and when the parent is gone; leave Ctrl-C to the parent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the command's handler raises, and a task's exceptions are caught
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # it began with them held
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
