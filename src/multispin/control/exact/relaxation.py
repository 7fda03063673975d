"""Upper bounds for whole intervals of the drafting time φ: the priced (Lagrangian) problem that separates devices.

Arrays are laid out [lengths, intervals, devices], shortened to [R, N, K]: the maximum over lengths is then taken over
the first axis, which numpy does at full speed. docs/control.md derives the bound.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from multispin.control.exact.objective import Objective
from multispin.control.goodput import Floats, Ints, Mask
from multispin.control.problem import Problem
from multispin.control.rate import least_upload_s, needed_share, tangent_shares

_EPS = float(np.finfo(np.float64).eps)
_PRICE_STEPS = 24
_PRICE_TOLERANCE = 1e-8
_SORTABLE = 20_000
"""Up to this many entries per interval, sorting is the quickest way to the band's price."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """N sets of choices: an interval of the drafting time φ, a window of the round time, and a cap on the lengths.

    Args:
        start: φ_a [s], shape [N].
        end: φ_b [s], shape [N].
        earliest: least round time of interest [s], shape [N].
        latest: greatest round time of interest [s], shape [N].
        cap: longest draft; a padded batch is charged for it, shape [N].
        price: guess of μ, the worth of the whole band in units of gain, shape [N]; see `tdma` for another shape.
    """

    start: Floats
    end: Floats
    earliest: Floats
    latest: Floats
    cap: Ints
    price: Floats

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: slice | Mask | NDArray[np.intp]) -> "Intervals":
        return Intervals(
            self.start[index],
            self.end[index],
            self.earliest[index],
            self.latest[index],
            self.cap[index],
            self.price[index],
        )

    def priced(self, price: Floats) -> "Intervals":
        """The same with a better guess of the price."""
        return replace(self, price=price)

    def halves(self, by_time: bool) -> "Intervals":
        """Each interval cut in two, [2 N]; with `by_time`, its time window where that is the relatively wider one."""
        middle = 0.5 * (self.start + self.end)
        half = 0.5 * (self.earliest + self.latest)
        timed = np.zeros(len(self), dtype=bool)
        if by_time:
            timed = self.latest / self.earliest > self.end / self.start
        return Intervals(
            start=np.concatenate([self.start, np.where(timed, self.start, middle)]),
            end=np.concatenate([np.where(timed, self.end, middle), self.end]),
            earliest=np.concatenate([self.earliest, np.where(timed, half, self.earliest)]),
            latest=np.concatenate([np.where(timed, half, self.latest), self.latest]),
            cap=np.tile(self.cap, 2),
            price=np.concatenate([self.price, self.price]),
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
        latest: greatest round time of any choice in the interval [s], [N].
        price: μ that was used, [N], or [N, 2, T] under TDMA.
        middle_excess: the priced problem in the middle of the interval: about what no refinement of φ can take
            away, [N].
        options: choice that the price makes at the middle, [N, K].
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
    options: Ints
    feasible: Mask

    def excess(self) -> Floats:
        """H: no choice in the interval has Σ gain − intercept − slope·t above this, [N]."""
        at_start = self.worth_start.max(axis=0).sum(axis=-1) + self.rest_start
        at_end = self.worth_end.max(axis=0).sum(axis=-1) + self.rest_end
        return np.where(self.feasible, np.maximum(at_start, at_end) + self.margin, -np.inf)

    def contenders(self, index: NDArray[np.intp]) -> tuple[Mask, Floats, Floats, Floats, Floats]:
        """Options that a choice with a positive excess may use, in the intervals `index` [M].

        Returns: mask [R, M, K]; what each option loses against its device's favourite, at φ_a and at φ_b, [R, M, K];
        the excess of all favourites together at φ_a and at φ_b, [M].
        """
        start, end = self.worth_start[:, index], self.worth_end[:, index]
        best_start, best_end = start.max(axis=0), end.max(axis=0)
        top_start = best_start.sum(axis=-1) + self.rest_start[index] + self.margin[index]
        top_end = best_end.sum(axis=-1) + self.rest_end[index] + self.margin[index]
        loss_start, loss_end = best_start - start, best_end - end
        left = (loss_start < top_start[:, None]) | (loss_end < top_end[:, None])
        return left, loss_start, loss_end, top_start, top_end

    def wide(self, intervals: Intervals, excess: Floats, first: int = 0) -> Mask:
        """Intervals whose excess comes mostly from their width, so that cutting them helps, [N].

        Args:
            intervals: some of those that were priced, one after the other, [N].
            excess: their `excess`, [N].
            first: place of the first of them among all that were priced; default 0.
        """
        middle = self.middle_excess[first : first + len(excess)]
        return (middle < 0.5 * excess) & (intervals.end - intervals.start > 1e-13 * intervals.end)


@dataclass(frozen=True, eq=False)
class Options:
    """Each device's options in each interval, and the price of time there: see `relax`.

    at_start and at_end are the room that is left for uploads at φ_a and φ_b, see `rate`.
    """

    gain: Floats
    upload: Floats
    at_start: Floats
    at_end: Floats
    open_: Mask
    fixed: Floats
    earliest: Floats
    latest: Floats
    intercept: Floats
    slope: Floats


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
        objective: the objective to maximise.
        level: the score that choices are tested against.
        intervals: N intervals of φ.
        shortest: least lengths that any feasible choice has, [K].
        allowed: options that are still open, [R, K]; default None: all within the limits.
    """
    start, end = intervals.start, intervals.end
    o = options_of(problem, objective, level, intervals, shortest, allowed)
    cost_start, cost_end = tangent_shares(o.upload, o.at_start, o.at_end, o.open_, problem.snr)
    middle_cost = 0.5 * (cost_start + cost_end)
    price, options = _band_price(o.gain, middle_cost, o.open_, intervals.price, problem.concave)
    gain = np.where(o.open_, o.gain, -np.inf)
    pay = price[:, None]
    rest = price - o.intercept - o.slope * o.fixed
    middle = (gain - pay * middle_cost).max(axis=0).sum(axis=-1) + rest - o.slope * 0.5 * (start + end)
    # A chosen option is worth no less than the least one, which bounds every term of the sums and so their rounding.
    least = np.take_along_axis(cost_start, o.open_.argmax(axis=0)[None], axis=0)[0].sum(axis=-1)
    most = float(np.abs(objective.gains[: len(gain)]).max(axis=0).sum())
    size = 3.0 * most + price * (1.0 + 2.0 * least) + np.abs(o.intercept) + 2.0 * o.slope * o.latest
    return Relaxation(
        worth_start=gain - pay * cost_start,
        worth_end=gain - pay * cost_end,
        rest_start=rest - o.slope * start,
        rest_end=rest - o.slope * end,
        margin=2 * (problem.size + 64) * _EPS * size,
        earliest=o.earliest,
        latest=o.latest,
        price=price,
        middle_excess=middle,
        options=options,
        feasible=np.asarray(o.open_.any(axis=0).all(axis=-1)),
    )


