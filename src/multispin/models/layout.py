"""The layout of a packed row: which columns belong to which slot, and which slots share an attention call.

Integers only; it knows no model and no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

CALL_COST = 500_000
"""Multiply-adds that take as long as one more attention call (two CPU threads, benchmarks/bench_verifier.py)."""


@dataclass(frozen=True)
class Run:
    """One session's tokens in the packed row: `count` columns from `column`, at absolute positions from `start`."""

    slot: int
    start: int
    count: int
    column: int

    @property
    def end(self) -> int:
        """Keys that its last token sees."""
        return self.start + self.count


@dataclass(frozen=True)
class WindowRun:
    """The inputs of one slot that recurrent layers scan in a pass of static shape.

    Attributes:
        slot: slot of the session.
        past: inputs between the slot's checkpoint and its newest state, where the window begins.
        replayed: accepted inputs since the newest state, which come first in the window.
        count: number of all inputs in the window, the new ones last.
        kept: inputs of the window that the state has taken which is kept.

    """

    slot: int
    past: int
    replayed: int
    count: int
    kept: int


@dataclass(frozen=True)
class _Group:
    """Runs in slots first … last−1, attended in one call of `rows` tokens by `end` keys per slot."""

    runs: tuple[Run, ...]
    first: int
    last: int
    rows: int
    end: int

    @property
    def work(self) -> int:
        """Query-key pairs, padding included."""
        return (self.last - self.first) * self.rows * self.end

    def joined(self, other: "_Group") -> "_Group":
        """Both in one call; `other` lies in higher slots. Slots between them that are not in the batch ride along."""
        rows, end = max(self.rows, other.rows), max(self.end, other.end)
        return _Group(self.runs + other.runs, self.first, other.last, rows, end)


def grouped(runs: Sequence[Run], pair_cost: int, call_cost: int = CALL_COST) -> list[_Group]:
    """Join neighbouring slots while one padded call is cheaper than two.

    Args:
        runs: tokens to read into each slot, at most one run per slot.
        pair_cost: multiply-adds per query-key pair, heads times head size.
        call_cost: multiply-adds that take as long as a call does before it computes; default `CALL_COST`.
    """
    groups: list[_Group] = []
    for run in sorted(runs, key=lambda run: run.slot):
        group = _Group((run,), run.slot, run.slot + 1, run.count, run.end)
        if groups:
            both = groups[-1].joined(group)
            if (both.work - groups[-1].work - group.work) * pair_cost <= call_cost:
                groups[-1] = both
                continue
        groups.append(group)
    return groups
