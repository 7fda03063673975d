"""The seam between a device and whatever drafts for it, and the two drafters that need no model.

A drafter is asked for `length` tokens after a committed text. It may keep a cache of its own; the committed text is
always handed over whole, so nothing that the edge decides can leave it out of step.
"""

from collections.abc import Sequence
from typing import Protocol

from multispin.speculation.laws import LawFormat, TruncatedLaw, certain_law
from multispin.speculation.sampling import SamplingParams


class Drafter(Protocol):
    """Whoever guesses the next tokens."""

    def prepare(self, committed: Sequence[int]) -> None:
        """Read a text that drafts will soon be asked for (a prompt), so that the first draft is not slower."""

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Guess up to `length` tokens that follow `committed`; fewer, or none, is a fair answer."""

    def draft_laws(
        self, committed: Sequence[int], length: int, params: SamplingParams, form: LawFormat
    ) -> tuple[list[int], list[TruncatedLaw]]:
        """The same for the rejection rules: up to `length` tokens, and the law that each was drawn from.

        How many there are must be settled before the last of them is drawn (docs/losslessness.md).
        """


class _Guesser:
    """A drafter that does not draw: the law of its guess is all on the one token."""

    def prepare(self, committed: Sequence[int]) -> None:
        """Nothing to read ahead."""

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Guess nothing."""
        return []

    def draft_laws(
        self, committed: Sequence[int], length: int, params: SamplingParams, form: LawFormat
    ) -> tuple[list[int], list[TruncatedLaw]]:
        """The guess, which is certain of itself."""
        drafted = self.draft(committed, length, params)
        return drafted, [certain_law(token, form) for token in drafted]


class PromptLookupDrafter(_Guesser):
    """Guesses that the text goes on as it did after the last occurrence of its newest few tokens.

    Costs no model at all; good where answers repeat their question (A. Saxena, "Prompt Lookup Decoding", 2023).

    Args:
        longest: longest run of newest tokens to look for; shorter ones are tried down to one.
    """

    def __init__(self, longest: int = 3) -> None:
        self._longest = longest

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Copy up to `length` tokens from after the most recent match."""
        tokens = list(committed)
        for run in range(min(self._longest, len(tokens) - 1), 0, -1):
            tail = tokens[-run:]
            for start in range(len(tokens) - run - 1, -1, -1):
                if tokens[start : start + run] == tail:
                    return tokens[start + run : start + run + length]
        return []


class NoDrafter(_Guesser):
    """A device without a small model: it drafts nothing and its text is decoded in everybody's batch."""
