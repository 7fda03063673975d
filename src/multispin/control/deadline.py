"""How long should a round wait for drafts that are late? As long as waiting raises its goodput."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

JITTER_MARGIN = 0.05
"""A deadline lies this share of the planned time behind the draft that it is meant for, so that jitter does no harm."""

SPARED = 0.95
"""A round waits for one device only as long as the others keep this share of the best that they can have beside it."""


def best_wait_s(lateness: ArrayLike, awaited: int, planned_s: float, verify_s: float) -> float:
    """Time after the grants at which a round goes on without the drafts that have not come [s].

    Every draft takes X times the planned time, where X has the distribution of the recent observations. A deadline at
    c times the planned time φ takes in the share F(c) of the drafts. The round then lasts φ ∫₀ᶜ (1 − F(x)^K) dx + T_ver
    on average, because it goes on early once all K drafts are there. The best c maximises the ratio of the two, which
    is the round's goodput up to a constant. A late draft joins the next round, so it loses one round.

    Neglects that drafts differ in value, that a device which was late once may be late again, and what arrives within
    `JITTER_MARGIN`, which counts as late (docs/reproduce.md says what that costs). Example: X = 1 in 95
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
    lasts_s = _lasts_s(ratio, arrived**awaited, planned_s, verify_s)
    best = int(np.argmax(arrived / lasts_s))
    return float(planned_s * (ratio[best] + JITTER_MARGIN))


def sparing_wait_s(latest: ArrayLike, others: ArrayLike, awaited: int, planned_s: float, verify_s: float) -> float:
    """The best wait where one device may be late again and again [s].

    `best_wait_s` takes every draft for a draw from all that was seen. One of five devices that always comes at twice
    the planned time is then a fifth of all drafts, and seems worth waiting for. But in truth each round waits for it,
    and gains one draft. So here its drafts count apart from the others'. The others' goodput is F(c) over
    φ ∫₀ᶜ (1 − F(x)^(K−1) G(x)) dx + T_ver, where G is the distribution of the latest device's X. If they keep at least
    `SPARED` of the best that any c gives them, the wait is that of `best_wait_s`; otherwise it is the best wait for
    them.

    Args:
        latest: X of the device that is late most, at least one value, [M].
        others: X of the other devices, at least one value, [N].
        awaited: K, number of drafts that are awaited, the latest device's included, at least 2.
        planned_s: φ, planned time of drafting and upload [s].
        verify_s: T_ver, time of the verification [s], above 0.
    """
    late, rest = (np.sort(np.asarray(seen, dtype=np.float64)) for seen in (latest, others))
    ratio = np.unique(np.concatenate((late, rest)))
    arrived = np.searchsorted(rest, ratio, side="right") / len(rest)
    arrived_late = np.searchsorted(late, ratio, side="right") / len(late)
    goodput = arrived / _lasts_s(ratio, arrived ** (awaited - 1) * arrived_late, planned_s, verify_s)
    best = int(np.argmax(goodput))
    whole_s = best_wait_s(np.concatenate((late, rest)), awaited, planned_s, verify_s)
    whole = int(np.argmin(np.abs(planned_s * (ratio + JITTER_MARGIN) - whole_s)))
    if goodput[whole] >= SPARED * goodput[best]:
        return whole_s
    return min(whole_s, float(planned_s * (ratio[best] + JITTER_MARGIN)))


def _lasts_s(
    ratio: NDArray[np.float64], all_there: NDArray[np.float64], planned_s: float, verify_s: float
) -> NDArray[np.float64]:
    """Mean time of a round that waits until each of these ratios [s]; `all_there`: all drafts have come by then."""
    before = np.concatenate(([1.0], 1.0 - all_there[:-1]))  # on the way to each ratio
    waited = np.cumsum(np.diff(ratio, prepend=0.0) * before) + JITTER_MARGIN * (1.0 - all_there)
    return planned_s * waited + verify_s
