import pytest

from multispin.device import Patience, Retries
from multispin.errors import InputError

PATIENCE = Patience(at_first_s=10.0, once_known_s=100.0, first_delay_s=1.0, longest_delay_s=4.0)


def longest(patience=PATIENCE):
    return Retries(patience, lambda: 1.0)


def test_delays_double_up_to_a_limit_and_end_when_patience_does():
    retries, now_s, delays = longest(), 0.0, []
    while (delay_s := retries.delay_s(now_s)) is not None:
        delays.append(delay_s)
        now_s += delay_s
    assert delays == [1.0, 2.0, 4.0, 3.0]
    assert now_s == PATIENCE.at_first_s


def test_chance_spreads_the_delays_over_half_of_their_length():
    assert Retries(PATIENCE, lambda: 0.0).delay_s(0.0) == 0.5
    assert Retries(PATIENCE, lambda: 0.5).delay_s(0.0) == 0.75


def test_an_edge_that_has_answered_is_waited_for_longer():
    retries = longest()
    retries.welcomed(0.0)
    assert retries.limit_s == 100.0
    assert retries.delay_s(0.0) is not None
    assert retries.delay_s(99.0) is not None
    assert retries.delay_s(100.0) is None


def test_a_mere_greeting_starts_nothing_over_and_progress_does():
    retries, now_s, attempts = longest(), 0.0, 0
    while (delay_s := retries.delay_s(now_s)) is not None:  # welcomed and dropped, again and again
        now_s += delay_s
        retries.welcomed(now_s)
        attempts += 1
    assert attempts == 27
    retries.progressed()
    retries.welcomed(now_s)
    assert retries.delay_s(now_s) == 1.0


def test_time_on_a_connection_does_not_count():
    retries = longest()
    retries.welcomed(0.0)
    assert retries.delay_s(0.0) == 1.0
    retries.welcomed(1.0)
    assert retries.delay_s(10_000.0) == 2.0  # it waited that long for its turn


def test_silence_counts_until_the_same_session_hears_that_passes_go_on():
    retries = longest()
    retries.welcomed(0.0)
    assert retries.delay_s(0.0) == 1.0
    retries.welcomed(10.0)  # 10 s without an edge
    retries.silent_since(1000.0, 1060.0)
    retries.delay_s(1060.0)
    retries.welcomed(1061.0)  # 61 s more, 1 of them without a connection
    retries.passes_go_on()
    assert retries.delay_s(2000.0) is not None
    assert retries.delay_s(2000.0 + 100.0 - 11.0) is None


def test_the_next_session_says_nothing_of_the_silence_before_it():
    retries = longest()
    retries.welcomed(0.0)
    retries.silent_since(0.0, 60.0)
    retries.delay_s(60.0)
    retries.session_ended()
    retries.welcomed(60.0)
    retries.passes_go_on()
    retries.silent_since(1000.0, 1040.0)
    assert retries.delay_s(1040.0) is None


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_patience_that_cannot_be_is_refused(value):
    with pytest.raises(InputError, match=r"once_known_s = .* is outside"):
        Patience(once_known_s=value)
