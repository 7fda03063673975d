"""Token ids become text that is final: a text that is shown while it is written goes through a `TextStream`.

Two things must not be shown too early. A character may be split over several tokens: until its last byte has come, the
decoder puts U+FFFD in its place. And the end of the text so far may be the beginning of a stop string, which will be
cut off if it is completed. Both are held back until they are decided, and what is still held at the end is due then.
"""

from collections.abc import Callable, Sequence

from multispin.speculation.stopping import check_stop_strings

_UNDECIDED = "\ufffd"
"""The character that decoders write for the bytes of an incomplete character."""
_CONTEXT_TOKENS = 8
"""Tokens decoded again before the new ones: some tokenizers write a token differently at the start of a text."""
_WINDOW_TOKENS = 64
"""The window moves on after this many tokens, so that a token costs the same however long the text is."""
_MOST_HELD_TOKENS = 256
"""If this many tokens hold no complete character, they are passed on as they are."""


class TextStream:
    """The final text of a growing sequence of token ids.

    Args:
        decode: text of token ids, special tokens left out; bytes that are no text become U+FFFD.
        strings: stop strings; the text ends before the first of them; by default none.
        min_tokens: a stop string that is complete before this many tokens does not count; default 0.

    Attributes:
        tokens: ids taken so far; none are taken after a stop string.
        stopped: whether a stop string has ended the text.

    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], strings: Sequence[str] = (), min_tokens: int = 0
    ) -> None:
        check_stop_strings(strings)
        self.tokens = 0
        self.stopped = False
        self._decode, self._strings, self._min_tokens = decode, tuple(strings), min_tokens
        self._window: list[int] = []
        self._read = 0  # tokens of the window whose text is settled
        self._settled = ""  # text of these tokens
        self._decoded = ""  # text of the whole window
        self._text = ""  # settled text that has not left yet, behind what a stop string may still reach back to
        self._left = 0  # characters of `_text` that have left
        self._early = 0  # characters of `_text` in which no stop string counts

    def push(self, ids: Sequence[int]) -> str:
        """Take new ids; returns the text that has become final with them.

        Args:
            ids: ids that follow those taken before; after a stop string they are ignored.

        """
        for token in ids:
            if self.stopped:
                break
            self._take(token)
        return self._leave(self._safe())

    def end(self) -> str:
        """The text that is still due when no more ids will come."""
        if not self.stopped:
            self._text += self._behind(self._decoded, len(self._window))
            self._window, self._read, self._settled = [], 0, ""
            if self.tokens >= self._min_tokens:
                self._look()
        return self._leave(len(self._text))

    def _take(self, token: int) -> None:
        """Append one id, settle its text, and look whether it completes a stop string."""
        self.tokens += 1
        self._window.append(token)
        text = self._decode(self._window)
        if len(self._window) > _WINDOW_TOKENS and text == self._decoded and not self._decode([token]):
            self._window.pop()  # an id without text, such as an ignored end id, need not be in the window
        held = len(text) - len(text.rstrip(_UNDECIDED)) if len(self._window) - self._read < _MOST_HELD_TOKENS else 0
        settled = text[: len(text) - held]
        # A decoder that changes its mind about settled text may come back to it with the next byte.
        if not held or (text.startswith(self._settled) and len(settled) > len(self._settled)):
            self._text += self._behind(settled, len(self._window) - 1)
            self._settled = settled
        self._decoded = text
        if not held:
            self._read = len(self._window)
            if self._read > _WINDOW_TOKENS:
                self._move_on(text)
        if self.tokens < self._min_tokens:
            self._early = len(self._text)
        else:
            self._look()

    def _behind(self, text: str, known: int) -> str:
        """The part of the window's text behind the settled one.

        Some decoders write a character that they lack as bytes. If such a run of bytes is not text, they replace all of
        it, settled text included. Here settled text stays, and what follows is decoded without it.

        Args:
            text: text of the window, without what is undecided at its end.
            known: tokens of the window whose text is `_decoded`.

        """
        if text.startswith(self._settled):
            return text[len(self._settled) :]
        if text.startswith(self._decoded):  # so that a space at the start of the newest token is kept
            return self._decode(self._window[self._read : known]) + text[len(self._decoded) :]
        return self._decode(self._window[self._read :])

    def _move_on(self, text: str) -> None:
        """Begin the window at newer tokens, but neither inside a character nor with tokens that are no text."""
        for count in range(_CONTEXT_TOKENS, 0, -1):
            context = self._window[-count:]
            settled = self._decode(context)
            if settled and settled[0] != _UNDECIDED and text.endswith(settled):
                self._window, self._read, self._settled, self._decoded = context, count, settled, settled
                return

    def _look(self) -> None:
        """Cut the text before the first stop string that is complete."""
        places = [
            place
            for string in self._strings
            if (place := self._text.find(string, max(self._left, self._early - len(string) + 1))) >= 0
        ]
        if places:
            self._text = self._text[: min(places)]
            self.stopped = True

    def _safe(self) -> int:
        """Characters of the text that no stop string can cut off any more."""
        if self.stopped:
            return len(self._text)
        most = 0
        for string in self._strings:
            for length in range(min(len(string) - 1, len(self._text) - self._left), most, -1):
                if self._text.endswith(string[:length]):
                    most = length
                    break
        return len(self._text) - most

    def _leave(self, end: int) -> str:
        """Let the text up to `end` leave, and forget it but for what `_early` still needs."""
        text = self._text[self._left : end]
        self._left = end
        if self._left > _WINDOW_TOKENS:
            self._text, self._early = self._text[self._left :], max(0, self._early - self._left)
            self._left = 0
        return text


def text_of(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], strings: Sequence[str] = (), min_tokens: int = 0
) -> str:
    """The whole text of token ids, which ends before the first stop string (`TextStream`).

    Args:
        ids: the generated ids, all of them.
        decode: text of token ids, special tokens left out.
        strings: stop strings; by default none.
        min_tokens: a stop string that is complete before this many tokens does not count; default 0.

    """
    stream = TextStream(decode, strings, min_tokens)
    return stream.push(ids) + stream.end()
