"""Probes: short drafts that try a drafter which nobody uses, at a bounded cost.

What is not drafted is not observed. So a device that does not draft is asked for a short draft now and then. Nobody
waits for it. Under `greedy` and `coupled` not even its own session does: its text goes on, and shows by itself how many
of the drafted tokens would have been accepted; its device hears of it when the draft has come. Under the rejection
rules the session waits for its probe.

A probe that took t seconds is followed by at least `gap`·t seconds without one. The gap grows from `FIRST_GAP` up to
1 / `PROBE_SHARE`: in the long run probes take at most the share `PROBE_SHARE` of a session's time, and a device that
has become useful is tried again within t / `PROBE_SHARE` seconds.

A probe may cost everybody something: the share `lost` of the goodput while it lasts. One that took t seconds is
followed by n · lost · t / `COST_SHARE` seconds without one, where n drafters are probed. So all probes together cost at
most `COST_SHARE` of the goodput in the long run, however many drafters there are, and a dear one never keeps a cheap
one waiting. The first few of a drafter may come sooner: what is not known yet must be found out.
"""

import math
from dataclasses import dataclass

PROBE_SHARE = 0.02
"""Most of a session's time that its probes take in the long run."""
COST_SHARE = 0.01
"""Most of the goodput that the probes of all devices cost together in the long run; as much for the edge's drafter."""
FIRST_GAP = 5.0
"""Time without a probe after the first one, in durations of that probe."""
GROWTH = 2.0
"""Each gap is this many times as long as the one before."""
PROBE_LENGTH = 4
"""Tokens of a probe: enough to tell a device that is always refused from one that is usually accepted."""
MOST_MADE = 16
"""More probes of a drafter than this are not counted."""
SHORTEST_PROBE_S = 1e-3
"""A probe counts as at least this long [s]."""


@dataclass
class _ProbeState:
    """The state of one drafter's probes.

    Attributes:
        next_s: not before this time [s].
        gap: time until the next one, in durations of the last.
        since_s: time at which the current probe began [s]; None if there is none.
        distrusted: whether its last draft never came, so that only probes are asked of it.
        lost: share of the goodput that is lost while the one under way lasts.
        more_s: further cost, as time of all sessions [s].
        made: how many there were.

    """

    next_s: float = 0.0
    gap: float = FIRST_GAP
    since_s: float | None = None
    distrusted: bool = False
    lost: float = 0.0
    more_s: float = 0.0
    made: int = 0


class Probes:
    """The probes of all sessions, by number.

    Args:
        share: most of the time that they take in the long run; default `PROBE_SHARE`.

    """

    def __init__(self, share: float = PROBE_SHARE) -> None:
        self._trials: dict[int, _ProbeState] = {}
        self._longest_gap = 1.0 / share

    def due_since_s(self, key: int) -> float:
        """Time from which its next probe is due [s]; the earliest is probed first."""
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

    def begin(self, key: int, now_s: float, lost: float = 0.0, more_s: float = 0.0) -> None:
        """A probe begins.

        Args:
            key: key of the drafter that is probed.
            now_s: present time of the driver's clock [s].
            lost: share of the goodput that is lost while it lasts; default 0.
            more_s: further cost, as time of all sessions [s]; default 0.

        """
        trial = self._trials.setdefault(key, _ProbeState())
        trial.since_s, trial.lost, trial.more_s = now_s, lost, more_s

    def end(self, key: int, now_s: float) -> None:
        """A draft came, in answer to a probe or not."""
        trial = self._trials.get(key)
        if trial is not None:
            trial.distrusted = False
            self._wait(trial, now_s)

    def miss(self, key: int, now_s: float, waited_s: float) -> None:
        """Note that no draft came in `waited_s`: from now on the device gets only probes, and seldom."""
        trial = self._trials.setdefault(key, _ProbeState())
        trial.distrusted, trial.gap = True, self._longest_gap
        if trial.since_s is None:
            trial.since_s = now_s - waited_s
        self._wait(trial, now_s)

    def break_off(self, key: int, now_s: float) -> None:
        """End a probe that is under way before its draft could come; this says nothing about the drafter."""
        trial = self._trials.get(key)
        if trial is not None:
            self._wait(trial, now_s)

    def renew(self, key: int) -> None:
        """Make the next probes come sooner again, because something such as the text has changed."""
        trial = self._trials.get(key)
        if trial is not None:
            trial.gap = FIRST_GAP

    def leave(self, key: int) -> None:
        """Forget a session."""
        self._trials.pop(key, None)

    def _wait(self, trial: _ProbeState, now_s: float) -> None:
        if trial.since_s is not None:
            took_s = max(now_s - trial.since_s, SHORTEST_PROBE_S)
            cost_s = trial.lost * took_s + trial.more_s
            early = min(1.0, FIRST_GAP * GROWTH**trial.made * PROBE_SHARE)
            rest_s = early * len(self._trials) * cost_s / COST_SHARE
            trial.next_s, trial.since_s = now_s + max(trial.gap * took_s, rest_s), None
            trial.gap = min(GROWTH * trial.gap, self._longest_gap)
            trial.made = min(trial.made + 1, MOST_MADE)
