"""State that the parts of the loop share: sessions, outgoing messages, and decisions about drafts in grants."""

from dataclasses import dataclass, field
from typing import NamedTuple

from multispin.passes.controller import Controller
from multispin.passes.limits import Limits
from multispin.passes.plans import EDGE, RoundPlan
from multispin.passes.seats import Seat, Seats
from multispin.passes.steps import Addressed, Batch, Job, RoundReport
from multispin.protocol import Ask, Distribution, DistributionAsked, Downlink, Draft, Grant, Granted, Verdict
from multispin.speculation import Engine, Finding


class DecidedDraft(NamedTuple):
    """A decided draft, for the report."""

    session: int
    drafted: int
    accepted: int
    delivered: int


@dataclass(eq=False)
class EdgeState:
    """The sessions of an edge, and what both schedulers do with them.

    Attributes:
        engine: verification engine that runs the target model.
        controller: plans, and holds what is believed.
        limits: bounds of this edge.
        seats: sessions and slots.
        outbox: messages to send next.
        rows: drafts decided since the last report.
        late_drafted: tokens of drafts in grants that came too late to be verified.
        gone_wasted: tokens of ended sessions' streams that were never verified.

    """

    engine: Engine
    controller: Controller
    limits: Limits
    seats: Seats
    outbox: list[Addressed] = field(default_factory=list)
    rows: list[DecidedDraft] = field(default_factory=list)
    late_drafted: int = 0
    gone_wasted: int = 0

    @property
    def late_tokens(self) -> int:
        """Number of drafted tokens that came too late, or whose chain has ended."""
        return self.late_drafted + self.gone_wasted + sum(seat.session.counts.wasted for seat in self.seats)

    def tell(self, number: int, message: Downlink) -> None:
        """Append a message to the outbox."""
        self.outbox.append((number, message))

    def leave(self, number: int) -> None:
        """End a session, and free its slot and its band."""
        seat = self.seats.remove(number)
        if seat is not None:
            seat.session.end()
            self.gone_wasted += seat.session.counts.wasted
            self.controller.leave(number)

    # Drafts in grants ---------------------------------------------------------------------------------------------

    def receive_draft(self, seat: Seat, message: Draft, frame_bytes: int, now_s: float) -> list[Downlink] | None:
        """Take in a draft.

        Args:
            seat: seat of the device's session.
            message: Draft message of the device.
            frame_bytes: size of its frame [bytes].
            now_s: present time of the driver's clock [s].

        Returns:
            None if it is the awaited draft, else the immediate answers.

        """
        session, stage = seat.session, seat.session.stage
        answers = session.receive(message)
        self.controller.chooser.probes.end(session.number, now_s)  # even if it is late: its device does draft
        if session.request is not None and session.request.finish:  # the draft named its last token
            self.seats.release(seat)
        if answers or not isinstance(stage, Granted):  # otherwise it is in the current batch already
            self.late_drafted += message.length
            return [*answers]
        if stage.grant.length > 0:
            self.observe_draft(seat, stage.grant, message, frame_bytes, now_s - seat.asked_at_s)
        return None

    def observe_draft(self, seat: Seat, grant: Grant, message: Draft, frame_bytes: int, took_s: float) -> None:
        """Learn from a draft.

        Args:
            seat: seat of the device's session.
            grant: the grant that it answers.
            message: Draft message of the device.
            frame_bytes: size of its frame [bytes].
            took_s: time from the grant to the draft's arrival [s].

        """
        draft_s = message.draft_us * 1e-6
        self.controller.beliefs.observe_draft(
            seat.session.number,
            message.length,
            draft_s,
            8 * frame_bytes,
            grant.bandwidth_hz,
            took_s - draft_s,
        )

    def receive_distribution(self, seat: Seat, message: Distribution, frame_bytes: int) -> list[Downlink]:
        """Decide a refused draft with its distribution. The next plan grants it another one."""
        stage = seat.session.stage
        verdict = seat.session.receive_distribution(message)
        if isinstance(stage, DistributionAsked):
            self.controller.beliefs.observe_distribution(seat.session.number, 8 * frame_bytes)
            self.decided(seat, verdict, len(stage.draft))
        return [verdict]

    def settle(self, seat: Seat, job: Job, finding: Finding) -> Verdict | Ask | None:
        """Commit the finding for a session's draft, and learn from it; None if the draft is no longer the session's.

        The cache keeps the same positions even if an Ask follows: a refused token's position is the newest token's.
        """
        if seat.slot != job.feed.slot:
            return None
        self.engine.commit(job.feed.slot, job.feed.newest + 1 + finding.accepted)
        if job.drafter == EDGE:
            self.controller.beliefs.observe_edge_outcome(job.session, job.drafted, finding.accepted)
        else:
            # A granted token that was not drafted counts as rejected, since that is what a longer grant would bring.
            self.controller.observe_outcome(job.session, job.granted, finding.accepted)
        answer = seat.session.settle(finding)
        if isinstance(answer, Verdict):
            self.decided(seat, answer, job.drafted)
        return answer

    def decided(self, seat: Seat, verdict: Verdict, drafted: int) -> None:
        """Note a verdict for the report. An ended text frees its slot."""
        delivered = verdict.accepted + 1  # the token found from an offer is counted here, not when it is named
        self.rows.append(DecidedDraft(seat.session.number, drafted, verdict.accepted, delivered))
        if verdict.finish:
            self.seats.release(seat)

    def report(self, batch: Batch, verify_s: float, plan: RoundPlan | None) -> RoundReport:
        """The report of a pass, with the drafts that were decided since the last report."""
        members, drafted, accepted, delivered = zip(*self.rows, strict=True) if self.rows else ((), (), (), ())
        self.rows = []
        return RoundReport(
            batch.round,
            members,
            drafted,
            accepted,
            delivered,
            verify_s,
            sum(len(job.feed.tokens) if job.feed.params is None else job.feed.context for job in batch.jobs),
            plan,
        )
