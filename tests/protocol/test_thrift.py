"""Thrift: of all distances that waste little enough the greatest, and rest where there is none."""

import pytest

from multispin.errors import InputError
from multispin.protocol.thrift import DISTANCES, LONGEST_REST_COMMITS, REST_COMMITS, Thrift

SHARES = {63: 0.9, 32: 0.8, 16: 0.6, 12: 0.5, 8: 0.38, 6: 0.4, 4: 0.54, 3: 0.63}
"""What is wasted at each distance: least somewhere between."""


def play(most, window=16, commits=4000):
    """Share of wasted tokens in the long run, drafted tokens, and the distances that were used last."""
    thrift, made, lost, used = Thrift(most), 0.0, 0.0, []
    for _ in range(commits):
        ahead = thrift.ahead
        used.append(ahead)
        wasted = round(20 * SHARES[ahead]) if ahead else 0
        made, lost = made + (20 if ahead else 0), lost + wasted
        thrift.observe(20 - wasted if ahead else 0, wasted, window)
    return lost / made, made, set(used[-1500:])


@pytest.mark.parametrize(("most", "distance"), [(0.7, 16), (0.55, 12), (0.45, 8)])
def test_the_greatest_distance_that_wastes_little_enough_is_kept(most, distance):
    share, _, used = play(most)
    assert used == {distance}
    assert share <= most


def test_where_every_distance_wastes_too_much_the_device_rests_and_tries_the_best_now_and_then():
    share, made, used = play(0.1)
    assert used == {0, 8}
    assert made < 0.01 * 20 * 4000  # each rest is longer than the one before
    assert share > 0.1  # what it does draft is wasted as often as it is


def test_a_device_that_wastes_little_again_is_found_after_the_longest_rest_and_rests_briefly_from_then_on():
    thrift = Thrift(0.5)
    for _ in range(5000):
        thrift.observe(0, 20 if thrift.ahead else 0, 16)
    rested = 0
    while not thrift.ahead:
        thrift.observe(0, 0, 16)
        rested += 1
    assert rested <= LONGEST_REST_COMMITS
    for _ in range(40):
        thrift.observe(20, 0, 16)
    assert thrift.ahead
    while thrift.ahead:
        thrift.observe(0, 20, 16)
    rested = 0
    while not thrift.ahead:
        thrift.observe(0, 0, 16)
        rested += 1
    assert rested == REST_COMMITS


def test_without_a_bound_the_edge_alone_decides():
    thrift = Thrift()
    thrift.observe(0, 100, 8)
    assert thrift.ahead is None


def test_distances_beyond_the_window_are_one():
    thrift = Thrift(0.5)
    thrift.observe(0, 100, 5)
    assert thrift.ahead in DISTANCES
    assert thrift.ahead <= 6


def test_a_share_is_between_0_and_1():
    with pytest.raises((ValueError, InputError), match="max_wasted_share"):
        Thrift(1.5)
