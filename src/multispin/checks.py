"""Checks of numbers that come from outside. Each returns the value, or refuses it and says what is allowed.

A refusal reads "device 'a': acceptance_rate is 1.5; it must be in [0, 1]" and carries the field's name as its place.
"""

import math
import os

from multispin.errors import InputError

LEAST, MOST = 1e-30, 1e30
"""Quantities outside of this range are refused: products and quotients of a few of them are then finite and not 0."""
_SHOWN = 60
"""Characters of a refused value that a message shows."""
MAX_THREADS_PER_CORE = 16
"""Most threads for each core. More only wait for each other: with 1000 on two cores llama.cpp was 100 times slower."""
SHOWN_NAME = 400
"""Characters of a file's or model's name that a message shows."""


def number(name: str, value: object, *, of: str = "", allowed: str = "", at: str = "") -> float:
    """A finite number, whole or not; True and False are refused.

    Args:
        name: name of the field.
        value: value to check.
        of: what the field belongs to, with its punctuation, such as "cell." or "device 'a': "; default nothing.
        allowed: range for the message, such as "> 0"; default empty: any number will do.
        at: which part of the field, such as " at position 3"; default the whole of it.
    """
    if not isinstance(value, bool) and isinstance(value, int | float):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found):
            return found
    raise _refused(name, value, " ".join(("a finite number", allowed)).rstrip(), of, at)


def positive(name: str, value: object, *, of: str = "") -> float:
    """A finite number above 0, of at least `LEAST` and at most `MOST`; see `number`."""
    if (type(value) is float or type(value) is int) and LEAST <= value <= MOST:  # the usual case, in a hurry
        return float(value)
    found = number(name, value, of=of, allowed="> 0")
    if found <= 0:
        raise _refused(name, value, "> 0", of)
    return within(name, value, LEAST, MOST, of=of)


def not_negative(name: str, value: object, *, of: str = "") -> float:
    """A finite number of at least 0 and at most `MOST`; see `number`."""
    if (type(value) is float or type(value) is int) and 0.0 <= value <= MOST:  # the usual case, in a hurry
        return float(value)
    found = number(name, value, of=of, allowed=">= 0")
    if found < 0:
        raise _refused(name, value, ">= 0", of)
    return within(name, value, 0.0, MOST, of=of)


def within(name: str, value: object, least: float, most: float, *, of: str = "", at: str = "") -> float:
    """A finite number in [least, most]; see `number`."""
    if type(value) is float and least <= value <= most:  # the usual case, in a hurry
        return value
    found = number(name, value, of=of, allowed=f"in [{least:g}, {most:g}]", at=at)
    if not least <= found <= most:
        raise _refused(name, value, f"in [{least:g}, {most:g}]", of, at)
    return found


def probability(name: str, value: object, *, of: str = "", at: str = "") -> float:
    """A number in [0, 1]; see `number`."""
    return within(name, value, 0.0, 1.0, of=of, at=at)


def between(name: str, value: object, least: float, most: float, *, of: str = "") -> float:
    """A number in (least, most), its ends excluded; see `number`."""
    found = number(name, value, of=of, allowed=f"in ({least:g}, {most:g})")
    if not least < found < most:
        raise _refused(name, value, f"in ({least:g}, {most:g})", of)
    return found


def whole(name: str, value: object, least: int, most: int, *, of: str = "") -> int:
    """A whole number in [least, most]; see `number`."""
    if type(value) is int and least <= value <= most:  # the usual case, in a hurry
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _refused(name, value, f"a whole number in [{least}, {most}]", of)
    return value


def thread_count(threads: int, name: str = "threads =") -> int:
    """A number of processor threads in 1 … `MAX_THREADS_PER_CORE` for each core of this machine.

    Args:
        threads: the number.
        name: what a refusal calls it, with what stands before the number; default "threads =".
    """
    most = MAX_THREADS_PER_CORE * (os.cpu_count() or 1)
    if threads < 1:
        raise InputError(f"{name} {threads} is below 1")
    if threads > most:
        raise InputError(
            f"{name} {threads} is over {most}, {MAX_THREADS_PER_CORE} for each core of this machine: more threads than "
            "cores only wait for each other"
        )
    return threads


def one_of(name: str, value: object, known: tuple[str, ...], *, of: str = "") -> str:
    """A name out of `known`; see `number`."""
    if not isinstance(value, str) or value not in known:
        raise _refused(name, value, f"one of {', '.join(known)}", of)
    return value


def shown(value: object, most: int = _SHOWN) -> str:
    """A value for a message, cut to `most` characters, because a file may hold values of any size."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of very many digits; very deep lists
        return f"{with_article(value)} too long to show"
    return text if len(text) <= most else text[: most - 1] + "…"


def with_article(value: object) -> str:
    """The name of a value's type, with "a" or "an" before it."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def _refused(name: str, value: object, allowed: str, of: str, at: str = "") -> InputError:
    return InputError(f"{of}{name}{at} is {shown(value)}; it must be {allowed}", where=(name,))
