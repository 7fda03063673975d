import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.speculation import TextStream, check_stop_strings, text_of
from multispin.speculation.stopping import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS

PIECES = ["a", "b", "ab", "ba", "aab", " "]


def decode(ids):
    return "".join(PIECES[token] for token in ids)


def end(ids, strings, min_tokens=0, portions=()):
    """After how many tokens the text ends when its tokens come in these portions; None if it does not."""
    stream, taken = TextStream(decode, strings, min_tokens), 0
    for portion in [*portions, len(ids)]:
        stream.push(ids[taken : taken + portion])
        taken += portion
    return stream.tokens if stream.stopped else None


def test_a_text_ends_before_a_stop_string_that_spans_tokens():
    ids = [1, 0, 3, 5]  # b a ba
    assert end([1, 0], ["aba"]) is None
    assert end(ids, ["aba"]) == 3
    assert text_of(ids, decode, ["aba"]) == "b"


def test_the_first_of_several_ends_the_text():
    assert end([0, 5, 2, 1], ["bb", "ab"]) == 3
    assert text_of([0, 5, 2, 1], decode, ["bb", "ab"]) == "a "
    assert end([0, 5, 2], []) is None
    assert text_of([0, 5, 2], decode) == "a ab"


def test_a_string_that_is_complete_before_the_minimal_length_does_not_count():
    ids = [0, 1, 5, 5, 0, 1]  # ab__ab
    assert end(ids, ["ab"]) == 2
    assert end(ids, ["ab"], 4) == 6
    assert text_of(ids, decode, ["ab"], 4) == "ab  "
    assert end(ids, ["ab"], 2) == 2  # completed by the second token, which may end it


@given(
    st.lists(st.integers(0, len(PIECES) - 1), max_size=25),
    st.lists(st.sampled_from(["ab", "bb", "a b", "aa", "ba "]), min_size=1, max_size=3, unique=True),
    st.integers(0, 6),
    st.lists(st.integers(1, 5), max_size=25),
)
def test_where_a_text_ends_does_not_depend_on_how_its_tokens_came(ids, strings, min_tokens, portions):
    at_once = end(ids, strings, min_tokens)
    assert end(ids, strings, min_tokens, portions) == at_once
    if at_once is not None:
        assert at_once >= min_tokens
        assert decode(ids[:at_once]).startswith(text_of(ids, decode, strings, min_tokens))
        assert end(ids[: at_once - 1], strings, min_tokens) is None


@pytest.mark.parametrize(
    "strings",
    [("",), ("x" * (MAX_STOP_CHARACTERS + 1),), ("x",) * (MAX_STOP_STRINGS + 1)],
    ids=["empty", "long", "many"],
)
def test_stop_strings_are_bounded(strings):
    with pytest.raises(InputError, match="stop string"):
        check_stop_strings(strings)
