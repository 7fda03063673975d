"""The best rates of streams: how fast each device should draft and send, how often it should ride, and what time costs.

In a stream a device needs a rate and no burst, and no pass has to take in everybody. Over a long time only rates count:
y_0 passes per second, y_{k,l} of them that device k rides in with l drafted tokens, and the share b_k of the band. With
the paper's symbols, c the time of a verified token and σ_{k,l} the probability that a draft of l tokens and the token
after it leave the device's stream alive,

    maximise    Σ_k w_k Σ_l y_{k,l} E_k(l)
    engine      T_fix y_0 + Σ_{k,l} y_{k,l} (T_lin + c (l + 1)) ≤ 1                                     price λ
    riding      Σ_l y_{k,l} ≤ y_0                                                                       price ξ_k
    drafting    Σ_{l≥1} y_{k,l} (l T_k + (1 − σ_{k,l}) (T_fix + T_lin + c (l + 1) + 2 d_k)) ≤ 1         price ν_k
    band        Q_k Σ_l l y_{k,l} ≤ R_k(b_k B),   Σ_k b_k ≤ 1                                           price μ
    floor       Σ_l y_{k,l} E_k(l) ≥ f_k                                                                price π_k

Drafting is lost for the length of the pass and a round trip whenever a verdict contradicts the stream. The shortest
pass that has the ride counts, and a ride without a draft loses nothing, so the line never counts too much. If the edge
has a drafter, there is a second kind of ride, in which it adds the m_k tokens to the draft that are best for the edge
alone. Such rides fit only into passes before which it drafts, and these cost its steps as well.

This is a linear program except for R_k. The inverse of R_k is convex, so tangents bound it from below; more of them
are added until the band is kept. Any schedule that verifies a drafted token once keeps all five lines on average,
so the optimum bounds the goodput of every schedule in which the edge drafts m_k tokens or none and nobody falls below
f_k: what plain decoding of all would give, or what the operator asks for. The prices give the same bound by weak
duality; it certifies the rates, as in P2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multispin.control.edge import EdgeTables
from multispin.control.exact.linear_program import LinearProgram
from multispin.control.goodput import Floats, Ints
from multispin.control.latency import verification_s
from multispin.control.problem import Problem, as_problem
from multispin.control.rate import least_upload_s, needed_share
from multispin.control.scenario import Scenario
from multispin.errors import InputError

_CUTS = 12
"""Rounds of tangents at most."""
_FIRST_TANGENTS = (0.05, 0.15, 0.35, 0.65, 1.0)
"""Points at which the first tangents touch, as shares of the greatest rate of a device that may always draft."""
_SLACK = 1e-7
"""Share by which floors are lowered, so that rounding does not forbid plain decoding."""
_LONGEST_S = 1e6
"""A ride counts as at most this much of its device's time, [s]: the solver takes no numbers that are much larger."""
_OVER = 1e-4
"""The search for tangents ends when rates exceed the band by at most this share; then they are scaled to fit."""


@dataclass(frozen=True)
class StreamRates:
    """Rates of one device per second.

    Attributes:
        name: name of the device.
        bandwidth_hz: B_k, its share of the band [Hz].
        rides_per_s: passes that it rides in, Σ_l y_{k,l} [1/s].
        drafted_tokens_per_s: its verified draft tokens, Σ_l l y_{k,l} [tokens/s].
        tokens_per_s: its goodput [tokens/s].
        drafting_tokens_per_s: ν_k, what a second of its drafting is worth [tokens/s].
    """

    name: str
    bandwidth_hz: float
    rides_per_s: float
    drafted_tokens_per_s: float
    tokens_per_s: float
    drafting_tokens_per_s: float


@dataclass(frozen=True)
class Fluid:
    """The best rates, and the proof of how good they are.

    Attributes:
        status: "feasible", or "infeasible" if not everybody can have its least; nobody is then below plain decoding.
        goodput_tokens_per_s: Σ_k w_k · goodput of these rates [tokens/s].
        upper_bound_tokens_per_s: no rates have more, by the prices [tokens/s].
        engine_tokens_per_s: λ, what a second of the engine is worth [tokens/s].
        band_tokens_per_s: μ, what the whole band is worth [tokens/s].
        passes_per_s: rate of passes, y_0 [1/s].
        devices: one entry per device, in the scenario's order.
    """

    status: str
    goodput_tokens_per_s: float
    upper_bound_tokens_per_s: float
    engine_tokens_per_s: float
    band_tokens_per_s: float
    passes_per_s: float
    devices: tuple[StreamRates, ...]


