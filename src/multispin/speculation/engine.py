"""The interface between the loop and what runs the target: the embedded verifier, vLLM, or a simulated engine.

Beside the protocol stand the values that pass through it, and the slot table that every engine keeps.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from multispin.checks import shown
from multispin.errors import InputError
from multispin.speculation.evidence import Evidence, Finding
from multispin.speculation.rule import Rule
from multispin.speculation.sampling import SamplingParams


class Feed(NamedTuple):
    """Tokens that one session brings to a verification.

    Attributes:
        slot: slot that `Engine.open` returned.
        start: absolute position of the first token; at most the number of positions cached for the slot.
        tokens: context + [newest committed token] + draft, or a chunk of a prompt; never empty.
        params: the request's sampling parameters; None for a chunk of a prompt, after which no token is wanted.
        evidence: evidence of the draft under a rejection rule, beside its ids; None under `greedy` and `coupled`.
        text: the committed ids, newest included, where the parameters have penalties (`SamplingParams.remembers`); else
            empty; by default none.
        masks: [1 + draft length, ⌈V/8⌉], which ids may stand at each position after the context, where the parameters
            have a grammar; default None.
        context: number of committed tokens before the newest that are fed, the end of a prompt; default 0. Only an
            engine that `joins` takes more.

    """

    slot: int
    start: int
    tokens: Sequence[int]
    params: SamplingParams | None
    evidence: Evidence | None = None
    text: Sequence[int] = ()
    masks: NDArray[np.uint8] | None = None
    context: int = 0

    @property
    def newest(self) -> int:
        """Position of the newest committed token."""
        return self.start + self.context

    @property
    def draft(self) -> Sequence[int]:
        """The drafted tokens; of a chunk of a prompt nothing that means anything."""
        return self.tokens[self.context + 1 :]


class Failure(NamedTuple):
    """Answer of `Engine.verify` for a feed that cannot be verified, where the other feeds of the batch can.

    The request cannot go on: whatever its slot holds is not to be used again.

    Attributes:
        reason: one sentence for the person whose request it is.
        of_request: whether the request's own values are the cause, so that it would fail again; default no.

    """

    reason: str
    of_request: bool = False

    @property
    def code(self) -> str:
        """The code of the error that ends the session, for programs."""
        return "bad-request" if self.of_request else "failed"


class SlotsTakenError(InputError):
    """Every slot is in use; try again when a session has ended."""


def check_slots(slots: int) -> None:
    """InputError unless there is a slot: an engine checks it before it loads a model."""
    if not isinstance(slots, int) or slots < 1:
        raise InputError(f"slots = {shown(slots)} is no whole number of at least 1")


class SlotTable:
    """Which slots are taken, and how many positions of each are cached: what every engine inherits.

    Args:
        slots: number of slots; at least 1. They are handed out from 0, the one given back last first.

    Attributes:
        slots: number of slots.
        lacks: `SamplingParams.features` that the engine cannot apply; none, unless a class says otherwise.
        longest_chunk: most prompt tokens that a pass takes beside full drafts; no limit, unless a class says otherwise.
        joins: whether a feed may have `Feed.context`; not, unless a class says otherwise.

    """

    joins: bool = False
    lacks: frozenset[str] = frozenset()
    longest_chunk: int = 2**31

    def __init__(self, slots: int) -> None:
        check_slots(slots)
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._cached: dict[int, int] = {}

    def open(self) -> int:
        """Take a slot, with nothing cached; raises SlotsTakenError when none is free."""
        if not self._free:
            raise SlotsTakenError(f"all {self.slots} slots are taken")
        slot = self._free.pop()
        self._cached[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        """Give a slot back; ValueError unless it is open."""
        self.cached(slot)
        del self._cached[slot]
        self._free.append(slot)

    def cached(self, slot: int) -> int:
        """Positions of `slot` that are cached and valid; ValueError unless it is open."""
        try:
            return self._cached[slot]
        except KeyError:
            raise ValueError(f"slot {slot} is not open") from None

    def commit(self, slot: int, length: int) -> None:
        """Keep the first `length` cached positions of `slot` and forget the rest.

        Args:
            slot: slot that `open` returned.
            length: number of positions to keep.

        Raises:
            ValueError: the slot is not open, or has not so many positions cached.

        """
        if not 0 <= length <= (cached := self.cached(slot)):
            raise ValueError(f"slot {slot} has {cached} positions cached, cannot keep {length}")
        self._cached[slot] = length

    def check(self, feeds: Sequence[Feed], max_length: int, vocabulary_size: int) -> None:
        """ValueError unless each feed goes on from what its slot holds, fits it, and has ids of the vocabulary.

        Args:
            feeds: feeds of one pass, each for a slot of its own.
            max_length: most positions that a slot holds.
            vocabulary_size: V, number of token ids.

        """
        if len({feed.slot for feed in feeds}) < len(feeds):
            raise ValueError("a slot stands twice in one batch")
        for feed in feeds:
            cached, end = self.cached(feed.slot), feed.start + len(feed.tokens)
            if not 0 <= feed.start <= cached:
                raise ValueError(f"slot {feed.slot} has {cached} positions cached, cannot start at {feed.start}")
            if not feed.tokens or end > max_length:
                raise ValueError(
                    f"{len(feed.tokens)} tokens at {feed.start} do not fit a slot of {max_length} positions"
                )
            if feed.context and not (self.joins and feed.params is not None and 0 < feed.context < len(feed.tokens)):
                raise ValueError(f"a feed of {len(feed.tokens)} tokens cannot begin with a context of {feed.context}")
            if min(feed.tokens) < 0 or max(feed.tokens) >= vocabulary_size:
                raise ValueError(f"a token id is outside 0 … {vocabulary_size - 1}")

    def take(self, feeds: Sequence[Feed]) -> None:
        """Note that the tokens of all feeds are cached.

        Args:
            feeds: feeds of one pass that `check` has let through.

        """
        for feed in feeds:
            self._cached[feed.slot] = feed.start + len(feed.tokens)


class Engine(Protocol):
    """The methods that the loop needs from an engine.

    The cache of a session holds all of its committed tokens except the newest one. Each pass feeds [newest] + draft.
    The pass that reads the last of a prompt may feed both, where the engine `joins`.
    """

    @property
    def joins(self) -> bool:
        """Whether a draft may stand behind the end of its prompt in one feed (`Feed.context`)."""

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

    @property
    def lacks(self) -> frozenset[str]:
        """`SamplingParams.features` that it cannot apply. A request with one of them is refused when it is opened."""

    @property
    def longest_chunk(self) -> int:
        """Most prompt tokens that a pass takes beside full drafts, as memory and the shape of its passes allow."""

    def open(self) -> int:
        """Take a slot; raises SlotsTakenError when none is free."""

    def close(self, slot: int) -> None:
        """Give a slot back."""

    def cached(self, slot: int) -> int:
        """Number of positions of `slot` that are cached and valid."""

    def commit(self, slot: int, length: int) -> None:
        """Keep the first `length` cached positions of `slot` and forget the rest.

        Args:
            slot: slot that `open` returned.
            length: number of positions to keep, at most those cached.

        """

    def verify(self, feeds: Sequence[Feed]) -> list[Finding | Failure | None]:
        """Run all feeds in one forward pass.

        Args:
            feeds: drafts and chunks of prompts, each for a slot of its own.

        Returns:
            For each feed what `speculation.judge` finds about its draft; None for a chunk of a prompt; a Failure where
            this feed alone cannot be verified (its logits are not finite numbers).

        """
