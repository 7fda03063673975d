"""Prices of streams: when they are found anew."""

from itertools import pairwise

import pytest

from multispin.passes.beliefs import LearnedBeliefs
from multispin.passes.planning import FIRST_PERIODS, LEAST_PERIOD_S
from multispin.passes.prices import USUAL_PERIOD_S, Prices
from multispin.passes.settings import ControllerSettings


def believed(pass_s: float = 1.0) -> LearnedBeliefs:
    """Four devices of whom nothing is known but what they say, and a pass that is believed to take long."""
    beliefs = LearnedBeliefs(16, 8)
    for session in range(1, 5):
        beliefs.join(session, 0.01, 3.0)
    beliefs.observe_verification(4, 4, pass_s)
    return beliefs


def prices(beliefs: LearnedBeliefs) -> Prices:
    return Prices(ControllerSettings("heterogeneous", 1e6, 16, 8, mode="auto"), beliefs)


def look(found: Prices, now_s: float) -> None:
    found.look(dict.fromkeys(range(1, 5), 1), edge_rooms=False, now_s=now_s)


def test_prices_that_follow_from_a_guess_are_found_again_soon_and_later_ones_after_longer() -> None:
    """An edge that takes its passes for a hundred times as long takes its time for cheap until it asks again."""
    beliefs, times_s, price = believed(), [], 0.0
    found = prices(beliefs)
    for step in range(400):
        now_s = 0.01 * step
        look(found, now_s)
        if found.engine_tokens_per_s != price:
            price = found.engine_tokens_per_s
            times_s.append(now_s)
        if step < 150:  # what is believed goes on changing
            beliefs.observe_verification(4, 4, 0.01 + 0.001 * step)
    gaps_s = [b - a for a, b in pairwise(times_s)]
    assert gaps_s[0] <= FIRST_PERIODS[0] * (LEAST_PERIOD_S + 0.1) + 0.01
    assert min(gaps_s[len(FIRST_PERIODS) :]) >= LEAST_PERIOD_S
    assert price > 3.0  # four tokens per pass of a second: it is known by now that passes are shorter


def test_prices_stay_where_nothing_has_changed() -> None:
    found = prices(believed())
    look(found, 0.0)
    first = found.bands_hz
    look(found, 0.9 * USUAL_PERIOD_S)
    assert found.bands_hz is first
    look(found, 1.1 * USUAL_PERIOD_S)
    assert found.bands_hz is not first


def test_the_time_of_devices_that_add_nothing_is_worth_nothing_until_they_add_something() -> None:
    found = prices(believed(pass_s=0.02))
    look(found, 0.0)
    dear, engine = found.of(1).token_worth, found.engine_tokens_per_s
    assert dear > 0.0
    assert found.worth is not None
    alone, most = found.worth.alone_tokens_per_s, found.worth.most_tokens_per_s
    found.promise(0.9 * alone, 1.0, 1.0)
    assert found.of(1).token_worth == found.of(1).restart_worth == 0.0
    assert found.engine_tokens_per_s > engine
    for _ in range(300):
        found.promise(most, 1.0, 1.0)
    assert found.of(1).token_worth == pytest.approx(dear)
    assert found.engine_tokens_per_s == pytest.approx(engine)
