"""Refusals name the field, the value and what is allowed, whatever the value is."""

import math

import pytest

from multispin import checks
from multispin.errors import InputError


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checks.number("x", "far"), "x is 'far'; it must be a finite number"),
        (lambda: checks.number("x", True), "x is True; it must be a finite number"),
        (lambda: checks.positive("x", 0, of="cell."), "cell.x is 0; it must be > 0"),
        (lambda: checks.positive("x", math.nan), "x is nan; it must be a finite number > 0"),
        (lambda: checks.positive("x", 1e-310), "x is 1e-310; it must be in [1e-30, 1e+30]"),
        (lambda: checks.positive("x", 1e300), "x is 1e+300; it must be in [1e-30, 1e+30]"),
        (lambda: checks.not_negative("x", -1), "x is -1; it must be >= 0"),
        (lambda: checks.not_negative("x", math.inf), "x is inf; it must be a finite number >= 0"),
        (
            lambda: checks.probability("x", 1.5, of="a: ", at=" at position 3"),
            "a: x at position 3 is 1.5; it must be in [0, 1]",
        ),
        (lambda: checks.between("x", 1.0, 0.0, 1.0), "x is 1.0; it must be in (0, 1)"),
        (lambda: checks.whole("x", 2.0, 0, 5), "x is 2.0; it must be a whole number in [0, 5]"),
        (lambda: checks.whole("x", 6, 0, 5), "x is 6; it must be a whole number in [0, 5]"),
        (lambda: checks.one_of("x", ["a"], ("a", "b")), "x is ['a']; it must be one of a, b"),
    ],
)
def test_a_refusal_says_field_value_and_range_and_carries_its_place(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message
    assert caught.value.where == ("x",)


def test_what_is_allowed_comes_back():
    assert checks.positive("x", 3) == 3.0
    assert checks.not_negative("x", 0.0) == 0.0
    assert checks.whole("x", 5, 0, 5) == 5


@pytest.mark.parametrize(
    "value", [10**400, 10**10_000, "y" * 10**6, list(range(10**5))], ids=["400", "10,000", "text", "list"]
)
def test_values_of_any_size_are_refused_in_a_short_message(value):
    with pytest.raises(InputError) as caught:
        checks.number("x", value)
    assert len(str(caught.value)) < 200
