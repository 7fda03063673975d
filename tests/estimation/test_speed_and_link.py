"""Draft speed and link efficiency, and the forgotten median that both are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.estimation import DraftSpeedEstimator, LinkEstimator
from multispin.estimation.forgetting import ForgettingMedian, forgetting_weights, weighted_median


def test_the_weighted_median_by_hand():
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.ones(3)) == 2.0
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([5.0, 1.0, 1.0])) == 3.0
    assert weighted_median(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == 1.0  # the lower one in a tie


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=20))
def test_at_most_half_of_the_weight_lies_on_either_side_of_the_weighted_median(pairs):
    values, weights = np.array(pairs).T
    median = weighted_median(values, weights)
    half = weights.sum() / 2 * (1 + 1e-9)
    assert weights[values < median].sum() <= half
    assert weights[values > median].sum() <= half


def test_before_any_observation_it_is_the_prior():
    assert ForgettingMedian(prior=0.02, prior_weight=2.0).value == pytest.approx(0.02)


def test_speed_converges_from_a_prior_that_is_wrong_tenfold():
    """Log-noise 0.1, effective size ≈ 23: the median's deviation is 1.25 · 0.1 / √23 = 2.6 %; 15 % is over five."""
    generator = np.random.default_rng(0)
    estimator = DraftSpeedEstimator(prior_seconds_per_token=0.1)
    for _ in range(60):
        drafted = int(generator.integers(1, 9))
        estimator.observe(drafted, drafted * 0.01 * math.exp(0.1 * generator.normal()))
    assert estimator.seconds_per_token == pytest.approx(0.01, rel=0.15)


def test_link_converges_whatever_the_band_and_the_frame():
    generator = np.random.default_rng(1)
    estimator = LinkEstimator(prior_spectral_efficiency=1.0)
    for _ in range(60):
        bits, band_hz = float(generator.uniform(100, 1000)), float(generator.uniform(1e3, 1e5))
        estimator.observe(bits, band_hz, bits / (band_hz * 6.5) * math.exp(0.1 * generator.normal()))
    assert estimator.spectral_efficiency == pytest.approx(6.5, rel=0.15)


def test_a_slow_first_call_does_not_count():
    estimator = DraftSpeedEstimator(prior_seconds_per_token=0.01)
    estimator.observe(4, 4 * 1.0)
    assert estimator.seconds_per_token == pytest.approx(0.01)
    estimator.observe(4, 4 * 0.012)
    assert estimator.seconds_per_token < 0.013


def test_stalls_in_one_round_of_five_shift_it_by_less_than_a_deviation_of_the_noise():
    """With 20 % at one end the median moves to the 62nd percentile of the rest, 0.32 · 5 %; 10 % leaves room."""
    generator = np.random.default_rng(2)
    estimator = DraftSpeedEstimator(prior_seconds_per_token=0.01, half_life_rounds=20)
    for number in range(200):
        stall = 20.0 if number % 5 == 0 else 1.0
        estimator.observe(4, 4 * 0.01 * stall * math.exp(0.05 * generator.normal()))
        if number > 20:
            assert estimator.seconds_per_token == pytest.approx(0.01, rel=0.1)


def test_a_lasting_change_is_followed_after_one_half_life():
    estimator = DraftSpeedEstimator(prior_seconds_per_token=0.01, half_life_rounds=8)
    for _ in range(100):
        estimator.observe(4, 4 * 0.01)
    for number in range(1, 10):
        estimator.observe(4, 4 * 0.03)
        if number < 7:
            assert estimator.seconds_per_token == pytest.approx(0.01)
    assert estimator.seconds_per_token == pytest.approx(0.03)


def test_nothing_drafted_or_sent_says_nothing():
    speed, link = DraftSpeedEstimator(0.01), LinkEstimator(5.0)
    speed.observe(0, 1.0)
    link.observe(0, 1e4, 1.0)
    link.observe(100, 0.0, 1.0)
    assert speed.seconds_per_token == pytest.approx(0.01)
    assert link.spectral_efficiency == pytest.approx(5.0)


