"""Devices that do not pay rest, are tried at a bounded cost, and are found again."""

import itertools
import random

import pytest

from multispin.passes.paying import ENOUGH, LEAST_SHARE, Paying
from multispin.passes.probing import PROBE_SHARE


def test_who_brings_nothing_rests_and_who_brings_something_does_not():
    paying, rng = Paying(), random.Random(1)
    for step in range(400):
        paying.settled(1, 0, 1, step)
        paying.settled(2, int(rng.random() < 0.3), 1, step)
    assert paying.rests(1)
    assert not paying.rests(2)
    assert LEAST_SHARE < 0.3


def test_nobody_is_judged_by_a_few_tokens():
    paying = Paying()
    for step in range(int(ENOUGH) - 1):
        assert not paying.settled(1, 0, 1, step)
    assert paying.settled(1, 0, 1, ENOUGH)


def test_trials_take_at_most_a_fiftieth_of_the_time_and_each_comes_within_51_durations_of_the_last():
    paying, now_s, tried_s, began = Paying(), 0.0, 0.0, []
    for _ in range(100):
        paying.settled(1, 0, 1, now_s)
    while now_s < 2000.0:
        if paying.due(1, now_s):
            paying.begin(1, 0.1, now_s)
            began.append(now_s)
            now_s += 0.3
            tried_s += 0.3
            paying.end(1, now_s)
        now_s += 0.01
    assert tried_s < 1.2 * PROBE_SHARE * now_s
    assert max(after - before for before, after in itertools.pairwise(began)) < 51 * 0.3 + 0.1


def test_a_trial_of_which_a_token_stands_lets_the_device_draft_again():
    paying = Paying()
    for _ in range(100):
        paying.settled(1, 0, 1, 0.0)
    assert not paying.settled(1, 1, 2, 0.0)  # a token of an earlier chain
    paying.begin(1, 0.1, 1.0)
    assert not paying.settled(1, 0, 1, 1.1)
    assert paying.settled(1, 1, 2, 1.2)
    assert not paying.rests(1)
    assert not paying.tried(1)


@pytest.mark.parametrize("late_s", [0.6, 0.8])
def test_a_trial_that_is_not_answered_ends(late_s):
    paying = Paying()
    for _ in range(100):
        paying.settled(1, 0, 1, 0.0)
    paying.begin(1, 0.1, 0.0)
    assert paying.late(1, late_s) == (late_s > 0.7)
