"""The exact optimum of P2: branch and bound over the drafting time φ, with a proven upper bound.

For a fixed φ the lengths solve a separable knapsack: concave gains, convex costs a_k l / (φ − l T_k), one unit of
band. Pricing the band at μ separates the devices. Over an interval of φ each cost, convex in φ, is replaced by a
tangent, so that the priced problem is convex in φ and largest at an end of the interval: two evaluations bound all
choices whose drafting time lies in it, and the error shrinks with the square of the interval's width. Intervals that
may still hold a better choice are cut; once only the wholeness of lengths keeps the bound up, options that cannot
be part of a better choice are struck out, and the few that are left are tried. docs/control.md derives all this in
the paper's symbols. The paper (arXiv 2606.04581, P2, eq. 27 and 28) stops at a relaxed solution, rounded.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from multispin.control.bandwidth import draft_time
from multispin.control.goodput import Ints
from multispin.control.objective import Objective
from multispin.control.problem import Problem
from multispin.control.relaxation import Intervals, Mask, Relaxation, join, relax
from multispin.control.uniform import candidates

EXACT_SIZE = 8
"""Up to this many devices the search always runs to the optimum: it is cheap then."""
EXACT_GAP = 1e-10
"""The smallest relative gap that is worked for: what double precision can tell apart."""
_BATCH = 200_000
"""Table entries [R, N, K] that one vectorised step may hold, so that memory stays linear in K."""
_COMBINATIONS = 4096
_INNERMOST = 0.02
"""Half-width of the first interval around the best known φ, relative to φ."""
_GROWTH = 1.7
"""How much wider the next interval away from the best φ is."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """What a search found: lengths [K], their score, a proven bound on any score, and the nodes that it took.

    `proved` tells whether the bound is within the gap that was asked for.
    """

    lengths: Ints
    score: float
    bound: float
    nodes: int
    proved: bool


class Search:
    """One run of branch and bound: the best choice so far, and what has been proven about the rest."""

    def __init__(self, problem: Problem, objective: Objective, shortest: Ints, relative_gap: float) -> None:
        self.problem = problem
        self.objective = objective
        self.shortest = shortest
        self.relative_gap = relative_gap
        self.best = shortest
        self.score = -math.inf
        self.closed = -math.inf
        self.nodes = 0

    @property
    def level(self) -> float:
        """Score that every interval must be shown not to exceed."""
        return self.objective.goal(self.score, self.relative_gap)

    def offer(self, lengths: Ints) -> None:
        """Keep the best of lengths [N, K], if it beats what is known."""
        scores = self.objective.score(lengths)
        index = int(np.argmax(scores))
        if scores[index] > self.score:
            self.score, self.best = float(scores[index]), lengths[index]

    def close(self, bound: float) -> None:
        """Note that some choices are done with: none of them scores more than `bound`."""
        self.closed = max(self.closed, bound)

    def relax(self, intervals: Intervals, allowed: Mask | None = None) -> tuple[Relaxation, float]:
        """The priced problem over intervals against the present level, and that level."""
        level = self.level
        self.nodes += len(intervals)
        return relax(self.problem, self.objective, level, intervals, self.shortest, allowed), level


def maximise(
    problem: Problem,
    objective: Objective,
    shortest: Ints,
    *,
    relative_gap: float,
    warm_start: Ints | None = None,
    max_nodes: int = 20_000,
) -> Optimum:
    """Lengths that maximise `objective` under the best split of the band, and a bound that no lengths exceed.

    Args:
        problem: the scenario in numbers.
        objective: what to maximise.
        shortest: least lengths of any feasible choice, themselves feasible, [K].
        relative_gap: stop once the bound is within this fraction of the score (K ≤ `EXACT_SIZE`: `EXACT_GAP`).
        warm_start: lengths [K] to begin with, for instance those of the round before.
        max_nodes: intervals to examine before giving up; the bound stays valid, `proved` turns false.
    """
    gap = EXACT_GAP if problem.size <= EXACT_SIZE else max(relative_gap, EXACT_GAP)
    search = Search(problem, objective, shortest, gap)
    search.offer(shortest[None])
    if warm_start is not None:
        search.offer(np.clip(warm_start, shortest, problem.longest)[None])
    else:
        search.offer(np.maximum(candidates(problem), shortest))
        _climb(search)
    proved = _prove(search, _around_best(search), max_nodes)
    return Optimum(search.best, search.score, max(search.closed, search.score), search.nodes, proved)


def _range(search: Search) -> tuple[float, float]:
    """Drafting times between which every choice lies that could beat the best one, but for the shortest drafts."""
    problem = search.problem
    least = float(draft_time(search.shortest, problem.seconds_per_token, problem.upload_s))
    if least == 0.0:
        able = problem.longest > 0
        if not able.any():
            return 0.0, 0.0
        least = float((problem.seconds_per_token + problem.upload_s)[able].min())
    most = float(draft_time(problem.longest, problem.seconds_per_token, problem.upload_s))
    spare = search.objective.latest(search.level) - float(problem.verification_s(search.shortest))
    return least * (1.0 - 1e-12), max(min(most, spare), least) * (1.0 + 1e-12)


def _caps(problem: Problem, shortest: Ints) -> Ints:
    """Caps on the length that must be looked at one by one: a padded batch is charged for its longest draft."""
    longest = int(problem.longest.max())
    if problem.padded and problem.per_token_s > 0:
        return np.arange(int(shortest.max()), longest + 1)
    return np.array([longest])


def _climb(search: Search) -> None:
    """Find good lengths: what the priced problem chooses on a grid of φ, twice refined around the best."""
    problem = search.problem
    low, high = _range(search)
    if high <= low:
        return
    grid = np.geomspace(low, high, 12)
    caps = _caps(problem, search.shortest)
    for _ in range(3):
        for cap in caps if len(caps) == 1 else caps[:: max(1, len(caps) // 6)]:
            points = Intervals(grid, grid, np.full(len(grid), cap), np.zeros(len(grid)))
            for batch in _batches(points, problem):
                search.offer(search.relax(batch)[0].lengths)
        centre = float(draft_time(search.best, problem.seconds_per_token, problem.upload_s))
        ratio = (grid[1] / grid[0]) ** 1.2
        grid = np.geomspace(max(low, centre / ratio), min(high, centre * ratio), 8) if centre > 0 else grid[:8]
        if grid[-1] <= grid[0] * (1.0 + 1e-9):
            return


def _around_best(search: Search) -> Intervals:
    """Intervals that cover all drafting times of interest, narrow around the best one and wider away from it."""
    problem = search.problem
    low, high = _range(search)
    caps = _caps(problem, search.shortest)
    if high <= low:
        return Intervals(np.empty(0), np.empty(0), np.empty(0, dtype=np.int64), np.empty(0))
    centre = float(draft_time(search.best, problem.seconds_per_token, problem.upload_s))
    centre = min(max(centre, low), high)
    away = _INNERMOST * centre * np.cumsum(_GROWTH ** np.arange(60))
    edges = np.concatenate([[low, high], centre - away, centre + away])
    edges = np.unique(edges[(edges >= low) & (edges <= high)])
    return join(
        [Intervals(edges[:-1], edges[1:], np.full(len(edges) - 1, cap), np.zeros(len(edges) - 1)) for cap in caps]
    )


def _batches(intervals: Intervals, problem: Problem) -> list[Intervals]:
    size = max(1, _BATCH // (problem.tokens.shape[0] * problem.size))
    return [intervals[start : start + size] for start in range(0, len(intervals), size)]


def _prove(search: Search, intervals: Intervals, max_nodes: int) -> bool:
    """Show that no interval holds a choice above the level, improving the best choice on the way."""
    problem, objective = search.problem, search.objective
    stack = _batches(intervals, problem)
    while stack:
        batch = stack.pop()
        relaxed, level = search.relax(batch)
        excess = relaxed.excess()
        search.offer(relaxed.lengths)
        bounds = objective.bound(level, excess, relaxed.earliest, relaxed.latest)
        # The level may have risen with the offer just made, so ask again.
        todo = bounds > search.level
        for bound in bounds[~todo]:
            search.close(float(bound))
        if search.nodes > max_nodes:
            for rest in [batch[todo], *stack]:
                again, level = search.relax(rest)
                late = objective.bound(level, again.excess(), again.earliest, again.latest)
                search.close(float(late.max(initial=-math.inf)))
            return search.closed <= search.level
        wide = todo & (relaxed.middle_excess < 0.5 * excess) & _divisible(batch)
        again_ = Intervals(batch.start, batch.end, batch.cap, relaxed.price)
        if wide.any():
            stack.extend(_batches(again_[wide].cut(2), problem))
        for index in np.flatnonzero(todo & ~wide):
            _settle(search, again_[index : index + 1], max_nodes)
    return search.closed <= search.level


def _divisible(intervals: Intervals) -> Mask:
    return np.asarray(intervals.end - intervals.start > 1e-13 * intervals.end)


def _settle(search: Search, interval: Intervals, max_nodes: int) -> None:
    """Finish one narrow interval: strike out options that no better choice can use, try what is left, or branch."""
    problem, objective = search.problem, search.objective
    everything = np.ones((problem.tokens.shape[0], problem.size), dtype=bool)
    stack: list[tuple[Intervals, Mask]] = [(interval, everything)]
    while stack:
        node, allowed = stack.pop()
        relaxed, level = search.relax(node, allowed)
        excess = relaxed.excess()
        bound = float(objective.bound(level, excess, relaxed.earliest, relaxed.latest)[0])
        if bound <= search.level or search.nodes > max_nodes:
            search.close(bound)
            continue
        # What the bound would be if device k had to take option l instead of its favourite.
        at_start = relaxed.worth_start[:, 0] - relaxed.worth_start[:, 0].max(axis=0)
        at_end = relaxed.worth_end[:, 0] - relaxed.worth_end[:, 0].max(axis=0)
        sums = (
            (relaxed.worth_start.max(axis=0).sum() + relaxed.rest_start[0] + relaxed.margin[0]),
            (relaxed.worth_end.max(axis=0).sum() + relaxed.rest_end[0] + relaxed.margin[0]),
        )
        # A choice above the level has an excess above 0: options that cannot reach it go.
        left = np.maximum(sums[0] + at_start, sums[1] + at_end) > 0.0
        struck = np.zeros_like(allowed)
        struck[: len(left)] = left
        counts = struck.sum(axis=0)
        search.close(level)
        if (counts == 0).any():
            continue
        combinations = float(np.prod(counts.astype(float)))
        if combinations <= _COMBINATIONS and combinations * problem.size <= 20 * _BATCH:
            _try_all(search, struck, counts)
            continue
        narrower = Intervals(node.start, node.end, node.cap, relaxed.price)
        if relaxed.middle_excess[0] < 0.5 * excess[0] and bool(_divisible(node)[0]):
            halves = narrower.cut(2)
            stack.extend((halves[i : i + 1], struck) for i in range(2))
        else:
            stack.extend((narrower, part) for part in _split_device(struck, counts, relaxed.lengths[0]))


def _try_all(search: Search, left: Mask, counts: Ints) -> None:
    """Score every combination of the options that are left."""
    first = left.argmax(axis=0)
    free = np.flatnonzero(counts > 1)
    options = [np.flatnonzero(left[:, k]) for k in free]
    step = max(1, _BATCH // search.problem.size)
    combinations = itertools.product(*options)
    while chunk := list(itertools.islice(combinations, step)):
        lengths = np.repeat(first[None], len(chunk), axis=0)
        if len(free):
            lengths[:, free] = np.array(chunk)
        search.offer(lengths)


def _split_device(left: Mask, counts: Ints, chosen: Ints) -> tuple[Mask, Mask]:
    """Part the options of the device that has most of them: up to the chosen length, and beyond it."""
    k = int(np.argmax(counts))
    options = np.flatnonzero(left[:, k])
    border = min(max(int(chosen[k]), int(options[0])), int(options[-2]))
    low, high = left.copy(), left.copy()
    low[border + 1 :, k] = False
    high[: border + 1, k] = False
    return low, high
