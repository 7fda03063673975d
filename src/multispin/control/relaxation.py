"""Upper bounds for whole intervals of the drafting time φ: the priced (Lagrangian) problem that separates devices.

Arrays are laid out [lengths, intervals, devices], shortened to [R, N, K]: the maximum over lengths is then taken over
the first axis, which numpy does at full speed. docs/control.md derives the bound.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multispin.control.goodput import Floats, Ints
from multispin.control.objective import Objective
from multispin.control.problem import Problem

Mask = NDArray[np.bool_]
_EPS = float(np.finfo(np.float64).eps)
_PRICE_STEPS = 14


@dataclass(frozen=True, eq=False)
class Intervals:
    """N intervals of the drafting time φ [s], each with a cap on the draft length and a guess of its band price.

    Args:
        start: φ_a, shape [N].
        end: φ_b, shape [N].
        cap: longest draft; a padded batch is charged for it, shape [N].
        price: guess of μ, the worth of the whole band in units of gain, shape [N].
    """

    start: Floats
    end: Floats
    cap: Ints
    price: Floats

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: slice | Mask | NDArray[np.intp]) -> "Intervals":
        return Intervals(self.start[index], self.end[index], self.cap[index], self.price[index])

    def cut(self, parts: int) -> "Intervals":
        """Each interval cut in equal parts."""
        edges = self.start[:, None] + (self.end - self.start)[:, None] * (np.arange(parts + 1) / parts)
        edges[:, -1] = self.end
        return Intervals(
            edges[:, :-1].ravel(), edges[:, 1:].ravel(), np.repeat(self.cap, parts), np.repeat(self.price, parts)
        )


def join(several: list[Intervals]) -> Intervals:
    """All intervals in one value."""
    return Intervals(
        np.concatenate([i.start for i in several]),
        np.concatenate([i.end for i in several]),
        np.concatenate([i.cap for i in several]),
        np.concatenate([i.price for i in several]),
    )


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The priced problem over each interval.

    Args:
        worth_start: gain − μ·(tangent cost) of each option at φ_a; −inf where it is excluded, [R, N, K].
        worth_end: the same at φ_b.
        rest_start: what is left of the bound besides Σ_k max_l worth, at φ_a, [N].
        rest_end: the same at φ_b.
        margin: bound on the rounding error of the sums, [N].
        earliest: least round time of any choice in the interval [s], [N].
        latest: greatest one.
        price: μ that was used, [N].
        middle_excess: the priced problem in the middle of the interval: about what no refinement of φ can take
            away, [N].
        lengths: choice that the price makes at the middle, [N, K].
        feasible: whether any choice is left at all, [N].
    """

    worth_start: Floats
    worth_end: Floats
    rest_start: Floats
    rest_end: Floats
    margin: Floats
    earliest: Floats
    latest: Floats
    price: Floats
    middle_excess: Floats
    lengths: Ints
    feasible: Mask

    def excess(self) -> Floats:
        """H: no choice in the interval has Σ gain − intercept − slope·t above this, [N]."""
        at_start = self.worth_start.max(axis=0).sum(axis=-1) + self.rest_start
        at_end = self.worth_end.max(axis=0).sum(axis=-1) + self.rest_end
        return np.where(self.feasible, np.maximum(at_start, at_end) + self.margin, -np.inf)


