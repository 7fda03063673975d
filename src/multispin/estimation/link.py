"""How good is a device's uplink? Bits per second and Hz, and delay, learned from the frames that arrived."""

from collections import deque

from multispin.checks import not_negative, positive
from multispin.estimation.forgetting import ForgettingMedian
from multispin.estimation.speed import SHORTEST_S

MOST_EFFICIENCY = 16.0
"""Greatest spectral efficiency that is believed of a link that does not claim more [bit/s/Hz]: Shannon's at 48 dB."""
REMEMBERED_FRAMES = 24
"""Number of latest frames of which none may have come before the delay was over."""


class LinkEstimator:
    """Spectral efficiency r (eq. 8 of arXiv 2606.04581) and delay d: r is the forgotten median of
    bits / (bandwidth · (seconds − d)).

    Under block fading this is the typical round's efficiency, not the next one's. The delay is what every one of the
    latest frames took beyond its transmission at that efficiency. So one good moment of a fading link shows that its
    bad ones are no delay. Frames of one size cannot tell delay from rate; then the prior gives the rate.

    A link that delivers more than `MOST_EFFICIENCY` times its band is not limited by the band. Without that bound its
    band would shrink from plan to plan, as each narrower band makes the link look more efficient.

    Args:
        prior_spectral_efficiency: belief before anything is observed [bit/s/Hz]; it counts as two frames.
        half_life_frames: frames after which an observation counts half; default 8.0.
        least_frames: number of frames from which on there may be a delay; default 2. A single frame may have been sent
            in a bad moment.

    """

    def __init__(self, prior_spectral_efficiency: float, half_life_frames: float = 8.0, least_frames: int = 2) -> None:
        positive("prior_spectral_efficiency", prior_spectral_efficiency)
        positive("half_life_frames", half_life_frames)
        self._median = ForgettingMedian(prior_spectral_efficiency, half_life=half_life_frames)
        self._least = least_frames
        self._frames: deque[tuple[float, float]] = deque(maxlen=REMEMBERED_FRAMES)  # bits / bandwidth, and time [s]
        self._delay_s = 0.0
        self._most = max(MOST_EFFICIENCY, prior_spectral_efficiency)

    def observe(self, bits: float, bandwidth_hz: float, seconds: float) -> None:
        """Learn from one frame; a frame without bits or band changes nothing.

        Args:
            bits: size of the frame [bit].
            bandwidth_hz: band that it was sent over [Hz].
            seconds: time that it took, the delay included [s]; below `SHORTEST_S` it counts as that.

        Raises:
            InputError: a value is negative or no number.
        """
        not_negative("bits", bits)
        not_negative("bandwidth_hz", bandwidth_hz)
        not_negative("seconds", seconds)
        if bits > 0 and bandwidth_hz > 0:
            asked, efficiency = bits / bandwidth_hz, self._median.value
            self._frames.append((asked, seconds))
            if len(self._frames) >= self._least:
                self._delay_s = max(0.0, min(took_s - each / efficiency for each, took_s in self._frames))
            self._median.observe(min(self._most, asked / max(seconds - self._delay_s, SHORTEST_S)))

    @property
    def delay_s(self) -> float:
        """Both delays together: from the edge's grant to the device, and from the device's draft to the edge [s]."""
        return self._delay_s

    @property
    def spectral_efficiency(self) -> float:
        """The estimate of r in bit/s/Hz."""
        return self._median.value
