"""Who rides in a pass of streams, or how long to wait."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multispin.control import EdgeDrafter, Verification
from multispin.control.streams import (
    LEAST_WAIT_S,
    WAIT_PRICE,
    Candidate,
    Go,
    Ride,
    Wait,
    choose,
)
from multispin.control.worth import SessionWorth

PAPER = Verification(0.02268, 0.01272)
FEW = [Candidate(k, 8 if k < 6 else 0, 0.9) for k in range(2, 21)]
"""Nineteen sessions, of which four have a draft that is worth a ride at 250 tokens/s."""


def expected(alpha: float, length: int) -> float:
    return sum(alpha**j for j in range(length + 1))


def value(each: Candidate, device: int, edge: int, verifier: Verification, price: float, drafter: EdgeDrafter) -> float:
    """What a ride brings less what its engine time costs, but for the steps of the edge's drafter [tokens]."""
    tokens = expected(each.acceptance_rate, device)
    tokens += each.acceptance_rate**device * (expected(each.edge_acceptance_rate, edge) - 1.0)
    own_s = verifier.per_device_s + verifier.per_token_s * (device + edge + 1) + drafter.per_device_s * edge
    return each.worth.weight * tokens - price * own_s


def test_nobody_is_ready() -> None:
    assert choose([], PAPER, 100.0) == Wait(math.inf)


def test_a_session_that_brings_less_than_it_costs_waits_for_more() -> None:
    long, short = Candidate(1, 8, 0.85), Candidate(2, 0, 0.85, next_s=0.01, next_tokens=4, tokens_per_s=100.0, room=16)
    made = choose([long, short] * 4, PAPER, 250.0)  # a place costs 3.2 tokens
    assert isinstance(made, Go)
    assert made.rides == (Ride(1, 8),) * 4
    assert made.pass_s == pytest.approx(0.02268 + 4 * 0.01272)
    assert made.expected_tokens == pytest.approx(4 * expected(0.85, 8))


def test_a_session_that_has_waited_longest_rides_whatever_it_brings() -> None:
    others = [Candidate(k, 8, 0.9) for k in range(2, 10)]
    starved = Candidate(1, 0, 0.1, must_ride=True, next_s=0.01, next_tokens=4)
    made = choose([starved, *others], PAPER, 250.0)
    assert isinstance(made, Go)
    assert Ride(1, 0) in made.rides


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weight", [0.0, 1e-320, 1e-30])
def test_a_session_that_counts_for_nothing_rides_only_if_it_must(weight: float) -> None:
    counts = Candidate(1, 8, 0.9, tokens_per_s=50.0, worth=SessionWorth(token_worth=0.1))
    due = SessionWorth(weight=weight, token_worth=0.1)
    others = (
        Candidate(2, 8, 0.9, worth=SessionWorth(weight=weight)),
        Candidate(3, 8, 0.9, must_ride=True, tokens_per_s=9.0, worth=due),
    )
    for verifier, drafter in ((PAPER, None), (Verification(0.02, 0.001, 1e-4), EdgeDrafter(0.001, 0.0, 0.5))):
        made = choose([counts, *others], verifier, 50.0, drafter)
        assert isinstance(made, Go)
        assert [ride.session for ride in made.rides] == [1, 3]


def test_nobody_falls_below_plain_decoding() -> None:
    """Twenty sessions in 277 ms each have 3.6 tokens/s when nobody drafts; one token every 0.4 s would be less."""
    made = choose([Candidate(1, 0, 0.1, waited_s=0.05), *FEW], PAPER, 250.0)
    assert isinstance(made, Go)
    assert Ride(1, 0) not in made.rides
    made = choose([Candidate(1, 0, 0.1, waited_s=0.2), *FEW], PAPER, 250.0)
    assert isinstance(made, Go)
    assert Ride(1, 0) in made.rides


