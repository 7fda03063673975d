"""The seam between the round loop and whatever verifies: the embedded verifier, another engine, a simulated one."""

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
        params: the request's sampling law; None for a chunk of a prompt, of which nothing is asked.
        evidence: what the draft brings beside its ids, under a rejection rule; None for `greedy` and `coupled`.

    """

    slot: int
    start: int
    tokens: Sequence[int]
    params: SamplingParams | None
    evidence: Evidence | None = None


class SlotsTakenError(InputError):
    """Every slot is in use; try again when a session has ended."""


class Engine(Protocol):
    """What the round loop needs of a verifier.

    The cache of a session holds all of its committed tokens but the newest one; each round feeds [newest] + draft.
    """

    @property
    def slots(self) -> int:
        """Sessions that fit at once."""

    @property
    def max_length(self) -> int:
        """Prompt and generated tokens that a session may have."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""

    @property
    def rules(self) -> frozenset[Rule]:
        """The acceptance rules that it can apply; a request under another one is refused at the door."""

    def open(self) -> int:
        """Take a slot; raises SlotsTakenError when none is free."""

    def close(self, slot: int) -> None:
        """Give a slot back."""

    def cached(self, slot: int) -> int:
        """Positions of `slot` that are cached and valid."""

    def commit(self, slot: int, length: int) -> None:
        """Keep the first `length` cached positions of `slot` and forget the rest."""

    def verify(self, feeds: Sequence[Feed]) -> list[Finding | None]:
        """Run all feeds in one batch: what `speculation.judge` finds per draft, None per chunk of a prompt."""
