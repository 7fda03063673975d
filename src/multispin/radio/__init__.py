"""How many bit/s does a band carry? Path loss, fading, spectral efficiency, and a link that is paced at that rate."""

from multispin.radio.channel import BlockFadingChannel, Channel, StaticChannel
from multispin.radio.link import TokenBucket
from multispin.radio.rates import (
    db_to_ratio,
    dbm_to_w,
    path_loss_gain,
    rate_bits_per_s,
    rate_with_noise_density,
    ratio_to_db,
    rayleigh_gain,
    spectral_efficiency,
    w_to_dbm,
)

__all__ = [
    "BlockFadingChannel",
    "Channel",
    "StaticChannel",
    "TokenBucket",
    "db_to_ratio",
    "dbm_to_w",
    "path_loss_gain",
    "rate_bits_per_s",
    "rate_with_noise_density",
    "ratio_to_db",
    "rayleigh_gain",
    "spectral_efficiency",
    "w_to_dbm",
]
