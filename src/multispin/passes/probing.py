"""When to try again what is not done: probes of drafters that nobody uses, at a bounded cost.

What is not drafted is not observed. So a device that does not draft is asked for a short draft now and then. Nobody
waits for it. Under `greedy` and `coupled` not even its own session does: its text goes on, and shows by itself how many
of the drafted tokens would have been accepted; its device hears of it when the draft has come. Under the rejection
rules the session waits for its probe.

A probe that took t seconds is followed by at least `gap`·t seconds without one. The gap grows from `FIRST_GAP` up to
1 / `SHARE`: in the long run probes take at most the share `SHARE` of a session's time, and a device that has become
useful is tried again within t / `SHARE` seconds.

What probes cost everybody is counted too: the share of the goodput that is lost meanwhile, times their time. No probe
begins while those before have cost more than `SHARE` of the time since the first one and `LOAN` probes like it. So
probes of all sessions together cost at most this share in the long run, however many there are. Where many devices
share the band with their probes, each has its turn later for that.
"""

import math
from dataclasses import dataclass

SHARE = 0.02
"""In the long run a session's probes take at most this share of its time, and all probes this share of the goodput."""
LOAN = 4.0
"""At first probes may have cost more, by this many of them: what is not known yet must be found out."""
FIRST_GAP = 5.0
"""Time without a probe after the first one, in durations of that probe."""
GROWTH = 2.0
"""Each gap is this many times as long as the one before."""
PROBE_LENGTH = 4
"""Tokens of a probe: enough to tell a device that is always refused from one that is usually accepted."""
SHORTEST_S = 1e-3
"""A probe counts as at least this long [s]."""


@dataclass
class _Trial:
    """What is known of one drafter's probes.

    Attributes:
        next_s: not before this time [s].
        gap: time until the next one, in durations of the last.
        since_s: when the one under way began [s]; None: none is.
        distrusted: whether its last draft never came, so that only probes are asked of it.
        lost: share of the goodput that is lost while the one under way lasts.
        charged_s: what was charged for it when it began [s].

    """

    next_s: float = 0.0
    gap: float = FIRST_GAP
    since_s: float | None = None
    distrusted: bool = False
    lost: float = 0.0
    charged_s: float = 0.0


class Costs:
    """What probes have cost everybody.

    Args:
        share: most of the goodput that they cost in the long run; default `SHARE`.

    """

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._spent_s = 0.0  # as much goodput was lost as is made in so much time
        self._since_s: float | None = None  # since when it is counted

    def allow(self, cost_s: float, now_s: float) -> bool:
        """Whether a probe may begin that costs as much as so much time of everybody [s]."""
        elapsed_s = 0.0 if self._since_s is None else now_s - self._since_s
        return cost_s <= 0.0 or self._spent_s <= self._share * elapsed_s + LOAN * cost_s

    def spend(self, cost_s: float, now_s: float) -> None:
        """Count a cost; negative where less was lost than was counted before [s]."""
        self._since_s = now_s if self._since_s is None else self._since_s
        self._spent_s += cost_s


class Probes:
    """The probes of all sessions, by number.

    Args:
        share: most of the time that they take in the long run; default `SHARE`.
        costs: what they and others cost everybody; default an account of their own.

    """

    def __init__(self, share: float = SHARE, costs: Costs | None = None) -> None:
        self._trials: dict[int, _Trial] = {}
        self._longest_gap = 1.0 / share
        self.costs = costs or Costs()

    def due_since_s(self, key: int) -> float:
        """Since when its next probe has been due [s]: who has waited longest comes first."""
        trial = self._trials.get(key)
        return -math.inf if trial is None else trial.next_s

    def due(self, key: int, now_s: float) -> bool:
        """Whether a probe may begin."""
        trial = self._trials.get(key)
        return trial is None or (trial.since_s is None and now_s >= trial.next_s)

    def distrusted(self, key: int) -> bool:
        """Whether the last draft never came: nobody should wait for another one."""
        trial = self._trials.get(key)
        return trial is not None and trial.distrusted

    def begin(self, key: int, now_s: float, lost: float = 0.0, expected_s: float = 0.0) -> None:
        """A probe begins.

        Args:
            key: whose.
            now_s: the time [s].
            lost: share of the goodput that is lost while it lasts; default 0.
            expected_s: how long it is expected to take [s]; default 0.

        """
        trial = self._trials.setdefault(key, _Trial())
        trial.since_s, trial.lost, trial.charged_s = now_s, lost, lost * expected_s
        if lost:
            self.costs.spend(trial.charged_s, now_s)

    def end(self, key: int, now_s: float) -> None:
        """A draft came, in answer to a probe or not."""
        trial = self._trials.get(key)
        if trial is not None:
            trial.distrusted = False
            self._wait(trial, now_s)

    def miss(self, key: int, now_s: float, waited_s: float) -> None:
        """A draft did not come in `waited_s`: from now on only probes are asked for, and seldom."""
        trial = self._trials.setdefault(key, _Trial())
        trial.distrusted, trial.gap = True, self._longest_gap
        if trial.since_s is None:
            trial.since_s = now_s - waited_s
        self._wait(trial, now_s)

    def renew(self, key: int) -> None:
        """Something has changed, such as the text: the next probes come sooner again."""
        trial = self._trials.get(key)
        if trial is not None:
            trial.gap = FIRST_GAP

    def leave(self, key: int) -> None:
        """Forget a session."""
        self._trials.pop(key, None)

    def _wait(self, trial: _Trial, now_s: float) -> None:
        if trial.since_s is not None:
            took_s = max(now_s - trial.since_s, SHORTEST_S)
            if trial.lost:
                self.costs.spend(trial.lost * took_s - trial.charged_s, now_s)
            trial.lost = trial.charged_s = 0.0
            trial.next_s, trial.since_s = now_s + trial.gap * took_s, None
            trial.gap = min(GROWTH * trial.gap, self._longest_gap)
