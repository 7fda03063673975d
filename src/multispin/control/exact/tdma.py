"""One after the other over the whole band: the makespan of a round, and bounds for intervals of it.

Under TDMA device k is ready after r_k = L_k T_k and then needs the air for u_k = Q L_k / R_k(B). A round's drafting
time φ is the makespan: 1 | r_k | C_max in the words of scheduling. For every moment t ≤ φ

  Σ_{k: r_k ≥ t} u_k ≤ φ − t,

since all that is ready no sooner than t is sent between t and φ. Serving in the order of readiness attains the largest
of these bounds, so it is best: let the air be free for the last time until r_k; from then on it is busy to the end,
with just those that were ready no sooner, so φ = r_k + Σ_{r_j ≥ r_k} u_j.

For a fixed φ the lengths solve a knapsack with one such constraint for every t. Priced at ν_t ≥ 0, they separate the
devices: for every choice with a makespan φ ≥ all t used

  Σ gain − τ(φ + T_ver) ≤ Σ_k max_l [gain_k(l) − τ c l − u_k(l) Σ_{t ≤ l T_k} ν_t] + Σ_t ν_t (φ − t) − τ(φ + const).

That is linear in φ, so over an interval it is largest at an end: the same form as for FDMA, `Relaxation`. Prices come
from the linear program over fractions of options, with moments t added while they are violated.
"""

import numpy as np

from multispin.control.exact.linear_program import LinearProgram
from multispin.control.exact.objective import Objective
from multispin.control.exact.relaxation import Intervals, Options, Relaxation, options_of
from multispin.control.goodput import Floats, Ints, Mask
from multispin.control.problem import Problem

_EPS = float(np.finfo(np.float64).eps)
_MOMENTS = 8
"""Moments t that a linear program begins with."""
_CUTS = 6
"""How often violated moments are added, three at a time."""
_NARROW = 5e-3
"""Relative width below which an interval is not cut further."""


def relax_tdma(
    problem: Problem,
    objective: Objective,
    level: float,
    intervals: Intervals,
    shortest: Ints,
    allowed: Mask | None = None,
) -> Relaxation:
    """Price the moments of each interval; see `relaxation.relax` for what goes in and comes out.

    The price is [N, 2, T]: moments and their prices. It is taken from the intervals where some options are struck out
    already, as any price gives a valid bound.
    """
    start, end = intervals.start, intervals.end
    o = options_of(problem, objective, level, intervals, shortest, allowed)
    open_ = o.open_ & (o.upload <= o.at_end)
    gain = np.where(open_, o.gain, -np.inf)
    price = intervals.price
    if allowed is None:
        price = _prices(problem, o, open_, 0.5 * (start + end), start)[0]
    moments, dues = price[:, 0], price[:, 1]
    pay = np.zeros_like(gain)
    for moment, due in zip(moments.T, dues.T, strict=True):
        pay += due[:, None] * (_ready(problem, len(gain)) >= moment[:, None])
    pay *= o.upload
    worth = gain - pay
    free = (dues * (start[:, None] - moments)).sum(axis=-1)
    rest = free - o.intercept - o.slope * (o.fixed + start)
    rise = (dues.sum(axis=-1) - o.slope) * (end - start)
    least = np.take_along_axis(pay, open_.argmax(axis=0)[None], axis=0)[0].sum(axis=-1)
    size = 3.0 * float(np.abs(objective.gains).max(axis=0).sum()) + 2.0 * least + 2.0 * dues.sum(axis=-1) * end
    size += np.abs(o.intercept) + 2.0 * o.slope * o.latest
    return Relaxation(
        worth_start=worth,
        worth_end=worth,
        rest_start=rest,
        rest_end=rest + rise,
        margin=2 * (problem.size + 64) * _EPS * size,
        earliest=o.earliest,
        latest=o.latest,
        price=price,
        middle_excess=np.where(end - start > _NARROW * end, -np.inf, np.inf),
        options=worth.argmax(axis=0),
        feasible=np.asarray(open_.any(axis=0).all(axis=-1)),
    )


def greedy_tdma(
    problem: Problem, objective: Objective, level: float, points: Intervals, shortest: Ints
) -> tuple[Ints, Floats]:
    """Options [N, K] that fill the air well up to single makespans (start = end), and prices [N, 2, T].

    The arguments are those of `relaxation.greedy`.
    """
    o = options_of(problem, objective, level, points, shortest, None)
    price, chosen = _prices(problem, o, o.open_ & (o.upload <= o.at_end), points.end, points.end)
    return chosen, price


def _ready(problem: Problem, rows: int) -> Floats:
    """Times at which options are ready to send [s], [R, 1, K]."""
    return np.asarray(problem.drafted(np.arange(rows))[:, None, None] * problem.seconds_per_token)


def _prices(problem: Problem, o: Options, open_: Mask, phi: Floats, latest: Floats) -> tuple[Floats, Ints]:
    """Moments up to `latest` [N] and their prices at makespans φ [N], as [N, 2, T], and each device's main option."""
    found = [_program(problem, o, open_[:, n], n, float(phi[n]), float(latest[n])) for n in range(len(phi))]
    width = max(len(moments) for moments, _, _ in found)
    price = np.zeros((len(found), 2, width))
    for n, (moments, dues, _) in enumerate(found):
        price[n, 0, : len(moments)], price[n, 1, : len(dues)] = moments, dues
    return price, np.stack([chosen for _, _, chosen in found])


def _program(
    problem: Problem, o: Options, open_: Mask, n: int, phi: float, latest: float
) -> tuple[Floats, Floats, Ints]:
    """The linear program of one interval: moments, prices and the option with the largest fraction, [K]."""
    option, device = np.nonzero(open_)
    nothing = open_.argmax(axis=0)
    ready = _ready(problem, len(open_))[option, 0, device]
    upload = np.broadcast_to(o.upload, o.gain.shape)[option, n, device]
    gain = o.gain[option, n, device]
    every = np.unique(ready[(ready <= latest) & (upload > 0)])
    if len(every) == 0 or len(np.unique(device)) < problem.size:
        return np.zeros(1), np.zeros(1), nothing
    moments = every[np.unique(np.linspace(0, len(every) - 1, _MOMENTS).astype(np.int64))]
    columns = np.arange(len(device))
    dues, fraction = np.zeros(len(moments)), np.zeros(len(device))
    for _ in range(_CUTS):
        moment, sender = np.nonzero((ready >= moments[:, None]) & (upload > 0))
        program = LinearProgram(-gain)
        program.add(moment, sender, upload[sender] / phi)
        program.add(len(moments) + device, columns, np.ones(len(device)))
        solved = program.solve(np.concatenate([1.0 - moments / phi, np.ones(problem.size)]), exact=problem.size)
        if solved is None:
            break
        dues, fraction = np.maximum(solved.prices[: len(moments)], 0.0) / phi, solved.unknowns
        order = np.argsort(-ready)
        loads = np.cumsum((upload * fraction)[order])
        over = loads[np.searchsorted(-ready[order], -every, side="right") - 1] + every - phi
        peaks = np.argsort(-over)[:3]
        fresh = np.setdiff1d(every[peaks[over[peaks] > 1e-9 * phi]], moments)
        if len(fresh) == 0:
            break
        moments = np.concatenate([moments, fresh])
        dues = np.concatenate([dues, np.zeros(len(fresh))])
    chosen, largest = nothing, np.zeros(problem.size)
    for index in np.flatnonzero(fraction > 1e-9):
        if fraction[index] > largest[device[index]]:
            chosen[device[index]], largest[device[index]] = option[index], fraction[index]
    return moments, dues[: len(moments)], chosen
