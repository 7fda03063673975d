"""How much of a simulated draft is accepted: by independent probabilities, or as a real drafter was recorded."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Protocol

import numpy as np

from multispin.control import Device
from multispin.estimation.traces import Traces

_DRAWN_AHEAD = 32  # uniform numbers at a time


class Acceptance(Protocol):
    """Says how many of a draft's first tokens are the target's own."""

    def next_text(self) -> int | None:
        """Begin a request; returns the length of its text [tokens], or None if that is not known here."""
        ...

    def right(self, position: int, length: int) -> int:
        """Leading right tokens of a draft of `length` that begins `position` tokens into the request's text."""
        ...

    def right_after(self, position: int, ahead: int) -> bool:
        """Whether a token drafted in a stream is right if all before it are.

        Args:
            position: position of the token in the request's text.
            ahead: how many drafted tokens stand between it and the committed text.
        """
        ...


class IndependentAcceptance:
    """Every position of a draft is right with its own probability, given that those before it are (eq. 4, 11).

    One draw per draft: the number of right tokens n has P(n ≥ j) = p_1 ⋯ p_j, so n counts how many of these products
    lie above a uniform number.

    Args:
        chances: p_1, p_2, …, the probability at each position of a draft; the last holds for all later positions.
        generator: source of randomness of its own, because it draws ahead.

    """

    def __init__(self, chances: Sequence[float], generator: np.random.Generator) -> None:
        self._chances = list(chances)
        self._falls: list[float] = []  # 1 − p_1 ⋯ p_j, ascending
        self._generator = generator
        self._draws: list[float] = []  # drawn ahead: one at a time would take longer than all the rest

    def next_text(self) -> int | None:
        """Return None: lengths are not known here."""
        return None

    def right(self, position: int, length: int) -> int:
        """Draw; the position in the text does not matter."""
        if len(self._falls) < length:
            chances = self._chances + self._chances[-1:] * (length - len(self._chances))
            self._falls = [1.0 - product for product in accumulate(chances, mul)]
        if not self._draws:
            self._draws = self._generator.random(_DRAWN_AHEAD)[::-1].tolist()
        # n ≥ j where 1 − u < p_1 ⋯ p_j, which is where the fall is below u.
        return bisect_left(self._falls, self._draws.pop(), 0, length)

    def right_after(self, position: int, ahead: int) -> bool:
        """Draw by the probability at this place of a draft."""
        if not self._draws:
            self._draws = self._generator.random(_DRAWN_AHEAD)[::-1].tolist()
        return self._draws.pop() < self._chances[min(ahead, len(self._chances) - 1)]


class TraceAcceptance:
    """Replays recorded texts, one per request, from a random one on.

    Args:
        traces: recorded texts, and which of their tokens were accepted.
        generator: chooses the first text, so that devices with the same recording do not go in step.

    """

    def __init__(self, traces: Traces, generator: np.random.Generator) -> None:
        self._accepts = [text.accepts for text in traces.texts]
        self._next = int(generator.integers(len(traces.texts)))
        self._text = ""

    def next_text(self) -> int | None:
        """Go on with the next recorded text; returns its length [tokens]."""
        self._text = self._accepts[self._next % len(self._accepts)]
        self._next += 1
        return len(self._text)

    def right(self, position: int, length: int) -> int:
        """Up to the first position at which the recorded drafter was wrong."""
        wrong = self._text.find("0", position, position + length)
        return max(0, min(length, len(self._text) - position)) if wrong < 0 else wrong - position

    def right_after(self, position: int, ahead: int) -> bool:
        """Whether the recorded token was right; beyond the end of the text none is."""
        return self._text[position : position + 1] == "1"


def acceptance_of(device: Device, traces: Traces | None, generator: np.random.Generator) -> Acceptance:
    """A device's recording if it has one, else its profile or its rate."""
    if traces is not None:
        return TraceAcceptance(traces, generator)
    if device.acceptance_profile is not None:
        return IndependentAcceptance(device.acceptance_profile, generator)
    return IndependentAcceptance([device.acceptance_rate or 0.0], generator)
