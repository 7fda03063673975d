"""Tells a device's user why parts of a text were written without the device's drafts."""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol, runtime_checkable

from multispin.speculation import Drafter

LONG_TOKENS = 32
"""Tokens written without drafts for one reason, from which on the user is told."""


class Why(StrEnum):
    """The reason why a pass wrote tokens of a text without drafts of the device."""

    NOT_ASKED = "not-asked"
    """The edge asked for none."""
    CONTEXT = "context"
    """The text is longer than the drafter can read."""
    NOTHING = "nothing"
    """The drafter was asked, and had nothing to propose."""
    RESTING = "resting"
    """In a stream the device rests, because too many of its tokens would be wasted."""
    LATE = "late"
    """The device drafted, but no pass verified its tokens: they came too late, or followed a rejected one."""


WORDS = {
    Why.NOT_ASKED: "the edge asked for none: it asks only devices that make texts faster",
    Why.CONTEXT: "the text is longer than the {most} tokens that its drafter can read",
    Why.NOTHING: "its drafter had nothing to propose",
    Why.RESTING: "it rested, since too many of its tokens would be wasted",
    Why.LATE: "its tokens came too late, or followed a rejected one",
}
"""What the user is told; `{most}` is the length of the longest text that the drafter can read [tokens]."""


@runtime_checkable
class Bounded(Protocol):
    """A drafter that drafts for texts of at most `max_length` tokens."""

    @property
    def max_length(self) -> int:
        """Length of the longest text that the drafter can read [tokens]."""


class Silence:
    """Counts the tokens of one text that were written without drafts, by reason.

    Attributes:
        tokens: number of tokens that were written without drafts, by reason.
        most: length of the longest text that the drafter can read [tokens]; None: no limit.

    Args:
        drafter: the device's drafter; one that is `Bounded` stops drafting in long texts.

    """

    def __init__(self, drafter: Drafter) -> None:
        self.tokens: Counter[Why] = Counter()
        self.most = drafter.max_length if isinstance(drafter, Bounded) else None
        self._offered = self._has_offered = False
        self._drafted = True  # whether the drafter proposed anything when it was last asked

    def offer(self, length: int) -> None:
        """Note that the device may draft up to `length` tokens from now on."""
        self._offered = length > 0
        self._has_offered |= self._offered

    def asked(self, drafted: int) -> None:
        """Note that the drafter was asked and proposed `drafted` tokens."""
        self._drafted = drafted > 0

    def written(self, tokens: int, text_tokens: int, rests: bool) -> None:
        """Count tokens that a pass wrote without a draft.

        Args:
            tokens: number of these tokens.
            text_tokens: length of the whole text after them [tokens], prompt included.
            rests: whether the device rests.

        """
        if self._has_offered and self.most is not None and text_tokens > self.most:
            why = Why.CONTEXT  # also if the edge has stopped asking, since no draft ever comes
        elif not self._offered:
            why = Why.NOT_ASKED
        elif rests:
            why = Why.RESTING
        else:
            why = Why.LATE if self._drafted else Why.NOTHING
        self.tokens[why] += tokens

    def reason(self, drafted: int) -> Why | None:
        """The reason to tell the user, if any.

        Args:
            drafted: the device's drafted tokens of the text that were verified.

        """
        told = {why: count for why, count in self.tokens.items() if not drafted or why is not Why.LATE}
        most = max(told, key=told.__getitem__, default=None)
        if Why.CONTEXT in told:  # the user can change that
            return Why.CONTEXT
        if most is None or (drafted and told[most] < LONG_TOKENS):
            return None
        return most if sum(told.values()) > 1 else None  # a text of one token leaves nothing to draft

    def sentence(self, drafted: int, generated: int, remedies: Mapping[Why, str]) -> str:
        """The sentence to tell the user about the text; empty if there is nothing to tell.

        Args:
            drafted: the device's drafted tokens of the text that were verified.
            generated: tokens of the text, without the prompt.
            remedies: by reason, what the user can change, or why nothing can be changed.

        """
        why = self.reason(drafted)
        if why is None:
            return ""
        because = WORDS[why].format(most=self.most) + (f" ({remedies[why]})" if why in remedies else "")
        return f"{self.tokens[why]} of {generated} tokens were written without drafts of this device: {because}"