def relax(
    problem: Problem,
    objective: Objective,
    level: float,
    intervals: Intervals,
    shortest: Ints,
    allowed: Mask | None = None,
) -> Relaxation:
    """Price the band in each interval and relax the coupling between devices.

    Args:
        problem: the scenario in numbers.
        objective: what is maximised.
        level: the score that choices are tested against.
        intervals: N intervals of φ.
        shortest: least lengths that any feasible choice has, [K].
        allowed: options that are still open, [L_max + 1, K]; None leaves all within the limits open.
    """
    start, end = intervals.start, intervals.end
    rows = min(problem.tokens.shape[0], int(min(end.max() / problem.seconds_per_token.min(), 1e6)) + 2)
    rows = max(rows, int(shortest.max()) + 1)
    length = np.arange(rows)[:, None, None]
    longest = np.minimum(problem.longest, intervals.cap[:, None])
    fixed, per_token = _verification(problem, intervals.cap)
    lower = shortest
    earliest = start + fixed + per_token * lower.sum(axis=-1)
    if problem.constrained:
        need = problem.minimum_goodput * (1.0 - 2e-12)
        for _ in range(2):
            missing = (problem.tokens[:, None, :] < need * earliest[:, None]).sum(axis=0)
            lower = np.maximum(shortest, missing)
            earliest = start + fixed + per_token * lower.sum(axis=-1)
    latest = end + fixed + per_token * longest.sum(axis=-1)
    intercept, slope = objective.line(level, earliest, latest)

    upload = problem.upload_s * length
    # Widened by a few roundings of φ, so that every cost is below the true one however the subtraction rounds.
    busy = problem.seconds_per_token * length - 8 * _EPS * end[:, None]
    at_start = start[:, None] - busy
    at_end = end[:, None] - busy
    open_ = (length <= longest) & (length >= lower) & (at_end > 0)
    if allowed is not None:
        open_ &= allowed[:rows, None, :]
    touch = np.maximum(0.5 * (at_start + at_end), 0.75 * at_end)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = upload / (touch * touch)
        cost_start = np.where(open_, scale * (2.0 * touch - at_start), 0.0)
        cost_end = np.where(open_, scale * (2.0 * touch - at_end), 0.0)
    gain = objective.gains[:rows, None, :] - (slope * per_token)[:, None] * length
    middle_cost = 0.5 * (cost_start + cost_end)
    price, lengths = _band_price(gain, middle_cost, open_, intervals.price)
    gain = np.where(open_, gain, -np.inf)
    pay = price[:, None]
    rest = price - intercept - slope * fixed
    worth_start = gain - pay * cost_start
    worth_end = gain - pay * cost_end
    middle = (gain - pay * middle_cost).max(axis=0).sum(axis=-1) + rest - slope * 0.5 * (start + end)
    feasible = np.asarray(open_.any(axis=0).all(axis=-1))
    # A chosen option is worth no less than the least one, which bounds every term of the sums and so their rounding.
    least = np.take_along_axis(cost_start, open_.argmax(axis=0)[None], axis=0)[0].sum(axis=-1)
    most = float(np.abs(objective.gains[rows - 1]).sum())
    size = 3.0 * most + price * (1.0 + 2.0 * least) + np.abs(intercept) + 2.0 * slope * latest
    return Relaxation(
        worth_start=worth_start,
        worth_end=worth_end,
        rest_start=rest - slope * start,
        rest_end=rest - slope * end,
        margin=(problem.size + 64) * _EPS * size,
        earliest=earliest,
        latest=latest,
        price=price,
        middle_excess=middle,
        lengths=lengths,
        feasible=feasible,
    )


def _verification(problem: Problem, cap: Ints) -> tuple[Floats, float]:
    """Part of T_ver that lengths do not change within each interval [N], and the price per drafted token [s]."""
    if problem.padded:
        return np.asarray(problem.fixed_s + problem.per_token_s * problem.size * (cap + 1.0)), 0.0
    return np.full(len(cap), problem.fixed_s + problem.per_token_s * problem.size), problem.per_token_s


def _band_price(gain: Floats, cost: Floats, open_: Mask, guess: Floats) -> tuple[Floats, Ints]:
    """Price μ at which the devices together ask for about the whole band, [N], and what they then choose [N, K].

    A device takes its next token while gain per cost is above μ. Any μ ≥ 0 gives a valid bound, and one that is
    wrong by a fraction ε is looser by ε²: so the search stops early.
    """
    step_cost = np.diff(cost, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.diff(gain, axis=0) / step_cost
    both = open_[1:] & open_[:-1]
    ratio = np.where(both & (step_cost > 0), ratio, -np.inf)
    least = open_.argmax(axis=0)
    base = np.take_along_axis(cost, least[None], axis=0)[0].sum(axis=-1)
    step_cost = np.where(both, step_cost, 0.0)
    price = np.where(guess > 0, guess, gain[-1].sum(axis=-1))
    price = np.maximum(price, 1e-300)
    low = np.zeros_like(price)
    high = np.full_like(price, np.inf)
    low_ask, high_ask = np.full_like(price, np.nan), np.full_like(price, np.nan)
    for step in range(_PRICE_STEPS):
        asked = base + np.where(ratio >= price[:, None], step_cost, 0.0).sum(axis=(0, 2))
        over = asked > 1.0
        low, low_ask = np.where(over, price, low), np.where(over, asked, low_ask)
        high, high_ask = np.where(over, high, price), np.where(over, high_ask, asked)
        if (np.abs(asked - 1.0) < 1e-3).all() or step == _PRICE_STEPS - 1:
            break
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slope = np.log(low_ask / high_ask) / np.log(high / low)
            inside = low * np.exp(
                np.clip(np.log(low_ask) / slope, 0.05 * np.log(high / low), 0.95 * np.log(high / low))
            )
            if step % 3 == 2:
                inside = np.sqrt(low * high)
            outside = np.where(over, price * np.clip(asked**1.5, 1.05, 64.0), price * np.clip(asked, 1e-3, 0.95))
        both_known = (low > 0) & np.isfinite(high)
        price = np.where(both_known & np.isfinite(inside), inside, outside)
    lengths = least + (ratio >= np.where(np.isfinite(high), high, price)[:, None]).sum(axis=0)
    return price, lengths
