"""One draft length for everybody: Theorem 1 in closed form, and the search where it does not apply."""

import math

import numpy as np

from multispin.control.goodput import Floats, Ints
from multispin.control.problem import Problem


def stationary_length(acceptance_rate: float, verification_ratio: float) -> float:
    """Real L̃ at which τ(L) = (1 − α^(L+1)) / (1 − α) / (L ϑ + T_ver) is largest, for t = T_ver / ϑ.

    If t > (1 − α) / (α |ln α|) then L̃ = −ln(−W₋₁(−α^(t−1)/e)) / ln α − 1, else 0: drafting does not pay beyond
    the shortest draft. The argument of W₋₁ underflows for large t, so the same root is taken from
    e^u = u + c, u = b(L̃ + 1), b = −ln α, c = b(t − 1) + 1. Example: α = 0.74, t = 20 gives L̃ = 6.3.

    Args:
        acceptance_rate: α in [0, 1]; 1 gives infinity (each further token is worth as much as the last), 0 gives 0.
        verification_ratio: t = T_ver / ϑ ≥ 0.

    Source: arXiv 2606.04581, Theorem 1, eq. 23 and 24.
    """
    alpha, t = acceptance_rate, verification_ratio
    if alpha <= 0.0:
        return 0.0
    if alpha >= 1.0:
        # τ = (L + 1) / (ϑ (L + t)) grows with L if t > 1 and falls if t < 1.
        return math.inf if t > 1.0 else 0.0
    b = -math.log(alpha)
    if t <= (1.0 - alpha) / (alpha * b):
        return 0.0
    # e^u − u − 1 = b(t − 1): the left side is convex and grows with u > 0, so Newton descends from the right.
    goal = b * (t - 1.0)
    u = min(math.sqrt(2.0 * goal), math.log1p(goal) + 1.0 if goal > 1.0 else math.inf)
    while math.expm1(u) - u < goal:
        u = 2.0 * u
    for _ in range(100):
        slope = math.expm1(u)
        step = (slope - u - goal) / slope
        u -= step
        if step <= 1e-15 * u:
            break
    return u / b - 1.0


def common_length(problem: Problem, lengths: Ints) -> Ints:
    """Everybody's draft when all are told the same length: clipped to what each device can do [tokens], [N, K].

    Args:
        problem: the scenario in numbers.
        lengths: common lengths [tokens], [N].
    """
    return np.clip(lengths[:, None], problem.shortest, problem.longest)


def candidates(problem: Problem) -> Ints:
    """All distinct common lengths, clipped per device, [N, K]."""
    return common_length(problem, np.arange(problem.shortest.min(), problem.longest.max() + 1))


def homogeneous(problem: Problem) -> Ints:
    """Best common draft length under the best split of the band, as lengths [K].

    With equal α for all, equal limits and no profile this is Theorem 1; a cost per verified token only adds to ϑ and
    T_ver (L + 1 tokens per device, packed or padded alike). Otherwise, and where refusals or round trips take time,
    every L is tried: a few dozen Lemma 3 splits. Devices whose limits exclude L draft the nearest length that they
    can, which the paper does not cover.

    Source: arXiv 2606.04581, P1, Lemma 1 and Theorem 1.
    """
    alpha = problem.acceptance_rate
    shortest, longest = problem.shortest, problem.longest
    alike = bool((alpha == alpha[0]).all() and (shortest == shortest[0]).all() and (longest == longest[0]).all())
    if not alike or problem.after_s is not None or problem.round_trip_s is not None:
        options = candidates(problem)
    else:
        per_token = problem.size * problem.per_token_s
        theta = float(problem.token_latency()[0]) + per_token
        real = stationary_length(float(alpha[0]), (problem.fixed_s + per_token) / theta)
        # τ is unimodal, so clipping the maximiser keeps the best; both neighbours because L is whole.
        low, high = float(shortest[0]), float(longest[0])
        neighbours = np.clip([math.floor(min(real, high)), math.ceil(min(real, high))], low, high).astype(np.int64)
        options = common_length(problem, np.unique(neighbours))
    scores: Floats = problem.goodput(options)
    return np.asarray(options[int(np.argmax(scores))])