def test_a_least_goodput_is_kept_like_plain_decoding() -> None:
    waiting = Candidate(1, 0, 0.1, waited_s=0.1)
    made = choose([waiting, *FEW], PAPER, 250.0)
    assert isinstance(made, Go)
    assert Ride(1, 0) not in made.rides
    made = choose([waiting._replace(worth=SessionWorth(least_tokens_per_s=8.0)), *FEW], PAPER, 250.0)
    assert isinstance(made, Go)
    assert Ride(1, 0) in made.rides


def test_if_nobody_is_worth_a_pass_the_next_arrival_is_awaited() -> None:
    idle = [Candidate(k, 0, 0.8, next_s=0.03 + 0.01 * k, next_tokens=4, tokens_per_s=100.0, room=16) for k in range(20)]
    assert choose(idle, PAPER, 250.0) == Wait(pytest.approx(0.03))


def test_a_pass_is_put_off_for_drafts_that_are_worth_more_than_the_wait() -> None:
    """At 100 tokens/s ten milliseconds cost 1.5 tokens; four devices that begin anew bring 2.2 more each."""
    engine = Verification(0.1, 0.0)
    anew = [Candidate(k, 0, 0.8, next_s=0.01, next_tokens=4, tokens_per_s=400.0, room=8) for k in range(4)]
    ready = [Candidate(9, 8, 0.8), *anew]
    assert isinstance(choose(ready, engine, 100.0), Go)
    assert choose(ready, engine, 100.0, patience_s=0.02) == Wait(pytest.approx(0.01), puts_off=True)
    assert isinstance(choose(ready, engine, 100.0, patience_s=0.009), Go)  # not longer than it may
    assert isinstance(choose(ready, engine, 2000.0, patience_s=0.02), Go)  # thirty tokens for nine
    late = [each._replace(next_s=0.03) for each in anew[:2]]
    # The first frames are worth a wait, and where time is cheap those that come 20 ms later are, too.
    assert choose([*late, *anew[2:]], engine, 70.0, patience_s=0.05) == Wait(pytest.approx(0.03), puts_off=True)
    assert choose([*late, *anew[2:]], engine, 275.0, patience_s=0.05) == Wait(pytest.approx(0.01), puts_off=True)


def test_a_pass_waits_for_a_granted_draft_but_does_not_take_its_session_before() -> None:
    engine = Verification(0.4, 0.01, 0.002)
    here = Candidate(1, 3, 0.7, must_ride=True)
    absent = Candidate(2, 0, 0.9, next_s=0.13, next_tokens=8, room=8, absent=True)
    assert choose([here, absent], engine, 8.0, None, 0.06, 0.24) == Wait(pytest.approx(0.13), puts_off=True)
    for ready, price in (([here, absent], 40.0), ([here, absent._replace(next_s=math.inf)], 8.0)):
        made = choose(ready, engine, price, None, 0.06, 0.24)
        assert isinstance(made, Go)
        assert made.rides == (Ride(1, 3),)
    assert isinstance(choose([absent._replace(waited_s=9.0)], engine, 8.0), Wait)  # there is nothing to verify yet


def test_a_pass_is_put_off_for_longer_the_more_sessions_are_waited_for() -> None:
    """Four of four come after 30 ms, or one of four: that is worth the wait, too, but may not take so long."""
    engine = Verification(0.1, 0.0)
    late = [Candidate(k, 0, 0.8, next_s=0.03, next_tokens=8, tokens_per_s=400.0, room=8) for k in range(4)]
    there = [Candidate(k, 8, 0.8) for k in range(3)]
    for ready, waits in ((late, True), ([*there, late[3]], False)):
        made = choose(ready, engine, 20.0, patience_s=0.01, patience_for_all_s=0.04)
        assert (made == Wait(pytest.approx(0.03), puts_off=True)) == waits
        assert isinstance(choose(ready, engine, 20.0, patience_s=0.01), Go)
        assert isinstance(choose(ready, engine, 20.0, patience_s=0.04), Wait)


