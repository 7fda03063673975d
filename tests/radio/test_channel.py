"""Channels: constant, or drawn anew for every round."""

import math

import numpy as np
import pytest

from multispin.errors import InputError
from multispin.radio import BlockFadingChannel, Channel, StaticChannel


def test_a_static_channel_never_changes():
    channel: Channel = StaticChannel(7.2)
    assert [channel.next_round() for _ in range(3)] == [7.2, 7.2, 7.2]


def test_block_fading_draws_each_round_anew_and_repeats_with_its_generator():
    def rounds(seed: int) -> list[float]:
        channel = BlockFadingChannel(0.3, 0.2, 1e-3, np.random.default_rng(seed))
        return [channel.next_round() for _ in range(20)]

    assert rounds(1) == rounds(1)
    assert len(set(rounds(1))) == 20
    assert rounds(1) != rounds(2)


def test_the_median_round_is_that_of_the_exponential_law():
    """The median of |h|² is H̄ ln 2. Of n draws, those below it are binomial(n, 1/2): 5 deviations are 2.5·√n."""
    channel = BlockFadingChannel(mean_gain=2.0, power_w=1.0, noise_w=0.5, generator=np.random.default_rng(3))
    n, median = 2000, math.log2(1 + 2 * math.log(2) / 0.5)
    below = sum(channel.next_round() < median for _ in range(n))
    assert abs(below - n / 2) < 2.5 * math.sqrt(n)


def test_impossible_channels_are_refused_by_name():
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match="spectral_efficiency = 0"):
        StaticChannel(0.0)
    with pytest.raises(InputError, match="mean_gain = -1"):
        BlockFadingChannel(-1.0, 1.0, 1.0, generator)
    with pytest.raises(InputError, match="power_w = nan"):
        BlockFadingChannel(1.0, math.nan, 1.0, generator)
    with pytest.raises(InputError, match="noise_w = 0"):
        BlockFadingChannel(1.0, 1.0, 0.0, generator)