def fluid(scenario: Scenario, least_tokens_per_s: Sequence[float] | None = None) -> Fluid:
    """Solve the program above. A pure function.

    The band that nobody needs for its rate makes frames shorter, so that less time passes before they come. A frame
    takes Q_k / (r_k b_k B), and what a device's drafts add at most is w_k A_k, A_k = E_k(longest) − 1. The sum of the
    products is least if b_k is in proportion to √(w_k A_k Q_k / r_k). Rates that saturate have r_k at full speed.

    Args:
        scenario: the site as it is known; `min_draft_length` is not used.
        least_tokens_per_s: what each device is to have at least, beside its least goodput; by default what plain
            decoding of all would give it [tokens/s].

    Raises:
        InputError: devices send one after the other (TDMA), verification is padded, or a device has several modes.
    """
    problem = as_problem(scenario)
    if not problem.access.splits_band or problem.padded or problem.mode_upload_s is not None:
        raise InputError("streams need multiple_access = 'fdma', padded = false and one mode for each device")
    program = _Program(scenario, problem)
    floors = program.plain if least_tokens_per_s is None else (1.0 - _SLACK) * np.asarray(least_tokens_per_s, float)
    solved, status = program.solve(np.maximum(floors, problem.minimum_goodput)), "feasible"
    if solved is None:
        solved, status = program.solve(program.plain) or program.undrafted(), "infeasible"
    rides, prices, touched = solved
    rides = rides * program.fitting(rides)
    drafted = program.drafted(rides)
    tokens = (program.tokens * rides).sum(axis=(0, 1))
    shares = program.shares(drafted)
    cell_hz = scenario.cell.bandwidth_hz
    shares = shares + max(0.0, 1.0 - float(shares.sum())) * program.spare_shares()
    return Fluid(
        status=status,
        goodput_tokens_per_s=float(problem.weight @ tokens),
        upper_bound_tokens_per_s=program.bound(prices, touched),
        engine_tokens_per_s=prices.engine,
        band_tokens_per_s=prices.band,
        passes_per_s=program.passes(rides)[0],
        devices=tuple(
            StreamRates(device.name, share * cell_hz, *rates)
            for device, share, *rates in zip(
                scenario.devices,
                shares.tolist(),
                rides.sum(axis=(0, 1)).tolist(),
                drafted.tolist(),
                tokens.tolist(),
                prices.drafting.tolist(),
                strict=True,
            )
        ),
    )


@dataclass(frozen=True)
class _LinePrices:
    """Prices of the program's lines, all ≥ 0: λ, μ, ν [K], π [K]; of tangents, [cuts, K]; and the floors f [K]."""

    engine: float
    band: float
    drafting: Floats
    floor: Floats
    tangents: Floats
    floors: Floats