def greedy(
    problem: Problem, objective: Objective, level: float, points: Intervals, shortest: Ints
) -> tuple[Ints, Floats]:
    """Lengths [N, K] that fill the band best at single drafting times (start = end), and the band's price there [N].

    Every device takes its next token while gain per cost is above the price: marginal-gain selection.

    Args:
        problem: the scenario in numbers.
        objective: the objective to maximise.
        level: the score that choices are tested against.
        points: N drafting times φ, as intervals without width.
        shortest: least lengths that any feasible choice has, [K].
    """
    o = options_of(problem, objective, level, points, shortest, None)
    with np.errstate(all="ignore"):
        cost = np.where(o.open_ & (o.upload > 0), needed_share(o.upload, o.at_end, problem.snr)[0], 0.0)
    price, options = _band_price(o.gain, cost, o.open_, points.price, problem.concave)
    return options, price


def options_of(
    problem: Problem, objective: Objective, level: float, intervals: Intervals, shortest: Ints, allowed: Mask | None
) -> Options:
    """Gain, need and cost of each option within each interval, and which options are open there.

    Args:
        problem: the scenario in numbers.
        objective: the objective to maximise.
        level: the score that choices are tested against.
        intervals: N intervals of φ.
        shortest: least lengths that any feasible choice has, [K].
        allowed: options that are still open, [R, K]; None leaves all within the limits open.
    """
    start, end = intervals.start, intervals.end
    rows = problem.tokens.shape[0]
    if problem.mode_upload_s is None:
        rows = min(rows, int(min(end.max() / problem.seconds_per_token.min(), 1e6)) + 2)
        rows = max(rows, int(shortest.max()) + 1)
    option = np.arange(rows)[:, None, None]
    length = problem.drafted(option)
    longest = np.minimum(problem.longest, intervals.cap[:, None])
    fixed, per_token = _verification(problem, intervals.cap)
    lower = shortest
    least_after, most_after = problem.after_range
    fixed_least = fixed + least_after
    earliest = start + fixed_least + per_token * lower.sum(axis=-1)
    if problem.constrained:
        need = problem.minimum_goodput * (1.0 - 2e-12)
        for _ in range(2):
            missing = (problem.tokens[:, None, :] < need * earliest[:, None]).sum(axis=0)
            lower = np.maximum(shortest, missing)
            earliest = start + fixed_least + per_token * lower.sum(axis=-1)
    latest = np.minimum(end + fixed + most_after + per_token * longest.sum(axis=-1), intervals.latest)
    earliest = np.maximum(earliest, intervals.earliest)
    empty = earliest > latest * (1.0 + 1e-12)
    earliest = np.minimum(earliest, latest)
    intercept, slope = objective.line(level, earliest, latest)
    # Widened by a few roundings of φ, so that every cost is below the true one however the subtraction rounds.
    busy = problem.busy_s(length) - 8 * _EPS * end[:, None]
    upload = problem.token_upload_s(option) * length
    if problem.snr is not None:
        busy = busy + least_upload_s(upload, problem.snr)
    at_end = end[:, None] - busy
    open_ = (length <= longest) & (length >= lower) & (at_end > 0)
    if problem.mode_upload_s is not None:
        open_ &= problem.within[:, None, :]
    if empty.any():
        open_ &= ~empty[:, None]
    if allowed is not None:
        open_ &= allowed[:rows, None, :]
    gain = np.broadcast_to(objective.gains[:rows, None, :], at_end.shape)
    if per_token:
        gain = gain - (slope * per_token)[:, None] * length
    if problem.after_s is not None:
        gain = gain - slope[:, None] * problem.after_s[:rows, None, :]
    return Options(
        gain=gain,
        upload=upload,
        at_start=start[:, None] - busy,
        at_end=at_end,
        open_=open_,
        fixed=fixed,
        earliest=earliest,
        latest=latest,
        intercept=intercept,
        slope=slope,
    )


