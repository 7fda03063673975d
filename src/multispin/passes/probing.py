"""Probes: short drafts that test an unused drafter at a bounded cost.

A drafter that does not draft cannot be observed. So a device that does not draft is asked for a short draft now and
then. Nobody else waits for it. Under `greedy` and `coupled` not even its own session waits: the text goes on, and shows
how many of the drafted tokens would have been accepted; the device gets the new tokens when its draft has come. Under
the rejection rules, and in mode `rounds`, the session waits for its probe.

A probe that took t seconds is followed by at least `gap`·t seconds without one. The gap grows from `FIRST_GAP` up to
1 / `PROBE_SHARE`: in the long run probes take at most the share `PROBE_SHARE` of a session's time, and a device that
has become useful is tried again within t / `PROBE_SHARE` seconds, if its probe costs the others nothing.

A probe may also cost the others something: the share `lost` of the goodput while it lasts. If n drafters are probed, a
probe of t seconds is followed by n · lost · t / `COST_SHARE` seconds without one. So all probes together cost at most
`COST_SHARE` of the goodput in the long run, whatever the number of drafters, and an expensive probe never delays a
cheap one. A drafter's first few probes may come sooner, since nothing is known of it yet.
"""

import math
from dataclasses import dataclass

PROBE_SHARE = 0.02
"""Largest share of a session's time for its probes in the long run."""
COST_SHARE = 0.01
"""Largest share of the goodput that all devices' probes may cost in the long run; the same for the edge's drafter."""
FIRST_GAP = 5.0
"""Time without a probe after the first one, as a multiple of that probe's duration."""
GROWTH = 2.0
"""Factor from each gap to the next."""
PROBE_LENGTH = 4
"""Tokens of a probe, enough to tell a drafter that is always rejected from one that is usually accepted."""
MOST_MADE = 16
"""Most probes of a drafter that are counted."""
SHORTEST_PROBE_S = 1e-3
"""Least duration that a probe counts with [s]."""


@dataclass
class _ProbeState:
    """The state of one drafter's probes.

    Attributes:
        next_s: earliest time of the next probe [s].
        gap: time until the next probe, as a multiple of the last one's duration.
        since_s: time at which the current probe began [s]; None if there is none.
        distrusted: whether its last draft has not come, so that it gets only probes until a draft comes.
        lost: share of the goodput that is lost during the current probe.
        more_s: additional cost, as time of all sessions [s].
        made: number of probes so far.

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
        share: largest share of the time for probes in the long run; default `PROBE_SHARE`.

    """

    def __init__(self, share: float = PROBE_SHARE) -> None:
        self._trials: dict[int, _ProbeState] = {}
        self._longest_gap = 1.0 / share

    def due_since_s(self, key: int) -> float:
        """Time from which the next probe is due [s]; the earliest comes first."""
        trial = self._trials.get(key)
        return -math.inf if trial is None else trial.next_s

    def due(self, key: int, now_s: float) -> bool:
        """Whether a probe may begin."""
        trial = self._trials.get(key)
        return trial is None or (trial.since_s is None and now_s >= trial.next_s)

    def distrusted(self, key: int) -> bool:
        """Whether the last draft has not come, so that nobody should wait for another one."""
        trial = self._trials.get(key)
        return trial is not None and trial.distrusted

    def begin(self, key: int, now_s: float, lost: float = 0.0, more_s: float = 0.0) -> None:
        """Note that a probe begins.

        Args:
            key: key of the drafter that is probed.
            now_s: present time of the driver's clock [s].
            lost: share of the goodput that is lost during the probe; default 0.
            more_s: additional cost, as time of all sessions [s]; default 0.

        """
        trial = self._trials.setdefault(key, _ProbeState())
        trial.since_s, trial.lost, trial.more_s = now_s, lost, more_s

    def end(self, key: int, now_s: float) -> None:
        """Note that a draft came, in answer to a probe or not."""
        trial = self._trials.get(key)
        if trial is not None:
            trial.distrusted = False
            self._wait(trial, now_s)

    def miss(self, key: int, now_s: float, waited_s: float) -> None:
        """Note that no draft came in `waited_s` [s]. From now on the device gets only probes, and seldom."""
        trial = self._trials.setdefault(key, _ProbeState())
        trial.distrusted, trial.gap = True, self._longest_gap
        if trial.since_s is None:
            trial.since_s = now_s - waited_s
        self._wait(trial, now_s)

    def break_off(self, key: int, now_s: float) -> None:
        """End the current probe before its draft could come, which says nothing about the drafter."""
        trial = self._trials.get(key)
        if trial is not None:
            self._wait(trial, now_s)

    def renew(self, key: int) -> None:
        """Make the next probes come sooner again, because something (such as the text) has changed."""
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
