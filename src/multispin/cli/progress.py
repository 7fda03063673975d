"""Progress on standard error: a bar per stage on a terminal, lines elsewhere."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

QUIET_S = 2.0
"""Shortest stage that is reported if progress is written as lines [s]."""
LINE_PERIOD_S = 5.0


class Show(Protocol):
    """Shows the progress of a command."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Show a stage as `done` of `total`.

        Args:
            stage: name of the stage.
            done: how much of it is done, 0 … `total`.
            total: all of it, above 0.
            note: text to show beside it; default none.

        """


@contextmanager
def loading(log: logging.Logger, what: str) -> Iterator[None]:
    """Log that something is being loaded while the block runs, once it has taken `QUIET_S`."""
    timer = threading.Timer(QUIET_S, log.info, ("loading %s", what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress() -> Iterator[Show]:
    """Show progress while the block runs, with every stage's remaining time."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(time.monotonic, lambda line: print(line, file=sys.stderr))
        return
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        *(TextColumn("{task.description:24}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: float, total: float, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield show


@contextmanager
def stage(show: Show, name: str) -> Iterator[None]:
    """Show a stage of unknown progress, such as loading a model, while the block runs."""
    show(name, 0, 1)
    yield
    show(name, 1, 1)


@dataclass
class _Stage:
    """The time at which a stage began, the time of its last line, and how much was done when it began."""

    began_s: float
    told_s: float
    first: float


class ProgressLines:
    """Progress as lines of a log.

    Args:
        clock: function that returns the time [s].
        write: function that prints a line.

    """

    def __init__(self, clock: Callable[[], float], write: Callable[[str], None]) -> None:
        self._clock = clock
        self._write = write
        self._stages: dict[str, _Stage] = {}

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Write a line if the last one is old enough."""
        now_s = self._clock()
        if stage not in self._stages:
            self._stages[stage] = _Stage(now_s, now_s - LINE_PERIOD_S + QUIET_S, done)
        known = self._stages[stage]
        spent_s, part = now_s - known.began_s, done - known.first
        if now_s - known.told_s < LINE_PERIOD_S and not (done >= total and spent_s >= QUIET_S):
            return
        known.told_s = now_s
        left = f", {spent_s / part * (total - done):.0f} s left" if part > 0 and done < total else ""
        self._write(f"{stage} {done / total:.0%}{f': {note}' if note else ''}{left}")
