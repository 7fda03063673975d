"""How long does a verification take? Three coefficients, learned from the batches that were verified."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from multispin.checks import MOST, not_negative, positive, within
from multispin.control.latency import verification_s
from multispin.errors import InputError
from multispin.estimation.forgetting import (
    WINDOW_HALF_LIVES,
    forgetting_weights,
    robust_spread,
    weighted_median,
)
from multispin.estimation.nonnegative import nonnegative_minimum

PRIOR_SPREAD = 0.1  # relative, of one latency, before any was seen; a greater one hides what the first passes show
LEAST_SPREAD = 0.01  # relative: nothing is measured better than this
HUBER_DEVIATIONS = 1.5  # residuals beyond as many standard deviations lose influence
REWEIGHTINGS = 8  # at most; two or three are usual
PRIOR_SHAPE = 0.1  # weight of the prior's shape; small, as a factor of 8 on it costs (8 − 1)² = 49 times the weight
LEAST_PRIOR_SHAPE = 1e-3  # share of the prior's shape that stays, to settle what the data leave open
SHORTEST_PASS_S = 1e-4  # the event loop's clock may tell milliseconds only, and shows a shorter pass as zero
FIT_EACH, FIT_EVERY = 64, 4
"""The fit is made after each of the first batches, and later once in this many: it takes 0.2 ms."""
_SAME = 1e-3
"""Coefficients that change by less from one reweighting to the next are found."""


class VerificationEstimator:
    """Fits T_ver = fixed_s + per_device_s·K + per_token_s·Σ(L_k + 1), all coefficients ≥ 0.

    Eq. 7 of arXiv 2606.04581 with a cost per token beside it, as a packed batch has. The coefficients make a cost
    model for the planner; if rounds were all alike, only their sum is known, and only predictions near them are good.

    1. The prior gives the *shape* (the ratio of the coefficients), a forgotten median of observed / prior latency its
       *scale*: so one observed round is predicted right from then on, on a machine of any speed.
    2. Non-negative least squares over a window moves the shape to what the data say. Residuals are relative, weighted
       by age, and by Huber's rule, so that a stall counts no more than an ordinary deviation. The prior's shape is a
       ridge, forgotten like an observation but for a rest that settles what collinear rounds leave open. Reweighting
       has more than one fixed point, and begins with the one near the data.

    The default prior is a guess for a 135M model on two CPU cores. A coefficient whose prior is 0 stays 0.

    Args:
        fixed_s: prior for the cost of a batch [s]; default 0.03.
        per_device_s: prior for the cost of a device in it [s]; default 0.005.
        per_token_s: prior for the cost of a token fed [s]; default 0.002.
        half_life_rounds: rounds after which an observation counts half; default 32.0.

    """

    def __init__(
        self,
        fixed_s: float = 0.03,
        per_device_s: float = 0.005,
        per_token_s: float = 0.002,
        half_life_rounds: float = 32.0,
    ) -> None:
        not_negative("fixed_s", fixed_s)
        not_negative("per_device_s", per_device_s)
        not_negative("per_token_s", per_token_s)
        if fixed_s + per_device_s + per_token_s == 0:
            raise InputError("fixed_s = per_device_s = per_token_s = 0 is no prior: at least one must be positive")
        self._half_life = positive("half_life_rounds", half_life_rounds)
        self._prior_s = np.array([fixed_s, per_device_s, per_token_s])
        self._coefficients_s = self._prior_s
        self._window = math.ceil(WINDOW_HALF_LIVES * half_life_rounds)
        self._rows = np.empty((2 * self._window, 4))  # 1, K, Σ (L_k + 1), seconds; the last window of them counts
        self._end = 0  # of the rows in use
        self._observed = 0

    def observe(self, devices: int, tokens: int, seconds: float) -> None:
        """Learn from one batch.

        Args:
            devices: K, sessions in it, at least 1.
            tokens: Σ (L_k + 1), tokens fed for them, at least K.
            seconds: time that it took [s]; below `SHORTEST_PASS_S` it counts as that.

        """
        _check_batch(devices, tokens)
        if self._end == len(self._rows):
            self._rows[: self._window] = self._rows[self._window :]
            self._end = self._window
        self._rows[self._end] = 1.0, devices, tokens, max(SHORTEST_PASS_S, not_negative("seconds", seconds))
        self._end += 1
        self._observed += 1
        if self._observed <= FIT_EACH or self._observed % FIT_EVERY == 0:
            self._fit()

    def predict(self, devices: int, tokens: int) -> float:
        """Latency of a batch by the present coefficients, fixed_s + per_device_s·K + per_token_s·n [s].

        Args:
            devices: K, sessions in it, at least 1.
            tokens: n = Σ (L_k + 1), tokens fed for them, at least K.

        Raises:
            InputError: a number is out of range.
        """
        _check_batch(devices, tokens)
        return verification_s(self.fixed_s, self.per_device_s, self.per_token_s, devices, tokens)

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest batch that still counts; 0 before any was seen."""
        batches = self._rows[max(0, self._end - self._window) : self._end, 2]
        return int(batches.max()) if len(batches) else 0

    @property
    def fixed_s(self) -> float:
        """Cost of a batch in s."""
        return float(self._coefficients_s[0])

    @property
    def per_device_s(self) -> float:
        """Cost of a device in the batch in s."""
        return float(self._coefficients_s[1])

    @property
    def per_token_s(self) -> float:
        """Cost of a token fed in s."""
        return float(self._coefficients_s[2])

    def _fit(self) -> None:
        data = self._rows[max(0, self._end - self._window) : self._end]
        features, seconds = data[:, :3], data[:, 3]
        age = _age(len(data), self._half_life)
        prior_weight = 0.5 ** (self._observed / self._half_life)

        ratios = seconds / (features @ self._prior_s)
        scale = weighted_median(np.append(ratios, 1.0), np.append(age, prior_weight))
        shape_s = scale * self._prior_s
        terms = features * shape_s  # so that the unknowns are factors around 1
        ridge = max(PRIOR_SHAPE * prior_weight, LEAST_PRIOR_SHAPE)
        # Reweighting begins with a fit in which every batch counts in full. If it began with the prior's shape, the
        # first batches of a machine of another shape would all count as outliers.
        spread, none = LEAST_SPREAD, np.zeros(len(data))
        factors = _step(terms, seconds, np.maximum(seconds, terms.sum(axis=1)), none, age, spread, ridge)
        for _ in range(REWEIGHTINGS):
            predicted = terms @ factors
            relative = seconds / predicted - 1.0
            spread = max(LEAST_SPREAD, robust_spread(relative, age, PRIOR_SPREAD, prior_weight))
            previous, factors = factors, _step(terms, seconds, predicted, np.abs(relative) / spread, age, spread, ridge)
            if all(abs(a - b) <= _SAME + _SAME * abs(b) for a, b in zip(previous, factors, strict=True)):
                break
        self._coefficients_s = shape_s * factors


def _step(
    terms: NDArray[np.float64],
    seconds: NDArray[np.float64],
    predicted: NDArray[np.float64],
    deviations: NDArray[np.float64],
    age: NDArray[np.float64],
    spread: float,
    ridge: float,
) -> list[float]:
    """One pass of reweighted non-negative least squares for the factors on the prior's shape."""
    weights = age * (HUBER_DEVIATIONS / np.maximum(deviations, HUBER_DEVIATIONS)) / (predicted * spread) ** 2
    weighted = terms.T * weights
    gram, moment = weighted @ terms, weighted @ seconds
    gram[_DIAGONAL] += ridge
    return nonnegative_minimum(gram.tolist(), (moment + ridge).tolist())


_DIAGONAL = np.diag_indices(3)


@lru_cache(maxsize=1024)
def _age(count: int, half_life: float) -> NDArray[np.float64]:
    """`forgetting_weights`, which are the same for all estimators."""
    return forgetting_weights(count, half_life)


def _check_batch(devices: int, tokens: int) -> None:
    within("devices", devices, 1, MOST)
    within("tokens", tokens, devices, MOST)