def test_a_clock_too_coarse_for_one_round_does_no_harm():
    speed, link = DraftSpeedEstimator(0.01), LinkEstimator(5.0)
    for _ in range(10):
        speed.observe(4, 4 * 0.01)
        link.observe(100, 10.0, 2.0)
    speed.observe(4, 0.0)
    link.observe(100, 10.0, 0.0)
    assert speed.seconds_per_token == pytest.approx(0.01)
    assert link.spectral_efficiency == pytest.approx(5.0)


@given(st.lists(st.tuples(st.integers(0, 32), st.floats(0, 1e6)), max_size=40))
def test_it_stays_within_what_was_seen(observations):
    estimator = DraftSpeedEstimator(0.01)
    for drafted, seconds in observations:
        estimator.observe(drafted, seconds)
    seen = [0.01] + [max(seconds, 1e-9) / drafted for drafted, seconds in observations if drafted]
    assert min(seen) * (1 - 1e-9) <= estimator.seconds_per_token <= max(seen) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: DraftSpeedEstimator(0.0), "prior_seconds_per_token is 0.0"),
        (lambda: DraftSpeedEstimator(0.1, half_life_rounds=-1), "half_life_rounds is -1"),
        (lambda: DraftSpeedEstimator(0.1).observe(-1, 1.0), "drafted is -1"),
        (lambda: DraftSpeedEstimator(0.1).observe(1, -1.0), "seconds is -1.0"),
        (lambda: DraftSpeedEstimator(0.1).observe(1, math.inf), "seconds is inf"),
        (lambda: LinkEstimator(-1.0), "prior_spectral_efficiency is -1.0"),
        (lambda: LinkEstimator(1.0, half_life_frames=0.0), "half_life_frames is 0.0"),
        (lambda: LinkEstimator(1.0).observe(-1, 1.0, 1.0), "bits is -1"),
        (lambda: LinkEstimator(1.0).observe(1, math.nan, 1.0), "bandwidth_hz is nan"),
        (lambda: LinkEstimator(1.0).observe(1, 1.0, -1.0), "seconds is -1.0"),
        (lambda: ForgettingMedian(1.0).observe(0.0), "value is 0.0"),
        (lambda: ForgettingMedian(1.0, prior_weight=0.0), "prior_weight is 0.0"),
    ],
)
def test_impossible_inputs_are_refused_by_name_and_value(call, named):
    with pytest.raises(InputError, match=named):
        call()


def test_the_median_kept_up_to_date_is_that_of_the_whole_window():
    random = np.random.default_rng(0)
    median, seen = ForgettingMedian(1.0, half_life=8.0), []
    for step in range(1, 300):
        value = float(random.choice([1.0, 2.0, random.lognormal()]))  # ties, too
        median.observe(value)
        seen = [*seen, np.log(value)][-64:]
        weights = np.append(forgetting_weights(len(seen), 8.0), 2.0 * 0.5 ** (step / 8.0))
        assert median.value == pytest.approx(np.exp(weighted_median(np.array([*seen, 0.0]), weights)), rel=1e-12)


def test_delay_is_what_no_frame_was_without():
    link = LinkEstimator(prior_spectral_efficiency=4.0)
    link.observe(100, 1e3, 100 / 4e3 + 0.5)
    assert link.delay_s == 0.0  # a single frame may have been sent in a bad moment
    for bits in (100, 200, 150):
        link.observe(bits, 1e3, bits / 4e3 + 0.5)
    assert link.delay_s == pytest.approx(0.5)
    assert link.spectral_efficiency == pytest.approx(4.0)
    at_once = LinkEstimator(prior_spectral_efficiency=4.0, least_frames=1)
    at_once.observe(100, 1e3, 100 / 4e3 + 0.5)
    assert at_once.delay_s == pytest.approx(0.5)


def test_bad_moments_of_a_fading_link_are_no_delay():
    """Rayleigh fading: power is exponential. The chance that none of 24 frames is above the mean is (1 − 1/e)^24."""
    generator = np.random.default_rng(3)
    link = LinkEstimator(prior_spectral_efficiency=4.0)
    for power in generator.exponential(size=24):
        link.observe(300, 1e3, 300 / (4e3 * power))
    assert link.delay_s == 0.0
    assert link.spectral_efficiency == pytest.approx(4.0 * math.log(2.0), rel=0.5)
