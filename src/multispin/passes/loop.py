"""The loop of passes, without its clock and its sockets: ready → choose → verify → settle → deliver → learn.

`Passes` holds the sessions and decides; whoever drives it brings the time, the messages and a thread for `verify`.
The contract: call `advance` after every message and whenever the time of its last `Sleep` has come, and do what it
says; hand what a `Verify` brought to `verified`. A server does so with sockets (`edge.server`), a simulation with a
virtual clock (`simulation.site`), a test with `passes.local`.

A device that is late misses the batch, not its session: its draft joins the next pass, and its band stays reserved
until then. Under `rejection-up` a pass may have to ask devices for the distributions of refused tokens before it
delivers; a device that answers late misses this delivery and gets its verdict when the answer comes.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from multispin.errors import InputError
from multispin.passes.controller import Controller, Member, RoundPlan
from multispin.passes.limits import LEAST_PREFILL_TOKENS, Limits
from multispin.passes.seats import Seat, Seats
from multispin.passes.steps import Batch, Job, Message, RoundReport, Send, Sleep, Step, Verify
from multispin.protocol import (
    Ask,
    Close,
    Downlink,
    Draft,
    EdgeSession,
    Grant,
    Granted,
    Hello,
    Law,
    Open,
    Pending,
    ProtocolError,
    Refused,
    Resume,
    Uplink,
    Verdict,
    Welcome,
    check_hello,
    check_version,
)
from multispin.speculation import (
    ID_RULES,
    Engine,
    Failure,
    Feed,
    Finding,
    Rejection,
    bits_per_token,
    framing_bits,
    uplink_bits_per_rejection,
)


@dataclass
class _Round:
    """The round under way.

    Attributes:
        number: of the round.
        planned_s: its planned time [s].
        deadline_s: when it goes on without the drafts that have not come [s].
        members: sessions whose drafts may still be awaited. `_is_awaited` tells which are; those found at the end that
            are not drop off, so that a look costs next to nothing however many there are.

    """

    number: int = 0
    planned_s: float = 0.0
    deadline_s: float = 0.0
    members: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Verifying:
    """A batch is being verified."""

    batch: Batch


@dataclass(frozen=True)
class _Settling:
    """A batch has been verified; its verdicts wait for the distributions that were asked for.

    Attributes:
        batch: what was verified.
        findings: what was found, per job.
        verify_s: how long that took [s].
        asked: sessions that owe a distribution; those found at the end that do not drop off.
        until_s: when the others' verdicts wait no longer [s].

    """

    batch: Batch
    findings: Sequence[Finding | None]
    verify_s: float
    asked: list[int]
    until_s: float


class _Row(NamedTuple):
    """A decided draft, for the report."""

    session: int
    drafted: int
    accepted: int
    delivered: int


class Passes:
    """Sessions, slots and passes of one edge.

    Args:
        engine: verification engine that runs the target model.
        controller: plans every round.
        fingerprint: of the target's tokenizer; a device with another one is refused.
        limits: bounds of this edge; default `Limits()`.
        credential: secret that a device must show; default none.
        seed: default noise seed handed to devices; default 0.
        new_token: makes resume tokens; by default random ones.

    """

    def __init__(
        self,
        engine: Engine,
        controller: Controller,
        fingerprint: str,
        limits: Limits | None = None,
        credential: str = "",
        seed: int = 0,
        new_token: Callable[[], str] = lambda: secrets.token_urlsafe(16),
    ) -> None:
        self.engine = engine
        self.controller = controller
        self.limits = limits or Limits()
        self._fingerprint = fingerprint
        self._credential = credential
        self._seed = seed
        self._new_token = new_token
        self._seats = Seats(engine, self.limits)
        self._last_number = 0
        self._round = _Round()
        self._phase: _Verifying | _Settling | None = None  # None: drafts are gathered
        self._outbox: list[Message] = []
        self._rows: list[_Row] = []  # decided since the last report

    # What a driver needs ------------------------------------------------------------------------------------------

    def advance(self, now_s: float) -> Step:
        """What to do next: sleep, verify a batch, or send messages; then ask again."""
        if self._outbox:
            messages, self._outbox = self._outbox, []
            return Send(messages)
        if self.waits(now_s):
            return Sleep(self._until_s())
        if isinstance(self._phase, _Settling):
            return self._deliver(self._phase, now_s)
        if not self._anything_ready():
            _, grants = self._schedule(now_s)
            if grants:
                return Send(list(grants.items()))
            if not self._anything_ready():
                return Sleep()
        batch = self._collect()
        self._phase = _Verifying(batch)
        return Verify(batch)

    def waits(self, now_s: float) -> bool:
        """Whether `advance` can only say Sleep. Cheap: a driver with many messages may ask this after each."""
        if self._outbox:
            return False
        match self._phase:
            case _Verifying():
                return True
            case _Settling() as settling:
                return now_s < settling.until_s and _any_left(settling.asked, self._is_asked)
        return now_s < self._round.deadline_s and _any_left(self._round.members, self._is_awaited)

    def verify(self, batch: Batch) -> list[Finding | None]:
        """Run a batch. The only slow step; safe to run in another thread while messages come in."""
        findings: list[Finding | None] = []
        for found in self.engine.verify([job.feed for job in batch.jobs]):
            if isinstance(found, Failure):
                raise InputError(found.reason)
            findings.append(found)
        return findings

    def verified(self, batch: Batch, findings: Sequence[Finding | None], verify_s: float, now_s: float) -> None:
        """Take what a batch's verification found, one finding per job; it took `verify_s`.

        Refusals that need the device's distribution are settled at once, so that it can be asked for; the others'
        band is idle meanwhile, and the answer goes up over the band of the draft that it belongs to.
        """
        self.controller.beliefs.observe_verification(len(batch.jobs), batch.tokens, verify_s)
        asked, upload_s = [], 0.0
        for job, finding in zip(batch.jobs, findings, strict=True):
            seat = self._seats.get(job.session)
            if not isinstance(finding, Rejection) or seat is None:
                continue
            band_hz = seat.session.grant.bandwidth_hz if seat.session.grant else 0.0
            answer = self._settle(seat, job, finding)
            if answer is None:
                continue
            self._outbox.append((job.session, answer))
            if isinstance(answer, Ask):
                seat.asked_at_s = now_s
                if seat.connected:
                    asked.append(job.session)
                    upload_s = max(upload_s, self._law_s(seat, band_hz))
        until_s = now_s + self.limits.deadline_factor * upload_s + self.limits.deadline_slack_s
        self._phase = _Settling(batch, findings, verify_s, asked, until_s)

    @property
    def round(self) -> int:
        """Number of the round under way."""
        return self._round.number

    @property
    def sessions(self) -> dict[int, EdgeSession]:
        """All sessions by number, lost ones included."""
        return {seat.session.number: seat.session for seat in self._seats}

    def session(self, number: int) -> EdgeSession | None:
        """One session; None if it has ended."""
        seat = self._seats.get(number)
        return None if seat is None else seat.session

    # Messages -----------------------------------------------------------------------------------------------------

    def connect(self, message: Uplink, now_s: float) -> tuple[int, list[Downlink]]:
        """Take the first message of a connection: a Hello or a Resume.

        Returns:
            The session's number and what to answer. ProtocolError says why a connection is refused.

        """
        match message:
            case Hello():
                check_hello(message, self._fingerprint, self._credential)
                number = self._last_number + 1
                session = EdgeSession(number, self._new_token(), message, self.engine.vocabulary_size)
                self._seats.add(session)
                self._last_number = number
                profile = message.profile
                self.controller.beliefs.join(number, profile.seconds_per_token, profile.spectral_efficiency)
                return number, [self._welcome(session)]
            case Resume():
                check_version(message.version)
                seat = self._seats.find(message.resume_token)
                missing = seat.session.catch_up(message.length)
                self._seats.come_back(seat, now_s)
                if seat.session.number not in self._round.members:  # its draft may be awaited again
                    self._round.members.append(seat.session.number)
                return seat.session.number, [self._welcome(seat.session), *missing]
        raise ProtocolError("hello-first", "the first message must be a Hello or a Resume")

    def receive(self, number: int, message: Uplink, frame_bytes: int, now_s: float) -> list[Downlink]:
        """Take a further message of a session; ProtocolError or InputError ends that session."""
        seat = self._seats.get(number)
        if seat is None:
            raise ProtocolError("unknown-session", "this session has ended: greet anew and open the request again")
        match message:
            case Open():
                return self._open(seat, message)
            case Draft():
                return self._draft(seat, message, frame_bytes, now_s)
            case Law():
                return self._law(seat, message, frame_bytes)
            case Close():
                seat.session.check_number(message.session)
                self.leave(number)
            case _:
                raise ProtocolError("unexpected", f"a {type(message).__name__} came in the middle of a session")
        return []

    def disconnect(self, number: int, now_s: float) -> None:
        """Note that a device's connection is lost; its session is kept for a while."""
        seat = self._seats.get(number)
        if seat is not None:
            seat.connected, seat.lost_at_s = False, now_s

    def leave(self, number: int) -> None:
        """End a session and take back all that it holds."""
        if self._seats.remove(number) is not None:
            self.controller.leave(number)

    def expire(self, now_s: float) -> list[int]:
        """End the sessions whose device has been lost, or has owed an answer, for too long; returns their numbers.

        Of those that may still come back, some give their slots to requests that wait for one.
        """
        gone = self._seats.lost_for_good(now_s)
        for number in gone:
            self.leave(number)
        self._seats.evict(now_s)
        return gone

    def _welcome(self, session: EdgeSession) -> Welcome:
        return Welcome(
            session.number,
            session.resume_token,
            self._seed,
            self.engine.vocabulary_size,
            self.engine.max_length,
            self.limits.resume_grace_s,
        )

    def _open(self, seat: Seat, message: Open) -> list[Downlink]:
        self._seats.check_room()
        request = seat.session.open(message, self.engine.max_length, self.engine.rules)
        beliefs, number = self.controller.beliefs, seat.session.number
        if request.rule in ID_RULES:
            beliefs.charge(number)
        else:
            bits = bits_per_token(request.rule, request.form)
            beliefs.charge(number, bits, uplink_bits_per_rejection(request.rule, request.form))
        if request.finish:  # continued from another edge, and complete already
            return [seat.session.tail(len(request.committed))]
        self._seats.wait(seat)
        return []

    def _draft(self, seat: Seat, message: Draft, frame_bytes: int, now_s: float) -> list[Downlink]:
        session = seat.session
        stage = session.stage
        answers = session.receive(message)
        if session.request is not None and session.request.finish:  # its last token has been named
            self._seats.release(seat)
        if answers or not isinstance(stage, Granted):  # else it is in the batch under way already
            return [*answers]
        grant = stage.grant
        if grant.length > 0:
            draft_s = message.draft_us * 1e-6
            upload_s = now_s - seat.asked_at_s - draft_s
            self.controller.beliefs.observe_draft(
                session.number, message.length, draft_s, 8 * frame_bytes, grant.bandwidth_hz, upload_s
            )
        return []

    def _law(self, seat: Seat, message: Law, frame_bytes: int) -> list[Downlink]:
        """Decide a refused draft by the distribution that it was drawn from; the next plan has a grant for it."""
        stage = seat.session.stage
        verdict = seat.session.receive_law(message)
        if isinstance(stage, Refused):
            self.controller.beliefs.observe_law(seat.session.number, 8 * frame_bytes)
            self._decided(seat, verdict, len(stage.draft))
        return [verdict]

    # A pass -------------------------------------------------------------------------------------------------------

    def _schedule(self, now_s: float) -> tuple[RoundPlan | None, dict[int, Grant]]:
        """Plan the next round and grant it to every running session that owes nothing."""
        self._seats.fill()
        members = [
            Member(seat.session.number, seat.session.room if seat.session.hello.drafts else 0)
            for seat in self._seats
            if seat.running and seat.connected and seat.session.grant is None and self._seats.unread(seat) == 0
        ]
        late_hz = sum(seat.session.grant.bandwidth_hz for seat in self._seats if seat.session.grant)
        plan = self.controller.plan(members, late_hz)
        if plan is None:
            return None, {}
        verify_s = self.controller.beliefs.verification.predict(len(members), len(members))
        air_s = max(0.0, plan.round_s - verify_s)
        deadline_s = now_s + self.limits.deadline_factor * air_s + self.limits.deadline_slack_s
        # Nobody waits for a device that was late already.
        self._round = _Round(self._round.number + 1, plan.round_s, deadline_s, [member.session for member in members])
        grants = {}
        for session, length, bandwidth_hz in plan.sessions:
            seat = self._seats[session]
            grants[session] = seat.session.give(self._round.number, length, bandwidth_hz)
            seat.asked_at_s = now_s
        return plan, grants

    def _collect(self) -> Batch:
        """Take every draft at hand, and as many prompt tokens as may ride along."""
        self._seats.fill()
        pending = [seat for seat in self._seats if isinstance(seat.session.stage, Pending)]
        jobs = [_job(seat) for seat in sorted(pending, key=lambda seat: seat.session.number)]
        budget = self._prompt_budget() if jobs else self.limits.prefill_tokens_per_round
        for seat in self._seats:
            left = self._prompt_due(seat)
            if left and budget and seat.slot is not None and seat.session.request is not None:
                start, count = self.engine.cached(seat.slot), min(left, budget)
                chunk = tuple(seat.session.request.committed[start : start + count])
                jobs.append(Job(seat.session.number, Feed(seat.slot, start, chunk, None)))
                budget -= count
        self._seats.begin_batch(job.feed.slot for job in jobs)
        return Batch(self._round.number, tuple(jobs))

    def _prompt_budget(self) -> int:
        """Prompt tokens that may ride beside drafts."""
        most = self.limits.prefill_tokens_per_round
        per_token_s = float(self.controller.beliefs.verification.per_token_s)
        allowed_s = self.limits.prefill_share * self._round.planned_s
        if per_token_s * most <= allowed_s:
            return most
        return min(most, max(LEAST_PREFILL_TOKENS, int(allowed_s / per_token_s)))

    def _settle(self, seat: Seat, job: Job, finding: Finding) -> Verdict | Ask | None:
        """Commit what was found of a session's draft and learn from it; None if the draft is no longer the session's.

        Whatever is still to be asked, the cache keeps the same: a refused token's place is that of the newest token.
        """
        if seat.slot != job.feed.slot:
            return None
        self.engine.commit(job.feed.slot, job.feed.start + 1 + finding.accepted)
        # A token granted but not drafted counts like one refused: it is what a longer grant would have brought.
        self.controller.observe_outcome(job.session, job.granted, finding.accepted)
        answer = seat.session.settle(finding)
        if isinstance(answer, Verdict):
            self._decided(seat, answer, job.drafted)
        return answer

    def _decided(self, seat: Seat, verdict: Verdict, drafted: int) -> None:
        """Note a verdict for the report; a text that has ended gives its slot back."""
        delivered = verdict.accepted + 1  # the token to be found from an offer counts here, not when it is named
        self._rows.append(_Row(seat.session.number, drafted, verdict.accepted, delivered))
        if verdict.finish:
            self._seats.release(seat)

    def _deliver(self, settling: _Settling, now_s: float) -> Send:
        """Settle the rest of a batch, plan the next round, and say everybody's verdict and grant.

        A distribution that has not come by now is not waited for any longer: its draft is decided when it comes.
        """
        batch = settling.batch
        verdicts: dict[int, Verdict] = {}
        for job, finding in zip(batch.jobs, settling.findings, strict=True):
            seat = self._seats.get(job.session)
            if finding is None or isinstance(finding, Rejection) or seat is None:
                continue
            verdict = self._settle(seat, job, finding)
            if isinstance(verdict, Verdict):
                verdicts[job.session] = verdict
        self._phase = None
        self._seats.end_batch()
        plan, grants = self._schedule(now_s)
        messages: list[Message] = []
        for number, verdict in verdicts.items():
            grant = grants.pop(number, None)
            messages.append((number, self._seats[number].session.attach(verdict, grant) if grant else verdict))
        messages += grants.items()
        return Send(messages, self._report(settling, plan))

    def _report(self, settling: _Settling, plan: RoundPlan | None) -> RoundReport:
        rows, self._rows = self._rows, []
        return RoundReport(
            settling.batch.round,
            tuple(row.session for row in rows),
            tuple(row.drafted for row in rows),
            tuple(row.accepted for row in rows),
            tuple(row.delivered for row in rows),
            settling.verify_s,
            sum(len(job.feed.tokens) for job in settling.batch.jobs if job.feed.params is None),
            plan,
        )

    # What is waited for -------------------------------------------------------------------------------------------

    def _until_s(self) -> float | None:
        """When waiting ends without a message [s]."""
        match self._phase:
            case _Verifying():
                return None
            case _Settling() as settling:
                return settling.until_s
        return self._round.deadline_s

    def _anything_ready(self) -> bool:
        """Whether a batch would have anything in it."""
        if any(isinstance(seat.session.stage, Pending) for seat in self._seats):
            return True
        return any(self._prompt_due(seat) for seat in self._seats)

    def _prompt_due(self, seat: Seat) -> int:
        """Tokens to be read now. A lost device's text is read on when it is back, if it still has its slot then."""
        return self._seats.unread(seat) if seat.connected else 0

    def _is_awaited(self, number: int) -> bool:
        """Whether the round under way waits for a session's draft. It does not wait for those who were late before."""
        seat = self._seats.get(number)
        if seat is None or not (seat.connected and seat.running):
            return False
        stage = seat.session.stage
        return isinstance(stage, Granted) and stage.grant.round == self._round.number

    def _is_asked(self, number: int) -> bool:
        """Whether a session owes the distribution that a pass waits for."""
        seat = self._seats.get(number)
        return seat is not None and seat.connected and isinstance(seat.session.stage, Refused)

    def _law_s(self, seat: Seat, band_hz: float) -> float:
        """Planned time to send one distribution up [s]; 0 where no link has been granted."""
        request = seat.session.request
        if request is None or band_hz <= 0.0:
            return 0.0
        bits = uplink_bits_per_rejection(request.rule, request.form) + framing_bits(request.rule, request.form)
        return self.controller.beliefs.upload_s(seat.session.number, bits, band_hz)


def _job(seat: Seat) -> Job:
    """A session's pending draft, as a part of a batch."""
    request, stage = seat.session.request, seat.session.stage
    assert seat.slot is not None
    assert request is not None
    assert isinstance(stage, Pending)
    newest = len(request.committed) - 1
    feed = Feed(seat.slot, newest, (request.committed[-1], *stage.draft), request.params, stage.evidence)
    return Job(seat.session.number, feed, len(stage.draft), stage.grant.length)


def _any_left(numbers: list[int], test: Callable[[int], bool]) -> bool:
    """Whether any session passes the test; those at the end that do not are dropped for good."""
    while numbers and not test(numbers[-1]):
        numbers.pop()
    return bool(numbers)
