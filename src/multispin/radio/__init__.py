"""How many bit/s does a band carry? Path loss, fading, spectral efficiency, and a link that is paced at that rate."""

from multispin.radio.link import TokenBucket
from multispin.radio.rates import db_to_ratio, path_loss_gain, rayleigh_gain, shannon_efficiency, spectral_efficiency

__all__ = [
    "TokenBucket",
    "db_to_ratio",
    "path_loss_gain",
    "rayleigh_gain",
    "shannon_efficiency",
    "spectral_efficiency",
]
