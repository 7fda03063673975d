"""How sure are we? The mean of independent values with its confidence interval."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multispin.estimation.beta import t_quantile


@dataclass(frozen=True)
class Estimate:
    """A mean over realisations and its 95 % confidence interval (Student's t)."""

    mean: float
    low: float
    high: float

    def less(self, value: float) -> "Estimate":
        """The estimate of the quantity minus a known value."""
        return Estimate(self.mean - value, self.low - value, self.high - value)


def spread(*estimates: Estimate) -> tuple[float, ...]:
    """Mean, lower and upper end of each estimate, one after the other: cells of a table's row."""
    return tuple(value for one in estimates for value in (one.mean, one.low, one.high))


def estimate(values: ArrayLike) -> Estimate:
    """Mean of independent realisations with its 95 % interval; a single one has no interval of its own (NaN).

    Args:
        values: one per realisation, [N], at least one.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean, math.nan, math.nan)
    half = t_quantile(0.975, array.size - 1) * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Estimate(mean, mean - half, mean + half)


def ratio_values(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Values, one per realisation, whose mean is the ratio of two means and whose spread is its error (delta method).

    The ratio of means, unlike the mean of the realisations' own ratios, does not depend on how much has been averaged
    within a realisation.

    Args:
        numerator: one value per realisation, [N].
        denominator: its counterpart in the same realisation, [N], of positive mean.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    ratio = top.mean() / bottom.mean()
    values: NDArray[np.float64] = ratio + (top - ratio * bottom) / bottom.mean()
    return values


def ratio_of_means(numerator: ArrayLike, denominator: ArrayLike) -> Estimate:
    """Ratio of the means of two quantities over the same realisations, with its 95 % interval (`ratio_values`).

    Args:
        numerator: one value per realisation, [N].
        denominator: its counterpart in the same realisation, [N], of positive mean.
    """
    return estimate(ratio_values(numerator, denominator))