def test_nobody_is_waited_for_because_it_is_short_of_its_floor() -> None:
    """Two tokens that are hardly right are not worth 20 ms of everybody, whatever their user is owed."""
    there = [Candidate(k, 8, 0.8) for k in range(3)]
    owed = Candidate(9, 0, 0.3, next_s=0.02, next_tokens=2, tokens_per_s=100.0, room=2, short_tokens=7.0)
    assert isinstance(choose([*there, owed], Verification(0.15, 0.002), 30.0, patience_s=0.05), Go)


@pytest.mark.parametrize("next_s", [0.1 * LEAST_WAIT_S, 0.9 * LEAST_WAIT_S])
def test_a_frame_that_is_expected_at_once_is_waited_for_and_one_that_is_late_is_not(next_s: float) -> None:
    """Who sends it would else bring nothing, or stay behind for a whole pass."""
    ready = [Candidate(0, 8, 0.8), Candidate(1, 0, 0.8, next_s=next_s, next_tokens=8, tokens_per_s=100.0, room=8)]
    engine = Verification(0.5, 0.1)
    assert choose(ready, engine, 8.0, patience_s=0.05) == Wait(LEAST_WAIT_S, puts_off=True)
    assert isinstance(choose(ready, engine, 8.0, patience_s=0.0), Go)  # not for ever
    assert isinstance(choose([ready[0], ready[1]._replace(next_s=0.0)], engine, 8.0, patience_s=0.05), Go)


def test_frames_that_come_during_a_wait_are_counted_and_never_beyond_the_room() -> None:
    """A frame of 2 tokens comes each 10 ms: after 30 ms there are 6, and with room for 4 only 4."""
    engine = Verification(0.1, 0.0)
    quick = Candidate(1, 0, 0.9, next_s=0.01, next_tokens=2, tokens_per_s=200.0, room=16)
    clock = Candidate(2, 0, 0.0, next_s=0.03, next_tokens=1, tokens_per_s=1.0, room=1)  # worth nothing, but an arrival
    gains = expected(0.9, 6) - expected(0.9, 2)
    made = choose([quick, clock], engine, 0.99 * gains / 0.02 / WAIT_PRICE, patience_s=0.03)
    assert made == Wait(pytest.approx(0.03), puts_off=True)
    made = choose([quick, clock], engine, 1.01 * gains / 0.02 / WAIT_PRICE, patience_s=0.03)
    assert made == Wait(pytest.approx(0.01), puts_off=True)
    narrow = choose([quick._replace(room=4), clock], engine, 0.99 * gains / 0.02 / WAIT_PRICE, patience_s=0.03)
    assert narrow == Wait(pytest.approx(0.01), puts_off=True)


def test_where_a_ride_costs_nothing_everybody_rides() -> None:
    engine = Verification(0.024, 0.0)
    ready = [Candidate(k, k, 0.7, next_s=0.001, next_tokens=4, tokens_per_s=200.0, room=16) for k in range(10)]
    made = choose(ready, engine, 400.0)
    assert isinstance(made, Go)
    assert made.rides == tuple(Ride(k, k) for k in range(10))


def test_a_token_is_verified_while_it_is_worth_its_time() -> None:
    made = choose([Candidate(1, 20, 0.5)], Verification(0.01, 0.0, 0.001), 100.0)  # a token costs 0.1; 0.5^4 < 0.1
    assert isinstance(made, Go)
    assert made.rides == (Ride(1, 3),)


def test_the_edge_drafts_instead_of_a_device_that_is_seldom_right() -> None:
    ready = [Candidate(k, 4, 0.1, edge_room=4, edge_acceptance_rate=0.9, room=8) for k in range(10)]
    made = choose(ready, Verification(0.02, 0.0), 400.0, EdgeDrafter(0.001, 0.0, 0.9))
    assert isinstance(made, Go)
    assert made.rides == tuple(Ride(k, 0, 4) for k in range(10))


def test_the_edge_goes_on_where_a_device_has_stopped() -> None:
    ready = [Candidate(k, 2, 0.9, edge_room=4, edge_acceptance_rate=0.8, room=8) for k in range(10)]
    made = choose(ready, Verification(0.02, 0.0), 400.0, EdgeDrafter(0.001, 0.0, 0.8))
    assert isinstance(made, Go)
    assert {ride.device_tokens for ride in made.rides} == {2}
    assert all(ride.edge_tokens > 0 for ride in made.rides)


