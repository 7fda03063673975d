"""The loop of passes, without its clock and its sockets: ready → choose → verify → settle → deliver → learn.

`Passes` holds the sessions and decides; whoever drives it brings the time, the messages and a thread for `verify`.
The contract: call `advance` after every message and whenever the time of its last `Sleep` has come, and do what it
says; hand what a `Verify` brought to `verified`. A server does so with sockets (`edge.server`), a simulation with a
virtual clock (`simulation.site`), a test with `passes.local`.

A device that is late misses the batch, not its session: its draft joins the next pass, and its band stays reserved
until then. Under `rejection-up` a pass may have to ask devices for the distributions of refused tokens before it
delivers; a device that answers late misses this delivery and gets its verdict when the answer comes.
"""

import heapq
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from multispin.passes.controller import Controller
from multispin.passes.limits import LEAST_PREFILL_TOKENS, Limits
from multispin.passes.patience import Patience
from multispin.passes.plans import DEVICE, EDGE, NOBODY, Member, RoundPlan, SessionPlan
from multispin.passes.seats import Seat, Seats, Trial
from multispin.passes.steps import (
    Batch,
    DraftHere,
    EdgeAsk,
    EdgeDraft,
    Job,
    Message,
    RoundReport,
    Send,
    Sleep,
    Step,
    Verify,
)
from multispin.protocol import (
    Ask,
    Close,
    Downlink,
    Draft,
    EdgeSession,
    Error,
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
    BatchDrafter,
    DraftAsk,
    Engine,
    Failure,
    Feed,
    Finding,
    Rejection,
    bits_per_token,
    framing_bits,
    uplink_bits_per_rejection,
)

PATIENCE = 0.5
"""Drafts that are late by this share of a pass are late enough for a pass without them."""


@dataclass
class _Round:
    """The round under way.

    Attributes:
        number: of the round.
        planned_s: its planned time [s].
        deadline_s: when it goes on without the drafts that have not come [s].
        members: sessions whose drafts may still be awaited. `_is_awaited` tells which are; those found at the end that
            are not drop off, so that a look costs next to nothing however many there are.
        expected_s: when the drafts of its devices are expected to have come [s].
        riders: what is done for the sessions that no device drafts for, by number.
        passes: how many more passes of theirs are planned before that.

    """

    number: int = 0
    planned_s: float = 0.0
    deadline_s: float = 0.0
    members: list[int] = field(default_factory=list)
    expected_s: float = 0.0
    riders: dict[int, SessionPlan] = field(default_factory=dict)
    passes: int = 0


@dataclass(frozen=True)
class _Drafting:
    """The edge's own drafter is at work.

    Attributes:
        reads: whether it has a prompt to read first, so that its time says nothing of drafting.

    """

    reads: bool


@dataclass(frozen=True)
class _Verifying:
    """A batch is being verified.

    Attributes:
        batch: what is verified.
        waits: whether drafts of the round are still awaited, so that this is a pass of the other sessions.

    """

    batch: Batch
    waits: bool = False


@dataclass(frozen=True)
class _Settling:
    """A batch has been verified; its verdicts wait for the distributions that were asked for.

    Attributes:
        batch: what was verified.
        findings: what was found, per job.
        verify_s: how long that took [s].
        asked: sessions that owe a distribution; those found at the end that do not drop off.
        until_s: when the others' verdicts wait no longer [s].
        waits: whether drafts of the round are still awaited.

    """

    batch: Batch
    findings: Sequence[Finding | Failure | None]
    verify_s: float
    asked: list[int]
    until_s: float
    waits: bool = False


class _Row(NamedTuple):
    """A decided draft, for the report."""

    session: int
    drafted: int
    accepted: int
    delivered: int


