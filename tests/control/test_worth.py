"""What time is worth at a site in streams, and what was learned of it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.control.fairness import fair_weights
from multispin.control.streams import Candidate, Go, Ride, choose
from multispin.control.worth import DEVICES_ATTAIN, Price, SessionWorth, Worth, learned_price, worth

PAPER = Verification(0.02268, 0.01272)


def test_the_price_is_tokens_per_second_of_late() -> None:
    price = Price()
    for _ in range(1000):
        price = learned_price(price, 20.0, 0.1)
    assert price.tokens_per_s == pytest.approx(200.0)
    for _ in range(100):  # ten seconds, of which five are remembered
        price = learned_price(price, 40.0, 0.1)
    assert 350.0 < price.tokens_per_s < 400.0


@pytest.mark.parametrize("slower", [1.0, 10.0])
def test_a_site_that_is_played_more_slowly_remembers_as_many_passes(slower: float) -> None:
    """Passes of a quarter of a second: fifty of them forget three quarters of what was, at any speed."""
    price, pass_s = Price(), 0.25 * slower
    for tokens, passes in ((20.0, 1000), (40.0, 50)):
        for _ in range(passes):
            price = learned_price(price, tokens, pass_s, pass_s)
    assert price.tokens_per_s * pass_s == pytest.approx(40.0 - 20.0 * math.exp(-50.0 / 36.0), rel=1e-3)


def site(edge: EdgeDrafter | None = None) -> Scenario:
    devices = tuple(Device(f"d{k}", 0.006, 3.0, 0.6 + 0.02 * k) for k in range(12))
    return Scenario(Cell(1e6, 60, 25, 0), PAPER, devices, edge)


def test_prices_never_add_up_to_less_than_the_edge_alone_makes() -> None:
    made = worth(site())
    assert made.alone_tokens_per_s == pytest.approx(12 / PAPER.verify_s([0] * 12))
    assert made.price(0.0) >= made.engine_share * made.alone_tokens_per_s
    assert made.price(0.0) <= made.price(made.most_tokens_per_s) == made.price(1e9)
    drafted = worth(site(EdgeDrafter(0.001, 0.0, 0.9)))
    assert drafted.alone_tokens_per_s > made.alone_tokens_per_s
    assert sum(each.bandwidth_hz for each in drafted.sessions) == pytest.approx(1e6)
    idle = worth(replace(site(), devices=tuple(replace(each, max_draft_length=0) for each in site().devices)))
    assert idle.price(0.0) == pytest.approx(idle.alone_tokens_per_s)  # nobody else earns anything


@pytest.mark.parametrize("alone", [20.0, 60.0, 90.0])
@pytest.mark.parametrize("seen", [0.0, 80.0, 95.0, 200.0])
def test_the_prices_of_the_engine_and_of_the_devices_rise_and_fall_together(alone: float, seen: float) -> None:
    """Where the edge alone makes nearly what it makes with its devices, their time is not worth nothing beside it."""
    made = Worth(0.5, 100.0, alone, (SessionWorth(1.0, 0.1, 2.0, 1.0),))
    goodput = min(max(seen, 75.0, alone), 100.0)
    assert made.price(seen) == pytest.approx(0.5 * goodput)
    assert made.sessions[0].scaled(made.scale(seen)).restart_worth == pytest.approx(2.0 * goodput / 100.0)


def test_what_the_edges_drafter_would_give_is_no_floor() -> None:
    plain_per_s = 1.0 / PAPER.verify_s([0] * 12)
    made = worth(site(EdgeDrafter(0.001, 0.0, 0.9)))
    floors = [each.least_tokens_per_s for each in made.sessions]
    assert floors == pytest.approx([plain_per_s] * 12)


def test_prices_count_a_session_by_its_weight() -> None:
    devices = site().devices
    made = worth(Scenario(Cell(1e6, 60, 25, 0), PAPER, (Device("d0", 0.006, 3.0, 0.6, weight=3.0), *devices[1:])))
    assert [each.weight for each in made.sessions[:2]] == [3.0, 1.0]
    ready = [Candidate(k, 2, 0.6, worth=SessionWorth(weight=weight)) for k, weight in enumerate((3.0, 1.0))]
    decided = choose(ready, PAPER, 200.0)  # a ride costs 2.5 tokens, and brings 1.96
    assert isinstance(decided, Go)
    assert decided.rides == (Ride(0, 2),)


def test_fair_weights_favour_who_has_little() -> None:
    weights = fair_weights([1.0, 1.0, 2.0], [10.0, 20.0, 40.0])
    np.testing.assert_allclose(np.array(weights) * [10.0, 20.0, 40.0], 70.0 / 4.0 * np.array([1.0, 1.0, 2.0]))


def test_what_devices_do_not_earn_the_engine_does() -> None:
    """The best rates say that devices add 40 tokens per second to 60. If a third is not seen, they are cheaper."""
    made = Worth(0.5, 100.0, 60.0, (SessionWorth(1.0, 0.1, 2.0, 1.0),))
    assert made.devices_share(59.0) == made.devices_share(60.0) == 0.0
    assert made.devices_share(60.0 + 0.25 * DEVICES_ATTAIN * 40.0) == pytest.approx(0.25)
    assert made.devices_share(60.0 + DEVICES_ATTAIN * 40.0) == pytest.approx(1.0)
    assert made.devices_share(200.0) == 1.0
    for share in (0.0, 0.25, 1.0):  # of a goodput of 80
        assert made.price(80.0, share) == pytest.approx(80.0 * (1.0 - 0.5 * share))
        assert made.scale(80.0, share) == pytest.approx(0.8 * share)


def test_time_is_worth_what_the_edge_makes_alone_where_devices_add_nothing() -> None:
    """Else the edge would refuse the passes that it can make alone, and wait for better ones that never come."""
    made = Worth(0.5, 100.0, 60.0, (SessionWorth(1.0, 0.1, 2.0, 1.0),))
    assert made.price(20.0, 0.0) == pytest.approx(60.0)
    assert made.price(20.0, 0.4) == pytest.approx((60.0 + 0.4 * 15.0) * 0.8)
    assert made.price(20.0, 1.0) == pytest.approx(75.0 * 0.5)
    assert made.price(200.0, 0.0) == pytest.approx(100.0)


def test_devices_that_can_add_nothing_keep_their_price() -> None:
    assert Worth(1.0, 60.0, 60.0, {}).devices_share(50.0) == 1.0
