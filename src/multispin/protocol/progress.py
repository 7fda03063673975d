"""Effects of the edge's messages on a device: new text, or the end of the session."""

from typing import NamedTuple

from multispin.errors import InputError
from multispin.speculation import Score


class RefusedError(InputError):
    """The edge ended the session. `code` is for programs, the message for people.

    `retry_after_s` is the time after which a new try makes sense [s]; 0: unknown.
    """

    def __init__(self, code: str, sentence: str, retry_after_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.code = code
        self.retry_after_s = retry_after_s


class SessionGoneError(RefusedError):
    """The edge no longer knows the session. The text is kept: greet again, and open it from where it stands."""


class Progress(NamedTuple):
    """The effect of one message from the edge.

    Attributes:
        tokens: ids that became committed.
        accepted: number of these ids that had been drafted.
        drafted: number of drafted tokens that were verified.
        finish: "stop" or "length" at the end of the text, else empty.
        text: text that became final; empty without a tokenizer.
        wasted: number of drafted tokens that will never be verified.
        scores: log probabilities of the new tokens, if the request wants them.

    """

    tokens: tuple[int, ...] = ()
    accepted: int = 0
    drafted: int = 0
    finish: str = ""
    text: str = ""
    wasted: int = 0
    scores: tuple[Score, ...] = ()
