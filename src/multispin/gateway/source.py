"""The interface between the OpenAI-compatible API and the sessions that write its texts."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from multispin.protocol import Request
from multispin.speculation import Score

DEVICE, EDGE = "device", "edge"
"""Names of the drafters: a device, and the edge itself."""


class Piece(NamedTuple):
    """The tokens that one pass added to a text.

    Attributes:
        tokens: new token ids, final.
        drafted: number of tokens drafted for the pass.
        accepted: number of accepted drafted tokens.
        finish: why the text ended, "stop" or "length"; empty while it goes on.
        scores: log probabilities of the tokens, if requested.
        drafter: who drafted, `DEVICE` (default) or `EDGE`; empty if nobody did.

    """

    tokens: tuple[int, ...]
    drafted: int = 0
    accepted: int = 0
    finish: str = ""
    scores: tuple[Score, ...] = ()
    drafter: str = DEVICE


class TextSource(Protocol):
    """Writes texts: on the edge through its own passes, on a device through its sessions with an edge."""

    @property
    def max_length(self) -> int:
        """Most tokens of a text, prompt included."""

    def write(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Write one text, piece by piece. Closing the iterator ends the session."""


class Words(Protocol):
    """Turns text into token ids and back, for one model."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end a text of this model."""

    @property
    def size(self) -> int:
        """Number of token ids."""

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Token ids of a plain text, with or without the tokenizer's special tokens around it."""

    @property
    def knows_tools(self) -> bool:
        """Whether the model's chat template supports tools, calls and their results."""

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        answered: bool = True,
        special_tokens: bool = False,
    ) -> list[int]:
        """Token ids of a chat in the model's template; InputError if the template cannot write it."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token's text; its name for a special token."""

    def decode(self, ids: Sequence[int], special_tokens: bool = False) -> str:
        """Text of token ids, with or without the names of special tokens."""