def _verification(problem: Problem, cap: Ints) -> tuple[Floats, float]:
    """Part of T_ver that lengths do not change within each interval [N], and the price per drafted token [s]."""
    if problem.padded:
        return np.asarray(problem.fixed_s + problem.per_token_s * problem.size * (cap + 1.0)), 0.0
    return np.full(len(cap), problem.fixed_s + problem.per_token_s * problem.size), problem.per_token_s


def _band_price(gain: Floats, cost: Floats, open_: Mask, guess: Floats, concave: bool) -> tuple[Floats, Ints]:
    """Price μ at which the devices together ask for about the whole band, [N], and what they then choose [N, K].

    Where gains are concave and costs convex a device takes its next token while gain per cost is above μ; otherwise it
    takes the option that is worth most at μ, a corner of its options' upper envelope. Any μ ≥ 0 gives a valid bound,
    and one that is wrong by a fraction ε is looser by ε²: so for large tables a rough search does instead of a sort.
    """
    if not concave:
        return price_by_worth(np.where(open_, gain, -np.inf), cost, guess)
    both = open_[1:] & open_[:-1]
    more = np.where(both, np.diff(cost, axis=0), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(more > 0, np.diff(gain, axis=0) / more, -np.inf)
    least = open_.argmax(axis=0)
    base = np.take_along_axis(cost, least[None], axis=0)[0].sum(axis=-1)
    if more.shape[0] * more.shape[2] <= _SORTABLE:
        price = _price_by_sorting(ratio, more, base)
    else:
        wanted = np.where(ratio > 0, ratio, 0.0)
        # The first price values the band at all that could be gained with any amount of it.
        first = np.where(guess > 0, guess, np.maximum(np.einsum("rnk,rnk->n", wanted, more), 1e-300))
        price = _search_price(lambda p: base + np.einsum("rnk,rnk->n", wanted >= p[:, None], more), first)
    return price, least + (ratio >= price[:, None]).sum(axis=0)


def _price_by_sorting(ratio: Floats, more: Floats, base: Floats) -> Floats:
    """The last ratio that the band still pays for, [N]; 0 if it pays for all that is worth anything."""
    count = len(base)
    flat = np.moveaxis(ratio, 1, 0).reshape(count, -1)
    width = flat.shape[-1]
    order = np.argsort(-flat, axis=-1)
    order += np.arange(count)[:, None] * width
    more = np.moveaxis(more, 1, 0).reshape(-1)[order]
    asked = base[:, None] + np.cumsum(more, axis=-1)
    fitting = (asked <= 1.0).sum(axis=-1)
    # The dual optimum is the ratio of the first token that does not fit; a little above it, that token is left out.
    beyond = flat.reshape(-1)[order[np.arange(count), np.minimum(fitting, width - 1)]]
    return np.where((fitting < width) & (beyond > 0), np.nextafter(np.maximum(beyond, 0.0), np.inf), 0.0)


def price_by_worth(gain: Floats, cost: Floats, guess: Floats, *, steps: int = _PRICE_STEPS) -> tuple[Floats, Ints]:
    """Price μ at which the devices together ask for about the whole band, and their choices, for options in any order.

    Args:
        gain: gain of each option, −inf where it is excluded, [R, N, K].
        cost: share of the band that each option needs, [R, N, K].
        guess: guess of μ, [N]; 0 for none.
        steps: trials at most, fewer find a rougher price sooner; default 24.

    Returns: μ [N], and the option that is worth most to each device at it [N, K].
    """

    def chosen(price: Floats) -> Ints:
        return np.asarray((gain - price[:, None] * cost).argmax(axis=0))

    def asked(price: Floats) -> Floats:
        return np.asarray(np.take_along_axis(cost, chosen(price)[None], axis=0)[0].sum(axis=-1))

    most = np.where(np.isfinite(gain), np.abs(gain), 0.0).max(axis=0).sum(axis=-1)
    price = _search_price(asked, np.where(guess > 0, guess, np.maximum(most, 1e-300)), steps)
    return price, chosen(price)


def _search_price(demand: Callable[[Floats], Floats], price: Floats, steps: int = _PRICE_STEPS) -> Floats:
    """Price at which demand falls below the whole band: secants between the logarithms of price and demand."""
    low, high = np.zeros_like(price), np.full_like(price, np.inf)
    low_ask, high_ask = np.full_like(price, np.nan), np.full_like(price, np.nan)
    for step in range(steps):
        asked = demand(price)
        over = asked > 1.0
        low, low_ask = np.where(over, price, low), np.where(over, asked, low_ask)
        high, high_ask = np.where(over, high, price), np.where(over, high_ask, asked)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # The dual function is convex with slope 1 − asked: this is how far above its minimum it may still be.
            if (np.abs(asked - 1.0) * (high - low) <= _PRICE_TOLERANCE * price).all():
                break
            width = np.log(high / low)
            inside = low * np.exp(width * np.clip(np.log(low_ask) / np.log(low_ask / high_ask), 0.03, 0.97))
            if step % 4 == 3:
                inside = np.sqrt(low * high)
            outside = np.where(over, price * np.clip(asked, 1.05, 64.0), price * np.clip(asked, 1e-3, 0.95))
        price = np.where((low > 0) & np.isfinite(high) & np.isfinite(inside), inside, outside)
    return price
