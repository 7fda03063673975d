"""The seam between the loop and who decides which sessions ride in which pass."""

from collections.abc import Sequence
from typing import Protocol

from multispin.passes.seats import Seat
from multispin.passes.steps import Batch, DraftHere, EdgeDraft, Step
from multispin.protocol import Chunk, Distribution, Downlink, Draft
from multispin.speculation import Failure, Finding


class Scheduler(Protocol):
    """Decides what happens next, over the sessions of an `EdgeState`; `passes.loop` says how it is driven."""

    @property
    def number(self) -> int:
        """Number of the round or pass under way."""

    @property
    def deadline_s(self) -> float:
        """Time at which it goes on without the awaited drafts [s]; 0 if none are awaited."""

    @property
    def price_tokens_per_s(self) -> float:
        """The engine's goodput as decisions take it [tokens/s]; 0 while nothing is known."""

    def advance(self, now_s: float) -> Step:
        """The driver's next step: sleep, draft here, verify a batch, or send messages."""

    def waits(self, now_s: float) -> bool:
        """Whether `advance` can only say Sleep."""

    def drafted(self, step: DraftHere, drafts: Sequence[EdgeDraft], draft_s: float, now_s: float) -> None:
        """Take what the edge's own drafter drafted.

        Args:
            step: the step that asked for the drafts.
            drafts: one draft per ask, in this order.
            draft_s: how long the drafting took [s].
            now_s: present time of the driver's clock [s].

        """

    def verified(
        self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float, now_s: float
    ) -> None:
        """Take what the verification of a batch found.

        Args:
            batch: the batch that was verified.
            findings: one per job, in this order; a Failure ends its own session only, None is a prompt's.
            verify_s: how long the verification took [s].
            now_s: present time of the driver's clock [s].

        """

    def receive(
        self, seat: Seat, message: Draft | Distribution | Chunk, frame_bytes: int, now_s: float
    ) -> list[Downlink]:
        """Take what a device drafted, or a distribution that it was asked for.

        Args:
            seat: seat of the device's session.
            message: the message that came.
            frame_bytes: size of its frame [bytes].
            now_s: present time of the driver's clock [s].

        Returns:
            What is answered at once.

        Raises:
            ProtocolError: the message breaks the protocol, which ends the session.

        """

    def came_back(self, seat: Seat) -> None:
        """A device is connected again."""
