"""How many bit/s a band carries: path loss, Rayleigh fading, Shannon's formula. Pure and vectorised.

Every function broadcasts its inputs over leading axes and returns their common shape (for scalars a NumPy float).
Neglected throughout: interference between devices (FDMA with perfect filters), coding and protocol overhead,
shadowing, and any change of the channel within a round.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multispin.errors import InputError


def shannon_efficiency(snr: float) -> float:
    """Spectral efficiency of a link, log2(1 + SNR) [bit/s/Hz]: 15 gives 4.

    Args:
        snr: signal-to-noise ratio in the band that is used, at least 0. With a noise density it depends on the band.
    """
    return math.log1p(snr) / math.log(2)


def spectral_efficiency(power_w: ArrayLike, gain: ArrayLike, noise_w: ArrayLike) -> NDArray[np.float64]:
    """Spectral efficiency of an uplink, r = log2(1 + p·H / N_0) (eq. 8 of arXiv 2606.04581).

    N_0 is a noise *power* here, as in the paper, so that r does not depend on the band. 23 dB of p·H/N_0 are 7.65
    bit/s/Hz.

    Args:
        power_w: transmit power p in W.
        gain: power gain H = |h|² of the channel.
        noise_w: noise power N_0 in W, positive.

    Returns:
        r in bit/s/Hz.

    """
    snr = _at_least_zero("power_w", power_w) * _at_least_zero("gain", gain) / _positive("noise_w", noise_w)
    return _array(np.log1p(snr) / math.log(2))


def rayleigh_gain(
    mean_gain: ArrayLike, generator: np.random.Generator, shape: tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    """Power gains H = |h|² with h ~ CN(0, mean_gain): Rayleigh fading, as in section VI of arXiv 2606.04581.

    |h|² is exponentially distributed with that mean, and is drawn as such; a tenth of all draws are 10 dB or more
    below the mean. Draws are independent: no correlation in time, frequency or between devices.

    Args:
        mean_gain: mean power gain H̄.
        generator: source of randomness.
        shape: shape of the result, to which mean_gain broadcasts; default None: that of mean_gain.

    Returns:
        Power gains.

    """
    mean = _at_least_zero("mean_gain", mean_gain)
    return _array(mean * generator.exponential(1.0, mean.shape if shape is None else shape))


def path_loss_gain(distance_m: ArrayLike, exponent: ArrayLike, gain_at_1m: ArrayLike) -> NDArray[np.float64]:
    """Mean power gain at a distance, H̄ = gain_at_1m · d^(−exponent).

    The preset of arXiv 2608.29618 (−30 dB at 1 m, exponent 3.5) gives −100 dB at 100 m. No shadowing, no antenna
    pattern, and nothing nearer than the 1 m of the reference.

    Args:
        distance_m: d in m, at least 1.
        exponent: path loss exponent; 2 in free space.
        gain_at_1m: power gain at 1 m.

    Returns:
        H̄, a ratio.

    """
    distance = _finite("distance_m", distance_m)
    if np.any(distance < 1):
        raise InputError(f"distance_m = {np.min(distance)} is below 1 m, where the path loss formula does not hold")
    slope = _at_least_zero("exponent", exponent)
    return _array(_at_least_zero("gain_at_1m", gain_at_1m) * distance**-slope)


def db_to_ratio(db: ArrayLike) -> NDArray[np.float64]:
    """Power ratio 10^(dB/10): 3 dB are a factor of 1.995."""
    return _array(10.0 ** (_finite("db", db) / 10))


def _array(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)[()]


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} = {values!r} is not a number, nor an array of numbers") from error
    if not np.all(np.isfinite(array)):
        raise InputError(f"{name} = {array[~np.isfinite(array)][0]} is not a finite number")
    return array


def _at_least_zero(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = _finite(name, values)
    if np.any(array < 0):
        raise InputError(f"{name} = {np.min(array)} is negative")
    return array


def _positive(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = _finite(name, values)
    if np.any(array <= 0):
        raise InputError(f"{name} = {np.min(array)} is not positive")
    return array
