"""Devices that do not pay rest, are tried at a bounded cost, and are found again."""

import itertools
import random

import pytest
from tests.passes.counting import CountingEngine
from tests.passes.test_streams import Site, expected

from multispin.passes.paying import ENOUGH, LEAST_SHARE, Paying
from multispin.passes.probing import PROBE_SHARE
from multispin.protocol import Window


def test_who_brings_nothing_rests_and_who_brings_something_does_not():
    paying, rng = Paying(), random.Random(1)
    for step in range(400):
        paying.settled(1, 0, 1, step)
        paying.settled(2, int(rng.random() < 0.3), 1, step)
    assert paying.rests(1)
    assert not paying.rests(2)
    assert LEAST_SHARE < 0.3


@pytest.mark.parametrize(("every", "rests"), [(25, True), (10, False)])
def test_the_border_lies_between_a_fiftieth_and_a_twentieth_of_a_text(every, rests):
    paying = Paying()
    for step in range(3 * int(ENOUGH)):  # two tokens a pass, and in one of `every` passes one of them is the device's
        paying.settled(1, int(step % every == 0), 2, step)
        if paying.rests(1):
            break
    assert paying.rests(1) == rests
    assert 1 / 50 < LEAST_SHARE < 1 / 20


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


def long_site():
    """A site where texts may be so long that devices rest before the end."""
    engine = CountingEngine(8)
    engine.max_length = 8000
    return Site(engine=engine)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_devices_that_all_rest_are_tried_again_and_draft_once_they_are_right(count):
    site = long_site()
    phones = [site.phones[site.join(f"d{k}", 5000, right=0.0, token_s=0.004)] for k in range(count)]
    site.run(10.0)
    for phone in phones:
        assert any(isinstance(each, Window) and not each.length for each in phone.heard)  # it rests
        phone.right = 1.0
    site.run(100.0)
    assert all(phone.session.generated == expected(5000) for phone in phones)
    assert all(phone.accepted > 1000 for phone in phones)


def test_a_device_that_leaves_in_the_middle_of_its_trial_leaves_its_band():
    site = long_site()
    number = site.join("wrong", 5000, right=0.0, token_s=0.02)
    phone = site.phones[number]
    windows = []
    while [bool(each.length) for each in windows][-2:] != [False, True]:  # it rests, and then is tried
        assert site.queue.step()
        windows = [each for each in phone.heard if isinstance(each, Window)]
    assert 0.0 < windows[-1].bandwidth_hz < 1e6
    site.passes.leave(number)
    phone.connected, phone.connection = False, phone.connection + 1
    other = site.phones[site.join("other", 200, right=0.9)]
    site.run(site.queue.now_s + 1.0)
    assert max(each.bandwidth_hz for each in other.heard if isinstance(each, Window)) == 1e6
