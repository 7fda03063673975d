"""The best split of the band: Lemma 1 for a common draft length, Lemma 3 for any lengths."""

import numpy as np
from numpy.typing import ArrayLike

from multispin.control.goodput import Floats
from multispin.control.rate import least_upload_s, needed_share

_STEPS = 60
"""Newton steps at most; from the left of the root they converge quadratically, and six are usual."""
_CLOSE = 1e-9
"""A relative step shorter than this is the last: the rest is about its square, as no pole of f is nearer than x."""


def draft_time(
    draft_length: ArrayLike,
    seconds_per_token: Floats,
    upload_s: Floats,
    snr: Floats | None = None,
    round_trip_s: Floats | None = None,
) -> Floats:
    """Shortest time φ in which all devices can draft and upload, the band being split as well as possible.

    φ is the only root above max_k L_k T_k of Σ_k c_k(φ) = 1, c_k the share of the band with which device k uploads
    in φ − L_k T_k: a_k L_k / (φ − L_k T_k) in the paper, a_k = Q_k / (r_k B) the upload time of one token over the
    whole band. Neglects the downlink. Example: two devices with L = 4, T = 10 ms, a = 0.5 ms take 44 ms, 4 ms of them
    for uploads over half of the band each.

    Args:
        draft_length: L_k [tokens], shape [..., K]; a device with 0 takes no part. All 0 gives φ = 0.
        seconds_per_token: T_k [s], shape [K].
        upload_s: a_k [s], shape [K].
        snr: signal-to-noise ratios of devices whose rate is limited by a noise density, see `rate`, shape [K]; default
            None.
        round_trip_s: time that a device with a draft waits for its grant and its draft to travel [s], shape [K];
            default None, as in the paper, which has none.

    Returns: φ [s], shape [...].

    Source: arXiv 2606.04581, Lemma 3, eq. 32.
    """
    ready, headroom, _ = _ready_and_headroom(draft_length, seconds_per_token, upload_s, snr, round_trip_s)
    return np.asarray(ready.max(axis=-1) + headroom)


def bandwidth_shares(
    draft_length: ArrayLike,
    seconds_per_token: Floats,
    upload_s: Floats,
    snr: Floats | None = None,
    round_trip_s: Floats | None = None,
) -> Floats:
    """Share of the band for each device, B_k / B = c_k(φ), in the paper a_k L_k / (φ − L_k T_k), shape [..., K].

    All devices finish together, after `draft_time`. The shares add up to 1 (to 0 when nobody drafts).
    Remark 2 of the paper: this rewards long drafts, so high acceptance gets more of the band.

    Args:
        draft_length: L_k [tokens], shape [..., K]; a device with 0 gets no band.
        seconds_per_token: T_k [s], shape [K].
        upload_s: a_k, upload time of a token over the whole band [s], shape [K] or [..., K].
        snr: signal-to-noise ratios, as in `draft_time`, shape [K]; default None.
        round_trip_s: wait for the grant and the draft to travel [s], shape [K]; None (default) for none.

    Source: arXiv 2606.04581, Lemma 3, eq. 31.
    """
    ready, headroom, upload = _ready_and_headroom(draft_length, seconds_per_token, upload_s, snr, round_trip_s)
    sends = upload > 0
    gap = headroom[..., None] + (ready.max(axis=-1, keepdims=True) - ready)
    share = np.where(sends, needed_share(np.where(sends, upload, 1.0), np.where(sends, gap, 1.0), snr)[0], 0.0)
    total = share.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(share, total, out=share, where=total > 0))


def token_latency(seconds_per_token: Floats, upload_s: Floats, snr: Floats | None = None) -> float:
    """Latency per token ϑ that Lemma 1 gives every device alike when all draft the same length [s].

    ϑ is the only root above max_k T_k of Σ_k a_k / (ϑ − T_k) = 1: weak devices are compensated with band. A noise
    density changes the terms, not that ϑ is the same for every length: shares depend on the rate alone.

    Args:
        seconds_per_token: T_k [s], shape [K].
        upload_s: a_k, upload time of a token over the whole band [s], shape [K].
        snr: signal-to-noise ratios, as in `draft_time`, shape [K]; default None.

    Source: arXiv 2606.04581, Lemma 1, eq. 21.
    """
    return float(draft_time(np.ones(len(seconds_per_token)), seconds_per_token, upload_s, snr))


