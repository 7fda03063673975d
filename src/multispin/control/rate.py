"""How much of the band does a device need? Both formulas of the uplink rate, in shares of the band and in seconds.

Linear, R = r·b (arXiv 2606.04581, eq. 8): noise power does not depend on the band. With a noise density (arXiv
2608.29618), R = b log2(1 + s/b), s = p g/N₀ in Hz: power is spread over the band, and R stays below s / ln 2 however
wide it is. Both are concave and increasing in b, so the share needed is convex in the rate, and so in the draft length
and in the time left for the upload.

Times are counted in `upload_s`, what an upload takes over the whole band B, and the second formula in σ = s/B, NaN for
devices of the first; None where all devices are of the first, which is quicker. An upload of u seconds needs more
than u·κ however wide the band, κ = ln(1 + σ)/σ (0 in the linear case): what it has beyond is called its room.
"""

import numpy as np
from numpy.typing import NDArray

from multispin.control.goodput import Floats

_STEPS = 30
_EPS = float(np.finfo(np.float64).eps)


def least_upload_s(upload_s: Floats, snr: Floats | None) -> Floats:
    """Time κ·u that an upload needs even with infinite band, shape of `upload_s` [..., K] [s].

    Args:
        upload_s: u, with the whole band [s], [..., K].
        snr: σ, shape [K], or None.
    """
    if snr is None:
        return np.zeros_like(upload_s)
    return upload_s * np.where(np.isnan(snr), 0.0, np.log1p(snr) / snr)


def needed_share(upload_s: Floats, room_s: Floats, snr: Floats | None) -> tuple[Floats, Floats]:
    """Share of the band that makes an upload last κ·u + `room_s`, and minus its derivative by that time, [..., K].

    Linear: share = u / room. Otherwise the share is σ/x, x the root of ln(1 + x) = y x, y = κ u / (κ u + room): a
    branch of Lambert's W, −W₋₁(−y e^(−y)) = y (1 + x). Newton's method starts from a bound above the root
    (Chatzigeorgiou, IEEE Communications Letters 17 (2013) 1505), so that the share is never overstated. Digits are
    lost as the room vanishes: one for each power of ten by which it is smaller than the time.

    Args:
        upload_s: u, with the whole band [s].
        room_s: time beyond `least_upload_s`, positive [s].
        snr: σ, shape [K], or None.
    """
    share = upload_s / room_s
    slope = share / room_s
    if snr is None:
        return share, slope
    with np.errstate(divide="ignore", invalid="ignore"):
        least = least_upload_s(upload_s, snr)
        time = least + room_s
        y, gap = least / time, room_s / time
        # With e = −W₋₁ − 1: e − ln(1 + e) = −ln y − (1 − y), convex and increasing in e. The smaller one of y and 1 − y
        # has the digits.
        log_y = np.where(gap < 0.5, np.log1p(-np.minimum(gap, 0.5)), np.log(y))
        goal = np.maximum(-log_y - gap, 0.5 * gap * gap)
        e = np.sqrt(2.0 * goal) + goal
        for _ in range(_STEPS):
            step = (e - np.log1p(e) - goal) * (1.0 + e) / e
            e = e - np.maximum(step, 0.0)
            if not (step > 1e-15 * e).any():
                break
        x = (e + gap) / y
        dense = snr / x
        curved = dense / time * y / np.where(gap < 0.5, x / (1.0 + x) - gap, y - 1.0 / (1.0 + x))
    linear = np.isnan(snr)
    return np.where(linear, share, dense), np.where(linear, slope, curved)


def tangent_shares(
    upload_s: Floats, start_s: Floats, end_s: Floats, open_: NDArray[np.bool_], snr: Floats | None
) -> tuple[Floats, Floats]:
    """Tangents below the share needed, as a function of the room, at both ends of an interval; 0 where not open.

    They touch at the middle of the interval, or at three quarters of its end where an upload becomes possible only
    within it, and are lowered by what rounding may have added.

    Args:
        upload_s: u, with the whole band [s].
        start_s: room at the start of the interval [s].
        end_s: room at its end [s], above 0 where open.
        open_: where an upload is possible.
        snr: σ, shape [K], or None.

    Returns: the tangents' values at `start_s` and at `end_s` [shares of the band].
    """
    touch = np.maximum(0.5 * (start_s + end_s), 0.75 * end_s)
    with np.errstate(all="ignore"):
        if snr is None:
            scale = np.where(open_, upload_s / (touch * touch), 0.0)
            touch += touch
            return scale * (touch - start_s), scale * (touch - end_s)
        share, slope = needed_share(upload_s, touch, snr)
        # The share's digits go with the room, see `needed_share`; the slope's count by how far it is followed.
        time = touch + least_upload_s(upload_s, snr)
        lost = 64.0 * _EPS * (time / touch) * (share + slope * touch)
        used = open_ & (upload_s > 0)
        share, slope = np.where(used, share - lost, 0.0), np.where(used, slope, 0.0)
        return share + slope * (touch - start_s), share + slope * (touch - end_s)


def upload_time(upload_s: Floats, share: Floats, snr: Floats | None) -> Floats:
    """Time that an upload takes over a share of the band, u·R(B)/R(share·B); 0 where nothing is sent [s], [..., K].

    Args:
        upload_s: u, with the whole band [s], [..., K].
        share: share of the band, [..., K].
        snr: σ, shape [K], or None.
    """
    sending = (upload_s > 0) & (share > 0)
    used = np.where(sending, share, 1.0)
    slowed = used
    if snr is not None:
        slowed = np.where(np.isnan(snr), used, used * np.log1p(snr / used) / np.log1p(snr))
    return np.asarray(np.where(sending, upload_s / slowed, 0.0))
