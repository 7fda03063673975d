"""When the edge's own drafter is tried."""

from multispin.control import EdgeDrafter
from multispin.control.streams import Ride
from multispin.passes.edge_trials import AT_ONCE, PUT_OFF, TRIAL_LENGTH, EdgeTrials
from multispin.passes.probing import COST_SHARE

RIDES = [Ride(k, 0) for k in range(3)]
ROOMS = dict.fromkeys(range(100), 20)


def test_it_is_tried_at_first_and_then_for_a_small_share_of_the_time() -> None:
    trials, drafting_s, now_s = EdgeTrials(), 0.0, 0.0
    assert EdgeTrials().added(RIDES, ROOMS, 0.0) != tuple(RIDES)
    for _ in range(20_000):
        made = trials.added(RIDES, ROOMS, now_s)
        if made != tuple(RIDES):
            drafting_s, now_s = drafting_s + 0.02, now_s + 0.02
            trials.ended(now_s)
        now_s += 0.05
    assert 0.5 * COST_SHARE < drafting_s / now_s < 1.1 * COST_SHARE


def test_the_verification_of_what_is_tried_counts_too() -> None:
    """Each trial takes 1 ms of drafting, and its six tokens 12 ms of verification."""
    trials, tried_s, now_s = EdgeTrials(), 0.0, 0.0
    for _ in range(20_000):
        tokens = sum(ride.edge_tokens for ride in trials.added(RIDES, ROOMS, now_s, token_s=0.002))
        if tokens:
            trials.ended(now_s + 0.001)
            tried_s, now_s = tried_s + 0.001 + 0.002 * tokens, now_s + 0.001 + 0.002 * tokens
        now_s += 0.05
    assert 0.5 * COST_SHARE < tried_s / now_s < 1.1 * COST_SHARE


def test_a_draft_that_pays_is_a_trial_too() -> None:
    trials, paying = EdgeTrials(), (Ride(1, 0, 3), Ride(2, 4))
    assert trials.added(paying, ROOMS, 0.0) == paying
    trials.ended(0.1)
    assert trials.added(RIDES, ROOMS, 0.2) == tuple(RIDES)


def test_some_of_many_have_a_short_draft_within_their_room_others_in_turn() -> None:
    many, tried = [Ride(k, 0) for k in range(40)], set[int]()
    trials, now_s = EdgeTrials(), 0.0
    for _ in range(30):
        made = trials.added(many, ROOMS, now_s)
        drafts = [ride for ride in made if ride.edge_tokens]
        assert [ride._replace(edge_tokens=0) for ride in made] == many
        assert len(drafts) == 40 // AT_ONCE
        assert all(ride.edge_tokens == TRIAL_LENGTH for ride in drafts)
        tried |= {ride.session for ride in drafts}
        trials.ended(now_s + 0.01)
        now_s += 10.0
    assert len(tried) > 30
    full = EdgeTrials().added([Ride(1, 5), Ride(2, 0)], {1: 5, 2: 1}, 0.0)
    assert full == (Ride(1, 5), Ride(2, 0, 1))


def test_as_many_are_tried_as_take_no_longer_than_the_steps_that_all_of_them_wait_for() -> None:
    many = [Ride(k, 0) for k in range(40)]

    def tried(token_s: float, drafter: EdgeDrafter | None) -> int:
        return sum(ride.edge_tokens > 0 for ride in EdgeTrials().added(many, ROOMS, 0.0, token_s, drafter))

    assert tried(0.0, None) == 40 // AT_ONCE
    assert tried(0.0, EdgeDrafter(0.003, 0.0, 0.5)) == 40
    assert tried(0.0001, EdgeDrafter(0.003, 0.0, 0.5)) == 30
    assert tried(0.0001, EdgeDrafter(0.003, 0.0001, 0.5)) == 15
    assert tried(0.001, EdgeDrafter(0.003, 0.0, 0.5)) == 40 // AT_ONCE


def test_a_trial_takes_the_place_of_tokens_of_the_device_and_that_counts_as_its_cost() -> None:
    """After a long draft it would show nothing, as all of that seldom stands. Half of the riders give up theirs."""
    rides, pass_s = [Ride(k, 5) for k in range(8)], 0.1
    trials, given_up_s, now_s = EdgeTrials(), 0.0, 0.0
    for _ in range(20_000):
        made = trials.added(rides, ROOMS, now_s, 0.0, EdgeDrafter(0.003, 0.0, 0.5), pass_s)
        tried = [ride for ride in made if ride.edge_tokens]
        assert all(ride.device_tokens == 0 for ride in tried)
        assert all(ride.device_tokens == 5 for ride in made if not ride.edge_tokens)
        if tried:
            assert len(tried) == AT_ONCE
            trials.ended(now_s + 0.006)
            given_up_s += 0.006 + pass_s * len(tried) / len(rides)
        now_s += pass_s
    assert 0.5 * COST_SHARE < given_up_s / now_s < 1.1 * COST_SHARE


def test_who_had_a_prompt_to_read_is_tried_once_more_in_the_next_pass() -> None:
    many = [Ride(k, 0) for k in range(40)]
    trials, now_s = EdgeTrials(), 0.0

    def tried(timed: bool) -> set[int]:
        nonlocal now_s
        now_s += 0.01
        made = {ride.session for ride in trials.added(many, ROOMS, now_s) if ride.edge_tokens}
        if made:
            trials.ended(now_s + 0.005, timed)
        return made

    first = tried(timed=False)
    assert first
    assert tried(timed=True) == first
    assert not tried(timed=True)
    now_s += 100.0
    second = tried(timed=False)
    assert second != first
    assert tried(timed=False) == second  # and no third time
    assert not tried(timed=True)


def test_where_nobody_has_room_nothing_is_tried() -> None:
    assert EdgeTrials().added(RIDES, {}, 0.0) == tuple(RIDES)
    assert EdgeTrials().added([], ROOMS, 0.0) == ()


def test_a_trial_takes_the_place_of_a_devices_tokens_only_after_some_passes() -> None:
    """A short text of users whose devices draft is not held up by it; whoever has no tokens is tried at once."""
    rides = tuple(Ride(session, 4) for session in range(8))
    rooms = dict.fromkeys(range(8), 8)
    trials, passes = EdgeTrials(), 0
    while trials.added(rides, rooms, 0.0) == rides:
        passes += 1
    assert passes == PUT_OFF
    one_without = (*rides[:5], Ride(5, 0), *rides[6:])
    assert EdgeTrials().added(one_without, rooms, 0.0) == (*rides[:5], Ride(5, 0, TRIAL_LENGTH), *rides[6:])
