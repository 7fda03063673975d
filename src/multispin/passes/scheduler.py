"""The interface between the loop and what decides which sessions ride in which pass."""

from collections.abc import Sequence
from typing import Protocol

from multispin.passes.seats import Seat
from multispin.passes.steps import Batch, DraftHere, EdgeDraft, Step
from multispin.protocol import Chunk, Distribution, Downlink, Draft
from multispin.speculation import Failure, Finding


class Scheduler(Protocol):
    """Decides what happens next with the sessions of an `EdgeState`; `passes.loop` says how to drive it."""

    @property
    def number(self) -> int:
        """Number of the current round or pass."""

    @property
    def deadline_s(self) -> float:
        """Time at which it goes on without missing drafts [s]; 0 if none are awaited."""

    @property
    def price_tokens_per_s(self) -> float:
        """Price of time that decisions use [tokens/s]; 0 while unknown."""

    def advance(self, now_s: float) -> Step:
        """The driver's next step: sleep, draft here, verify a batch, or send messages."""

    def waits(self, now_s: float) -> bool:
        """Whether `advance` would return Sleep."""

    def drafted(self, step: DraftHere, drafts: Sequence[EdgeDraft], draft_s: float, now_s: float) -> None:
        """Take the drafts of the edge's own drafter.

        Args:
            step: the step that asked for the drafts.
            drafts: one draft per ask, in this order.
            draft_s: time of the drafting [s].
            now_s: present time of the driver's clock [s].

        """

    def verified(
        self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float, now_s: float
    ) -> None:
        """Take the findings of a batch.

        Args:
            batch: the batch that was verified.
            findings: one per job, in this order; a Failure ends its own session only, None is a prompt's.
            verify_s: time of the verification [s].
            now_s: present time of the driver's clock [s].

        """

    def receive(
        self, seat: Seat, message: Draft | Distribution | Chunk, frame_bytes: int, now_s: float
    ) -> list[Downlink]:
        """Take a device's draft, or a distribution that it was asked for.

        Args:
            seat: seat of the device's session.
            message: the message that came.
            frame_bytes: size of its frame [bytes].
            now_s: present time of the driver's clock [s].

        Returns:
            The immediate answers.

        Raises:
            ProtocolError: the message breaks the protocol, which ends the session.

        """

    def came_back(self, seat: Seat) -> None:
        """Note that a device is connected again."""
