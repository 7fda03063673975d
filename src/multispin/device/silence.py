"""Why a part of a text was written without drafts of a device: the person at the device is told."""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol, runtime_checkable

from multispin.speculation import Drafter

LONG_TOKENS = 32
"""A person is told if this many tokens of a text were written without drafts for one reason."""


class Why(StrEnum):
    """Why a pass wrote tokens of a text without drafts of the device."""

    NOT_ASKED = "not-asked"
    """The edge asked for none."""
    CONTEXT = "context"
    """The text is longer than the drafter reads."""
    NOTHING = "nothing"
    """The drafter was asked, and had nothing to propose."""
    RESTING = "resting"
    """In a stream the device rests, because too many of its tokens would be wasted."""
    LATE = "late"
    """Its tokens were drafted, and no pass verified them: they came too late, or after one that was wrong."""


WORDS = {
    Why.NOT_ASKED: "the edge asked for none; it asks where they make texts faster",
    Why.CONTEXT: "the text is longer than the {most} tokens that its drafter reads",
    Why.NOTHING: "its drafter had nothing to propose",
    Why.RESTING: "it rested, so that few of its tokens are wasted",
    Why.LATE: "its tokens came too late, or after one that was wrong",
}
"""What a person is told; `{most}` is the length of the longest text that the drafter reads [tokens]."""


@runtime_checkable
class Bounded(Protocol):
    """A drafter that drafts for texts of at most `max_length` tokens."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that it reads."""


class Silence:
    """Counts the tokens of one text that were written without drafts, by reason.

    Attributes:
        tokens: by reason, tokens that were written without drafts.
        most: tokens of the longest text that the drafter reads; None where nothing bounds it.

    Args:
        drafter: what drafts; one that is `Bounded` is silent in long texts.

    """

    def __init__(self, drafter: Drafter) -> None:
        self.tokens: Counter[Why] = Counter()
        self.most = drafter.max_length if isinstance(drafter, Bounded) else None
        self._offered = self._has_offered = False
        self._drafted = True  # something, when the drafter was last asked

    def offer(self, length: int) -> None:
        """The edge lets the device draft up to `length` tokens from now on."""
        self._offered = length > 0
        self._has_offered |= self._offered

    def asked(self, drafted: int) -> None:
        """The drafter was asked, and has proposed `drafted` tokens."""
        self._drafted = drafted > 0

    def written(self, tokens: int, text_tokens: int, rests: bool) -> None:
        """A pass has written tokens without a draft.

        Args:
            tokens: number of tokens that were written.
            text_tokens: tokens of the whole text after them, prompt included.
            rests: whether the device rests.

        """
        if self._has_offered and self.most is not None and text_tokens > self.most:
            why = Why.CONTEXT  # also where the edge has stopped asking for what never comes
        elif not self._offered:
            why = Why.NOT_ASKED
        elif rests:
            why = Why.RESTING
        else:
            why = Why.LATE if self._drafted else Why.NOTHING
        self.tokens[why] += tokens

    def reason(self, drafted: int) -> Why | None:
        """The reason that a person is to know, if any.

        Args:
            drafted: the device's drafted tokens of the text that were verified.

        """
        told = {why: count for why, count in self.tokens.items() if not drafted or why is not Why.LATE}
        most = max(told, key=told.__getitem__, default=None)
        if Why.CONTEXT in told:  # a person can mend that
            return Why.CONTEXT
        if most is None or (drafted and told[most] < LONG_TOKENS):
            return None
        return most if sum(told.values()) > 1 else None  # a text of one token leaves nothing to draft

    def sentence(self, drafted: int, generated: int, remedies: Mapping[Why, str]) -> str:
        """What a person is to know of the text; empty if nothing.

        Args:
            drafted: the device's drafted tokens of the text that were verified.
            generated: tokens of the text, without the prompt.
            remedies: by reason, what the person can change, or why nothing can be changed.

        """
        why = self.reason(drafted)
        if why is None:
            return ""
        because = WORDS[why].format(most=self.most) + (f" ({remedies[why]})" if why in remedies else "")
        return f"{self.tokens[why]} of {generated} tokens were written without drafts of this device: {because}"
