"""The deadline of each round: how long it waits for its drafts, from how late drafts have been.

Knows the times of drafts. Does not know whose they are: a single device that is always late cannot make a round wait
for it longer than it pays for all.
"""

from collections import deque

from multispin.control.deadline import best_wait_s
from multispin.passes.limits import Limits

_REMEMBERED = 256
"""Drafts whose lateness is remembered, the latest ones."""
_ENOUGH = 32
"""Fewer observations than this say too little: then a round waits as long as the limits allow."""


class RoundDeadlines:
    """The deadline of each round.

    Args:
        limits: bounds of the edge; no deadline is later than they allow.

    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lateness: deque[float] = deque(maxlen=_REMEMBERED)

    def observe(self, planned_s: float, took_s: float) -> None:
        """Learn from a draft that arrived, late or not.

        Args:
            planned_s: planned time of drafting and upload in its round [s]; 0 where none was planned.
            took_s: time from its grant to its arrival [s].

        """
        if planned_s > 0.0:
            self._lateness.append(took_s / planned_s)

    def most_s(self, planned_s: float) -> float:
        """Time after the grants at which the limits end any round [s]; `planned_s` is as in `wait_s`."""
        return self._limits.deadline_factor * planned_s + self._limits.deadline_slack_s

    def wait_s(self, awaited: int, planned_s: float, verify_s: float) -> float:
        """Time after the grants at which the round goes on without the drafts that have not come [s].

        Args:
            awaited: the drafts that are awaited.
            planned_s: planned time of drafting and upload [s].
            verify_s: expected time of the verification [s].

        """
        most_s = self.most_s(planned_s)
        if not self._limits.choose_deadline or len(self._lateness) < _ENOUGH or awaited < 1 or verify_s <= 0.0:
            return most_s
        return min(most_s, best_wait_s(self._lateness, awaited, planned_s, verify_s))
