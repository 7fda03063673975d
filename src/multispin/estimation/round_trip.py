"""How long does a frame take, and how much of that is delay? Rate and round trip of a link, learned together."""

import math
from collections import deque

import numpy as np

from multispin.checks import MOST, not_negative, positive
from multispin.estimation.link import MOST_EFFICIENCY
from multispin.estimation.speed import SHORTEST_S

WINDOW = 24  # frames that are remembered
LEAST_PRIOR = 0.01  # share of the prior that stays, to settle what frames of one size leave open
HUBER_SHARE = 0.3  # relative residual beyond which a frame loses influence
REFITS = 3  # with new weights of the residuals
QUARTILE = 0.25  # of the slopes between pairs of frames
LEAST_PAIRS = 4  # fewest pairs of drafts of different lengths that show unreported drafting time
PAIRS_EVERY = 4  # pairs are looked at once in this many frames: they take most of the time of a fit


class RoundTripEstimator:
    """Fits t = delay_s + x / r, where x = bits / band is what a frame asks of the link, with both parts ≥ 0.

    t is the time from a grant to its draft's arrival, without drafting: both delays and the transmission (eq. 9 of
    arXiv 2606.04581). Weighted least squares of relative residuals over a window, frames weighted by age, and by
    Huber's rule so that a stall counts little. The r that the device claims is a prior. It loses weight like a frame,
    but keeps `LEAST_PRIOR`: frames of one size cannot tell delay from rate, so that the claim then gives the rate.
    r is at most `MOST_EFFICIENCY`, or what is claimed: a link that is faster still is not limited by its band.

    A device may understate its drafting time. Then a longer draft comes later than its size explains: time that grows
    with the drafted tokens, beyond 1/r, is unreported drafting. The estimate is the lower quartile of the slopes
    between all pairs of frames: jitter of an honest link hardly ever makes three quarters of them positive.

    Args:
        prior_spectral_efficiency: r before anything is observed [bit/s/Hz], worth two frames.
        half_life_frames: frames after which an observation counts half; default 8.

    """

    def __init__(self, prior_spectral_efficiency: float, half_life_frames: float = 8.0) -> None:
        self._prior = 1.0 / positive("prior_spectral_efficiency", prior_spectral_efficiency)
        self._half_life = positive("half_life_frames", half_life_frames)
        self._ages = [0.5 ** (age / self._half_life) for age in range(WINDOW - 1, -1, -1)]
        self._frames: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)
        self._untold_s = 0.0  # per token
        self._observed = 0
        self._paired = 0  # frames that were observed when pairs were looked at last
        self._fit: tuple[float, float] | None = (0.0, self._prior)  # delay [s], 1/r; None: to be found

    def observe(self, bits: float, bandwidth_hz: float, seconds: float, tokens: int = 0) -> None:
        """Learn from one frame; one without bits or band shows the delay alone.

        Args:
            bits: size of the frame [bit].
            bandwidth_hz: band that it was sent over [Hz].
            seconds: time from its grant to its arrival, drafting left out [s].
            tokens: how many were drafted for it; default 0, unknown.

        Raises:
            InputError: bits, band or time are negative or no number.
        """
        not_negative("bits", bits)
        not_negative("bandwidth_hz", bandwidth_hz)
        not_negative("seconds", seconds)
        asked = bits / bandwidth_hz if bandwidth_hz > 0 else 0.0
        self._frames.append((min(asked, MOST), max(seconds, SHORTEST_S), float(tokens)))
        self._observed += 1
        self._fit = None

    @property
    def delay_s(self) -> float:
        """Both delays together: from the edge's grant to the device, and from the device's draft to the edge [s]."""
        return self._found()[0]

    @property
    def spectral_efficiency(self) -> float:
        """The estimate of r [bit/s/Hz]."""
        return 1.0 / self._found()[1]

    @property
    def untold_s_per_token(self) -> float:
        """Drafting time of a token that the device does not report [s]."""
        self._found()
        return self._untold_s

    def _found(self) -> tuple[float, float]:
        """Delay [s] and 1/r; found when asked for, which is less often than frames come."""
        if self._fit is None:
            seconds = [seconds for _, seconds, _ in self._frames]
            fit = self._solve(seconds)
            if self._observed - self._paired >= PAIRS_EVERY:
                self._paired, self._untold_s = self._observed, self._untold(fit[1])
            if self._untold_s:
                told = zip(self._frames, seconds, strict=True)
                fit = self._solve([max(SHORTEST_S, taken - self._untold_s * frame[2]) for frame, taken in told])
            self._fit = fit
        return self._fit

    def _untold(self, slope: float) -> float:
        """Time per token that grows with the draft beyond its transmission [s]; as before if lengths do not differ."""
        if len({tokens for _, _, tokens in self._frames}) == 1:
            return self._untold_s
        asked, seconds, tokens = np.array(self._frames).T
        known = tokens > 0
        rest, tokens = (seconds - slope * asked)[known], tokens[known]
        longer = tokens[:, None] - tokens[None, :]
        pairs = longer > 0
        if int(pairs.sum()) < LEAST_PAIRS:
            return self._untold_s
        slopes = np.sort((rest[:, None] - rest[None, :])[pairs] / longer[pairs])
        place = QUARTILE * (len(slopes) - 1)
        below = slopes[int(place)]
        return max(0.0, float(below + (place - int(place)) * (slopes[math.ceil(place)] - below)))

    def _solve(self, taken: list[float]) -> tuple[float, float]:
        """Delay and 1/r of frames that took this long [s]."""
        frames = [
            (age / (seconds * seconds), asked, seconds)
            for age, (asked, _, _), seconds in zip(self._ages[-len(taken) :], self._frames, taken, strict=True)
        ]
        ridge = max(2.0 * 0.5 ** (self._observed / self._half_life), LEAST_PRIOR)
        delay, slope = 0.0, self._prior
        for step in range(REFITS):
            a = b = c = u = v = 0.0
            trusted = True  # whether all frames count in full
            for weight, asked, seconds in frames:
                if step:
                    residual = abs(seconds - delay - slope * asked) / seconds
                    if residual > HUBER_SHARE:
                        weight *= HUBER_SHARE / residual
                        trusted = False
                a += weight
                b += (weighted := weight * asked)
                c += weighted * asked
                u += weight * seconds
                v += weighted * seconds
            if step and trusted:  # the weights are those of the first step
                break
            c += ridge / self._prior**2
            v += ridge / self._prior
            determinant = a * c - b * b
            delay = (u * c - v * b) / determinant if determinant > 1e-12 * a * c else 0.0
            if delay > 0.0:
                slope = (v - b * delay) / c
            if delay <= 0.0 or not math.isfinite(delay):
                delay, slope = 0.0, v / c
            slope = max(slope, min(1.0 / MOST_EFFICIENCY, self._prior))
        return delay, slope
