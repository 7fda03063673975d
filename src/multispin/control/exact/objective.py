"""A plan's objective, in the one form that the exact solver needs: gains per device against a price of time."""

import math
from typing import Protocol

import numpy as np

from multispin.control.goodput import Floats, Ints
from multispin.control.problem import Problem


class Objective(Protocol):
    """A score of (options, round time t) that grows with Σ_k gain_k(L_k) and falls with t.

    `line` linearises the price of time: for t in [shortest, longest] and any choice whose score exceeds `level`,
    Σ gain > intercept + slope·t. `bound` turns a bound H on Σ gain − intercept − slope·t into one on the score.
    """

    gains: Floats
    curved: bool
    """Whether the price of time is not linear."""

    def score(self, options: Ints, round_s: Floats) -> Floats:
        """Score of options [..., K] in rounds of that duration [...]; −inf where a least goodput is missed.

        Args:
            options: chosen options, [..., K].
            round_s: round time t [s], [...].
        """
        ...

    def goal(self, best: float, relative_gap: float) -> float:
        """The level that no choice may exceed for `best` to be good enough.

        Args:
            best: the best score so far.
            relative_gap: how far above `best` the level is, as a fraction of the goodput (of its weighted geometric
                mean in `LogGoodput`).
        """
        ...

    def latest(self, level: float) -> float:
        """Round time beyond which no choice can exceed `level` [s].

        Args:
            level: the score that choices are tested against.
        """
        ...

    def line(self, level: float, earliest: Floats, latest: Floats) -> tuple[Floats, Floats]:
        """Intercept and slope of the price of time for rounds of earliest…latest seconds, shapes [N].

        Args:
            level: the score that choices are tested against.
            earliest: least round time t [s], [N].
            latest: greatest round time t [s], [N].
        """
        ...

    def bound(self, level: float, excess: Floats, earliest: Floats, latest: Floats) -> Floats:
        """Bound on the score of choices with Σ gain − intercept − slope·t ≤ excess, shapes [N].

        Args:
            level: the level of `line`.
            excess: H, bound on Σ gain − intercept − slope·t, [N].
            earliest: least round time t [s], [N].
            latest: greatest round time t [s], [N].
        """
        ...


class SumGoodput:
    """Weighted sum goodput, Σ_k w_k E[N_k] / t (eq. 26): gains w_k E[N_k], and time at a price of `level`."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.gains = problem.tokens * problem.weight
        self._most = _most(problem, self.gains)
        self.curved = False

    def score(self, options: Ints, round_s: Floats) -> Floats:
        """Score of options [..., K]; −inf where a least goodput is missed."""
        problem = self._problem
        score: Floats = (problem.expected(options) @ problem.weight) / round_s
        return np.where(problem.meets_minimum(options, round_s), score, -np.inf) if problem.constrained else score

    def goal(self, best: float, relative_gap: float) -> float:
        """The best score plus the gap."""
        return best * (1.0 + relative_gap)

    def latest(self, level: float) -> float:
        """Round time at which even the longest drafts only reach `level` [s]."""
        return self._most / level

    def line(self, level: float, earliest: Floats, latest: Floats) -> tuple[Floats, Floats]:
        """Price of time; see `Objective.line`."""
        return np.zeros_like(earliest), np.full_like(earliest, level)

    def bound(self, level: float, excess: Floats, earliest: Floats, latest: Floats) -> Floats:
        """Bound on the score; see `Objective.bound`."""
        return level + excess / np.where(excess > 0, earliest, latest)


class LogGoodput:
    """Proportional fairness, Σ_k w_k log(E[N_k] / t): gains w_k log E[N_k], and time at a price of Σw · log t.

    log t is concave, so over an interval of times it lies above its chord: that chord is the line. Concave gains stay
    concave under the logarithm, so the same solver applies.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._total = float(problem.weight.sum())
        self.gains = np.log(problem.tokens) * problem.weight
        self._most = _most(problem, self.gains)
        self.curved = True

    def score(self, options: Ints, round_s: Floats) -> Floats:
        """Score of options [..., K]; −inf where a least goodput is missed."""
        problem = self._problem
        score: Floats = self.gains[options, np.arange(problem.size)].sum(axis=-1) - self._total * np.log(round_s)
        return np.where(problem.meets_minimum(options, round_s), score, -np.inf) if problem.constrained else score

    def goal(self, best: float, relative_gap: float) -> float:
        """The best score plus the gap."""
        # A relative gap of the weighted geometric mean of the goodputs.
        return best + self._total * math.log1p(relative_gap)

    def latest(self, level: float) -> float:
        """Round time at which even the longest drafts only reach `level` [s]."""
        return math.exp(min((self._most - level) / self._total, 700.0))

    def line(self, level: float, earliest: Floats, latest: Floats) -> tuple[Floats, Floats]:
        """Price of time; see `Objective.line`."""
        width = np.maximum(latest - earliest, 0.0)
        ratio = width / earliest
        chord = np.where(ratio > 1e-12, np.log1p(ratio) / np.where(width > 0, width, 1.0), 1.0 / latest)
        slope = self._total * chord
        return level + self._total * np.log(earliest) - slope * earliest, slope

    def bound(self, level: float, excess: Floats, earliest: Floats, latest: Floats) -> Floats:
        """Bound on the score; see `Objective.bound`."""
        return level + excess


def _most(problem: Problem, gains: Floats) -> float:
    """Sum of the greatest gains that devices can have."""
    return float(np.where(problem.within, gains, -np.inf).max(axis=0).sum())
