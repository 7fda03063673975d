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


def look(found: Prices, now_s: float, sessions: int = 4) -> None:
    found.look(dict.fromkeys(range(1, 1 + sessions), 1), edge_rooms=False, now_s=now_s)


def test_prices_that_follow_from_a_guess_are_found_again_soon_and_later_ones_after_longer() -> None:
    beliefs, times_s, worth = believed(), [], None
    found = prices(beliefs)
    for step in range(400):
        now_s = 0.01 * step
        look(found, now_s)
        if found.worth is not worth:
            worth = found.worth
            times_s.append(now_s)
        if step < 150:  # what is believed goes on changing
            beliefs.observe_verification(4, 4, 0.01 + 0.001 * step)
    gaps_s = [b - a for a, b in pairwise(times_s)]
    assert gaps_s[0] <= FIRST_PERIODS[0] * (LEAST_PERIOD_S + 0.1) + 0.01
    assert min(gaps_s[len(FIRST_PERIODS) :]) >= LEAST_PERIOD_S
    assert found.engine_tokens_per_s > 3.0  # four tokens per pass of a second: passes are shorter, as is known by now


def test_prices_stay_where_nothing_has_changed() -> None:
    found = prices(believed())
    look(found, 0.0)
    first = found.bands_hz
    look(found, 0.9 * USUAL_PERIOD_S)
    assert found.bands_hz is first
    look(found, 1.1 * USUAL_PERIOD_S)
    assert found.bands_hz is not first


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("what", ["time of a token", "time of a pass", "tokens that stand"])
def test_prices_follow_soon_what_is_believed_to_be_more_or_less(what: str, factor: float) -> None:
    beliefs = believed()
    found = prices(beliefs)

    def observe(token_s: float, pass_s: float, share: float) -> None:
        for number in range(100):
            beliefs.observe_verification(4, 4, pass_s)
            for session in range(1, 5):
                beliefs.observe_draft(session, 4, 4 * token_s, 240, 1e5, 240 / (3.0 * 1e5))
                beliefs.observe_outcome(session, 1, int(number % 10 < 10 * share))

    values = {"time of a token": 0.01, "time of a pass": 1.0, "tokens that stand": 0.4}
    observe(*values.values())
    look(found, 0.0)
    first = found.bands_hz
    look(found, 0.8 * USUAL_PERIOD_S)
    assert found.bands_hz is first
    values[what] *= factor
    observe(*values.values())
    look(found, 0.9 * USUAL_PERIOD_S)
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


def test_time_is_worth_less_as_soon_as_users_have_left() -> None:
    """Else the edge would not draft for the last of them: at the price of four it can hardly be worth the time."""
    beliefs = believed()
    found, verifier = prices(beliefs), beliefs.verifier()
    one = verifier.verify_s([0] * 4) / 4 / verifier.verify_s([0])  # of what plain decoding makes of four
    assert one < 0.5
    look(found, 0.0)
    for _ in range(50):
        found.learn(8.0, 1.0, 1.0)
        found.promise(8.0, 1.0, 1.0)
    worth, price, own = found.worth, found.engine_tokens_per_s, found.of(1).token_worth
    look(found, 0.01, sessions=1)
    assert found.worth is worth  # it is too early to ask again
    assert found.engine_tokens_per_s == pytest.approx(one * price)
    assert found.of(1).token_worth == pytest.approx(one * own)
    look(found, USUAL_PERIOD_S, sessions=1)
    assert found.worth is not worth
    assert found.engine_tokens_per_s < 0.5 * price  # and what four had made is not taken for what one makes
    look(found, USUAL_PERIOD_S + 0.01)
    assert found.engine_tokens_per_s > 0.9 * price
