"""The emulated uplink, against hand-computed departures and a simulation in small pieces."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.radio import TokenBucket


def test_a_frame_on_an_idle_link_takes_its_size_over_the_rate():
    assert TokenBucket(1000.0).reserve(5.0, 250.0) == pytest.approx(5.25)


def test_frames_queue_one_behind_the_other():
    link = TokenBucket(1000.0)
    assert link.reserve(0.0, 500.0) == pytest.approx(0.5)
    assert link.reserve(0.2, 500.0) == pytest.approx(1.0)
    assert link.reserve(3.0, 500.0) == pytest.approx(3.5)  # idle since 1.0, and nothing saved up meanwhile


def test_a_burst_leaves_at_once_and_is_earned_back_at_the_rate():
    link = TokenBucket(100.0, burst_bits=50.0)
    assert link.reserve(0.0, 50.0) == 0.0
    assert link.reserve(0.0, 10.0) == pytest.approx(0.1)
    assert link.reserve(0.3, 20.0) == 0.3  # 20 bits earned since 0.1
    assert link.reserve(100.0, 60.0) == pytest.approx(100.1)  # never more than 50 saved


def test_a_queued_frame_goes_on_at_the_new_rate():
    link = TokenBucket(100.0)
    assert link.reserve(0.0, 100.0) == pytest.approx(1.0)
    link.set_rate(0.5, 25.0)
    assert link.rate_bits_per_s == 25.0
    assert link.departure_s(0.5) == pytest.approx(2.5)
    assert link.reserve(0.5, 25.0) == pytest.approx(3.5)


def test_a_closed_link_keeps_its_queue_until_it_opens():
    link = TokenBucket(0.0)
    assert link.reserve(1.0, 0.0) == 1.0  # nothing to send is sent
    assert link.reserve(1.0, 80.0) == math.inf
    assert link.reserve(2.0, 0.0) == math.inf  # in order: behind the frame that waits
    link.set_rate(10.0, 40.0)
    assert link.departure_s(10.0) == pytest.approx(12.0)
    assert link.departure_s(12.5) == 12.5


def test_two_links_share_nothing():
    busy, idle = TokenBucket(10.0), TokenBucket(10.0)
    busy.reserve(0.0, 1000.0)
    assert idle.reserve(0.0, 10.0) == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50), st.sampled_from([0, 1, 2, 5])), min_size=1, max_size=20),
    st.integers(0, 30),
)
def test_departures_equal_those_of_a_link_simulated_second_by_second(steps, burst_bits):
    """All times and rates are whole, so that the simulation is exact: each second serves `rate` bits."""
    link, now, rate, level = TokenBucket(1.0, burst_bits), 0, 1, burst_bits
    for pause, size, new_rate in steps:
        for _ in range(pause):
            level = min(burst_bits, level + rate)
        now, rate = now + pause, new_rate
        link.set_rate(now, rate)
        level -= size
        expected = now if level >= 0 else math.inf if rate == 0 else now - level / rate
        assert link.reserve(now, size) == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1e6)), min_size=1, max_size=20), st.floats(1.0, 1e6))
def test_no_stretch_of_time_carries_more_than_its_rate(frames, rate):
    link, now, total, earliest = TokenBucket(rate), 0.0, 0.0, 0.0
    for pause, size in frames:
        now += pause
        total += size
        departure = link.reserve(now, size)
        assert departure >= now
        assert departure >= earliest * (1 - 1e-9) - 1e-9  # in order
        assert total <= rate * departure * (1 + 1e-9) + 1e-6
        earliest = departure


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_impossible_rates_sizes_and_bursts_are_refused_by_name(bad):
    with pytest.raises(InputError, match="rate_bits_per_s"):
        TokenBucket(bad)
    with pytest.raises(InputError, match="burst_bits"):
        TokenBucket(1.0, bad)
    with pytest.raises(InputError, match="rate_bits_per_s"):
        TokenBucket(1.0).set_rate(0.0, bad)
    with pytest.raises(InputError, match="size_bits"):
        TokenBucket(1.0).reserve(0.0, bad)


def test_a_clock_that_runs_backwards_is_refused_and_changes_nothing():
    link = TokenBucket(10.0)
    link.reserve(5.0, 10.0)
    for call in (lambda: link.reserve(4.9, 1.0), lambda: link.set_rate(4.9, 1.0), lambda: link.departure_s(math.nan)):
        with pytest.raises(InputError, match="now_s"):
            call()
    assert link.departure_s(5.0) == pytest.approx(6.0)