@pytest.mark.parametrize("edge_drafter", [None, EdgeDrafter(0.002, 0.0001, 1.0)])
@pytest.mark.parametrize("always", [0.0, 1.0])
def test_who_is_always_right_or_never_is_the_limit_of_who_nearly_is(always, edge_drafter) -> None:
    """Geometric sums divide by 1 - α: α = 1 is the limit, and neither an error nor worth nothing."""
    verifier = Verification(0.02, 0.001, 0.0001)

    def decided(alpha: float, of_edge: float):
        ready = [Candidate(1, 4, alpha, tokens_per_s=10.0, room=8, edge_room=4, edge_acceptance_rate=of_edge)]
        return choose(ready, verifier, 50.0, edge_drafter)

    found, near = decided(always, always), decided(abs(always - 1e-7), abs(always - 1e-7))
    if isinstance(near, Wait):
        assert isinstance(found, Wait)
    else:
        assert isinstance(found, Go)
        assert found.rides == near.rides
        assert found.expected_tokens == pytest.approx(near.expected_tokens, rel=1e-3)


def test_whose_stream_is_worth_much_is_not_ended_early() -> None:
    """A ride with drafts of the edge alone would pay, but it ends what the device is drafting."""
    engine, drafter = Verification(0.02, 0.01), EdgeDrafter(0.001, 0.0, 0.7)
    others = [Candidate(k, 8, 0.9) for k in range(2, 10)]
    plain = Candidate(1, 0, 0.9, next_s=0.01, next_tokens=4, tokens_per_s=100.0, room=16, edge_room=4)
    plain = plain._replace(edge_acceptance_rate=0.7)
    made = choose([plain, *others], engine, 150.0, drafter)
    assert isinstance(made, Go)
    assert any(ride.session == 1 for ride in made.rides)
    made = choose(
        [plain._replace(worth=SessionWorth(token_worth=0.2, restart_worth=5.0)), *others], engine, 150.0, drafter
    )
    assert isinstance(made, Go)
    assert not any(ride.session == 1 for ride in made.rides)


def test_the_edge_takes_nothing_from_a_device_that_drafts_next_to_nothing_in_a_pass() -> None:
    """Its time is dear, as it seems, and its stream goes on as if it had begun anew: nearly nothing is lost."""
    engine, drafter = Verification(0.006, 0.0, 0.0001), EdgeDrafter(0.0012, 0.0, 0.4)
    slow = Candidate(1, 0, 0.6, tokens_per_s=3.0, room=8, edge_room=8, edge_acceptance_rate=0.4)
    slow = slow._replace(worth=SessionWorth(token_worth=0.44, restart_worth=0.01))
    made = choose([slow, slow._replace(session=2)], engine, 340.0, drafter)
    assert isinstance(made, Go)
    assert [ride.edge_tokens for ride in made.rides] == [1, 1]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 4),
    st.floats(0.05, 0.95),
    st.floats(0.05, 0.95),
    st.floats(0.0, 0.3),
    st.floats(0.0, 3.0),
    st.floats(5.0, 60.0),
)
def test_a_ride_is_the_best_of_all_lengths_with_what_it_takes_from_the_device(
    pending: int, alpha: float, of_edge: float, token_worth: float, restart_worth: float, price: float
) -> None:
    """The formula of `choose` for one session, for all numbers of tokens of the device and of the edge."""
    verifier, drafter, rate = Verification(0.01, 0.005, 0.0005), EdgeDrafter(0.004, 0.0003, 0.5), 150.0
    ready = Candidate(1, pending, alpha, tokens_per_s=rate, room=8, edge_room=3, edge_acceptance_rate=of_edge)
    ready = ready._replace(worth=SessionWorth(token_worth=token_worth, restart_worth=restart_worth))
    held = sum(alpha**n > token_worth for n in range(1, pending + 1))

    def surplus(device: int, edge: int) -> float:
        goes_on = alpha ** (device + edge + 1)
        later = restart_worth + token_worth * rate * drafter.fixed_s * edge
        lost = token_worth * min(held, pending) + min(token_worth * edge, later) * goes_on + later * (1.0 - goes_on)
        return value(ready, device, edge, verifier, price, drafter) - lost

    steps = price * drafter.fixed_s
    every = {(own, m): surplus(own, m) - steps * m for m in range(4) for own in range(pending + 1)}
    best = max(every, key=lambda each: every[each])
    made = choose([ready._replace(must_ride=True)], verifier, price, drafter)
    assert isinstance(made, Go)
    assert every[made.rides[0][1:]] == pytest.approx(every[best], abs=1e-9)


