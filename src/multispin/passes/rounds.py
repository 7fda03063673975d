"""Rounds: plan, grant, wait for all drafts, verify, deliver; and passes of the other sessions in the meantime.

A late device misses the batch but keeps its session: its draft joins the next pass, and its band stays reserved until
then. Under `rejection-up` a pass may have to ask devices for the distributions of refused tokens before it delivers. A
device that answers late misses this delivery, and gets its verdict when the answer comes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from multispin.passes.batches import collect, pending_job, prompt_due
from multispin.passes.edge_drafts import EdgeDrafts
from multispin.passes.plans import DEVICE, EDGE
from multispin.passes.round_grants import RoundGrants
from multispin.passes.seats import Seat
from multispin.passes.state import EdgeState
from multispin.passes.steps import Addressed, Batch, DraftHere, EdgeDraft, Send, Sleep, Step, Verify
from multispin.passes.trials import compare, tried
from multispin.protocol import (
    Ask,
    Chunk,
    Distribution,
    DistributionAsked,
    Downlink,
    Draft,
    Error,
    Granted,
    Pending,
    ProtocolError,
    Verdict,
)
from multispin.speculation import Failure, Finding, Rejection, framing_bits, uplink_bits_per_rejection

PATIENCE = 0.5
"""Lateness of drafts, as a share of a pass, from which on a pass is made without them."""
MOST_SETTLING = 0.5
"""A pass waits for distributions at most this share of the time for which waiting pays if all of them come."""


@dataclass(frozen=True)
class _EdgeDrafting:
    """The edge's own drafter is working."""


@dataclass(frozen=True)
class _Verifying:
    """A batch is being verified.

    Attributes:
        batch: the batch that is verified.
        waits: whether drafts of the round are still awaited, so that this pass is for the other sessions.

    """

    batch: Batch
    waits: bool = False


@dataclass(frozen=True)
class _Settling:
    """A batch has been verified; its verdicts wait for the distributions that were asked for.

    Attributes:
        batch: the batch that was verified.
        findings: the result of each job.
        verify_s: time of the verification [s].
        asked: seats that must send a distribution; those at the end that need not are dropped when it is checked.
        until_s: time until which the others' verdicts wait [s].
        waits: whether drafts of the round are still awaited.

    """

    batch: Batch
    findings: Sequence[Finding | Failure | None]
    verify_s: float
    asked: list[Seat]
    until_s: float
    waits: bool = False


