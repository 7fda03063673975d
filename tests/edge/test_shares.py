"""Places of which each address may have a share."""

import contextlib

import pytest

from multispin.edge.shares import FullHouseError, SharedPlaces


def taken(places, stack, origin, count):
    for _ in range(count):
        stack.enter_context(places.place(origin, "requests"))


def test_one_may_have_half_of_what_others_leave_and_gets_it_back():
    places = SharedPlaces(8, 0.5)
    with contextlib.ExitStack() as stack:
        taken(places, stack, "a", 4)
        with pytest.raises(FullHouseError, match="4 requests come from this address"), places.place("a", "requests"):
            pass
        taken(places, stack, "b", 2)
        taken(places, stack, "c", 1)
        taken(places, stack, "d", 1)
        with pytest.raises(FullHouseError, match="8 requests, the limit"), places.place("e", "requests"):
            pass
    assert places.held == 0
    with contextlib.ExitStack() as stack:
        taken(places, stack, "a", 4)


def test_without_a_share_one_may_have_all_of_them():
    with contextlib.ExitStack() as stack:
        taken(SharedPlaces(3), stack, "a", 3)
