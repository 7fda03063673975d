"""The slot table that every engine inherits."""

import pytest
from tests.slots import free_slots

from multispin.errors import InputError
from multispin.speculation import Feed, SamplingParams, SlotsTakenError, SlotTable

GREEDY = SamplingParams()


def test_slots_run_out_with_an_answer_and_come_back_empty():
    table = SlotTable(2)
    first, second = table.open(), table.open()
    assert (first, second, free_slots(table)) == (0, 1, 0)
    with pytest.raises(SlotsTakenError, match="all 2 slots"):
        table.open()
    table.take([Feed(first, 0, [1, 2, 3], GREEDY)])
    assert (table.cached(first), table.cached(second)) == (3, 0)
    table.close(first)
    assert (table.open(), table.cached(first)) == (first, 0)


def test_a_text_is_taken_back_and_goes_on_from_anything_that_it_holds():
    table = SlotTable(1)
    slot = table.open()
    table.take([Feed(slot, 0, [1, 2, 3, 4], GREEDY)])
    table.commit(slot, 3)
    table.check([Feed(slot, 2, [9, 9], GREEDY)], 4, 10)
    table.take([Feed(slot, 2, [9, 9], GREEDY)])
    assert table.cached(slot) == 4


@pytest.mark.parametrize(
    "feeds",
    [
        [Feed(0, 3, [1], GREEDY)],  # a gap
        [Feed(0, -1, [1], GREEDY)],
        [Feed(0, 2, [], GREEDY)],
        [Feed(0, 2, [1, 1, 1], GREEDY)],  # beyond the slot
        [Feed(0, 2, [10], GREEDY)],  # no such token
        [Feed(0, 2, [-1], GREEDY)],
        [Feed(1, 0, [1], GREEDY)],  # not open
        [Feed(0, 0, [1, 2], GREEDY, context=1)],  # this engine does not join
        [Feed(0, 2, [1], GREEDY), Feed(0, 2, [1], GREEDY)],
    ],
)
def test_feeds_that_make_no_sense_are_refused(feeds):
    table = SlotTable(2)
    table.take([Feed(table.open(), 0, [1, 2], GREEDY)])
    with pytest.raises(ValueError, match=r"slot|token|cached"):
        table.check(feeds, 4, 10)


def test_what_is_not_open_or_not_cached_is_refused():
    table = SlotTable(2)
    slot = table.open()
    for misuse in (lambda: table.close(1), lambda: table.cached(1), lambda: table.commit(slot, 1)):
        with pytest.raises(ValueError, match="slot"):
            misuse()
    with pytest.raises(InputError, match="slots = 0"):
        SlotTable(0)
