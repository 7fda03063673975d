"""Rate and delay of a link, told apart from frames of different sizes."""

import random

import pytest

from multispin.errors import InputError
from multispin.estimation import RoundTripEstimator


def learned(delay_s, efficiency, lengths, stalls=0.0, frames=80, claimed=4.0):
    found, rng = RoundTripEstimator(claimed), random.Random(2)
    for _ in range(frames):
        bits, band_hz = 176 + 16 * rng.choice(lengths), 2000.0
        seconds = (delay_s + bits / (band_hz * efficiency)) * rng.uniform(0.98, 1.02)
        found.observe(bits, band_hz, seconds * (20.0 if rng.random() < stalls else 1.0))
    return found


@pytest.mark.parametrize(("delay_s", "efficiency"), [(0.05, 4.0), (0.0, 2.0), (0.2, 8.0)])
def test_frames_of_different_sizes_tell_delay_from_rate(delay_s, efficiency):
    found = learned(delay_s, efficiency, (1, 8, 32, 63))
    assert found.delay_s == pytest.approx(delay_s, abs=0.02)
    assert found.spectral_efficiency == pytest.approx(efficiency, rel=0.25)


def test_frames_of_one_size_leave_the_claimed_rate_and_the_rest_is_delay():
    found = learned(0.05, 4.0, (4,))
    assert found.spectral_efficiency == pytest.approx(4.0, rel=0.05)
    assert found.delay_s == pytest.approx(0.05, rel=0.1)


def test_a_link_that_is_better_than_claimed_has_no_negative_delay():
    found = learned(0.0, 8.0, (4,))
    assert found.delay_s == 0.0
    assert found.spectral_efficiency == pytest.approx(8.0, rel=0.1)


def test_a_few_stalls_move_nothing():
    calm, stalled = learned(0.05, 4.0, (1, 32, 63)), learned(0.05, 4.0, (1, 32, 63), stalls=0.1)
    together = [each.delay_s + 300 / (2000.0 * each.spectral_efficiency) for each in (calm, stalled)]
    assert together[1] == pytest.approx(together[0], rel=0.25)


def test_before_any_frame_the_claim_is_believed_and_nonsense_is_refused():
    assert RoundTripEstimator(3.0).spectral_efficiency == pytest.approx(3.0)
    assert RoundTripEstimator(3.0).delay_s == 0.0
    with pytest.raises(InputError, match="prior_spectral_efficiency"):
        RoundTripEstimator(0.0)
    with pytest.raises(InputError, match="seconds"):
        RoundTripEstimator(1.0).observe(10.0, 1.0, float("nan"))


def drafted(untold_s, jitter, lengths=range(3, 9), delay_s=0.03, claimed=4.0, seed=1, frames=60):
    """A device that takes `untold_s` per token longer than it says, over a link whose times jitter by so much."""
    found, rng = RoundTripEstimator(claimed), random.Random(seed)
    for _ in range(frames):
        length = rng.choice(lengths)
        bits = 176 + 16 * length
        seconds = (delay_s + bits / (1e5 * claimed) + untold_s * length) * (1.0 + jitter * rng.random())
        found.observe(bits, 1e5, seconds, length)
    return found


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_drafting_that_is_not_told_is_no_delay(jitter):
    found = drafted(0.01, jitter)
    assert found.untold_s_per_token == pytest.approx(0.01, rel=0.3)
    assert found.delay_s == pytest.approx(0.03, abs=0.02)


def test_the_jitter_of_an_honest_link_is_hardly_taken_for_drafting():
    found = [drafted(0.0, 1.0, seed=seed).untold_s_per_token for seed in range(20)]
    assert sum(found) / len(found) < 5e-4  # of the 6e-3 s per token that a device takes


def test_what_was_found_of_drafting_stays_while_lengths_do_not_differ():
    found = drafted(0.01, 0.0)
    assert found.untold_s_per_token == pytest.approx(0.01, rel=0.1)
    for _ in range(40):
        found.observe(176 + 16 * 5, 1e5, 0.03 + 256 / 4e5 + 0.05, 5)
    assert found.untold_s_per_token == pytest.approx(0.01, rel=0.1)
