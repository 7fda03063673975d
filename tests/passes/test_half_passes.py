"""Passes of half of the riders: when there are any, and who is left out."""

from dataclasses import replace
from itertools import pairwise

from tests.simulation.test_modes import SITES

from multispin.control.streams import Ride
from multispin.passes.half_passes import FIRST_HALF_AFTER, LAST_HALF_AFTER, SHOWN_HALF_AFTER, HalfPasses
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site

RIDES = (Ride(1, 0), Ride(2, 5), Ride(3, 2), Ride(4, 0))


def test_one_pass_of_many_that_are_alike_has_half_of_the_riders_and_ever_fewer_do() -> None:
    halves, sizes = HalfPasses(), []
    for _ in range(1000):
        rides = halves.chosen(RIDES, set())
        sizes.append(len(rides))
        halves.rode(len(rides))
    small = [k for k, size in enumerate(sizes) if size == 2]
    gaps = [b - a for a, b in pairwise(small)]
    assert small[0] <= FIRST_HALF_AFTER + 2
    assert gaps == sorted(gaps)
    assert LAST_HALF_AFTER < gaps[-1] <= LAST_HALF_AFTER + 4
    assert set(sizes) == {2, 4}


def test_passes_that_differ_by_themselves_put_the_first_one_off() -> None:
    """Users whose prompts are read one after another have shown what a session costs, so a short text is spared."""
    halves, alike = HalfPasses(), 0
    for count in (1, 2, 4):
        halves.rode(count)
    while len(halves.chosen(RIDES, set())) == 4:
        halves.rode(4)
        alike += 1
    assert SHOWN_HALF_AFTER <= alike <= SHOWN_HALF_AFTER + 10  # what is usual is known some passes later
    assert SHOWN_HALF_AFTER > 2 * FIRST_HALF_AFTER


def _due() -> HalfPasses:
    halves = HalfPasses()
    for _ in range(FIRST_HALF_AFTER + 8):
        halves.rode(4)
    return halves


def test_whoever_has_the_fewest_tokens_is_left_out_and_never_whoever_must_ride() -> None:
    assert _due().chosen(RIDES, set()) == (Ride(2, 5), Ride(3, 2))
    assert _due().chosen(RIDES, {1, 4}) == (Ride(1, 0), Ride(4, 0))
    assert _due().chosen(RIDES, {1, 2, 3, 4}) == RIDES
    assert _due().chosen(RIDES[:1], set()) == RIDES[:1]
    assert _due().chosen((), set()) == ()


def test_a_session_that_alone_may_be_left_out_is_not_left_out_of_every_pass() -> None:
    """Nine of ten must ride: leaving one out changes the count too little to show, but it counts as tried."""
    halves, rides = HalfPasses(), tuple(Ride(session, 1) for session in range(10))
    without = []
    for number in range(200):
        made = halves.chosen(rides, set(range(1, 10)))
        halves.rode(len(made))
        without += [number] if len(made) < 10 else []
    assert len(without) <= 7
    assert all(b - a > FIRST_HALF_AFTER for a, b in pairwise(without))


def test_where_the_number_of_riders_changes_by_itself_nobody_is_left_out() -> None:
    halves = HalfPasses()
    for k in range(200):
        rides = RIDES if k % 3 else RIDES[:2]
        assert halves.chosen(rides, set()) == rides
        halves.rode(len(rides))


def test_an_edge_that_takes_sessions_for_cheap_learns_what_they_cost() -> None:
    scenario = SITES["each session costs much"]
    site = Site(Setup(scenario, Behaviour(frame_bits=176)), "heterogeneous", 4, mode="auto")
    site.run(60)
    learned = site.passes.controller.beliefs.verifier()
    assert abs(learned.per_device_s / scenario.verifier.per_device_s - 1.0) < 0.1
    free = replace(scenario, verifier=replace(scenario.verifier, fixed_s=0.05, per_device_s=0.0))
    site = Site(Setup(free, Behaviour(frame_bits=176)), "heterogeneous", 4, mode="auto")
    site.run(60)
    assert site.passes.controller.beliefs.verifier().per_device_s < 0.001
