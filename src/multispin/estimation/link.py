"""How good is a device's uplink? Bits per second and Hz, learned from the frames that arrived."""

from multispin.checks import not_negative, positive
from multispin.estimation.forgetting import ForgettingMedian
from multispin.estimation.speed import SHORTEST_S

MOST_EFFICIENCY = 16.0
"""Greatest spectral efficiency that is believed of a link that does not claim more [bit/s/Hz]: Shannon's at 48 dB."""


class LinkEstimator:
    """Spectral efficiency r (eq. 8 of arXiv 2606.04581): the forgotten median of bits / (bandwidth · seconds).

    Under block fading this is the typical round's efficiency, not the next one's. Delay that is not transmission
    (propagation, scheduling) makes short frames look like a worse link: pass times without it where it is known.

    A link that delivers more than `MOST_EFFICIENCY` times its band is not limited by the band. Without that bound its
    band would shrink from plan to plan, as each narrower band makes the link look more efficient.

    Args:
        prior_spectral_efficiency: belief before anything is observed [bit/s/Hz]; it counts as two frames.
        half_life_frames: frames after which an observation counts half; default 8.0.

    """

    def __init__(self, prior_spectral_efficiency: float, half_life_frames: float = 8.0) -> None:
        positive("prior_spectral_efficiency", prior_spectral_efficiency)
        positive("half_life_frames", half_life_frames)
        self._median = ForgettingMedian(prior_spectral_efficiency, half_life=half_life_frames)
        self._most = max(MOST_EFFICIENCY, prior_spectral_efficiency)

    def observe(self, bits: float, bandwidth_hz: float, seconds: float) -> None:
        """Learn from one frame; a frame without bits or band changes nothing.

        Args:
            bits: size of the frame [bit].
            bandwidth_hz: band that it was sent over [Hz].
            seconds: time that it took [s]; below `SHORTEST_S` it counts as that.

        Raises:
            InputError: a value is negative or no number.
        """
        not_negative("bits", bits)
        not_negative("bandwidth_hz", bandwidth_hz)
        not_negative("seconds", seconds)
        if bits > 0 and bandwidth_hz > 0:
            self._median.observe(min(self._most, bits / (bandwidth_hz * max(seconds, SHORTEST_S))))

    @property
    def spectral_efficiency(self) -> float:
        """The estimate of r in bit/s/Hz."""
        return self._median.value
