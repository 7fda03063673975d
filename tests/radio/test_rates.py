"""Channel formulas against hand-computed values, limits and laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.radio import (
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


def test_spectral_efficiency_at_round_signal_to_noise_ratios():
    assert spectral_efficiency(1.0, 1.0, 1.0) == pytest.approx(1.0)
    assert spectral_efficiency(0.5, 30.0, 1.0) == pytest.approx(4.0)  # log2(16)
    assert spectral_efficiency(0.2, 0.0, 1e-10) == 0.0
    assert spectral_efficiency(db_to_ratio(23.0), 1.0, 1.0) == pytest.approx(math.log2(200.526))


def test_spectral_efficiency_of_a_faint_signal_keeps_its_digits():
    assert spectral_efficiency(1e-18, 1.0, 1.0) == pytest.approx(1e-18 / math.log(2), rel=1e-12, abs=0.0)


def test_the_rate_is_band_times_efficiency():
    assert rate_bits_per_s(500e3, 7.2) == pytest.approx(3.6e6)
    assert rate_bits_per_s(0.0, 7.2) == 0.0


def test_with_a_noise_density_the_rate_is_hand_computed_and_vanishes_without_a_band():
    assert rate_with_noise_density(1e6, 0.1, 3e-11, 1e-18) == pytest.approx(2e6)  # 1 MHz · log2(1 + 3)
    assert rate_with_noise_density(0.0, 0.1, 3e-11, 1e-18) == 0.0


def test_with_a_noise_density_the_rate_saturates():
    limit = 0.1 * 1e-12 / 1e-18 / math.log(2)
    assert rate_with_noise_density(1e12, 0.1, 1e-12, 1e-18) == pytest.approx(limit, rel=1e-6)


@given(st.floats(1.0, 1e9), st.floats(1.01, 10.0))
def test_with_a_noise_density_more_band_brings_more_but_less_than_in_proportion(band_hz, factor):
    narrow = rate_with_noise_density(band_hz, 0.01, 1e-10, 1e-20)
    wide = rate_with_noise_density(band_hz * factor, 0.01, 1e-10, 1e-20)
    assert narrow < wide * (1 + 1e-9)
    assert wide < narrow * factor


def test_one_noise_power_for_a_given_band_makes_both_formulas_agree():
    band_hz, density = 2e6, 1e-17
    efficiency = spectral_efficiency(0.02, 1e-9, density * band_hz)
    assert rate_with_noise_density(band_hz, 0.02, 1e-9, density) == pytest.approx(rate_bits_per_s(band_hz, efficiency))


def test_path_loss_of_the_follow_ups_preset():
    gains = path_loss_gain([1.0, 100.0, 500.0], 3.5, db_to_ratio(-30.0))
    np.testing.assert_allclose(ratio_to_db(gains), [-30.0, -100.0, -30 - 35 * math.log10(500)])


def test_decibels_there_and_back():
    assert db_to_ratio(3.0) == pytest.approx(1.9952623)
    assert dbm_to_w(23.0) == pytest.approx(0.19952623)
    assert dbm_to_w(0.0) == pytest.approx(1e-3)
    assert w_to_dbm(1.0) == pytest.approx(30.0)
    values = np.linspace(-150, 60, 22)
    np.testing.assert_allclose(ratio_to_db(db_to_ratio(values)), values, atol=1e-12)
    np.testing.assert_allclose(w_to_dbm(dbm_to_w(values)), values, atol=1e-12)


def test_fading_has_its_mean_and_the_exponential_law():
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
    assert rate_with_noise_density(np.ones((2, 1)), 1.0, np.ones(5), 1.0).shape == (2, 5)
    assert isinstance(spectral_efficiency(1.0, 1.0, 1.0), float)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: spectral_efficiency(-1.0, 1.0, 1.0), "power_w = -1.0"),
        (lambda: spectral_efficiency(1.0, [1.0, -2.0], 1.0), "gain = -2.0"),
        (lambda: spectral_efficiency(1.0, 1.0, 0.0), "noise_w = 0.0"),
        (lambda: spectral_efficiency(math.nan, 1.0, 1.0), "power_w = nan"),
        (lambda: rate_bits_per_s(-5.0, 1.0), "bandwidth_hz = -5.0"),
        (lambda: rate_bits_per_s(5.0, math.inf), "spectral_efficiency = inf"),
        (lambda: rate_with_noise_density(1.0, 1.0, 1.0, 0.0), "noise_w_per_hz = 0.0"),
        (lambda: path_loss_gain(0.5, 2.0, 1.0), "distance_m = 0.5"),
        (lambda: path_loss_gain(5.0, -2.0, 1.0), "exponent = -2.0"),
        (lambda: rayleigh_gain(-0.1, np.random.default_rng(0)), "mean_gain = -0.1"),
        (lambda: ratio_to_db(0.0), "ratio = 0.0"),
        (lambda: w_to_dbm(-1.0), "power_w = -1.0"),
        (lambda: db_to_ratio(math.inf), "db = inf"),
        (lambda: dbm_to_w(math.nan), "dbm = nan"),
        (lambda: rate_bits_per_s("wide", 1.0), "bandwidth_hz = 'wide'"),
    ],
)
def test_impossible_inputs_are_refused_by_name_and_value(call, named):
    with pytest.raises(InputError, match=named):
        call()
