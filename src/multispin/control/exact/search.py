"""The exact optimum of P2: branch and bound over the drafting time φ, with a proven upper bound.

For a fixed φ the lengths solve a separable knapsack: concave gains, convex costs a_k l / (φ − l T_k), one unit of
band. Pricing the band at μ separates the devices. Over an interval of φ each cost, convex in φ, is replaced by a
tangent, so that the priced problem is convex in φ and largest at an end of the interval: two evaluations bound all
choices whose drafting time lies in it, and the error shrinks with the square of the interval's width. Intervals that
may still hold a better choice are cut; once only the wholeness of lengths keeps the bound up, options that cannot
be part of a better choice are struck out, and the few that are left are tried. docs/control.md derives all this in
the paper's symbols. The paper (arXiv 2606.04581, P2, eq. 27 and 28) stops at a relaxed solution, rounded.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from multispin.control.baselines import goodput_argmax, uniform_bandwidth
from multispin.control.exact.objective import Objective
from multispin.control.exact.pricing import PRICING
from multispin.control.exact.relaxation import Intervals, Relaxation
from multispin.control.goodput import Floats, Ints, Mask
from multispin.control.problem import Problem
from multispin.control.uniform import homogeneous

EXACT_SIZE = 32
"""Up to this many devices (counted once for every mode) the search runs to the optimum: it takes a millisecond more."""
EXACT_GAP = 1e-10
"""The smallest relative gap that the search aims for: what double precision can tell apart."""
MAX_EFFORT = 4e8
"""Table entries that a search works through before it gives up: a few seconds on one core."""
_CALL = 20_000.0
"""Fixed cost of a vectorised step, in entries."""
_INVERSION = 10.0
"""How much longer an entry takes where a rate is to be inverted."""
_ENVELOPE = 20.0
"""How much longer an entry takes where the best option at a price is looked for among all."""
_BATCH = 200_000
"""Table entries [R, N, K] that one vectorised step may hold, so that memory stays linear in K."""
_COMBINATIONS = 1024
"""Combinations of lengths that may be tried in one interval."""
_FEW = 7.0
"""Logarithm to base 2 of how many are tried at once rather than cutting the interval."""
_STEPS = np.array([-2, -1, 1, 2])
_SWEEPS = 30
"""Most sweeps over all devices' options in search of an improvement."""
_FIRST_GUESSES = np.array([0, 2, 4, 8, 16])
_INNERMOST = 0.02
"""Half-width of the first interval around the best known φ, relative to φ."""
_GROWTH = 1.7
"""How much wider the next interval away from the best φ is."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """Result of a search: options [K], their score, a proven bound on any score, and the nodes that it took.

    `proved` tells whether the bound is within the gap that was asked for.
    """

    options: Ints
    score: float
    bound: float
    nodes: int
    proved: bool


class Search:
    """One run of branch and bound: the best choice so far (its drafting time is `draft`), and what is proven."""

    def __init__(self, problem: Problem, objective: Objective, shortest: Ints, relative_gap: float) -> None:
        self.problem = problem
        self.pricing = PRICING[problem.access.name]
        self.objective = objective
        self.shortest = shortest
        self.relative_gap = relative_gap
        self.best = shortest
        self.score = -math.inf
        self.draft = 0.0
        self.closed = -math.inf
        self.nodes = 0
        self.effort = 0.0
        self._waiting: list[Ints] = []
        self.caps = _caps(problem, shortest)
        # Windows of the round time tighten a curved price of time; otherwise they follow from φ.
        packed = problem.per_token_s > 0 and not problem.padded
        self.windowed = objective.curved and (packed or problem.after_s is not None)
        least, self._most = problem.draft_range
        if (shortest > problem.shortest).any():
            least = float(problem.draft_time(shortest))
        self._least = least
        self.quickest = problem.quickest_s(shortest)

    @property
    def level(self) -> float:
        """Score that every interval must be shown not to exceed."""
        return self.objective.goal(self.score, self.relative_gap)

    def offer(self, options: Ints) -> None:
        """Keep the best of options [N, K], if it beats what is known."""
        problem = self.problem
        if problem.mode_upload_s is None:
            options = np.clip(options, self.shortest, problem.longest)
        else:
            # If no option is open, as when φ is too short, a relaxation may name one that does not exist.
            options = np.where(problem.within[options, np.arange(problem.size)], options, self.shortest)
        self.effort += _CALL + 10.0 * options.size
        draft = problem.draft_time(options)
        scores = self.objective.score(options, draft + problem.verification_s(options))
        index = int(np.argmax(scores))
        if scores[index] > self.score:
            self.score, self.best, self.draft = float(scores[index]), options[index], float(draft[index])

    def consider(self, options: Ints) -> None:
        """Queue options [N, K]; they are offered together, which is cheaper, by `catch_up` at the latest."""
        self._waiting.append(options)
        if sum(each.size for each in self._waiting) > _BATCH:
            self.catch_up()

    def catch_up(self) -> None:
        """Offer all queued options."""
        if not self._waiting:
            return
        together = np.concatenate(self._waiting)
        self._waiting = []
        step = max(1, _BATCH // self.problem.size)
        for first in range(0, len(together), step):
            self.offer(together[first : first + step])

    def close(self, bound: float) -> None:
        """Note that some choices need no further search: none of them scores more than `bound`."""
        self.closed = max(self.closed, bound)

    def range(self) -> tuple[float, float]:
        """Range of the drafting times of all choices that could beat the best one, except the choice without drafts."""
        spare = self.objective.latest(self.level) * (1.0 + 1e-12) - self.quickest
        return self._least * (1.0 - 1e-12), max(min(self._most, spare), self._least) * (1.0 + 1e-12)

    def relax(self, intervals: Intervals, allowed: Mask | None = None) -> tuple[Relaxation, float]:
        """The priced problem over intervals against the present level, and that level.

        Args:
            intervals: N intervals of φ.
            allowed: options that are still open, [R, K]; None (default) leaves all within the limits open.
        """
        level = self.level
        self.nodes += len(intervals)
        entries = self.problem.tokens.size * (1.0 if self.problem.snr is None else _INVERSION)
        entries *= 1.0 if self.problem.concave else _ENVELOPE
        self.effort += _CALL + len(intervals) * entries
        if allowed is None:
            self.effort += len(intervals) * self.pricing.effort
        return self.pricing.relax(self.problem, self.objective, level, intervals, self.shortest, allowed), level


def maximise(
    problem: Problem,
    objective: Objective,
    shortest: Ints,
    *,
    relative_gap: float,
    warm_start: Ints | None = None,
    max_effort: float = MAX_EFFORT,
) -> Optimum:
    """Options that maximise `objective` under the best split of the band, and a bound that no options exceed.

    Args:
        problem: the scenario in numbers.
        objective: the objective to maximise.
        shortest: least lengths of any feasible choice, themselves feasible, [K].
        relative_gap: stop once the bound is within this fraction of the score (`EXACT_GAP` up to `EXACT_SIZE`).
        warm_start: options [K] to begin with, for instance those of the round before; default None.
        max_effort: table entries to work through before giving up; the bound stays valid, `proved` turns false; default
            `MAX_EFFORT`.
    """
    count = problem.size * (len(problem.tokens) // problem.reach)
    gap = EXACT_GAP if count <= EXACT_SIZE else max(relative_gap, EXACT_GAP)
    search = Search(problem, objective, shortest, gap)
    if warm_start is not None:
        search.offer(np.stack([shortest, warm_start]))
    else:
        search.offer(problem.everybody(_FIRST_GUESSES))
        _climb(search)
    if search.pricing.improves:
        _improve(search)
    proved = _prove(search, around_best(search), max_effort)
    if not proved:
        # Magnitudes so far apart that the search ran out of effort: at least be no worse than the simple policies.
        search.offer(homogeneous(problem)[None])
        if problem.mode_upload_s is None and problem.access.splits_band:
            search.offer(np.stack([uniform_bandwidth(problem), goodput_argmax(problem)]))
    return Optimum(search.best, search.score, max(search.closed, search.score), search.nodes, proved)


def _caps(problem: Problem, shortest: Ints) -> Ints:
    """Caps on the length that must be looked at one by one: a padded batch is charged for its longest draft."""
    longest = int(problem.longest.max())
    if problem.padded and problem.per_token_s > 0:
        return np.arange(int(shortest.max()), longest + 1)
    return np.array([longest])


def _climb(search: Search) -> None:
    """Find good options: marginal-gain selection on a grid of φ, refined around the best."""
    problem, caps = search.problem, search.caps
    for reach, count in search.pricing.climbs:
        low, high = search.range()
        if search.draft > 0.0:
            low, high = max(low, search.draft / reach), min(high, search.draft * reach)
        if high <= low:
            return
        grid = np.geomspace(low, high, count)
        points = _with_caps(grid, grid, caps if len(caps) == 1 else caps[:: max(1, len(caps) // 6)])
        for batch in _batches(points, problem):
            search.offer(search.pricing.greedy(problem, search.objective, search.level, batch, search.shortest)[0])


def _improve(search: Search) -> None:
    """Change one device's option at a time while that helps. With many devices only the nearest options are tried."""
    problem = search.problem
    for _ in range(_SWEEPS):
        before = search.score
        if problem.size <= EXACT_SIZE:
            option, device = np.nonzero(problem.within)
        else:
            device = np.tile(np.arange(problem.size), len(_STEPS))
            option = np.clip(search.best[device] + np.repeat(_STEPS, problem.size), 0, len(problem.tokens) - 1)
        step = max(1, _BATCH // problem.size)
        for first in range(0, len(device), step):
            part = slice(first, first + step)
            changed = np.repeat(search.best[None], len(device[part]), axis=0)
            changed[np.arange(len(changed)), device[part]] = option[part]
            search.offer(changed)
        if search.score <= before:
            return


def around_best(search: Search) -> Intervals:
    """Intervals that cover all drafting times of interest, narrow around the best one and wider away from it."""
    low, high = search.range()
    if high <= low:
        return _with_caps(np.empty(0), np.empty(0), search.caps)
    edges = _edges(low, high, search.draft)
    whole = _with_caps(edges[:-1], edges[1:], search.caps)
    if not search.windowed:
        return whole
    time = float(search.problem.round_s(search.best))
    last = max(search.objective.latest(search.level), search.quickest)
    windows = _edges(search.quickest * (1.0 - 1e-12), last * (1.0 + 1e-12), time)
    count = len(windows) - 1
    every = whole[np.repeat(np.arange(len(whole)), count)]
    return replace(every, earliest=np.tile(windows[:-1], len(whole)), latest=np.tile(windows[1:], len(whole)))


def _edges(low: float, high: float, centre: float) -> Floats:
    """Borders of intervals from low to high, ascending, narrow around the centre and wider away from it."""
    centre = min(max(centre, low), high)
    away = _INNERMOST * centre * np.cumsum(_GROWTH ** np.arange(60))
    edges = np.concatenate([[low, high], centre - away, centre + away])
    return np.unique(edges[(edges >= low) & (edges <= high)])


def _with_caps(start: Floats, end: Floats, caps: Ints) -> Intervals:
    """The same intervals under every cap."""
    total = len(start) * len(caps)
    return Intervals(
        start=np.tile(start, len(caps)),
        end=np.tile(end, len(caps)),
        earliest=np.zeros(total),
        latest=np.full(total, np.inf),
        cap=np.repeat(caps, len(start)),
        price=np.zeros(total),
    )


def _batches(intervals: Intervals, problem: Problem) -> list[Intervals]:
    size = max(1, _BATCH // (problem.tokens.shape[0] * problem.size))
    return [intervals[start : start + size] for start in range(0, len(intervals), size)]


def _prove(search: Search, intervals: Intervals, max_effort: float) -> bool:
    """Show that no interval holds a choice above the level, improving the best choice on the way."""
    problem, objective = search.problem, search.objective
    stack = _batches(intervals, problem)
    while stack:
        batch = stack.pop()
        relaxed, level = search.relax(batch)
        excess = relaxed.excess()
        search.offer(relaxed.options)
        bounds = objective.bound(level, excess, relaxed.earliest, relaxed.latest)
        # The level may have risen with the offer just made, so ask again.
        todo = bounds > search.level
        if search.effort > max_effort:
            search.close(float(bounds.max()))
            continue
        search.close(float(bounds[~todo].max(initial=-math.inf)))
        wide = todo & relaxed.wide(batch, excess) & ~_few(relaxed, todo)
        priced = batch.priced(relaxed.price)
        if wide.any():
            stack.extend(_batches(priced[wide].halves(search.windowed), problem))
        for index in np.flatnonzero(todo & ~wide):
            _settle(search, priced[index : index + 1], relaxed, int(index), max_effort)
        search.catch_up()
    return search.closed <= search.level


def _few(relaxed: Relaxation, todo: Mask) -> Mask:
    """Intervals of `todo` with so few combinations left that trying them beats cutting further, [N]."""
    few = np.zeros(len(todo), dtype=bool)
    index = np.flatnonzero(todo)
    counts = relaxed.contenders(index)[0].sum(axis=0)
    few[index] = np.log2(np.maximum(counts, 1)).sum(axis=-1) <= _FEW
    return few


def _settle(search: Search, interval: Intervals, relaxed: Relaxation, index: int, max_effort: float) -> None:
    """Finish one narrow interval: strike out options that no better choice can use, try what is left, or branch."""
    objective = search.objective
    stack: list[tuple[Intervals, Mask]] = list(_strike(search, interval, relaxed, index))
    while stack:
        node, allowed = stack.pop()
        relaxed, level = search.relax(node, allowed)
        bound = float(objective.bound(level, relaxed.excess(), relaxed.earliest, relaxed.latest)[0])
        if bound <= search.level or search.effort > max_effort:
            search.close(bound)
            continue
        search.offer(relaxed.options)
        stack.extend(_strike(search, node, relaxed, 0))


def _strike(search: Search, node: Intervals, relaxed: Relaxation, index: int) -> list[tuple[Intervals, Mask]]:
    """Strike out options, try the combinations that are left if they are few, or else return the parts to look at."""
    problem = search.problem
    # Struck-out options and combinations need a negative excess, so they score no more than the level.
    search.close(search.level)
    mask, loss_start, loss_end, top_start, top_end = relaxed.contenders(np.array([index]))
    left = mask[:, 0]
    if not left.any(axis=0).all():
        return []
    options = _combinations(left, loss_start[:, 0], loss_end[:, 0], float(top_start[0]), float(top_end[0]))
    if options is not None:
        search.consider(options)
        return []
    allowed = np.zeros((problem.tokens.shape[0], problem.size), dtype=bool)
    allowed[: len(left)] = left
    if relaxed.wide(node, relaxed.excess()[index : index + 1], index).all():
        halves = node.halves(search.windowed)
        return [(halves[i : i + 1], allowed) for i in range(2)]
    return [(node, part) for part in _split_device(allowed, relaxed.options[index])]


def _combinations(left: Mask, loss_start: Floats, loss_end: Floats, top_start: float, top_end: float) -> Ints | None:
    """All options [N, K] whose losses leave a positive excess at one end of the interval, or None if they are many.

    The devices are added one by one, and what has lost too much already is not carried on.
    """
    counts = left.sum(axis=0)
    options: Ints = left.argmax(axis=0)[None]
    single = np.flatnonzero(counts == 1)
    spent_start = np.array([loss_start[options[0, single], single].sum()])
    spent_end = np.array([loss_end[options[0, single], single].sum()])
    for k in np.flatnonzero(counts > 1):
        own = np.flatnonzero(left[:, k])
        next_start = (spent_start[:, None] + loss_start[own, k]).ravel()
        next_end = (spent_end[:, None] + loss_end[own, k]).ravel()
        keep = np.flatnonzero((next_start < top_start) | (next_end < top_end))
        if len(keep) > _COMBINATIONS or len(keep) * len(counts) > 20 * _BATCH:
            return None
        options = np.asarray(options[keep // len(own)])
        options[:, k] = own[keep % len(own)]
        spent_start, spent_end = next_start[keep], next_end[keep]
    return options


def _split_device(left: Mask, chosen: Ints) -> tuple[Mask, Mask]:
    """Part the options of the device that has most of them: up to the chosen length, and beyond it."""
    k = int(np.argmax(left.sum(axis=0)))
    options = np.flatnonzero(left[:, k])
    border = min(max(int(chosen[k]), int(options[0])), int(options[-2]))
    low, high = left.copy(), left.copy()
    low[border + 1 :, k] = False
    high[: border + 1, k] = False
    return low, high
