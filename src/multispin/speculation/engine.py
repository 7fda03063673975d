"""The interface between the loop and what runs the target: the embedded verifier, vLLM, or a simulated engine."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from multispin.errors import InputError
from multispin.speculation.evidence import Evidence, Finding
from multispin.speculation.payload import Rule
from multispin.speculation.sampling import SamplingParams


class Feed(NamedTuple):
    """Tokens that one session brings to a verification.

    Attributes:
        slot: from `Engine.open`.
        start: absolute position of the first token; at most the number of positions cached for the slot.
        tokens: [newest committed token] + draft, or a chunk of a prompt; never empty.
        params: the request's sampling parameters; None for a chunk of a prompt, after which no token is wanted.
        evidence: what the draft brings beside its ids under a rejection rule; None under `greedy` and `coupled`.

    """

    slot: int
    start: int
    tokens: Sequence[int]
    params: SamplingParams | None
    evidence: Evidence | None = None


class SlotsTakenError(InputError):
    """Every slot is in use; try again when a session has ended."""


class Engine(Protocol):
    """What the loop needs from an engine.

    The cache of a session holds all of its committed tokens except the newest one. Each pass feeds [newest] + draft.
    """

    @property
    def slots(self) -> int:
        """Number of sessions that fit at once."""

    @property
    def max_length(self) -> int:
        """Most tokens that a session may have, prompt included."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""

    @property
    def rules(self) -> frozenset[Rule]:
        """Acceptance rules that the engine can apply. A request under another rule is refused when it is opened."""

    def open(self) -> int:
        """Take a slot; raises SlotsTakenError when none is free."""

    def close(self, slot: int) -> None:
        """Give a slot back."""

    def cached(self, slot: int) -> int:
        """Number of positions of `slot` that are cached and valid."""

    def commit(self, slot: int, length: int) -> None:
        """Keep the first `length` cached positions of `slot` and forget the rest."""

    def verify(self, feeds: Sequence[Feed]) -> list[Finding | None]:
        """Run all feeds in one forward pass.

        Returns:
            For each feed what `speculation.judge` finds about its draft; None for a chunk of a prompt.

        """
