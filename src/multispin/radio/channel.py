"""What a device's channel offers, round by round: the paper's channel is constant within one."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from multispin.errors import InputError
from multispin.radio.rates import rayleigh_gain, spectral_efficiency


class Channel(Protocol):
    """Anything that says how good a device's uplink is in the round that begins."""

    def next_round(self) -> float:
        """Spectral efficiency r in bit/s/Hz of the next round."""
        ...


@dataclass(frozen=True)
class StaticChannel:
    """A channel that stays as it is.

    Attributes:
        spectral_efficiency: r in bit/s/Hz, in every round.

    """

    spectral_efficiency: float

    def __post_init__(self) -> None:
        _check_positive("spectral_efficiency", self.spectral_efficiency)

    def next_round(self) -> float:
        """Spectral efficiency r in bit/s/Hz of the next round."""
        return self.spectral_efficiency


@dataclass(frozen=True)
class BlockFadingChannel:
    """Rayleigh fading, drawn anew for every round: r = log2(1 + p·H/N_0), H = |h|², h ~ CN(0, H̄).

    Eq. 8 and section VI of arXiv 2606.04581. Rounds are independent: a slowly moving device is not modelled.

    Attributes:
        mean_gain: H̄, mean power gain.
        power_w: transmit power p in W.
        noise_w: noise power N_0 in W.
        generator: source of randomness, advanced by one draw per round; devices that are to fade independently of
            how many others there are need one each.

    """

    mean_gain: float
    power_w: float
    noise_w: float
    generator: np.random.Generator

    def __post_init__(self) -> None:
        for name in ("mean_gain", "power_w", "noise_w"):
            _check_positive(name, getattr(self, name))

    def next_round(self) -> float:
        """Spectral efficiency r in bit/s/Hz of the next round."""
        return float(spectral_efficiency(self.power_w, rayleigh_gain(self.mean_gain, self.generator), self.noise_w))


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} = {value} is not a finite positive number")
