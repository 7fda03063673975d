"""How sure are we? The mean of independent values with its confidence interval."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over realisations and its 95 % confidence interval (Student's t)."""

    mean: float
    low: float
    high: float


def estimate(values: ArrayLike) -> Estimate:
    """Mean of independent realisations with its 95 % interval; a single one has no interval of its own (NaN)."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return Estimate(mean, mean - half, mean + half)
