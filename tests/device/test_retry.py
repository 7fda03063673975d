from multispin.device.retry import Backoff


def test_delays_double_up_to_a_limit_and_end():
    backoff = Backoff(attempts=5, first_s=1.0, longest_s=4.0)
    assert [backoff.next_delay_s() for _ in range(6)] == [1.0, 2.0, 4.0, 4.0, 4.0, None]


def test_a_success_starts_over_with_as_many_attempts_as_it_earns():
    backoff = Backoff(attempts=1)
    assert backoff.next_delay_s() == 0.1
    assert backoff.next_delay_s() is None
    backoff.reset(2)
    assert [backoff.next_delay_s() for _ in range(3)] == [0.1, 0.2, None]
