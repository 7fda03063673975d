"""Passes under a virtual clock: what `edge.pass_loop` does with a real one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

from multispin.passes import Batch, DraftHere, EdgeDraft, Passes, RoundReport, Send, Sleep, Verify
from multispin.protocol import Downlink
from multispin.simulation.clock import EventQueue
from multispin.speculation import Failure, Finding


class VirtualDriver(ABC):
    """Does what the passes ask for. Each step takes the virtual time that a subclass says.

    Attributes:
        queue: events, and the clock.
        passes: sessions and passes of the edge.

    Args:
        queue: events, and the clock.
        passes: sessions and passes of the edge.

    """

    def __init__(self, queue: EventQueue, passes: Passes) -> None:
        self.queue, self.passes = queue, passes
        self._until_s = -1.0  # the last time at which a look is due already
        self._looks = False  # whether a look is due at this very moment

    @abstractmethod
    def tell(self, number: int, message: Downlink) -> None:
        """Send a message to the device of a session."""

    @abstractmethod
    def pass_s(self, batch: Batch) -> tuple[float, float]:
        """How long a batch's verification takes [s], and how long it is until its verdicts can go out [s]."""

    @abstractmethod
    def draft_here(self, step: DraftHere) -> tuple[list[EdgeDraft], float]:
        """The drafts of the edge's own drafter, and how long they take [s]."""

    @abstractmethod
    def reported(self, report: RoundReport) -> None:
        """A pass has ended."""

    def wake(self) -> None:
        """Have `look` called after all events of the present moment."""
        if not self._looks:
            self._looks = True
            self.queue.at(self.queue.now_s, self.look)

    def look(self) -> None:
        """Do what the passes ask for, until they sleep, draft or verify."""
        self._looks = False
        while True:
            match self.passes.advance(self.queue.now_s):
                case Send(messages, report):
                    if report is not None:
                        self.reported(report)
                    for number, message in messages:
                        self.tell(number, message)
                case DraftHere() as step:
                    drafts, draft_s = self.draft_here(step)
                    self.queue.at(self.queue.now_s + draft_s, partial(self._drafted, step, drafts, draft_s))
                    return
                case Verify(batch):
                    findings, (verify_s, done_s) = self.passes.verify(batch), self.pass_s(batch)
                    self.queue.at(self.queue.now_s + done_s, partial(self.verified, batch, findings, verify_s))
                    return
                case Sleep(until_s):
                    if until_s is not None and until_s != self._until_s:
                        self._until_s = until_s
                        self.queue.at(until_s, self.look)
                    return

    def _drafted(self, step: DraftHere, drafts: Sequence[EdgeDraft], draft_s: float) -> None:
        self.passes.drafted(step, drafts, draft_s, self.queue.now_s)
        self.look()

    def verified(self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float) -> None:
        """A verification is over; it took `verify_s`."""
        self.passes.verified(batch, findings, verify_s, self.queue.now_s)
        self.look()
