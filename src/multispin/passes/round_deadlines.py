"""The deadline of each round: how long it waits for its drafts, from how late drafts have been.

It remembers whose drafts were late, so that a single device that is late again and again cannot make a round wait
longer than pays for the others.
"""

from collections import defaultdict, deque
from statistics import median_low

from multispin.control.deadline import best_wait_s, sparing_wait_s
from multispin.passes.limits import Limits

_REMEMBERED = 256
"""Number of latest drafts whose lateness is remembered."""
_ENOUGH = 32
"""Least number of observations; with fewer, a round waits as long as the limits allow."""


class RoundDeadlines:
    """The deadline of each round.

    Args:
        limits: bounds of the edge; no deadline is later than they allow.

    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lateness: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)  # per draft: its session and lateness

    def observe(self, session: int, planned_s: float, took_s: float) -> None:
        """Learn from a draft that arrived, late or not.

        Args:
            session: number of its session.
            planned_s: planned time of drafting and upload in its round [s]; 0 if none was planned.
            took_s: time from its grant to its arrival [s].

        """
        if planned_s > 0.0:
            self._lateness.append((session, took_s / planned_s))

    def most_s(self, planned_s: float) -> float:
        """Time after the grants at which the limits end any round [s]; `planned_s` is as in `wait_s`."""
        return self._limits.deadline_factor * planned_s + self._limits.deadline_slack_s

    def wait_s(self, awaited: int, planned_s: float, verify_s: float) -> float:
        """Time after the grants at which the round goes on without missing drafts [s].

        Args:
            awaited: number of awaited drafts.
            planned_s: planned time of drafting and upload [s].
            verify_s: expected time of the verification [s].

        """
        most_s = self.most_s(planned_s)
        if not self._limits.choose_deadline or len(self._lateness) < _ENOUGH or awaited < 1 or verify_s <= 0.0:
            return most_s
        own = defaultdict[int, list[float]](list)
        for session, ratio in self._lateness:
            own[session].append(ratio)
        latest = own.pop(max(own, key=lambda session: median_low(own[session])))
        others = [ratio for ratios in own.values() for ratio in ratios]
        if awaited < 2 or not others:
            return min(most_s, best_wait_s(latest + others, awaited, planned_s, verify_s))
        return min(most_s, sparing_wait_s(latest, others, awaited, planned_s, verify_s))
