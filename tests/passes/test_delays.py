"""How long the next pass was waited for, and how much longer it may be put off."""

import math

import pytest

from multispin.control.streams import Go, Ride, Wait
from multispin.passes.delays import MOST_WAIT, MOST_WAIT_FOR_ALL, Delays

GO = Go((Ride(1, 4),), 3.0, 0.1)
PASS_S = 0.2


def test_all_waits_for_one_pass_together_are_bounded():
    delays = Delays()
    assert delays.patience(5.0, PASS_S) == (MOST_WAIT * PASS_S, MOST_WAIT_FOR_ALL * PASS_S)
    delays.decided(Wait(0.01, puts_off=True), True, 5.0)
    delays.decided(Wait(0.01, puts_off=True), True, 5.01)
    few_s, all_s = delays.patience(5.02, PASS_S)
    assert few_s == pytest.approx(MOST_WAIT * PASS_S - 0.02)
    assert all_s == pytest.approx(MOST_WAIT_FOR_ALL * PASS_S - 0.02)
    delays.decided(GO, True, 5.02)
    assert delays.patience(5.3, PASS_S) == (MOST_WAIT * PASS_S, MOST_WAIT_FOR_ALL * PASS_S)


def test_a_choice_to_wait_holds_though_fewer_are_awaited_by_now():
    delays = Delays()
    delays.decided(Wait(0.1, puts_off=True), True, 5.0)  # longer than for a few
    assert delays.patience(5.04, PASS_S)[0] == pytest.approx(0.06)


def test_a_pass_was_waited_for_since_anybody_could_ride():
    delays = Delays()
    assert delays.decided(GO, True, 1.0) == 0.0
    delays.decided(Wait(math.inf), False, 2.0)
    delays.decided(Wait(0.1), True, 3.0)
    delays.decided(Wait(0.1), True, 3.1)
    assert delays.decided(GO, True, 3.25) == pytest.approx(0.25)
    delays.decided(Wait(0.1), True, 4.0)
    delays.decided(Wait(math.inf), False, 4.1)
    assert delays.decided(GO, True, 4.3) == 0.0