class _Program:
    """The linear program of a scenario, with tangents of the band that rates need.

    A ride is one of `kinds` (0: without the edge's drafts, 1: with them), a length and a device: [kinds, R, K].

    Attributes:
        tokens: E_k of a ride, [kinds, R, K].
        ride_s: engine time of a ride, [kinds, R, K] [s].
        busy_s: time of the device that a ride takes, [kinds, R, K] [s].
        pass_s: engine time of a pass of either kind before anybody rides, [kinds] [s]; passes with the edge's drafts
            are passes too, so the second is what they cost beyond the first.
        plain: goodput of each session if nobody drafts, [K] [tokens/s].
    """

    def __init__(self, scenario: Scenario, problem: Problem) -> None:
        self.problem = problem
        verifier, drafter = scenario.verifier, scenario.edge_drafter
        rows, size = problem.tokens.shape
        self.lengths: Ints = np.arange(rows)
        self.pass_s = np.array([verifier.fixed_s])
        ride_s = verification_s(
            0.0, verifier.per_device_s, verifier.per_token_s, 1, 1.0 + self.lengths.astype(np.float64)
        )
        # The gain of one more token is the probability that it and all before it are right.
        right = np.diff(problem.tokens, axis=0, prepend=0.0)
        last = right[-1] / np.maximum(right[-2], 1e-300) if rows > 1 else np.zeros(size)
        alive = np.concatenate([right[1:], (right[-1] * np.minimum(last, 1.0))[None]])
        self.tokens: Floats = problem.tokens[None]
        self.ride_s: Floats = np.broadcast_to(ride_s[:, None], (1, rows, size))
        self.may = np.broadcast_to(self.lengths[:, None] <= problem.longest, (1, rows, size))
        tables = EdgeTables(scenario)
        edge = tables.best_lengths(fair=False)
        if drafter is not None and edge.any():
            self.pass_s = np.array([verifier.fixed_s, drafter.fixed_s * float(edge.max())])
            more_s = (verifier.per_token_s + drafter.per_device_s) * edge
            self.ride_s = np.stack([self.ride_s[0], self.ride_s[0] + more_s])
            self.tokens = np.stack([problem.tokens, problem.tokens + right * (tables.expected(edge) - 1.0)])
            self.may = np.stack([self.may[0], self.may[0] & (edge > 0)])
            alive = np.stack([alive, alive * np.minimum(last, 1.0) ** edge])
        delay_s = 0.0 if problem.round_trip_s is None else problem.round_trip_s
        lost_s = verifier.fixed_s + self.ride_s + delay_s
        busy_s = self.lengths[:, None] * problem.seconds_per_token + (1.0 - alive) * lost_s
        self.busy_s: Floats = np.minimum(busy_s, _LONGEST_S)
        self.busy_s[:, 0] = 0.0  # a device without a draft loses no drafting
        # No pass is shorter than this, so no more of them fit into a second.
        self.most_passes = 1.0 / (verifier.fixed_s + float(ride_s[0]))
        self.plain: Floats = np.full(size, (1.0 - _SLACK) / (verifier.fixed_s + size * float(ride_s[0])))

    def drafted(self, rides: Floats) -> Floats:
        """Drafted tokens per second, [K]."""
        return np.asarray(self.lengths @ rides.sum(axis=0))

    def passes(self, rides: Floats) -> Floats:
        """Passes per second that rides need, of any kind and with the edge's drafts, [kinds]."""
        every = rides.sum(axis=1)
        return np.array([every.sum(axis=0).max(), *every[1:].max(axis=-1)])

    def shares(self, rate: Floats) -> Floats:
        """Shares b_k of the band that carry this many tokens per second, [K]; infinite where no band does."""
        return self._share_and_slope(rate)[0]

    def spare_shares(self) -> Floats:
        """The split of the band that nobody needs, [K]: it adds up to 1, or to 0 if no device's drafts add anything."""
        problem = self.problem
        added = problem.weight * (problem.tokens[problem.longest, np.arange(problem.size)] - 1.0)
        needed = self.shares(1.0 / problem.seconds_per_token)  # at full speed; Q / r times that where rates are linear
        sent = np.where(np.isfinite(needed), needed, 1.0) * problem.seconds_per_token
        split = np.sqrt(np.maximum(added, 0.0) * sent)
        return np.asarray(split / max(float(split.sum()), 1e-300))

    def solve(self, floors: Floats) -> tuple[Floats, _LinePrices, list[Floats]] | None:
        """Rides y, prices, and the rates at which tangents touch; None if the floors cannot be met."""
        most = 1.0 / self.problem.upload_s  # over the whole band; the tangent there keeps rates below
        full = np.minimum(1.0 / self.problem.seconds_per_token, most)
        touched = [part * full for part in _FIRST_TANGENTS]
        found = self._once(touched, floors)
        for _ in range(_CUTS):
            if found is None or self.problem.snr is None:
                break
            rate = self.drafted(found[0])
            if self.shares(rate).sum() <= 1.0 + _OVER:
                break
            touched.append(np.minimum(rate, most))
            found = self._once(touched, floors)
        return None if found is None else (*found, touched)

    def undrafted(self) -> tuple[Floats, _LinePrices, list[Floats]]:
        """As `solve`: plain decoding, for numbers so many orders apart that the solver gives up. The bound is loose."""
        size = self.problem.size
        rides, nothing = np.zeros(self.may.shape), np.zeros(size)
        rides[0, 0] = self.plain
        engine = float(self.problem.weight @ self.plain)  # what all its time gives
        return rides, _LinePrices(engine, 0.0, nothing, nothing, np.zeros((0, size)), nothing), []

    def fitting(self, rides: Floats) -> float:
        """Factor ≤ 1 by which rides are to be lowered so that they keep every line exactly."""
        engine = float(self.pass_s @ self.passes(rides)) + float((self.ride_s * rides).sum())
        most = 1.0 / max(1.0, engine, float((self.busy_s * rides).sum(axis=(0, 1)).max()))
        rate = self.drafted(rides)
        if self.shares(most * rate).sum() <= 1.0:
            return most
        low, high = 0.0, most
        for _ in range(60):  # the band needed grows with the rates
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.shares(middle * rate).sum() <= 1.0 else (low, middle)
        return low

    def bound(self, prices: _LinePrices, touched: list[Floats]) -> float:
        """An upper bound of all rates, by weak duality with any prices ≥ 0.

        A ride may claim what its tokens are worth beyond its cost at these prices. The sum of all claims beyond the
        price of a pass is added for each pass that fits into a second.
        """
        slope, intercept = self._band_terms(prices, touched)
        gain = (self.problem.weight + prices.floor) * self.tokens
        cost = prices.engine * self.ride_s + prices.drafting * self.busy_s + self.lengths[:, None] * slope
        claim = np.where(self.may, gain - cost, 0.0).max(axis=1, initial=0.0)  # [kinds, K]
        free = float(claim[0].sum()) - prices.engine * float(self.pass_s[0])
        for more, each_s in zip(claim[1:], self.pass_s[1:], strict=True):
            free += max(0.0, float(np.maximum(more - claim[0], 0.0).sum()) - prices.engine * float(each_s))
        total = prices.engine + prices.band + float(prices.drafting.sum() - prices.floor @ prices.floors) - intercept
        return total + max(0.0, free) * self.most_passes

    def _once(self, touched: list[Floats], floors: Floats) -> tuple[Floats, _LinePrices] | None:
        """Solve with these tangents. Columns: y of every ride, y_0 by kind, then b_k if tangents are needed.

        Rows: engine, K of riding for each kind, K of drafting, K of floors, band, passes, and K for each tangent.
        """
        kind, length, device = np.nonzero(self.may)
        size, kinds, count = self.problem.size, len(self.pass_s), len(device)
        columns, ones, every = np.arange(count), np.ones(count), np.arange(size)
        first_pass, first_share = count, count + kinds
        drafting, floor = 1 + kinds * size, 1 + kinds * size + size
        band, order = floor + size, floor + size + 1
        gains = np.zeros(count + kinds + (0 if self.problem.snr is None else size))
        gains[:count] = self.problem.weight[device] * self.tokens[kind, length, device]
        program = LinearProgram(-gains)
        program.add(0, columns, self.ride_s[kind, length, device])
        program.add(0, first_pass + np.arange(kinds), self.pass_s)
        program.add(1 + device, columns, ones)  # rides of any kind are in passes, …
        for each in range(1, kinds):
            own = kind == each  # … and those with the edge's drafts in passes with drafts
            program.add(1 + each * size + device[own], columns[own], ones[own])
        for each in range(kinds):
            program.add(1 + each * size + every, first_pass + each, np.full(size, -1.0))
        program.add(drafting + device, columns, self.busy_s[kind, length, device])
        program.add(floor + device, columns, -self.tokens[kind, length, device])
        limits = [1.0, *[0.0] * (kinds * size), *[1.0] * size, *(-floors).tolist(), 1.0, 0.0]
        if kinds > 1:  # passes with the edge's drafts are passes
            program.add(order, np.array([first_pass, first_pass + 1]), np.array([-1.0, 1.0]))
        if self.problem.snr is None:
            program.add(band, columns, length * self.problem.upload_s[device])
        else:
            program.add(band, first_share + every, np.ones(size))
            for index, rate in enumerate(touched):
                share, slope = self._share_and_slope(rate)
                cut = order + 1 + index * size
                with np.errstate(invalid="ignore"):  # no band carries such a rate: `solve` then finds nothing
                    program.add(cut + device, columns, slope[device] * length)
                    limits += (slope * rate - share).tolist()
                program.add(cut + every, first_share + every, np.full(size, -1.0))
        solved = program.solve(np.array(limits))
        if solved is None:
            return None
        dual = np.maximum(solved.prices, 0.0)
        rides = np.zeros(self.may.shape)
        rides[kind, length, device] = np.maximum(solved.unknowns[:count], 0.0)
        tangents = dual[order + 1 :].reshape(-1, size)
        return rides, _LinePrices(
            float(dual[0]), float(dual[band]), dual[drafting:floor], dual[floor:band], tangents, floors
        )

    def _band_terms(self, prices: _LinePrices, touched: list[Floats]) -> tuple[Floats, float]:
        """Cost of a token's band [K], and the tangents' intercepts at their prices."""
        if self.problem.snr is None:
            return prices.band * self.problem.upload_s, 0.0
        # A device's tangents together must not cost more than its share of the band does.
        total = prices.tangents.sum(axis=0)
        weight = prices.tangents * np.minimum(1.0, prices.band / np.maximum(total, 1e-300))
        slope, intercept = np.zeros(self.problem.size), 0.0
        for each, rate in zip(weight, touched, strict=True):
            share, rise = self._share_and_slope(rate)
            slope += each * rise
            intercept += float((each * (share - rise * rate)).sum())
        return slope, intercept

    def _share_and_slope(self, rate: Floats) -> tuple[Floats, Floats]:
        """Share of the band for a rate, and its derivative, [K]; a token is sent in 1 / rate seconds."""
        problem = self.problem
        if problem.snr is None:
            return rate * problem.upload_s, problem.upload_s
        used = np.where(rate > 0, rate, 1.0)
        least = least_upload_s(problem.upload_s, problem.snr)
        room = 1.0 / used - least
        can = room > 0
        share, fall = needed_share(problem.upload_s, np.where(can, room, 1.0), problem.snr)
        share, slope = np.where(can, share, np.inf), np.where(can, fall / used**2, np.inf)
        # The tangent at rate 0 has the slope of an infinite band. It understates the share, so the bound holds.
        return np.where(rate > 0, share, 0.0), np.where(rate > 0, slope, least)
