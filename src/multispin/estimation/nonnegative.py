"""Least squares for a few coefficients that cannot be negative."""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-12
"""How far below 0, relative to the largest coefficient, is rounding."""


def nonnegative_least_squares(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x ≥ 0 with the least |A x − b|².

    The optimum is an ordinary least-squares solution over the columns where x is positive. So all sets of columns are
    tried, the whole one first: 2^n small problems, for a few columns only.

    Args:
        matrix: A, [m, n].
        target: b, [m].

    Returns:
        x, [n].

    """
    count = matrix.shape[1]
    best, least = np.zeros(count), float(target @ target)
    for size in range(count, 0, -1):
        for columns in combinations(range(count), size):
            chosen = list(columns)
            found = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            if found.min() < -_ROUNDING * np.abs(found).max():
                continue
            x = np.zeros(count)
            x[chosen] = np.maximum(found, 0.0)
            if size == count:
                return x  # the least of all x is not negative
            rest = matrix @ x - target
            if (square := float(rest @ rest)) < least:
                best, least = x, square
    return best
