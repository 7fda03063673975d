"""The best split of the band: Lemma 1 for a common draft length, Lemma 3 for any lengths."""

import numpy as np
from numpy.typing import ArrayLike

from multispin.control.goodput import Floats

_STEPS = 60
"""Newton steps at most; from the left of the root they converge quadratically, and seven are usual."""


def draft_time(draft_length: ArrayLike, seconds_per_token: Floats, upload_s: Floats) -> Floats:
    """Shortest time φ in which all devices can draft and upload, the band being split as well as possible.

    φ is the only root above max_k L_k T_k of Σ_k a_k L_k / (φ − L_k T_k) = 1, where a_k = Q_k / (r_k B) is the
    upload time of one token over the whole band. Neglects the downlink. Example: two devices with L = 4,
    T = 10 ms, a = 0.5 ms take 44 ms, 4 ms of them for uploads over half of the band each.

    Args:
        draft_length: L_k [tokens], shape [..., K]; a device with 0 takes no part. All 0 gives φ = 0.
        seconds_per_token: T_k [s], shape [K].
        upload_s: a_k [s], shape [K].

    Returns: φ [s], shape [...].

    Source: arXiv 2606.04581, Lemma 3, eq. 32.
    """
    busy, headroom = _drafting_and_headroom(draft_length, seconds_per_token, upload_s)
    return np.asarray(busy.max(axis=-1) + headroom)


def bandwidth_shares(draft_length: ArrayLike, seconds_per_token: Floats, upload_s: Floats) -> Floats:
    """Share of the band for each device, B_k / B = a_k L_k / (φ − L_k T_k), shape [..., K].

    All devices finish together, after `draft_time`. The shares add up to 1 (to 0 when nobody drafts).
    Remark 2 of the paper: this rewards long drafts, so high acceptance gets more of the band.

    Source: arXiv 2606.04581, Lemma 3, eq. 31.
    """
    length = np.asarray(draft_length, dtype=np.float64)
    busy, headroom = _drafting_and_headroom(length, seconds_per_token, upload_s)
    gap = headroom[..., None] + (busy.max(axis=-1, keepdims=True) - busy)
    share = np.divide(length * upload_s, gap, out=np.zeros(np.broadcast(length, busy).shape), where=length > 0)
    total = share.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(share, total, out=share, where=total > 0))


def token_latency(seconds_per_token: Floats, upload_s: Floats) -> float:
    """Latency per token ϑ that Lemma 1 gives every device alike when all draft the same length [s].

    ϑ is the only root above max_k T_k of Σ_k a_k / (ϑ − T_k) = 1: weak devices are compensated with band.

    Source: arXiv 2606.04581, Lemma 1, eq. 21.
    """
    return float(draft_time(np.ones(len(seconds_per_token)), seconds_per_token, upload_s))


def _drafting_and_headroom(
    draft_length: ArrayLike, seconds_per_token: Floats, upload_s: Floats
) -> tuple[Floats, Floats]:
    """Drafting times L_k T_k [..., K] and x = φ − max_k L_k T_k [...].

    Solving for x instead of φ keeps its digits when the radio is almost free. With f(x) = Σ_k a_k L_k / (x + d_k),
    d_k the slack of device k, 1/f is a harmonic mean: concave and increasing. Newton's method for 1/f = 1 from a
    point with f ≥ 1 therefore climbs to the root and never passes it.
    """
    length = np.asarray(draft_length, dtype=np.float64)
    busy = length * seconds_per_token
    upload = length * upload_s
    slack = busy.max(axis=-1, keepdims=True) - busy
    total = upload.sum(axis=-1)
    nobody = total <= 0
    divisor = np.where(nobody, 1.0, total)
    # Left of the root: what device k alone needs, x = a_k L_k − d_k, and what Cauchy and Schwarz need of all.
    x = np.maximum((upload - slack).max(axis=-1), total - (upload * slack).sum(axis=-1) / divisor)
    x = np.where(nobody, 1.0, x)
    for _ in range(_STEPS):
        inverse = 1.0 / (x[..., None] + slack)
        term = upload * inverse
        f = term.sum(axis=-1)
        step = f * (f - 1.0) / ((term * inverse).sum(axis=-1) + nobody)
        x = x + np.maximum(step, 0.0)
        if (step <= 4e-16 * x).all():
            break
    return busy, np.where(nobody, 0.0, x)
