"""For whom the edge's own drafter is tried."""

from multispin.passes.turns import Turns


def test_others_are_tried_each_time_until_all_had_their_turn() -> None:
    turns, tried = Turns(), list[int]()
    for _ in range(6):
        sessions = turns.next([7, 8, 9], 1)
        assert turns.under_way == set(sessions)
        tried += sessions
        turns.drafted(timed=True)
        assert not turns.under_way
    assert sorted(tried) == [7, 7, 8, 8, 9, 9]
    assert turns.next([7, 8], 5) in ([7, 8], [8, 7])  # no more than there are


def test_a_trial_that_was_not_timed_is_owed_once_more_to_the_same_sessions_and_no_third_time() -> None:
    turns = Turns()
    assert turns.once_more([1, 2, 3]) == []
    first = turns.next([1, 2, 3], 2)
    turns.drafted(timed=False)
    assert turns.owed == set(first)
    assert turns.once_more([1, 2, 3]) == sorted(first)
    turns.drafted(timed=False)
    assert not turns.owed


def test_what_is_owed_stays_so_until_one_of_its_sessions_is_able_or_others_have_their_turn() -> None:
    turns = Turns()
    (first,) = turns.next([1, 2], 1)
    turns.drafted(timed=False)
    assert turns.once_more([3]) == []
    assert turns.owed == {first}
    assert turns.once_more([3, first]) == [first]
    turns.drafted(timed=True)
    (second,) = turns.next([1, 2], 1)
    turns.drafted(timed=False)
    assert turns.owed == {second}
    assert turns.next([3], 1) == [3]
    assert not turns.owed


def test_a_trial_that_was_broken_off_is_not_owed() -> None:
    turns = Turns()
    turns.next([1], 1)
    turns.clear()
    turns.drafted(timed=False)
    assert not turns.owed
    assert not turns.under_way
