"""Stop strings: texts that end a text, which then ends before them.

Where a text ends is a function of its ids alone: after the first id that completes a stop string, whether the ids
came one by one or several in a verdict. So a device and plain decoding of the target end alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from multispin.errors import InputError

MAX_STOP_STRINGS = 8
MAX_STOP_CHARACTERS = 200


def check_stop_strings(strings: Sequence[str]) -> None:
    """InputError if there are too many stop strings, or if one is empty or too long."""
    if len(strings) > MAX_STOP_STRINGS:
        raise InputError(f"{len(strings)} stop strings are over the limit of {MAX_STOP_STRINGS}")
    for string in strings:
        if not 1 <= len(string) <= MAX_STOP_CHARACTERS:
            raise InputError(f"a stop string of {len(string)} characters is outside 1 … {MAX_STOP_CHARACTERS}")


@dataclass(frozen=True)
class StopStrings:
    """Stop strings and how ids become text.

    Attributes:
        strings: none of them empty.
        decode: text of ids.
        min_tokens: a string that is complete before this many generated tokens does not count.

    """

    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]
    min_tokens: int = 0

    def __post_init__(self) -> None:
        check_stop_strings(self.strings)

    def end(self, ids: Sequence[int], known: int = 0) -> int | None:
        """The least number of generated ids whose text holds a stop string; None if there is none.

        Args:
            ids: generated so far.
            known: how many of the first of them are known to hold none.

        """
        if self.strings:
            for count in range(max(known + 1, self.min_tokens, 1), len(ids) + 1):
                if self._place(ids[:count]) is not None:
                    return count
        return None

    def text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, which ends before the first stop string."""
        count = self.end(ids)
        if count is None:
            return self.decode(ids)
        return self.decode(ids[:count])[: self._place(ids[:count])]

    def _place(self, ids: Sequence[int]) -> int | None:
        """Where the first stop string begins in the text of `ids`; None if there is none."""
        text = self.decode(ids)
        # A character that is not complete yet counts as none: a stop string may still be completed by it.
        early = len(self.decode(ids[: self.min_tokens - 1]).rstrip("\ufffd")) if self.min_tokens > 1 else 0
        places = (text.find(string, max(0, early - len(string) + 1)) for string in self.strings)
        return min((place for place in places if place >= 0), default=None)
