"""Who rides in a pass of streams, or how long to wait."""

import math

import pytest

from multispin.control import Verification
from multispin.control.streams import Go, Price, Ready, Ride, Wait, choose, learned

PAPER = Verification(0.02268, 0.01272)


def test_nobody_is_ready() -> None:
    assert choose([], PAPER, 100.0) == Wait(math.inf)


def test_a_session_that_brings_less_than_it_costs_waits_for_more() -> None:
    long, short = Ready(1, 8, 0.85), Ready(2, 0, 0.85, next_s=0.01, next_tokens=4)
    made = choose([long, short], PAPER, 250.0)  # a place costs 3.2 tokens
    assert isinstance(made, Go)
    assert made.rides == (Ride(1, 8),)
    assert made.pass_s == pytest.approx(0.0354)


def test_a_session_that_has_waited_longest_rides_whatever_it_brings() -> None:
    made = choose([Ready(1, 0, 0.1, must_ride=True, next_s=0.01, next_tokens=4)], PAPER, 250.0)
    assert isinstance(made, Go)
    assert made.rides == (Ride(1, 0),)


def test_the_price_is_tokens_per_second_of_late() -> None:
    price = Price()
    for _ in range(1000):
        price = learned(price, 20.0, 0.1)
    assert price.tokens_per_s == pytest.approx(200.0)
    for _ in range(100):  # ten seconds, of which five are remembered
        price = learned(price, 40.0, 0.1)
    assert 350.0 < price.tokens_per_s < 400.0
