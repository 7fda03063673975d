"""Effects of a message from the edge on a device: new text, or the end of the session."""

from typing import NamedTuple

from multispin.errors import InputError
from multispin.speculation import Score


class RefusedError(InputError):
    """The edge ended the session; `code` is for programs, the message for people.

    `retry_after_s` is when the edge wants to be asked again [s]; 0: it does not say.
    """

    def __init__(self, code: str, sentence: str, retry_after_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.code = code
        self.retry_after_s = retry_after_s


class SessionGoneError(RefusedError):
    """The edge does not know the session any more. The text is kept: greet again, and open from where it stands."""


class Progress(NamedTuple):
    """The effect of one message from the edge.

    Attributes:
        tokens: ids that became committed.
        accepted: how many of them had been drafted.
        drafted: how many tokens had been drafted in all.
        finish: "stop" or "length" at the end of the text, else empty.
        text: text that became final with it; stays empty without a tokenizer.
        wasted: drafted tokens that nobody will verify any more.
        scores: log probabilities of the new tokens, where the request wants them.

    """

    tokens: tuple[int, ...] = ()
    accepted: int = 0
    drafted: int = 0
    finish: str = ""
    text: str = ""
    wasted: int = 0
    scores: tuple[Score, ...] = ()
