"""Channel formulas against hand-computed values, limits and distributions."""

import math

import numpy as np
import pytest

from multispin.errors import InputError
from multispin.radio import db_to_ratio, path_loss_gain, rayleigh_gain, shannon_efficiency, spectral_efficiency


def test_spectral_efficiency_at_round_signal_to_noise_ratios():
    assert spectral_efficiency(1.0, 1.0, 1.0) == pytest.approx(1.0)
    assert spectral_efficiency(0.5, 30.0, 1.0) == pytest.approx(4.0)  # log2(16)
    assert spectral_efficiency(0.2, 0.0, 1e-10) == 0.0
    assert spectral_efficiency(db_to_ratio(23.0), 1.0, 1.0) == pytest.approx(math.log2(200.526))


def test_spectral_efficiency_of_a_faint_signal_keeps_its_digits():
    assert spectral_efficiency(1e-18, 1.0, 1.0) == pytest.approx(1e-18 / math.log(2), rel=1e-12, abs=0.0)


def test_the_efficiency_of_a_ratio_is_that_of_its_powers():
    assert shannon_efficiency(15.0) == pytest.approx(4.0)
    assert shannon_efficiency(1e-18) == pytest.approx(1e-18 / math.log(2), rel=1e-12, abs=0.0)
    assert shannon_efficiency(0.0) == 0.0


def test_path_loss_of_the_follow_ups_preset():
    gains = path_loss_gain([1.0, 100.0, 500.0], 3.5, db_to_ratio(-30.0))
    np.testing.assert_allclose(10 * np.log10(gains), [-30.0, -100.0, -30 - 35 * math.log10(500)])


def test_decibels():
    assert db_to_ratio(3.0) == pytest.approx(1.9952623)
    assert db_to_ratio(-30.0) == pytest.approx(1e-3)


def test_fading_has_its_mean_and_the_exponential_distribution():
    """Mean of n draws: 5 standard errors of H̄/√n. Pr(H < H̄/10) = 1 − e^(−0.1) = 9.5 %: 5 binomial deviations."""
    n = 40_000
    gains = rayleigh_gain(0.3, np.random.default_rng(1), (n,))
    assert abs(gains.mean() - 0.3) < 5 * 0.3 / math.sqrt(n)
    expected = 1 - math.exp(-0.1)
    assert abs((gains < 0.03).mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


def test_fading_broadcasts_over_devices_and_repeats_with_its_generator():
    means = np.array([0.0, 0.2, 0.5])
    gains = rayleigh_gain(means, np.random.default_rng(7), (10, 3))
    assert gains.shape == (10, 3)
    assert np.all(gains[:, 0] == 0)
    np.testing.assert_array_equal(gains, rayleigh_gain(means, np.random.default_rng(7), (10, 3)))
    assert rayleigh_gain(means, np.random.default_rng(7)).shape == (3,)


def test_everything_broadcasts():
    assert spectral_efficiency(np.ones((4, 1)), np.ones(3), 1.0).shape == (4, 3)
    assert isinstance(spectral_efficiency(1.0, 1.0, 1.0), float)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: spectral_efficiency(-1.0, 1.0, 1.0), "power_w = -1.0"),
        (lambda: spectral_efficiency(1.0, [1.0, -2.0], 1.0), "gain = -2.0"),
        (lambda: spectral_efficiency(1.0, 1.0, 0.0), "noise_w = 0.0"),
        (lambda: spectral_efficiency(math.nan, 1.0, 1.0), "power_w = nan"),
        (lambda: path_loss_gain(0.5, 2.0, 1.0), "distance_m = 0.5"),
        (lambda: path_loss_gain(5.0, -2.0, 1.0), "exponent = -2.0"),
        (lambda: rayleigh_gain(-0.1, np.random.default_rng(0)), "mean_gain = -0.1"),
        (lambda: db_to_ratio(math.inf), "db = inf"),
    ],
)
def test_impossible_inputs_are_refused_by_name_and_value(call, named):
    with pytest.raises(InputError, match=named):
        call()
