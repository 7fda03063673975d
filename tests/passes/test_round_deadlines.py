"""The deadline of a round, learned from how late drafts have been."""

from dataclasses import replace

import pytest

from multispin.paper.cell import CALIBRATED, PAIRS, realise, scenario_of_means
from multispin.passes import Limits
from multispin.passes.round_deadlines import RoundDeadlines
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.study import SimulatedRun, simulate

LIMITS = Limits(deadline_factor=2.0, deadline_slack_s=0.5)


def seen(lateness, limits=LIMITS, devices=4):
    patience = RoundDeadlines(limits)
    for turn, ratio in enumerate(lateness):
        patience.observe(turn % devices, 0.2, 0.2 * ratio)
    return patience


def test_before_enough_is_seen_a_round_waits_as_long_as_the_limits_allow():
    assert seen([1.0] * 5).wait_s(4, 0.2, 0.3) == pytest.approx(2.0 * 0.2 + 0.5)


def test_no_deadline_is_later_than_the_limits_allow():
    assert seen([1.0, 9.0] * 32).wait_s(4, 0.2, 100.0) == pytest.approx(2.0 * 0.2 + 0.5)
    assert seen([1.0] * 64).wait_s(4, 0.2, 0.3) < 0.25


def test_a_fixed_deadline_may_be_asked_for():
    assert seen([1.0] * 64, replace(LIMITS, choose_deadline=False)).wait_s(4, 0.2, 0.3) == pytest.approx(0.9)


def test_old_lateness_is_forgotten():
    patience = seen([3.0] * 256)
    slow = patience.wait_s(4, 0.2, 0.3)
    for _ in range(256):
        patience.observe(0, 0.2, 0.2)
    assert patience.wait_s(4, 0.2, 0.3) < slow / 2


def test_one_device_that_is_always_late_holds_up_no_round():
    late_one = [1.0, 1.0, 1.0, 1.0, 30.0] * 50
    assert seen(late_one, Limits(deadline_factor=1000.0), 5).wait_s(5, 0.2, 0.3) == pytest.approx(0.2 * 1.05)


@pytest.mark.parametrize("ratio", [1.5, 1.8, 2.5])
def test_one_device_that_stays_just_within_what_a_round_tolerates_holds_up_no_round(ratio):
    """A fifth of all drafts is its own, so that waiting would seem to pay if each draft were a draw from all."""
    waited_s = seen([1.0, 1.0, 1.0, 1.0, ratio] * 50, devices=5).wait_s(5, 0.2, 0.2)
    assert waited_s == pytest.approx(0.2 * 1.05)


def test_a_device_that_is_hardly_later_than_the_others_is_awaited():
    assert seen([1.0, 1.0, 1.0, 1.0, 1.1] * 50, devices=5).wait_s(5, 0.2, 0.4) == pytest.approx(0.2 * 1.15)


def test_where_everybody_is_late_now_and_then_a_round_waits_as_for_draws_from_all():
    draws = [1.0, 1.0, 1.6, 1.0, 1.0, 1.0, 1.3] * 40
    one = seen(draws, devices=1).wait_s(5, 0.2, 0.2)
    assert seen(draws, devices=5).wait_s(5, 0.2, 0.2) == pytest.approx(one)


@pytest.mark.long
@pytest.mark.parametrize("what", [{"straggler_probability": 0.05, "straggler_delay_s": 2.0}, {"fading": "rayleigh"}])
def test_a_chosen_deadline_makes_more_than_a_fixed_one(what):
    truth = scenario_of_means(PAIRS["llama"], CALIBRATED["llama"], realise(1, 0, 1))

    def goodput(choose, knows):
        setup = Setup(truth, Behaviour(**what, choose_deadline=choose))
        return simulate(SimulatedRun(setup, "heterogeneous", 1, 60, knows=knows)).goodput_tokens_per_s

    knows = "straggler_delay_s" in what  # an unknown channel is what makes drafts late otherwise
    assert goodput(True, knows) > 1.15 * goodput(False, knows)


def test_where_nobody_is_late_a_chosen_deadline_changes_nothing():
    truth = scenario_of_means(PAIRS["llama"], CALIBRATED["llama"], realise(1, 0, 1))
    runs = [
        simulate(SimulatedRun(Setup(truth, Behaviour(choose_deadline=choose)), "heterogeneous", 1, 40, knows=True))
        for choose in (True, False)
    ]
    assert runs[0] == runs[1]
