"""The paper's Algorithm 1: a grid over the drafting time φ and the band's price λ, Proposition 1, rounding."""

import numpy as np

from multispin.control.goodput import Floats, Ints
from multispin.control.problem import Problem
from multispin.control.rate import least_upload_s, needed_share

GRID = 100
"""Points of φ and of λ. The paper does not state its grid; 100 × 100 is ours."""
_SMALLEST_PRICE = 1e-6
"""The paper's "small ε", as a fraction of the largest λ."""
_ENTRIES = 400_000


def log_lambert_w(log_argument: Floats) -> Floats:
    """Logarithm of W₀(x) for ln x = `log_argument`: the root ω of e^ω + ω = ln x.

    For arguments x that overflow.

    Args:
        log_argument: ln x, any shape.

    Returns: ln W₀(x), of the same shape.
    """
    y = np.asarray(log_argument, dtype=np.float64)
    w = np.where(y > 1.0, np.log(np.maximum(y, 1.0)), y)
    for _ in range(60):
        e = np.exp(np.minimum(w, 700.0))
        step = (e + w - y) / (e + 1.0)
        w = w - step
        if not (np.abs(step) > 1e-15 * (1.0 + np.abs(w))).any():
            break
    return w


def relaxed_lengths(problem: Problem, draft_time: Floats, price: Floats) -> Floats:
    """Real draft lengths L̃_k for given φ and λ, [N, K]; −inf or NaN where even no draft is too long.

    L̃_k = φ/T_k + (2/ln α_k)·W₀(α_k^(−φ/2T_k)/(2T_k)·√(λ a_k φ |ln α_k| (1 − α_k)/(w_k α_k))), where a_k = Q_k/(r_k B)
    and λ is per share of the band. With z = φ − L̃_k T_k this is z = 2 T_k W₀ / |ln α_k|, taken from ln W₀, so that
    neither α^(−φ/2T) nor its product overflows. α = 1 is the limit z = √(λ a φ / w); α = 0 drafts nothing. Weights
    are our extension (λ/w_k for λ). Devices with an acceptance profile, or a rate that is not linear in the band, have
    no closed form: see `algorithm1`.

    Args:
        problem: the scenario in numbers.
        draft_time: φ [s], shape [N].
        price: prices λ, shape [N].

    Source: arXiv 2606.04581, Proposition 1, eq. 36 and 37.
    """
    phi, price = draft_time[:, None], price[:, None]
    if problem.round_trip_s is not None:
        phi = phi - problem.round_trip_s
    T, a, alpha = problem.seconds_per_token, problem.upload_s, problem.acceptance_rate
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        b = -np.log(alpha)
        log_root = 0.5 * (np.log(price) + np.log(a * phi) - np.log(problem.weight))
        log_root_alpha = log_root + 0.5 * (np.log(b) + np.log1p(-alpha) + b)
        log_w = log_lambert_w(np.nan_to_num(0.5 * b * phi / T + log_root_alpha - np.log(2.0 * T), neginf=-1e300))
        log_z = np.where(alpha >= 1.0, log_root, np.log(2.0 * T / b) + log_w)
        return np.where((alpha <= 0.0) | (phi <= 0.0), -np.inf, (phi - np.exp(log_z)) / T)


def algorithm1(problem: Problem, grid: int = GRID) -> tuple[Ints, int]:
    """Best lengths [K] that Algorithm 1 meets on its grid, and how many different ones it tried.

    As printed: for every (φ, λ) the relaxed lengths are rounded, clipped, and given the φ that solves eq. 32; the
    best goodput wins. The grid is that of App. G, φ in equal steps and λ in equal ratios (the paper does not say).
    Extensions the paper does not cover: a round trip is taken off φ; lengths clip to each device's limits; a
    verification time that depends on lengths enters the score only; a device with an acceptance profile, or a rate
    that is not linear in the band, takes its best whole length at (φ, λ) instead.

    Args:
        problem: the scenario in numbers.
        grid: number of points of φ, and of λ; default `GRID`.

    Source: arXiv 2606.04581, Algorithm 1 and App. G. Cost O(grid²·K).
    """
    T, a = problem.seconds_per_token, problem.upload_s
    longest = max(int(problem.longest.max()), 1)
    trip = 0.0 if problem.round_trip_s is None else problem.round_trip_s
    phi_low = float((T + a + trip).max())
    phi_high = float((longest * problem.token_latency(1.0 / problem.size) + trip).max())
    searched = np.isnan(problem.acceptance_rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = np.where(np.isnan(problem.acceptance_rate), problem.tokens[1] - 1.0, problem.acceptance_rate)
        worth = np.where(alpha >= 1.0, 1.0, -np.log(alpha) / (1.0 - alpha)) * alpha**2
        worth = np.nan_to_num(worth, posinf=0.0) * problem.weight
        highest = float(((phi_high - T) ** 2 / (a * phi_high) * worth).max())
        if problem.snr is not None:
            # With a noise density the first token costs less than at a linear rate: λ may be its gain per cost.
            searched = searched | ~np.isnan(problem.snr)
            first = needed_share(a, phi_high - T - least_upload_s(a, problem.snr), problem.snr)[0]
            highest = max(highest, float((problem.weight * (problem.tokens[1] - 1.0) / first).max()))
    highest = max(highest, 1e-300)
    phis = np.linspace(phi_low, phi_high, grid)
    prices = np.geomspace(_SMALLEST_PRICE * highest, highest, grid)
    best, best_score, tried = problem.shortest, -np.inf, 0
    rows = max(1, _ENTRIES // (problem.size * grid))
    for start in range(0, grid, rows):
        phi = np.repeat(phis[start : start + rows], grid)
        price = np.tile(prices, len(phi) // grid)
        real = relaxed_lengths(problem, phi, price)
        rounded = np.rint(np.clip(np.nan_to_num(real, nan=0.0), -1.0, longest)).astype(np.int64)
        for k in np.flatnonzero(searched):
            rounded[:, k] = _best_whole(problem, int(k), phi, price)
        lengths = np.unique(np.clip(rounded, problem.shortest, problem.longest), axis=0)
        scores = problem.goodput(lengths)
        tried += len(lengths)
        index = int(np.argmax(scores))
        if scores[index] > best_score:
            best, best_score = lengths[index], float(scores[index])
    return best, tried


def _best_whole(problem: Problem, k: int, phi: Floats, price: Floats) -> Ints:
    """The length of device k that maximises w E[N] − λ·cost at φ, tried one by one, [N]."""
    length = np.arange(problem.tokens.shape[0])
    snr = None if problem.snr is None else problem.snr[k]
    upload = length * problem.upload_s[k]
    trip = 0.0 if problem.round_trip_s is None else problem.round_trip_s[k]
    room = phi[:, None] - trip - length * problem.seconds_per_token[k] - least_upload_s(upload, snr)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(room > 0, needed_share(upload, room, snr)[0], np.inf)
    cost[:, 0] = 0.0
    return np.asarray((problem.weight[k] * problem.tokens[:, k] - price[:, None] * cost).argmax(axis=-1))
