"""The interface of a drafter, and the two drafters that need no model.

A drafter is asked for `length` tokens that follow a committed text. It may keep a cache of its own. It always gets the
whole committed text, so it cannot fall out of step with what the edge has decided.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from multispin.speculation.distributions import DistributionFormat, TruncatedDistribution, certain_distribution
from multispin.speculation.grammar import Matcher
from multispin.speculation.sampling import SamplingParams


class Drafter(Protocol):
    """Proposes the next tokens of a text."""

    def prepare(self, committed: Sequence[int]) -> None:
        """Read a text (a prompt) before its first draft is asked for, so that the first draft is not slower.

        Args:
            committed: ids of the whole text so far.
        """

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Propose up to `length` tokens that follow `committed`. Fewer, or none, is a valid answer.

        Args:
            committed: ids of the whole text, prompt included; at least one.
            length: most tokens to draft.
            params: the request's sampling parameters and seed.

        Returns:
            The drafted ids, in order.
        """

    def draft_distributions(
        self, committed: Sequence[int], length: int, params: SamplingParams, form: DistributionFormat
    ) -> tuple[list[int], list[TruncatedDistribution]]:
        """The same for the rejection rules: up to `length` tokens, and the distribution that each was drawn from.

        The number of tokens must be decided before the last of them is drawn (docs/losslessness.md).

        Args:
            committed: ids of the whole text, prompt included; at least one.
            length: most tokens to draft.
            params: the request's sampling parameters and seed; temperature > 0.
            form: V, V̂ and Q_B of the distributions.

        Returns:
            L drafted ids, and L distributions, one for each.
        """


class DraftAsk(NamedTuple):
    """One text that a draft is wanted for.

    Attributes:
        slot: slot that `BatchDrafter.open` returned.
        committed: ids of the whole text, prompt included; at least one.
        length: number of tokens to draft.
        params: the request's sampling parameters and seed.
        matcher: matcher that has read the generated part of the text, if the parameters have a grammar; default None.

    """

    slot: int
    committed: Sequence[int]
    length: int
    params: SamplingParams
    matcher: Matcher | None = None


class BatchDrafter(Protocol):
    """Proposes the next tokens of many texts at once, each in a slot of its own: the edge's own drafter."""

    def open(self) -> int:
        """Take a slot; raises SlotsTakenError when none is free."""

    def unread(self, slot: int, committed: Sequence[int]) -> int:
        """Tokens of a text, all but its newest, that a draft for it would have to read first.

        Args:
            slot: slot that `open` returned.
            committed: ids of the whole text, prompt included; at least one.
        """

    def draft(self, asks: Sequence[DraftAsk]) -> list[list[int]]:
        """Propose tokens for each text; fewer than asked for, or none, is a valid answer.

        Args:
            asks: the texts, each in a slot of its own.

        Returns:
            The drafted ids of each text, in the order of `asks`.
        """

    def draft_distributions(
        self, asks: Sequence[DraftAsk], form: DistributionFormat
    ) -> list[tuple[list[int], list[TruncatedDistribution]]]:
        """The same for the rejection rules, with the distribution that each token was drawn from.

        Args:
            asks: the texts, each in a slot of its own; temperature > 0.
            form: V, V̂ and Q_B of the distributions.

        Returns:
            For each text L drafted ids, and L distributions, one for each id.
        """


def kept_prefix(cached: Sequence[int], committed: Sequence[int]) -> int:
    """How much of a drafter's cache still holds: the tokens that it shares with the committed text.

    Args:
        cached: token ids that the cache holds.
        committed: token ids of the committed text, at least one.

    Returns:
        Length of the common beginning, at most all but the newest committed token, which is still to be read.

    """
    limit = min(len(cached), len(committed) - 1)
    if list(cached[:limit]) == list(committed[:limit]):  # the usual case, much quicker than a loop
        return limit
    common = 0
    while cached[common] == committed[common]:
        common += 1
    return common


class _Guesser:
    """A drafter that does not draw at random: its distribution has all of its weight on one token."""

    def prepare(self, committed: Sequence[int]) -> None:
        """Do nothing: there is no cache to fill."""

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Propose nothing."""
        return []

    def draft_distributions(
        self, committed: Sequence[int], length: int, params: SamplingParams, form: DistributionFormat
    ) -> tuple[list[int], list[TruncatedDistribution]]:
        """The proposed tokens, each with probability 1."""
        drafted = self.draft(committed, length, params)
        return drafted, [certain_distribution(token, form) for token in drafted]


class PromptLookupDrafter(_Guesser):
    """Proposes what followed the last occurrence of the text's newest few tokens.

    It needs no model. It works well where answers repeat their question (A. Saxena, "Prompt Lookup Decoding", 2023).

    Args:
        longest: number of newest tokens to look for, at most; shorter runs are tried down to one. Default 3.
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
    """Proposes nothing: the edge writes one token of the text in each pass."""