SESSIONS = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0.05, 0.95), st.floats(0.2, 3.0), st.integers(0, 2), st.floats(0.05, 0.95)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=100, deadline=None)
@given(
    SESSIONS,
    st.sampled_from([0.0, 0.002, 0.01]),
    st.sampled_from([0.0, 0.0005]),
    st.floats(0.0005, 0.01),
    st.floats(10, 500),
)
def test_no_choice_is_worth_more(
    rows: list[tuple[int, float, float, int, float]], ride_s: float, token_s: float, step_s: float, price: float
) -> None:
    """Against all subsets and all lengths: what a pass brings less the price of its time; who is due rides anyway."""
    ready = [
        Candidate(
            k,
            pending,
            alpha,
            room=8,
            edge_room=edge_room,
            edge_acceptance_rate=edge_alpha,
            worth=SessionWorth(weight=weight),
        )
        for k, (pending, alpha, weight, edge_room, edge_alpha) in enumerate(rows)
    ]
    engine, drafter = Verification(0.02, ride_s, token_s), EdgeDrafter(step_s, 0.0002, 0.5)
    made = choose(ready, engine, price, drafter)
    rides = {ride.session: ride for ride in made.rides} if isinstance(made, Go) else {}
    found = sum(value(ready[k], r.device_tokens, r.edge_tokens, engine, price, drafter) for k, r in rides.items())
    found -= price * drafter.fixed_s * max((ride.edge_tokens for ride in rides.values()), default=0)
    best = -math.inf
    for steps in range(max(each.edge_room for each in ready) + 1):
        total = -price * drafter.fixed_s * steps
        for each in ready:
            options = itertools.product(range(each.pending + 1), range(min(steps, each.edge_room) + 1))
            most = max(value(each, n, m, engine, price, drafter) for n, m in options)
            total += most if each.session in rides else max(0.0, most)
        best = max(best, total)
    assert found <= best + 1e-9
    assert found >= best - 1e-9


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.0, 1.0), st.floats(0.0, 2.0)), min_size=1, max_size=12))
def test_rides_are_within_what_is_pending(rows: list[tuple[int, float, float]]) -> None:
    ready = [Candidate(k, pending, alpha, waited_s=waited, room=16) for k, (pending, alpha, waited) in enumerate(rows)]
    made = choose(ready, PAPER, 100.0)
    if isinstance(made, Wait):
        assert made.for_s > 0
        return
    assert len({ride.session for ride in made.rides}) == len(made.rides) > 0
    for ride in made.rides:
        assert 0 <= ride.device_tokens <= min(16, ready[ride.session].pending)
        assert ride.edge_tokens == 0
    assert made.pass_s == pytest.approx(PAPER.verify_s([ride.device_tokens for ride in made.rides]))


_DEAR = Verification(0.02, 0.0, 0.0005)
_NINE = [Candidate(k, 8, 0.8) for k in range(2, 11)]


def _beside_nine(*more: Candidate, price: float = 800.0) -> Go:
    found = choose([*more, *_NINE], _DEAR, price)
    assert isinstance(found, Go)
    return found


