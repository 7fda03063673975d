"""The typical value of a positive quantity that may drift: an exponentially forgotten median.

A median, because times are measured on machines that stall: fewer than half of the recent observations cannot move
it far, whatever their values. Forgotten, because devices move and get warm: after a sudden change it sits on the new
value within one half-life. It is the median of the logarithm, because an error of a factor of two is equally bad
either way.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from functools import cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from multispin.checks import positive

MAD_TO_STANDARD_DEVIATION = 1.4826  # of a normal distribution: 1 / Φ⁻¹(3/4)
WINDOW_HALF_LIVES = 8  # older observations weigh less than 1/256 each and are dropped


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Smallest value at which the cumulative weight reaches half of the total.

    Args:
        values: in any order, [N], at least one.
        weights: weight of each value, not negative, [N].
    """
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, 0.5 * cumulative[-1])])


def forgetting_weights(count: int, half_life: float) -> NDArray[np.float64]:
    """Weights of `count` observations, oldest first: 1 for the newest, halved every `half_life` observations.

    Args:
        count: number of observations, N.
        half_life: number of observations after which a weight is halved.

    Returns: 2^(−age / half_life), [N], the age of the newest being 0.
    """
    return np.asarray(0.5 ** (np.arange(count - 1, -1, -1) / half_life), dtype=np.float64)


def robust_spread(
    deviations: NDArray[np.float64], weights: NDArray[np.float64], prior_spread: float, prior_weight: float
) -> float:
    """Standard deviation from the median absolute deviation, its square averaged with that of a prior by weight.

    Args:
        deviations: deviations from the centre, [N].
        weights: weight of each, [N].
        prior_spread: standard deviation of the prior, in the unit of the deviations.
        prior_weight: weight of the prior, in the unit of the weights.

    Returns: √((W s² + w₀ s₀²) / (W + w₀)): W the sum of the weights, s = 1.4826 · median |deviation|, w₀ and s₀ the
        prior's.
    """
    observed = MAD_TO_STANDARD_DEVIATION * weighted_median(np.abs(deviations), weights)
    total = float(weights.sum())
    return math.sqrt((total * observed**2 + prior_weight * prior_spread**2) / (total + prior_weight))


@cache
def _weights_by_age(count: int, half_life: float) -> tuple[list[float], list[float]]:
    """Weights of observations, newest first, and the sums of the first 0, 1, …, `count` of them."""
    weights = forgetting_weights(count, half_life)[::-1].tolist()
    return weights, [0.0, *accumulate(weights)]


class ForgettingMedian:
    """Median of positive observations, the n-th newest weighted 2^(−n / half_life).

    The prior acts as `prior_weight` observations older than all others, and is forgotten with them.

    Args:
        prior: value before anything is observed.
        prior_weight: how many observations it is worth at first; default 2.0.
        half_life: number of observations after which the weight of one is halved; default 8.0.

    """

    def __init__(self, prior: float, prior_weight: float = 2.0, half_life: float = 8.0) -> None:
        self._prior_log = math.log(positive("prior", prior))
        self._prior_weight = positive("prior_weight", prior_weight)
        self._half_life = positive("half_life", half_life)
        self._window = math.ceil(WINDOW_HALF_LIVES * half_life)
        self._weights, self._totals = _weights_by_age(self._window, half_life)
        self._sorted: list[tuple[float, int]] = []  # (logarithm, number of the observation) of the window
        self._logs: deque[float] = deque()
        self._observed = 0
        self._median_log: float | None = self._prior_log  # None: not known since the last observation

    def observe(self, value: float) -> None:
        """Learn from one observation.

        Args:
            value: the observation, positive, in the unit of the prior.

        Raises:
            InputError: `value` is not a positive number.
        """
        log = math.log(positive("value", value))
        if len(self._logs) == self._window:
            oldest = self._logs.popleft(), self._observed - self._window
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._logs.append(log)
        insort(self._sorted, (log, self._observed))
        self._observed += 1
        if log != self._median_log:  # another value at the median does not move it
            self._median_log = None

    @property
    def _log_median(self) -> float:
        """Smallest logarithm at which the cumulative weight reaches half of the total.

        Found when it is asked for, which is less often than values come; and without arrays, as the window is short.
        """
        if self._median_log is None:
            self._median_log = self._find_median()
        return self._median_log

    def _find_median(self) -> float:
        newest, weights, prior_weight = self._observed - 1, self._weights, self._present_prior_weight
        left = 0.5 * (self._totals[len(self._sorted)] + prior_weight)
        prior_log = self._prior_log
        for log, number in self._sorted:
            if prior_log <= log:
                left -= prior_weight
                if left <= 0.0:
                    return prior_log
                prior_log = math.inf
            left -= weights[newest - number]
            if left <= 0.0:
                return log
        return max(self._sorted[-1][0], self._prior_log)

    @property
    def _present_prior_weight(self) -> float:
        return float(self._prior_weight * 0.5 ** (self._observed / self._half_life))

    @property
    def value(self) -> float:
        """The estimate."""
        return math.exp(self._log_median)
