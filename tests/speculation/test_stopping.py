import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.speculation import StopStrings
from multispin.speculation.stopping import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS

PIECES = ["a", "b", "ab", "ba", "aab", " "]


def decode(ids):
    return "".join(PIECES[token] for token in ids)


def test_a_text_ends_before_a_stop_string_that_spans_tokens():
    stops = StopStrings(("aba",), decode)
    ids = [1, 0, 3, 5]  # b a ba
    assert stops.end([1, 0]) is None
    assert stops.end(ids) == 3
    assert stops.text(ids) == "b"


def test_the_first_of_several_ends_the_text():
    stops = StopStrings(("bb", "ab"), decode)
    assert stops.end([0, 5, 2, 1]) == 3
    assert stops.text([0, 5, 2, 1]) == "a "
    assert StopStrings((), decode).end([0, 5, 2]) is None
    assert StopStrings((), decode).text([0, 5, 2]) == "a ab"


def test_a_string_that_is_complete_before_the_minimal_length_does_not_count():
    ids = [0, 1, 5, 5, 0, 1]  # ab__ab
    assert StopStrings(("ab",), decode).end(ids) == 2
    late = StopStrings(("ab",), decode, 4)
    assert late.end(ids) == 6
    assert late.text(ids) == "ab  "
    assert StopStrings(("ab",), decode, 2).end(ids) == 2  # completed by the second token, which may end it


@given(
    st.lists(st.integers(0, len(PIECES) - 1), max_size=25),
    st.lists(st.sampled_from(["ab", "bb", "a b", "aa", "ba "]), min_size=1, max_size=3, unique=True),
    st.integers(0, 6),
    st.lists(st.integers(1, 5), max_size=25),
)
def test_where_a_text_ends_does_not_depend_on_how_its_tokens_came(ids, strings, min_tokens, portions):
    stops = StopStrings(tuple(strings), decode, min_tokens)
    at_once = stops.end(ids)
    known, found = 0, None
    for portion in [*portions, len(ids)]:
        found = stops.end(ids[: known + portion], known)
        known = min(known + portion, len(ids))
        if found is not None:
            break
    assert found == at_once
    if at_once is not None:
        assert at_once >= min_tokens
        assert decode(ids[:at_once]).startswith(stops.text(ids))
        assert stops.end(ids[: at_once - 1]) is None


@pytest.mark.parametrize(
    "strings",
    [("",), ("x" * (MAX_STOP_CHARACTERS + 1),), ("x",) * (MAX_STOP_STRINGS + 1)],
    ids=["empty", "long", "many"],
)
def test_stop_strings_are_bounded(strings):
    with pytest.raises(InputError, match="stop string"):
        StopStrings(strings, decode)