def _rate_without(made: Go, short: int) -> float:
    """Tokens per second of all but `short` sessions that bring one token each, recomputed from the rides."""
    of_nine = [ride.device_tokens for ride in made.rides if 2 <= ride.session <= 10]
    riders = sum(ride.session not in range(2, 11) for ride in made.rides) - short
    return (riders * 1.01 + sum((1.0 - 0.8 ** (length + 1)) / 0.2 for length in of_nine)) / made.pass_s


def test_where_somebody_is_short_of_what_was_asked_for_it_the_others_bring_less() -> None:
    plain_s = _DEAR.verify_s([0] * 10)

    def made(short: float) -> Go:
        asks = Candidate(1, 0, 0.01, short_tokens=short, worth=SessionWorth(asked_tokens_per_s=0.95 / plain_s))
        return _beside_nine(asks, price=500.0)

    lengths = [sum(ride.device_tokens for ride in made(short).rides) for short in (-4.0, 2.0, 4.0, 6.0, 8.0)]
    assert lengths[0] == lengths[1] > lengths[2] > lengths[3] > lengths[4]
    assert made(8.0).pass_s < 1.2 * plain_s
    assert Ride(1, 0) in made(8.0).rides


def test_plain_decoding_for_somebody_costs_the_others_little() -> None:
    """Nothing was asked for it: it comes nearer to plain decoding, as far as the others keep 97 %."""
    usual = _beside_nine(Candidate(1, 0, 0.01))
    for short in (4.0, 6.0, 8.0):
        made = _beside_nine(Candidate(1, 0, 0.01, short_tokens=short))
        assert _rate_without(made, 1) >= 0.97 * _rate_without(usual, 1)
        assert Ride(1, 0) in made.rides
        assert made.pass_s < 0.95 * usual.pass_s


def test_the_more_are_short_the_more_their_plain_decoding_may_cost() -> None:
    eight = [Candidate(20 + k, 0, 0.01) for k in range(8)]
    usual = _beside_nine(*eight)
    one = _beside_nine(eight[0]._replace(short_tokens=8.0), *eight[1:])
    everybody = _beside_nine(*(each._replace(short_tokens=8.0) for each in eight))
    assert _rate_without(one, 1) >= 0.97 * _rate_without(usual, 1)
    assert 0.97**8 <= _rate_without(everybody, 8) / _rate_without(usual, 8) < 0.97
    assert everybody.pass_s < one.pass_s


def test_drafts_that_help_whoever_is_short_remain() -> None:
    """All are short alike: the edge's drafts are as good as if nobody were."""
    everybody = [Candidate(k, 0, 0.5, room=16, edge_room=16, edge_acceptance_rate=0.7) for k in range(10)]
    verifier, drafter = Verification(0.01, 0.0, 2e-5), EdgeDrafter(0.001, 0.0, 0.7)
    usual = choose(everybody, verifier, 2000.0, drafter)
    short = choose([each._replace(short_tokens=8.0) for each in everybody], verifier, 2000.0, drafter)
    assert isinstance(usual, Go)
    assert isinstance(short, Go)
    assert min(ride.edge_tokens for ride in short.rides) >= min(ride.edge_tokens for ride in usual.rides) > 0


def test_the_more_somebody_is_short_of_its_floor_the_less_is_put_off() -> None:
    """A floor that was asked for ends all waits; who has less than plain decoding does not."""
    engine = Verification(0.1, 0.0)
    ready = [Candidate(k, 0, 0.8, next_s=0.01, next_tokens=4, tokens_per_s=400.0, room=8) for k in range(3)]

    def made(short: float, asked: float) -> Go | Wait:
        last = Candidate(3, 0, 0.8, short_tokens=short, worth=SessionWorth(asked_tokens_per_s=asked))
        return choose([*ready, last], engine, 100.0, patience_s=0.02)

    for asked in (0.0, 9.5):
        assert isinstance(made(-4.0, asked), Wait)
        assert isinstance(made(2.5, asked), Wait)
    assert isinstance(made(8.0, 9.5), Go)
    assert isinstance(made(8.0, 0.0), Wait)
