"""Least squares for a few coefficients that cannot be negative."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-12
"""A coefficient below 0 by at most this share of the largest one is a rounding error."""


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


def nonnegative_minimum(gram: Sequence[Sequence[float]], moment: Sequence[float]) -> list[float]:
    """The x ≥ 0 with the least xᵀG x − 2 mᵀx: least squares from its normal equations, G = AᵀA and m = Aᵀb.

    For fits that are made often: it makes no arrays, so it takes microseconds.

    Args:
        gram: G, [n, n], positive definite and well enough conditioned for normal equations (a ridge sees to that).
        moment: m, [n].

    Returns:
        x, [n].

    """
    count = len(moment)
    best, least = [0.0] * count, 0.0
    for size in range(count, 0, -1):
        for columns in combinations(range(count), size):
            found = _solved([[gram[i][j] for j in columns] for i in columns], [moment[i] for i in columns])
            if min(found) < -_ROUNDING * max(map(abs, found)):
                continue
            x = [0.0] * count
            for index, value in zip(columns, found, strict=True):
                x[index] = max(value, 0.0)
            if size == count:
                return x
            # At such a solution xᵀG x = mᵀx.
            value = -sum(m * each for m, each in zip(moment, x, strict=True))
            if value < least:
                best, least = x, value
    return best


def _solved(rows: list[list[float]], right: list[float]) -> list[float]:
    """Solve a positive definite system by elimination; both arguments are overwritten."""
    count = len(right)
    for k in range(count):
        for i in range(k + 1, count):
            factor = rows[i][k] / rows[k][k]
            for j in range(k + 1, count):
                rows[i][j] -= factor * rows[k][j]
            right[i] -= factor * right[k]
    for k in range(count - 1, -1, -1):
        right[k] = (right[k] - sum(rows[k][j] * right[j] for j in range(k + 1, count))) / rows[k][k]
    return right
