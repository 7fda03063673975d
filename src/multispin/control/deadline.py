"""How long should a round wait for drafts that are late? As long as waiting raises its goodput."""

import numpy as np
from numpy.typing import ArrayLike

JITTER_MARGIN = 0.05
"""A deadline lies this share of the planned time behind the draft that it is meant for, so that jitter does no harm."""


def best_wait_s(lateness: ArrayLike, awaited: int, planned_s: float, verify_s: float) -> float:
    """Time after the grants at which a round goes on without the drafts that have not come [s].

    Every draft takes X times the planned time, where X has the distribution of the recent observations. A deadline at
    c times the planned time φ takes in the share F(c) of the drafts. The round then lasts φ ∫₀ᶜ (1 − F(x)^K) dx + T_ver
    on average, because it goes on early once all K drafts are there. The best c maximises the ratio of the two, which
    is the round's goodput up to a constant. A late draft joins the next round, so it loses one round.

    Neglects that drafts differ in value, and that a device which was late once may be late again. Example: X = 1 in 95
    of 100 cases and 10 in the others, 20 drafts, φ = 0.2 s, T_ver = 0.28 s. The best wait is 1.05 φ; to wait for all
    would give a third of that goodput.

    Args:
        lateness: X as observed, time from grant to arrival over planned time, at least one value, any order, [N].
        awaited: K, number of drafts that are awaited, at least 1.
        planned_s: φ, planned time of drafting and upload [s].
        verify_s: T_ver, time of the verification [s], above 0.
    """
    ratio = np.sort(np.asarray(lateness, dtype=np.float64))
    arrived = np.arange(1, len(ratio) + 1) / len(ratio)
    somebody_late = 1.0 - arrived**awaited
    before = np.concatenate(([1.0], somebody_late[:-1]))  # on the way to each ratio
    lasts_s = planned_s * (np.cumsum(np.diff(ratio, prepend=0.0) * before) + JITTER_MARGIN * somebody_late) + verify_s
    best = int(np.argmax(arrived / lasts_s))
    return float(planned_s * (ratio[best] + JITTER_MARGIN))