def makespan(ready_s: Floats, upload_s: Floats) -> Floats:
    """Time until all have sent, one after the other over the whole band in the order of readiness, [...].

    The best order; `tdma` has the proof.

    Args:
        ready_s: times at which the devices have drafted [s], [..., K].
        upload_s: upload times of their drafts over the whole band [s], [..., K].

    Source: Lawler, Management Science 19 (1973) 544, for 1 | r_j | C_max.
    """
    order = np.argsort(ready_s, axis=-1)
    upload = np.take_along_axis(np.broadcast_to(upload_s, ready_s.shape), order, axis=-1)
    rest = np.flip(np.cumsum(np.flip(upload, axis=-1), axis=-1), axis=-1)
    return np.asarray((np.take_along_axis(ready_s, order, axis=-1) + rest).max(axis=-1))


def start_times(ready_s: Floats, upload_s: Floats) -> Floats:
    """Times at which the devices begin to send, one after the other in the order of readiness (`makespan`) [s], [K].

    Args:
        ready_s: times at which the devices have drafted [s], [K].
        upload_s: upload times over the whole band [s], [K]; a device with 0 has no turn, and its time is `ready_s`.
    """
    start = np.array(ready_s, dtype=np.float64)
    free = 0.0
    for k in np.argsort(ready_s, kind="stable"):
        if upload_s[k] > 0:
            start[k] = max(free, ready_s[k])
            free = start[k] + upload_s[k]
    return start


def _ready_and_headroom(
    draft_length: ArrayLike,
    seconds_per_token: Floats,
    upload_s: Floats,
    snr: Floats | None,
    round_trip_s: Floats | None,
) -> tuple[Floats, Floats, Floats]:
    """Times ready_k = L_k T_k + round trip + κ_k u_k [..., K], x = φ − max_k ready_k [...], and u_k = a_k L_k [..., K].

    Solving for x instead of φ keeps its digits when the radio is almost free. With f(x) = Σ_k u_k / (x + d_k),
    d_k the slack of device k, 1/f is a harmonic mean: concave and increasing. Newton's method for 1/f = 1 from a
    point with f ≥ 1 therefore climbs to the root and never passes it.
    """
    length = np.asarray(draft_length, dtype=np.float64)
    ready = length * seconds_per_token
    if round_trip_s is not None:
        ready = ready + np.where(length > 0, round_trip_s, 0.0)
    upload = length * upload_s
    total = upload.sum(axis=-1)
    nobody = total <= 0
    if snr is not None:
        ready = ready + least_upload_s(upload, snr)
    slack = ready.max(axis=-1, keepdims=True) - ready
    divisor = np.where(nobody, 1.0, total)
    # Two bounds left of the root: x = u_k − d_k of device k alone, and one for all devices by Cauchy and Schwarz.
    x = np.maximum((upload - slack).max(axis=-1), total - (upload * slack).sum(axis=-1) / divisor)
    x = np.where(nobody, 1.0, x)
    if snr is not None:
        return ready, np.where(nobody, 0.0, _bracketed(upload, slack, x, snr)), upload
    for _ in range(_STEPS):
        inverse = 1.0 / (x[..., None] + slack)
        term = upload * inverse
        f = term.sum(axis=-1)
        step = f * (f - 1.0) / ((term * inverse).sum(axis=-1) + nobody)
        x = x + np.maximum(step, 0.0)
        if (step <= _CLOSE * x).all():
            break
    return ready, np.where(nobody, 0.0, x), upload


def _bracketed(upload: Floats, slack: Floats, guess: Floats, snr: Floats) -> Floats:
    """The same root x of Σ_k c_k(x) = 1 for any formula of the rate, from a guess, [...].

    1/f is not concave with a noise density, so Newton's method for 1/f = 1 may pass the root. f itself is convex and
    decreasing: Newton's method for f = 1 from the left never does, and takes over where the other leaves the bracket.
    """
    sends = upload > 0
    used, apart = np.where(sends, upload, 1.0), np.where(sends, slack, 1.0)
    low, high = np.zeros_like(guess), np.full_like(guess, np.inf)
    careful = np.zeros_like(guess)
    # Rounding in the least upload times moves the root by as much.
    noise = 4e-16 * least_upload_s(upload, snr).max(axis=-1)
    x = guess
    for _ in range(_STEPS):
        share, slope = needed_share(used, x[..., None] + apart, snr)
        f = np.where(sends, share, 0.0).sum(axis=-1)
        fall = np.where(sends, slope, 0.0).sum(axis=-1)
        fall = np.where(fall > 0, fall, 1.0)
        over = f > 1.0
        careful = np.where(over, x + (f - 1.0) / fall, careful)
        low, high = np.where(over, x, low), np.where(over, high, x)
        step = f * (f - 1.0) / fall
        if (np.abs(step) <= noise + 1e-14 * x).all():
            break
        ahead = x + step
        x = np.where((ahead > low) & (ahead < high), ahead, np.where(careful > low, careful, 0.5 * (low + high)))
    return x
