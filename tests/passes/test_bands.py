"""Bands of streams: never more than there is, by the best rates, and told anew only where it matters."""

import random

import pytest

from multispin.control import load_scenario
from multispin.control.exact.fluid import fluid
from multispin.control.worth import worth
from multispin.data import scenario_path
from multispin.passes.bands import EVEN, SPARE, Bands


def test_before_the_best_rates_are_known_everybody_has_the_same():
    bands = Bands(1000.0)
    assert bands.look([1], None)
    assert bands.look([1, 2, 3], None)
    assert not bands.look([1, 2, 3], None)
    assert [bands.of(k) for k in (1, 2, 3, 4)] == pytest.approx([1000 / 3] * 3 + [0.0])


def test_the_split_is_that_of_the_solver_but_for_an_even_part():
    scenario = load_scenario(scenario_path("paper-qwen"))
    best = {k: made.bandwidth_hz for k, made in enumerate(worth(scenario).sessions)}
    assert list(best.values()) == [made.bandwidth_hz for made in fluid(scenario).devices]
    whole_hz = scenario.cell.bandwidth_hz
    bands = Bands(whole_hz)
    bands.look(list(best), None)
    assert bands.look(list(best), best)
    for k, hz in best.items():
        even = whole_hz / len(best)
        assert bands.of(k) == pytest.approx((1 - SPARE) * (EVEN * even + (1 - EVEN) * hz))
    assert max(best.values()) > 5 * min(best.values())  # else this would show nothing


def test_a_split_that_hardly_differs_is_not_made():
    bands = Bands(1000.0)
    bands.look([1, 2], {1: 400.0, 2: 600.0})
    before = [bands.of(1), bands.of(2)]
    assert not bands.look([1, 2], {1: 420.0, 2: 580.0})
    assert [bands.of(1), bands.of(2)] == before
    assert bands.look([1, 2], {1: 800.0, 2: 200.0})
    assert bands.of(1) > bands.of(2) > 0.0


def test_who_comes_has_a_share_at_once_and_of_many_nobody_else_hears():
    best = dict.fromkeys(range(200), 5.0)
    bands = Bands(1000.0)
    bands.look(list(best), best)
    assert not bands.look([*best, 200, 201], best)
    assert bands.of(200) >= 2.5
    few = Bands(1000.0)
    few.look([1], found := {1: 1000.0})
    assert few.look([1, 2], found)  # what is spare is too little for one of two
    assert few.of(2) == pytest.approx(few.of(1))


def test_shares_are_never_more_than_the_band_whoever_comes_and_goes():
    rng = random.Random(1)
    bands, there, best = Bands(1000.0), set(), None
    for step in range(600):
        there ^= {rng.randrange(30)}
        if rng.random() < 0.2:
            best = {k: rng.choice([0.0, rng.random()]) for k in there}
        changed = {k: bands.of(k) for k in there}
        told = bands.look(sorted(there), best if step > 50 else None)
        assert told or all(bands.of(k) == hz for k, hz in changed.items() if hz)
        assert sum(bands.of(k) for k in range(30)) <= 1000.0 * (1 + 1e-9)
        assert all(bands.of(k) > 0.0 for k in there)


def test_who_has_gone_in_the_middle_of_a_trial_keeps_nothing_of_the_band():
    bands = Bands(1000.0)
    bands.look([1, 2], {1: 400.0, 2: 600.0})
    for session in range(100, 200):
        assert bands.lend(session)
        assert bands.of(session) == pytest.approx(0.5 * SPARE * 1000.0)
        bands.take_back_but_from(set())
    assert bands.lend(3)
    bands.take_back_but_from({3})
    assert bands.of(3) > 0.0


def test_where_devices_wait_for_trials_some_of_the_band_is_spare_again_when_it_is_split_next():
    bands = Bands(1000.0)
    bands.look([1], {1: 1000.0})
    bands.give_up(1)  # it rests
    assert bands.lend(1)
    bands.take_back(1)
    bands.look([2], found := {1: 500.0, 2: 500.0})  # alone, it has the whole band
    assert bands.of(2) == 1000.0 * (1 - SPARE)
    bands.look([], found)
    bands.give_up(2)
    bands.look([3], found)
    assert bands.of(3) == 1000.0
    assert not bands.lend(1)
    assert not bands.look([3], {3: 1000.0})  # nobody waits
    assert not bands.lend(1)
    assert bands.look([3], {3: 1000.0}, lends=True)
    assert bands.lend(1)
    assert bands.of(3) + bands.of(1) <= 1000.0


def test_where_most_rest_a_trial_has_half_of_what_they_gave_up_until_the_band_is_split_anew():
    bands, best = Bands(1000.0), {1: 200.0, 2: 300.0, 3: 500.0}
    bands.look([1, 2, 3], best)
    bands.give_up(1)
    bands.give_up(3)
    left_hz = 1000.0 - bands.of(2)
    assert bands.lend(1)
    assert bands.of(1) == pytest.approx(0.5 * left_hz)
    assert bands.lend(3)
    assert bands.of(3) == pytest.approx(0.25 * left_hz)
    assert bands.look([2, 4, 5], dict.fromkeys((2, 4, 5), 100.0))
    assert sum(bands.of(session) for session in range(1, 6)) <= 1000.0 * (1 + 1e-9)
    assert bands.of(1) > bands.of(3) > 0.0
