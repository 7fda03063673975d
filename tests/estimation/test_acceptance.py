"""The acceptance rate: learned from censored rounds, and followed when it changes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.estimation import AcceptanceEstimator


def rounds(alpha: float, length: int, count: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """(L, n) of rounds whose tokens are accepted with probability α each, up to the first rejection."""
    return [(length, int(np.argmin(np.append(generator.random(length) < alpha, False)))) for _ in range(count)]


def learned(alpha: float, length: int, count: int, seed: int, **settings: float) -> AcceptanceEstimator:
    estimator = AcceptanceEstimator(**settings)
    for drafted, accepted in rounds(alpha, length, count, np.random.default_rng(seed)):
        estimator.observe(drafted, accepted)
    return estimator


def test_before_any_round_it_is_the_prior():
    estimator = AcceptanceEstimator(prior_rate=0.7, prior_trials=9)
    assert estimator.rate == pytest.approx(0.7)


def test_a_round_shows_its_accepted_tokens_and_one_rejection():
    estimator = AcceptanceEstimator(0.5, 2.0, math.inf)  # Beta(1, 1)
    estimator.observe(8, 3)  # 3 accepted, the 4th rejected, four more never looked at
    assert estimator.rate == pytest.approx((1 + 3) / (2 + 4))
    estimator.observe(5, 5)  # no rejection
    assert estimator.rate == pytest.approx((1 + 8) / (2 + 9))


@pytest.mark.parametrize("alpha", [0.3, 0.7129, 0.95])
@pytest.mark.parametrize("length", [1, 4, 16])
def test_it_converges_to_the_rate_whatever_the_draft_length(alpha, length):
    """At least 1000 trials, all remembered: 4 standard errors, and 4 / 1000 of bias from a prior worth four."""
    estimator = learned(alpha, length, 1000, seed=length, half_life_trials=math.inf)
    assert abs(estimator.rate - alpha) < 4 * math.sqrt(alpha * (1 - alpha) / 1000) + 0.004


def test_it_is_not_the_accepted_fraction():
    """With α = 0.7, L = 8 the mean fraction is Σ α^i / 8 = 0.275, far outside the tolerance around α."""
    estimator = learned(0.7, 8, 400, seed=5)
    assert abs(estimator.rate - 0.7) < 0.15


def test_a_change_of_task_is_followed_and_an_unforgetful_estimator_is_not():
    """Five half-lives after the change 3 % of the old evidence is left; four deviations of √(α(1−α)/289) are 0.07."""
    generator = np.random.default_rng(2)
    before, after = rounds(0.9, 4, 300, generator), rounds(0.4, 4, 400, generator)
    forgetful, unforgetful = AcceptanceEstimator(), AcceptanceEstimator(half_life_trials=math.inf)
    for drafted, accepted in before + after:
        forgetful.observe(drafted, accepted)
        unforgetful.observe(drafted, accepted)
    assert abs(forgetful.rate - 0.4) < 0.12
    assert unforgetful.rate > 0.6


def test_an_observation_counts_half_after_a_half_life():
    """A certain prior is out of the way at weight 1; ten failures, then ten successes with half-life ten."""
    estimator = AcceptanceEstimator(0.5, 1.0, half_life_trials=10.0)
    failures = successes = 0.0
    for _ in range(10):
        estimator.observe(1, 0)
        failures = failures * 0.5**0.1 + 1
    for _ in range(10):
        estimator.observe(1, 1)
        successes = successes * 0.5**0.1 + 1
    assert estimator.rate == pytest.approx((successes + 0.5) / (failures / 2 + successes + 1))


@given(st.lists(st.integers(0, 32).flatmap(lambda length: st.tuples(st.just(length), st.integers(0, length)))))
def test_it_stays_a_probability(observations):
    estimator = AcceptanceEstimator()
    for drafted, accepted in observations:
        estimator.observe(drafted, accepted)
    assert 0 < estimator.rate < 1


@pytest.mark.parametrize("accepted", [0, 4])
def test_it_never_reaches_zero_or_one(accepted):
    estimator = AcceptanceEstimator()
    for _ in range(20_000):
        estimator.observe(4, accepted)
    assert 0.001 < estimator.rate < 0.999
    assert (estimator.rate > 0.99) == (accepted == 4)


def test_rounds_without_drafts_say_nothing_and_forget_nothing():
    estimator = learned(0.8, 4, 20, seed=0)
    before = (estimator.rate, estimator.trials)
    for _ in range(1000):
        estimator.observe(0, 0)
    assert (estimator.rate, estimator.trials) == before


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: AcceptanceEstimator().observe(-1, 0), "drafted is -1"),
        (lambda: AcceptanceEstimator().observe(3, 4), "accepted is 4"),
        (lambda: AcceptanceEstimator().observe(3, -1), "accepted is -1"),
        (lambda: AcceptanceEstimator(prior_rate=1.0), "prior_rate is 1.0"),
        (lambda: AcceptanceEstimator(prior_trials=0.5), "prior_trials is 0.5"),
        (lambda: AcceptanceEstimator(prior_trials=math.inf), "prior_trials is inf"),
        (lambda: AcceptanceEstimator(half_life_trials=0.0), "half_life_trials is 0.0"),
        (lambda: AcceptanceEstimator(half_life_trials=math.nan), "half_life_trials is nan"),
    ],
)
def test_impossible_inputs_are_refused_by_name_and_value(call, named):
    with pytest.raises(InputError, match=named):
        call()