class Passes:
    """Sessions, slots and passes of one edge.

    Attributes:
        engine: verification engine that runs the target model.
        controller: plans every round.
        limits: bounds of this edge.
        late_tokens: drafted tokens that came when nobody waited for them any more.

    Args:
        engine: verification engine that runs the target model.
        controller: plans every round.
        fingerprint: of the target's tokenizer; a device with another one is refused.
        limits: bounds of this edge; default `Limits()`.
        credential: secret that a device must show; default none.
        seed: default noise seed handed to devices; default 0.
        new_token: makes resume tokens; by default random ones.
        edge_drafter: the edge's own drafter; default none.

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
        edge_drafter: BatchDrafter | None = None,
    ) -> None:
        self.engine = engine
        self.controller = controller
        self.limits = limits or Limits()
        self.late_tokens = 0
        self._fingerprint = fingerprint
        self._credential = credential
        self._seed = seed
        self._new_token = new_token
        self._seats = Seats(engine, self.limits)
        self._patience = Patience(self.limits)
        self._last_number = 0
        self._round = _Round()
        self._phase: _Drafting | _Verifying | _Settling | None = None  # None: drafts are gathered
        self._edge_drafter = edge_drafter
        # The drafter's slot for each of the engine's: it knows by its texts when another session has come into one.
        self._drafter_slots = [edge_drafter.open() for _ in range(engine.slots)] if edge_drafter is not None else []
        self._rides = controller.settings.mode != "rounds"  # whether sessions without drafts have passes of their own
        self._due: list[tuple[float, int, int]] = []  # heap of (when a draft is late [s], session, round)
        self._outbox: list[Message] = []
        self._rows: list[_Row] = []  # decided since the last report

    # What a driver needs ------------------------------------------------------------------------------------------

    def advance(self, now_s: float) -> Step:
        """What to do next: sleep, verify a batch, or send messages; then ask again."""
        if self._rides and self._phase is None:
            self._let_go_of_the_late(now_s)
        if self._outbox:
            messages, self._outbox = self._outbox, []
            return Send(messages)
        if self.waits(now_s):
            return self._ride(now_s) if self._rides and self._phase is None else Sleep(self._until_s())
        if isinstance(self._phase, _Settling):
            return self._deliver(self._phase, now_s)
        if not self._anything_ready():
            _, grants = self._schedule(now_s)
            if grants:
                return Send(list(grants.items()))
            if not self._anything_ready():
                return Sleep(self._due[0][0] if self._due else None)
        if self._rides and (step := self._seat_riders(now_s) or self._to_draft()) is not None:
            return step
        batch = self._collect()
        self._phase = _Verifying(batch)
        return Verify(batch)

    def waits(self, now_s: float) -> bool:
        """Whether `advance` can only say Sleep. Cheap: a driver with many messages may ask this after each."""
        if self._outbox:
            return False
        match self._phase:
            case _Drafting() | _Verifying():
                return True
            case _Settling() as settling:
                return now_s < settling.until_s and _any_left(settling.asked, self._is_asked)
        return now_s < self._round.deadline_s and _any_left(self._round.members, self._is_awaited)

    def verify(self, batch: Batch) -> list[Finding | Failure | None]:
        """Run a batch. The only slow step; safe to run in another thread while messages come in."""
        return self.engine.verify([job.feed for job in batch.jobs])

    def draft(self, step: DraftHere) -> list[EdgeDraft]:
        """Run the edge's own drafter. Slow; safe to run in another thread, the one of `verify`."""
        drafter, found = self._edge_drafter, dict[int, EdgeDraft]()
        assert drafter is not None
        plain = [each for each in step.asks if each.form is None]
        for each, ids in zip(plain, drafter.draft([each.ask for each in plain]) if plain else [], strict=True):
            found[each.session] = ids, []
        for form in {each.form for each in step.asks if each.form is not None}:
            group = [each for each in step.asks if each.form == form]
            for each, drafted in zip(group, drafter.draft_laws([each.ask for each in group], form), strict=True):
                found[each.session] = drafted
        return [found[each.session] for each in step.asks]

    def drafted(self, step: DraftHere, drafts: Sequence[EdgeDraft], draft_s: float, now_s: float) -> None:
        """Take what the edge's own drafter drafted, one draft per ask; it took `draft_s`."""
        reads = isinstance(self._phase, _Drafting) and self._phase.reads
        self._phase = None
        self._seats.end_batch()
        for each, (ids, laws) in zip(step.asks, drafts, strict=True):
            seat = self._seats.get(each.session)
            if seat is not None and seat.to_draft and isinstance(seat.session.stage, Pending):
                seat.to_draft = 0
                seat.session.draft_here(ids, laws)
        if not reads:
            self.controller.beliefs.observe_edge_draft([len(ids) for ids, _ in drafts], draft_s)
        self.controller.chooser.edge_drafted(now_s)

    def verified(
        self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float, now_s: float
    ) -> None:
        """Take what a batch's verification found, one finding per job; it took `verify_s`.

        A failure is its own session's: that session is told why and ends, and the pass goes on with the others.

        Refusals that need the device's distribution are settled at once, so that it can be asked for; the others'
        band is idle meanwhile, and the answer goes up over the band of the draft that it belongs to.
        """
        self.controller.beliefs.observe_verification(len(batch.jobs), batch.tokens, verify_s)
        asked, upload_s = [], 0.0
        for job, finding in zip(batch.jobs, findings, strict=True):
            seat = self._seats.get(job.session)
            if isinstance(finding, Failure) and seat is not None and seat.slot == job.feed.slot:
                self._outbox.append((job.session, Error("failed", finding.reason)))
                self.leave(job.session)
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
        waits = isinstance(self._phase, _Verifying) and self._phase.waits
        self._phase = _Settling(batch, findings, verify_s, asked, until_s, waits)

    @property
    def round(self) -> int:
        """Number of the round under way."""
        return self._round.number

    @property
    def sessions(self) -> dict[int, EdgeSession]:
        """All sessions by number, lost ones included."""
        return {seat.session.number: seat.session for seat in self._seats}

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._seats.waiting

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
                idle = self._seats.add(session, now_s)
                if idle is not None:
                    self.leave(idle)
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
        seat.heard_at_s = now_s
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
            seat.connected, seat.lost_at_s, seat.trial = False, now_s, None

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
        request = seat.session.open(message, self.engine.max_length, self.engine.rules, self.engine.lacks)
        seat.trial = None
        beliefs, number = self.controller.beliefs, seat.session.number
        if request.rule in ID_RULES:
            beliefs.charge(number)
        else:
            bits = bits_per_token(request.rule, request.form)
            beliefs.charge(number, bits, uplink_bits_per_rejection(request.rule, request.form))
        self.controller.chooser.probes.renew(number)
        if request.finish:  # continued from another edge, and complete already
            return [seat.session.tail(len(request.committed))]
        self._seats.wait(seat)
        return []

    def _draft(self, seat: Seat, message: Draft, frame_bytes: int, now_s: float) -> list[Downlink]:
        session = seat.session
        stage, trial = session.stage, seat.trial
        if trial is not None and trial.ids is None and message.round == trial.grant.round:
            return self._tried(seat, trial, message, frame_bytes, now_s)
        answers = session.receive(message)
        if session.request is not None and session.request.finish:  # its last token has been named
            self._seats.release(seat)
        if answers or not isinstance(stage, Granted):  # else it is in the batch under way already
            self.late_tokens += message.length
            return [*answers]
        self.controller.chooser.probes.end(session.number, now_s)
        if stage.grant.length > 0:
            self._observe_draft(seat, stage.grant, message, frame_bytes, now_s - seat.asked_at_s)
            self._patience.observe(seat.planned_s, now_s - seat.asked_at_s)
        return []

    def _observe_draft(self, seat: Seat, grant: Grant, message: Draft, frame_bytes: int, took_s: float) -> None:
        """Learn from a draft that came `took_s` after its grant."""
        draft_s = message.draft_us * 1e-6
        self.controller.beliefs.observe_draft(
            seat.session.number,
            message.length,
            draft_s,
            8 * frame_bytes,
            grant.bandwidth_hz,
            took_s - draft_s,
        )

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
        members = [self._member(seat) for seat in self._seats if self._is_idle(seat)]
        late_hz = sum(seat.band_hz for seat in self._seats)
        plan = self.controller.plan(members, late_hz, now_s)
        if plan is None:
            return None, {}
        phase_s = plan.phase_s
        if phase_s is None:
            phase_s = max(0.0, plan.round_s - self.controller.beliefs.verification.predict(len(members), len(members)))
        wait_s = self._patience.most_s(phase_s)
        if not self._rides:  # else a draft that is late is taken back, which costs its device more than a round
            verify_s = self.controller.beliefs.verifier().verify_s(plan.lengths)
            wait_s = self._patience.wait_s(sum(map(bool, plan.lengths)), phase_s, verify_s)
        # Nobody waits for a device that was late already, nor for a probe.
        self._round = _Round(
            self._round.number + 1,
            plan.round_s,
            now_s + wait_s,
            [each.session for each in plan.sessions if each.drafter == DEVICE and each.probe is None],
            now_s + phase_s,
            {each.session: each for each in plan.sessions if each.drafter != DEVICE},
            plan.extra_passes,
        )
        grants = {}
        for each in plan.sessions:
            grant = self._give(each, now_s)
            if grant is not None:
                grants[each.session] = grant
        return plan, grants

    def _is_idle(self, seat: Seat) -> bool:
        """Whether a plan has something to decide for a session: it is there, and nothing of it is under way."""
        return seat.running and seat.connected and seat.session.grant is None and self._seats.unread(seat) == 0

    def _member(self, seat: Seat) -> Member:
        room = seat.session.room
        edge_room = room if self._edge_drafter is not None and seat.session.offer is None else 0
        request = seat.session.request
        comparable = request is not None and request.rule in ID_RULES
        able = seat.session.hello.drafts and seat.trial is None
        return Member(seat.session.number, room if able else 0, edge_room, comparable)

    def _give(self, planned: SessionPlan, now_s: float) -> Grant | None:
        """Do what is planned for a session: its grant, or None if its device need not know."""
        seat = self._seats[planned.session]
        seat.drafter, seat.asked_at_s = planned.drafter, now_s
        of_device = planned.drafter == DEVICE
        length = planned.draft_length if of_device else 0
        seat.planned_s = self._round.expected_s - now_s if length else 0.0
        grant = seat.session.give(self._round.number, length, planned.bandwidth_hz)
        if not self._rides:
            return grant
        late_s = self._round.deadline_s
        if planned.probe is not None:
            late_s = now_s + self.limits.deadline_factor * planned.probe.expected_s + self.limits.deadline_slack_s
        if isinstance(seat.session.stage, Pending):
            seat.to_draft = 0 if of_device else planned.draft_length
            if planned.probe is None or of_device:
                return None  # the device has nothing to do
            grant = Grant(planned.session, self._round.number, planned.probe.draft_length, planned.probe.bandwidth_hz)
            request = seat.session.request
            seat.trial = Trial(grant, len(request.committed) if request is not None else 0, now_s)
        heapq.heappush(self._due, (late_s, planned.session, grant.round))
        return grant

    # Sessions that no device drafts for ---------------------------------------------------------------------------

    def _ride(self, now_s: float) -> Step:
        """While drafts are awaited: a pass of the sessions that no device drafts for, if it is time for one.

        It is while such passes are planned, while one more is over before the drafts are expected, and when the drafts
        are late: nobody waits for them but who drafts.
        """
        if (step := self._seat_riders(now_s) or self._to_draft()) is not None:
            return step
        riders = [seat for seat in self._seats if self._rides_now(seat)]
        if riders or any(self._prompt_due(seat) for seat in self._seats):
            pass_s = self.controller.beliefs.verifier().verify_s([0] * max(1, len(riders)))
            patience_s = self._round.expected_s + PATIENCE * pass_s
            if self._round.passes > 0 or now_s + pass_s <= self._round.expected_s or now_s >= patience_s:
                self._round.passes -= 1
                batch = self._collect(riders)
                self._phase = _Verifying(batch, waits=True)
                return Verify(batch)
            return Sleep(min(patience_s, self._round.deadline_s))
        return Sleep(self._round.deadline_s if not self._due else min(self._round.deadline_s, self._due[0][0]))

    def _seat_riders(self, now_s: float) -> Send | None:
        """Let sessions with nothing under way take part in the pass to come; what devices must be told, if anything."""
        grants = [
            (seat.session.number, grant)
            for seat in self._seats
            if self._is_idle(seat) and (grant := self._give(self._as_rider(seat), now_s)) is not None
        ]
        return Send(grants) if grants else None

    def _rides_now(self, seat: Seat) -> bool:
        """Whether a session takes part in a pass that awaited drafts do not."""
        stage = seat.session.stage
        if not isinstance(stage, Pending):
            return False
        return seat.drafter != DEVICE or stage.grant.round != self._round.number

    def _as_rider(self, seat: Seat) -> SessionPlan:
        """What is done for a session until the next plan: what was planned, or plain decoding for a newcomer."""
        number = seat.session.number
        planned = self._round.riders.get(number, SessionPlan(number, 0, 0.0, NOBODY))
        return planned._replace(draft_length=min(planned.draft_length, seat.session.room), probe=None)

    def _to_draft(self) -> DraftHere | None:
        """What the edge's own drafter is to draft before the next pass; None if there is nothing."""
        if self._edge_drafter is None:
            return None
        asks = []
        for seat in self._seats:
            session, request, slot = seat.session, seat.session.request, seat.slot
            if seat.to_draft and request is not None and slot is not None and isinstance(session.stage, Pending):
                ask = DraftAsk(self._drafter_slots[slot], tuple(request.committed), seat.to_draft, request.params)
                form = None if request.rule in ID_RULES else request.form
                asks.append(EdgeAsk(session.number, ask, form))
        if not asks:
            return None
        drafter = self._edge_drafter
        # After a draft that was accepted whole two tokens are new; what is more is a prompt, or was missed.
        reads = any(drafter.unread(each.ask.slot, each.ask.committed) > 1 for each in asks)
        self._phase = _Drafting(reads)
        self._seats.begin_batch(self._seats[each.session].slot or 0 for each in asks)
        return DraftHere(tuple(asks))

    def _let_go_of_the_late(self, now_s: float) -> None:
        """Take back grants whose drafts have not come in time: their sessions go on without, and are only probed."""
        while self._due and self._due[0][0] <= now_s:
            _, number, round_number = heapq.heappop(self._due)
            seat = self._seats.get(number)
            if seat is None or not seat.connected:
                continue
            stage, trial = seat.session.stage, seat.trial
            if trial is not None and trial.ids is None and trial.grant.round == round_number:
                self._outbox.append((number, seat.session.tail(trial.base)))
                seat.trial, asked_s = None, trial.asked_s
            elif isinstance(stage, Granted) and stage.offer is None and stage.grant.round == round_number:
                seat.session.withdraw()
                asked_s = seat.asked_at_s
            else:
                continue
            self.controller.chooser.probes.miss(number, now_s, now_s - asked_s)

    def _tried(self, seat: Seat, trial: Trial, message: Draft, frame_bytes: int, now_s: float) -> list[Downlink]:
        """Take a draft that was asked for beside the text, and tell the device what was committed meanwhile."""
        session = seat.session
        trial.ids = session.glance(message, trial.grant)
        self._observe_draft(seat, trial.grant, message, frame_bytes, now_s - trial.asked_s)
        self.controller.chooser.probes.end(session.number, now_s)
        self._compare(seat)
        return [*session.catch_up(message.base)]

    def _compare(self, seat: Seat) -> None:
        """Learn from a draft that was made beside the text, as soon as the text shows what of it was right."""
        trial, request = seat.trial, seat.session.request
        if trial is None or trial.ids is None or request is None:
            return
        written = request.committed[trial.base : trial.base + len(trial.ids)]
        right = 0
        while right < len(written) and written[right] == trial.ids[right]:
            right += 1
        if right < len(written) or right == len(trial.ids):
            self.controller.observe_outcome(seat.session.number, trial.grant.length, right)
            seat.trial = None

    def _collect(self, pending: Sequence[Seat] | None = None) -> Batch:
        """Take every draft at hand, or those of some sessions, and as many prompt tokens as may ride along."""
        self._seats.fill()
        if pending is None:
            pending = [seat for seat in self._seats if isinstance(seat.session.stage, Pending)]
        jobs = [_job(seat) for seat in sorted(pending, key=lambda seat: seat.session.number)]
        budget = self._prompt_budget() if jobs else self.limits.prefill_tokens_per_round
        # Whose text has had its slot longest comes first: who opens one prompt after the other waits like all others.
        for seat in sorted((seat for seat in self._seats if self._prompt_due(seat)), key=lambda seat: seat.turn):
            left = self._prompt_due(seat)
            if budget and seat.slot is not None and seat.session.request is not None:
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
        if job.drafter == EDGE:
            self.controller.beliefs.observe_edge_outcome(job.session, job.drafted, finding.accepted)
        else:
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
            if finding is None or isinstance(finding, Rejection | Failure) or seat is None:
                continue
            verdict = self._settle(seat, job, finding)
            if isinstance(verdict, Verdict):
                verdicts[job.session] = verdict
                self._compare(seat)
        self._phase = None
        self._seats.end_batch()
        # In a pass of their own, the sessions that no device drafts for go on as planned.
        held = {number for number in verdicts if self._seats[number].held}
        plan, grants = (None, {}) if settling.waits else self._schedule(now_s)
        drafted_here = {job.session for job in batch.jobs if job.drafter == EDGE and job.drafted}
        messages: list[Message] = []
        for number, verdict in verdicts.items():
            seat = self._seats[number]
            session, trial = seat.session, seat.trial
            if trial is not None and verdict.finish:  # nothing is to be learned from it any more
                messages.append((number, session.tail(trial.base if trial.ids is None else verdict.base)))
                seat.trial = None
            elif number in held:  # its device is told nothing before its draft has come
                continue
            elif number in drafted_here:  # the device does not know what was accepted
                messages.append((number, session.tail(verdict.base)))
            elif number in grants and not seat.held:
                messages.append((number, session.attach(verdict, grants.pop(number))))
            else:
                messages.append((number, verdict))
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
            case _Drafting() | _Verifying():
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
    text = tuple(request.committed) if request.params.remembers else ()
    feed = Feed(seat.slot, newest, (request.committed[-1], *stage.draft), request.params, stage.evidence, text)
    drafter = EDGE if seat.drafter == EDGE and not stage.grant.length else DEVICE
    return Job(seat.session.number, feed, len(stage.draft), stage.grant.length, drafter)


def _any_left(numbers: list[int], test: Callable[[int], bool]) -> bool:
    """Whether any session passes the test; those at the end that do not are dropped for good."""
    while numbers and not test(numbers[-1]):
        numbers.pop()
    return bool(numbers)