class Rounds:
    """The scheduler of rounds.

    Args:
        state: sessions and messages that the parts of the loop share.
        edge_drafts: the edge's own drafter at work; None if it has none.

    """

    def __init__(self, state: EdgeState, edge_drafts: EdgeDrafts | None) -> None:
        self._state = state
        self._seats = state.seats
        self._controller = state.controller
        self._edge_drafts = edge_drafts
        self._grants = RoundGrants(state, edge_drafts)
        self._phase: _EdgeDrafting | _Verifying | _Settling | None = None  # None: drafts are gathered
        self._rider_came = False  # a new session may ride that no check has seen yet

    @property
    def number(self) -> int:
        """Number of the current round."""
        return self._grants.round.number

    @property
    def deadline_s(self) -> float:
        """Time at which the current round goes on without missing drafts [s]."""
        return self._grants.round.deadline_s

    @property
    def price_tokens_per_s(self) -> float:
        """Planned goodput of the current round [tokens/s]."""
        return self._grants.price_tokens_per_s

    def advance(self, now_s: float) -> Step:
        """The driver's next step: sleep, verify a batch, or send messages. Call it again afterwards."""
        self._rider_came = False
        if self._grants.rides and self._phase is None:
            self._grants.let_go_of_the_late(now_s)
        if self._state.outbox:
            messages, self._state.outbox = self._state.outbox, []
            return Send(messages)
        if self.waits(now_s):
            return self._ride(now_s) if self._phase is None else Sleep(self._until_s())
        if isinstance(self._phase, _Settling):
            return self._deliver(self._phase, now_s)
        if not self._anything_ready():
            _, grants = self._grants.schedule(now_s)
            if grants:
                return Send(list(grants.items()))
            if not self._anything_ready():
                return Sleep(self._grants.due_s)
        if self._grants.rides and (step := self._seat_riders(now_s) or self._to_draft()) is not None:
            return step
        batch = self._collect()
        self._phase = _Verifying(batch)
        return Verify(batch)

    def waits(self, now_s: float) -> bool:
        """Whether `advance` would return Sleep. This is cheap enough to call after every message."""
        if self._state.outbox or (self._rider_came and self._phase is None):
            return False
        match self._phase:
            case _EdgeDrafting() | _Verifying():
                return True
            case _Settling() as settling:
                return now_s < settling.until_s and _any_left(settling.asked, _is_asked)
        return now_s < self._grants.round.deadline_s and _any_left(self._grants.round.members, self._is_awaited)

    def drafted(self, step: DraftHere, drafts: Sequence[EdgeDraft], draft_s: float, now_s: float) -> None:
        """Take the drafts of the edge's own drafter, one per ask; `draft_s` is their time [s]."""
        assert self._edge_drafts is not None
        self._phase = None
        self._edge_drafts.drafted(step, drafts, draft_s, now_s)

    def verified(
        self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float, now_s: float
    ) -> None:
        """Take the findings of a batch, one per job; `verify_s` is the time of its verification [s].

        A Failure ends its own session only, with the reason; the pass goes on with the others.

        Refusals that need the device's distribution are settled at once, so that it can be asked for. The answer is
        sent over the band of its draft; the others' bands are idle meanwhile. So a pass does not wait for a device
        whose last answer was late.
        """
        asked = list[tuple[Seat, float]]()
        for job, finding in zip(batch.jobs, findings, strict=True):
            if not isinstance(finding, (Rejection, Failure)) or (seat := self._seats.get(job.session)) is None:
                continue
            if isinstance(finding, Failure):
                if seat.slot == job.feed.slot:
                    self._state.tell(job.session, Error(finding.code, finding.reason))
                    self._state.leave(job.session)
                continue
            band_hz = seat.session.grant.bandwidth_hz if seat.session.grant else 0.0
            answer = self._state.settle(seat, job, finding)
            if answer is None:
                continue
            self._state.tell(job.session, answer)
            if isinstance(answer, Ask):
                seat.asked_at_s = now_s
                if seat.connected:
                    asked.append((seat, self._distribution_s(seat, band_hz)))
        waits = isinstance(self._phase, _Verifying) and self._phase.waits
        most_s, awaited = self._settling_s(len(asked)), list[Seat]()
        for seat, upload_s in asked:
            limits = self._state.limits
            wait_s = min(most_s, limits.deadline_factor * upload_s + limits.deadline_slack_s)
            seat.answer_by_s = now_s + wait_s
            if not seat.answers_late:
                awaited.append(seat)
        until_s = max((seat.answer_by_s for seat in awaited), default=now_s)
        self._phase = _Settling(batch, findings, verify_s, awaited, until_s, waits)

    def came_back(self, seat: Seat) -> None:
        """Note that a device is connected again, so that its draft may be awaited again."""
        if seat not in self._grants.round.members:
            self._grants.round.members.append(seat)

    def receive(
        self, seat: Seat, message: Draft | Distribution | Chunk, frame_bytes: int, now_s: float
    ) -> list[Downlink]:
        """Take a device's draft, or a distribution that it was asked for. Returns the immediate answers."""
        match message:
            case Draft():
                return self._draft(seat, message, frame_bytes, now_s)
            case Distribution():
                seat.answers_late = now_s > seat.answer_by_s
                return self._state.receive_distribution(seat, message, frame_bytes)
        raise ProtocolError("unexpected", "a Chunk came, but no text streams at this edge: send Drafts for Grants")

    def _draft(self, seat: Seat, message: Draft, frame_bytes: int, now_s: float) -> list[Downlink]:
        session = seat.session
        stage, trial = session.stage, seat.trial
        if trial is not None and trial.ids is None and message.round == trial.grant.round:
            return tried(self._state, seat, trial, message, frame_bytes, now_s)
        answers = self._state.receive_draft(seat, message, frame_bytes, now_s)
        if answers is not None:
            if seat.let_go is not None and seat.let_go[0] == message.round:
                self._grants.came(seat, message.round, now_s)
            return answers
        if isinstance(stage, Granted) and stage.grant.length > 0:
            self._grants.came(seat, message.round, now_s)
        self._rider_came |= self._grants.rides and self._rides_now(seat)
        return []

    # Sessions that no device drafts for ---------------------------------------------------------------------------

    def _ride(self, now_s: float) -> Step:
        """A pass of the sessions without device drafts, if it is time for one while drafts are awaited.

        It is time while such passes are planned, while one more ends before the drafts are expected, and when the
        drafts are late, since these sessions do not wait for them. If all devices have to draft, such a pass only reads
        prompts, and only when drafts are late.
        """
        rides = self._grants.rides
        if rides and (step := self._seat_riders(now_s) or self._to_draft()) is not None:
            return step
        riders = [seat for seat in self._seats if rides and self._rides_now(seat)]
        prompts = any(prompt_due(self._state, seat) for seat in self._seats)
        if riders or prompts:
            pass_s = self._controller.beliefs.verifier().verify_s([0] * max(1, len(riders)))
            patience_s = self._grants.round.expected_s + PATIENCE * pass_s
            most_s = pass_s * (1.0 + prompts * self._state.limits.prefill_share)
            fits = rides and now_s + most_s <= self._grants.round.expected_s
            if self._grants.round.passes > 0 or fits or now_s >= patience_s:
                self._grants.round.passes -= 1
                batch = self._collect(riders, awaits=now_s < patience_s)
                self._phase = _Verifying(batch, waits=True)
                return Verify(batch)
            return Sleep(min(patience_s, self._grants.round.deadline_s))
        until_s, due_s = self._grants.round.deadline_s, self._grants.due_s
        return Sleep(until_s if due_s is None else min(until_s, due_s))

    def _seat_riders(self, now_s: float) -> Send | None:
        """Let idle sessions take part in the next pass. Returns the messages for devices, if any."""
        grants = self._grants
        messages = [
            (seat.session.number, grant)
            for seat in self._seats
            if grants.is_idle(seat) and (grant := grants.give(grants.as_rider(seat), now_s)) is not None
        ]
        return Send(messages) if messages else None

    def _rides_now(self, seat: Seat) -> bool:
        """Whether a session takes part in a pass without the awaited drafts."""
        stage = seat.session.stage
        if not isinstance(stage, Pending):
            return False
        return seat.drafter != DEVICE or stage.grant.round != self._grants.round.number

    def _to_draft(self) -> DraftHere | None:
        """The task of the edge's own drafter before the next pass; None if there is nothing to draft."""
        step = self._edge_drafts.wanted() if self._edge_drafts is not None else None
        if step is not None:
            self._phase = _EdgeDrafting()
        return step

    def _collect(self, pending: Sequence[Seat] | None = None, awaits: bool = False) -> Batch:
        """Make a batch of all pending drafts, or those of some sessions, and prompt tokens that may ride along.

        A pass on which drafts may have to wait is as short as its own work allows (`awaits`).
        """
        self._seats.fill()
        if pending is None:
            pending = [seat for seat in self._seats if isinstance(seat.session.stage, Pending)]
        under_way, jobs = self._grants.round, [pending_job(seat) for seat in pending]
        planned_s = 0.0 if awaits else under_way.planned_s
        return collect(self._state, under_way.number, jobs, self._grants.begin, planned_s, awaits)

    def _deliver(self, settling: _Settling, now_s: float) -> Send:
        """Settle the rest of a batch, plan the next round, and send everybody's verdict and grant.

        A missing distribution is no longer waited for: its draft is decided when it comes.
        """
        batch = settling.batch
        verdicts = list[tuple[Seat, Verdict]]()
        for job, finding in zip(batch.jobs, settling.findings, strict=True):
            seat = self._seats.get(job.session)
            if finding is None or isinstance(finding, (Rejection, Failure)) or seat is None:
                continue
            verdict = self._state.settle(seat, job, finding)
            if isinstance(verdict, Verdict):
                verdicts.append((seat, verdict))
                if seat.trial is not None:
                    compare(self._state, seat)
        self._phase = None
        self._seats.end_batch()
        # After a pass of their own, the sessions without device drafts go on as planned.
        held = {seat.session.number for seat, _ in verdicts if seat.held}
        plan, grants = (None, {}) if settling.waits else self._grants.schedule(now_s)
        drafted_here = {job.session for job in batch.jobs if job.drafter == EDGE and job.drafted}
        messages: list[Addressed] = []
        for seat, verdict in verdicts:
            session, trial, number = seat.session, seat.trial, seat.session.number
            if trial is not None and verdict.finish:  # nothing more can be learned from it
                known = trial.base if trial.ids is None else verdict.base
                messages += [(number, each) for each in session.catch_up(known)]
                seat.trial = None
                self._controller.chooser.probes.break_off(number, now_s)
            elif number in held:  # its device gets no message before its draft has come
                continue
            elif number in drafted_here:  # the device does not have these tokens
                tail = session.tail(verdict.base)
                messages.append((number, tail))
                if tail.grant is not None:  # a second one would have its device send its draft twice
                    del grants[number]
            elif number in grants and not seat.held:
                messages.append((number, session.attach(verdict, grants.pop(number))))
            else:
                messages.append((number, verdict))
        messages += grants.items()
        return Send(messages, self._state.report(batch, settling.verify_s, plan))

    # What is waited for -------------------------------------------------------------------------------------------

    def _until_s(self) -> float | None:
        """Time at which waiting ends without a message [s]."""
        match self._phase:
            case _EdgeDrafting() | _Verifying():
                return None
            case _Settling() as settling:
                return settling.until_s
        return self._grants.round.deadline_s

    def _anything_ready(self) -> bool:
        """Whether a batch would have anything in it."""
        if any(isinstance(seat.session.stage, Pending) for seat in self._seats):
            return True
        return any(prompt_due(self._state, seat) for seat in self._seats)

    def _is_awaited(self, seat: Seat) -> bool:
        """Whether the current round waits for a session's draft. It does not wait for devices that were late before."""
        stage = seat.session.stage
        if not isinstance(stage, Granted) or stage.grant.round != self._grants.round.number:
            return False
        return seat.connected and seat.running

    def _settling_s(self, asked: int) -> float:
        """Most time for which a pass waits for the distributions of so many devices [s].

        They lose a round if the others go on without them, and everybody loses the time of the wait. So waiting pays
        up to the share of a round that the asked are of all. Where nobody else is there, it costs nothing.
        """
        running = sum(seat.running and seat.connected for seat in self._seats)
        return MOST_SETTLING * self._grants.round.planned_s * asked / running if asked < running else math.inf

    def _distribution_s(self, seat: Seat, band_hz: float) -> float:
        """Planned time to ask for one distribution and to get it [s]; 0 without a granted band."""
        request = seat.session.request
        if request is None or band_hz <= 0.0:
            return 0.0
        bits = uplink_bits_per_rejection(request.rule, request.form) + framing_bits(request.rule, request.form)
        beliefs, number = self._controller.beliefs, seat.session.number
        return 2.0 * beliefs.delay_s(number) + beliefs.upload_s(number, bits, band_hz)


def _is_asked(seat: Seat) -> bool:
    """Whether a pass waits for a session's distribution. An ended session has no slot."""
    return seat.connected and seat.slot is not None and isinstance(seat.session.stage, DistributionAsked)


def _any_left(seats: list[Seat], test: Callable[[Seat], bool]) -> bool:
    """Whether any session passes the test; those at the end that do not are dropped for good."""
    while seats and not test(seats[-1]):
        seats.pop()
    return bool(seats)
