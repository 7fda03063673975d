"""The round loop without its clock and its sockets: schedule, collect, verify, deliver.

Between the last two, `rejection-up` may have to ask devices for laws; who does not answer in time misses this
round's deliver, not its session.

`Edge` holds the sessions and decides; whoever drives it brings the time, the messages and a thread for `verify`.
The server in `edge.server` drives it with real ones. A device that is late misses the batch, not its session: its
draft joins the next round, its band stays reserved until then.
"""

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multispin.control import Plan
from multispin.errors import InputError
from multispin.passes.batch import LEAST_PREFILL_TOKENS, Batch, Job, Limits, RoundReport
from multispin.passes.controller import Controller, Member
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
    Rule,
    bits_per_token,
    framing_bits,
    uplink_bits_per_rejection,
)


@dataclass
class _Seat:
    """A session in this edge: its slot, its connection, its times."""

    session: EdgeSession
    slot: int | None = None
    connected: bool = True
    lost_at_s: float = 0.0
    granted_at_s: float = 0.0
    evicted: bool = False  # its request had a slot, which somebody else needed

    @property
    def running(self) -> bool:
        """Whether it has a prompt in the cache and text still to come."""
        request = self.session.request
        return self.slot is not None and request is not None and not request.finish


class _Row(NamedTuple):
    """A decided draft, for the report."""

    session: int
    drafted: int
    accepted: int
    delivered: int


class Edge:
    """Sessions, slots and rounds of one server.

    Args:
        engine: verifies.
        controller: plans.
        fingerprint: of the target's tokenizer.
        limits: what bounds this edge.
        credential: what a device must show; empty for none.
        seed: default seed handed to devices.
        new_token: makes resume tokens.

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
        self.round = 0
        self.deadline_s = 0.0
        self._planned_round_s = 0.0
        self._fingerprint = fingerprint
        self._credential = credential
        self._seed = seed
        self._new_token = new_token
        self._seats: dict[int, _Seat] = {}
        self._next_number = 1
        self._waiting: deque[int] = deque()  # sessions with a request and no slot yet
        self._busy: frozenset[int] = frozenset()  # slots in the batch under way
        self._closing: list[int] = []  # slots to give back when that batch is done
        # Sessions by what their draft is doing: kept as sets, because they are asked for at every message.
        self._awaited: set[int] = set()  # the present round's, still to come from a connected device
        self._at_hand: set[int] = set()  # to be verified in the next batch
        self._asked: set[int] = set()  # whose law the present round waits for
        self._laws_due_s = 0.0
        self._rows: list[_Row] = []  # decided since the last report

    # Sessions -----------------------------------------------------------------------------------------------------

    def connect(self, message: Uplink, now_s: float) -> tuple[int, list[Downlink]]:
        """Take the first message of a connection: a Hello or a Resume.

        Returns:
            The session's number and what to answer. ProtocolError says why a connection is refused.

        """
        match message:
            case Hello():
                check_hello(message, self._fingerprint, self._credential)
                if len(self._seats) >= self.limits.max_sessions:
                    raise ProtocolError("full", f"this edge holds {self.limits.max_sessions} sessions, its limit")
                number, self._next_number = self._next_number, self._next_number + 1
                session = EdgeSession(number, self._new_token(), message, self.engine.vocabulary_size)
                self._seats[number] = _Seat(session)
                profile = message.profile
                self.controller.join(number, profile.seconds_per_token, profile.spectral_efficiency)
                return number, [self._welcome(session)]
            case Resume():
                check_version(message.version)
                for number, seat in self._seats.items():
                    if secrets.compare_digest(seat.session.resume_token.encode(), message.resume_token.encode()):
                        missing = seat.session.catch_up(message.length)
                        seat.connected, seat.granted_at_s = True, now_s
                        grant, request = seat.session.grant, seat.session.request
                        if seat.slot is None and request and not request.finish and number not in self._waiting:
                            # Before all who never had a slot, behind those who came back earlier.
                            self._waiting.insert(sum(self._seats[each].evicted for each in self._waiting), number)
                        if (
                            seat.running
                            and isinstance(seat.session.stage, Granted)
                            and grant
                            and grant.round == self.round
                        ):
                            self._awaited.add(number)
                        return number, [self._welcome(seat.session), *missing]
                raise ProtocolError("unknown-session", "there is no session to resume: open the request again")
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
            self._awaited.discard(number)
            self._asked.discard(number)

    def leave(self, number: int) -> None:
        """End a session and give back all that it holds."""
        seat = self._seats.pop(number, None)
        if seat is None:
            return
        if number in self._waiting:
            self._waiting.remove(number)
        self._awaited.discard(number)
        self._asked.discard(number)
        self._at_hand.discard(number)
        self._release(seat)
        self.controller.leave(number)

    def expire(self, now_s: float) -> list[int]:
        """End the sessions whose device has been lost, or owed an answer, for too long; returns their numbers.

        Of those that may still come back, some give their slots to requests that wait for one.
        """
        limits = self.limits
        gone = [
            number
            for number, seat in self._seats.items()
            if (not seat.connected and now_s - seat.lost_at_s > limits.resume_grace_s)
            or (seat.connected and self._owes(seat) and now_s - seat.granted_at_s > limits.draft_timeout_s)
        ]
        for number in gone:
            self.leave(number)
        self._evict(now_s)
        return gone

    @property
    def sessions(self) -> dict[int, EdgeSession]:
        """All sessions by number, lost ones included."""
        return {number: seat.session for number, seat in self._seats.items()}

    # The round ----------------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> tuple[Plan | None, dict[int, Grant]]:
        """Plan the next round and grant it to every running session that owes nothing."""
        self._seat_waiting()
        members = [
            Member(number, seat.session.hello.name, seat.session.room if seat.session.hello.drafts else 0)
            for number, seat in self._seats.items()
            if seat.running and seat.connected and seat.session.grant is None and self._prompt_left(seat) == 0
        ]
        late_hz = sum(seat.session.grant.bandwidth_hz for seat in self._seats.values() if seat.session.grant)
        plan = self.controller.plan(members, late_hz)
        if plan is None:
            return None, {}
        self.round += 1
        self._planned_round_s = plan.round_s
        grants = {}
        self._awaited.clear()  # nobody waits for a device that was late already
        for member, device in zip(members, plan.devices, strict=True):
            seat = self._seats[member.session]
            grants[member.session] = seat.session.give(self.round, device.draft_length, device.bandwidth_hz)
            seat.granted_at_s = now_s
            awaited = isinstance(seat.session.stage, Granted)
            (self._awaited if awaited else self._at_hand).add(member.session)
        air_s = max(0.0, plan.round_s - self.controller.verification.predict(len(members), len(members)))
        self.deadline_s = now_s + self.limits.deadline_factor * air_s + self.limits.deadline_slack_s
        return plan, grants

    def wait_s(self, now_s: float) -> float | None:
        """How long to wait before the next batch: 0 if it is complete or overdue, None if there is nothing in it.

        Newcomers wait for the end of the round under way: a round of their own would find no band free. Nobody waits
        for a device that was late already: only drafts of the current round are awaited.
        """
        if self._awaited and now_s < self.deadline_s:
            return self.deadline_s - now_s
        if not self._at_hand and not any(self._prompt_due(seat) for seat in self._seats.values()):
            return None
        return 0.0

    def collect(self) -> Batch:
        """Take every draft at hand, and as many prompt tokens as may ride along."""
        self._seat_waiting()
        jobs = []
        for number in sorted(self._at_hand):
            seat = self._seats[number]
            request, stage = seat.session.request, seat.session.stage
            assert seat.slot is not None
            assert request is not None
            assert isinstance(stage, Pending)
            newest = len(request.committed) - 1
            feed = Feed(seat.slot, newest, (request.committed[-1], *stage.draft), request.params, stage.evidence)
            jobs.append(Job(number, feed, len(stage.draft), stage.grant.length))
        budget = self._prompt_budget() if jobs else self.limits.prefill_tokens_per_round
        for number, seat in self._seats.items():
            left = self._prompt_due(seat)
            if left and budget and seat.slot is not None and seat.session.request is not None:
                start, count = self.engine.cached(seat.slot), min(left, budget)
                chunk = tuple(seat.session.request.committed[start : start + count])
                jobs.append(Job(number, Feed(seat.slot, start, chunk, None)))
                budget -= count
        self._at_hand.clear()
        self._busy = frozenset(job.feed.slot for job in jobs)
        return Batch(self.round, tuple(jobs))

    def _prompt_budget(self) -> int:
        """Prompt tokens that may ride beside drafts."""
        most = self.limits.prefill_tokens_per_round
        per_token_s = float(self.controller.verification.per_token_s)
        allowed_s = self.limits.prefill_share * self._planned_round_s
        if per_token_s * most <= allowed_s:
            return most
        return min(most, max(LEAST_PREFILL_TOKENS, int(allowed_s / per_token_s)))

    def verify(self, batch: Batch) -> list[Finding | None]:
        """Run the batch. The only slow step; safe to run in another thread while messages come in."""
        findings: list[Finding | None] = []
        for found in self.engine.verify([job.feed for job in batch.jobs]):
            if isinstance(found, Failure):
                raise InputError(found.reason)
            findings.append(found)
        return findings

    def ask(self, batch: Batch, findings: Sequence[Finding | None], now_s: float) -> list[tuple[int, Downlink]]:
        """Ask for the laws of refused tokens (`rejection-up`); `laws_wait_s` then says how long to wait for them.

        The others' band is idle meanwhile: a law goes up over the band of the draft that it belongs to.
        """
        messages: list[tuple[int, Downlink]] = []
        limits, upload_s = self.limits, 0.0
        for job, finding in zip(batch.jobs, findings, strict=True):
            seat = self._seats.get(job.session)
            if not isinstance(finding, Rejection) or seat is None or seat.slot != job.feed.slot:
                continue
            # What the cache must keep is known already: the refused token's place is that of the newest token.
            self.engine.commit(seat.slot, job.feed.start + 1 + finding.accepted)
            self.controller.observe_outcome(job.session, job.granted, finding.accepted)
            band_hz = seat.session.grant.bandwidth_hz if seat.session.grant else 0.0
            answer = seat.session.settle(finding)
            if isinstance(answer, Ask):
                seat.granted_at_s = now_s
                if seat.connected:
                    self._asked.add(job.session)
                    upload_s = max(upload_s, self._law_s(seat, band_hz))
            else:
                self._decided(seat, answer, job.drafted)
            messages.append((job.session, answer))
        self._laws_due_s = now_s + limits.deadline_factor * upload_s + limits.deadline_slack_s
        return messages

    def laws_wait_s(self, now_s: float) -> float:
        """How long to wait for the laws that were asked for: 0 if all have come or the time is over."""
        return max(0.0, self._laws_due_s - now_s) if self._asked else 0.0

    def deliver(
        self, batch: Batch, findings: Sequence[Finding | None], verify_s: float, now_s: float
    ) -> tuple[RoundReport, list[tuple[int, Downlink]]]:
        """Commit what was found, learn from it, plan the next round, and say everybody's verdict and grant.

        What `ask` has asked about is not waited for any longer: it is decided when its law comes.
        """
        self._busy = frozenset()
        self._asked.clear()
        self.controller.observe_verification(len(batch.jobs), batch.tokens, verify_s)
        verdicts: dict[int, Verdict] = {}
        for job, finding in zip(batch.jobs, findings, strict=True):
            seat = self._seats.get(job.session)
            if finding is None or isinstance(finding, Rejection) or seat is None or seat.slot != job.feed.slot:
                continue
            self.engine.commit(seat.slot, job.feed.start + 1 + finding.accepted)
            verdict = seat.session.settle(finding)
            assert isinstance(verdict, Verdict)
            # A token granted but not drafted counts like one refused: it is what a longer grant would have brought.
            self.controller.observe_outcome(job.session, job.granted, finding.accepted)
            verdicts[job.session] = verdict
            self._decided(seat, verdict, job.drafted)
        for slot in self._closing:
            self.engine.close(slot)
        self._closing.clear()
        plan, grants = self.schedule(now_s)
        messages: list[tuple[int, Downlink]] = []
        for number, verdict in verdicts.items():
            grant = grants.pop(number, None)
            messages.append((number, self._seats[number].session.attach(verdict, grant) if grant else verdict))
        messages += grants.items()
        rows, self._rows = self._rows, []
        report = RoundReport(
            batch.round,
            tuple(row.session for row in rows),
            tuple(row.drafted for row in rows),
            tuple(row.accepted for row in rows),
            tuple(row.delivered for row in rows),
            verify_s,
            sum(len(job.feed.tokens) for job in batch.jobs if job.feed.params is None),
            plan,
        )
        return report, messages

    # Steps --------------------------------------------------------------------------------------------------------

    def _welcome(self, session: EdgeSession) -> Welcome:
        return Welcome(
            session.number,
            session.resume_token,
            self._seed,
            self.engine.vocabulary_size,
            self.engine.max_length,
            self.limits.resume_grace_s,
        )

    def _open(self, seat: _Seat, message: Open) -> list[Downlink]:
        if len(self._waiting) >= self.limits.max_waiting:
            raise ProtocolError("full", f"{self.limits.max_waiting} requests wait already, the limit: try again later")
        request = seat.session.open(message, self.engine.max_length, self.engine.rules)
        if request.rule in ID_RULES:
            self.controller.charge(seat.session.number)
        else:
            bits = bits_per_token(request.rule, request.form)
            self.controller.charge(seat.session.number, bits, uplink_bits_per_rejection(request.rule, request.form))
        if request.finish:  # continued from another edge, and complete already
            return [seat.session.tail(len(request.committed))]
        seat.evicted = False
        self._waiting.append(seat.session.number)
        return []

    def _seat_waiting(self) -> None:
        """Give free slots to the requests that have waited longest and whose device is there."""
        free = self._free_slots()
        for number in [number for number in self._waiting if self._seats[number].connected][: max(0, free)]:
            self._waiting.remove(number)
            self._seats[number].slot, self._seats[number].evicted = self.engine.open(), False

    def _free_slots(self) -> int:
        """Slots that a request may take now; one that is given back during a batch is not among them."""
        return self.engine.slots - sum(seat.slot is not None for seat in self._seats.values()) - len(self._closing)

    def _evict(self, now_s: float) -> None:
        """Take the slots of sessions that have been lost for a while, as many as others wait for; longest lost first.

        Nothing that was decided is forgotten: a refused draft whose law is still to come keeps its slot, and so does
        every text under `rejection-down`, of which the device knows a token that the edge may not.
        """
        wanted = (
            sum(self._seats[number].connected for number in self._waiting) - self._free_slots() - len(self._closing)
        )
        lost = [
            seat
            for seat in self._seats.values()
            if not seat.connected
            and seat.slot is not None
            and seat.slot not in self._busy
            and not isinstance(seat.session.stage, Refused)
            and (seat.session.request is None or seat.session.request.rule is not Rule.REJECTION_DOWN)
            and now_s - seat.lost_at_s > self.limits.slot_grace_s
        ]
        for seat in sorted(lost, key=lambda seat: seat.lost_at_s)[: max(0, wanted)]:
            self._at_hand.discard(seat.session.number)
            seat.session.withdraw()
            seat.evicted = True
            self._release(seat)

    def _draft(self, seat: _Seat, message: Draft, frame_bytes: int, now_s: float) -> list[Downlink]:
        session = seat.session
        grant, repeated = session.grant, isinstance(session.stage, Pending | Refused)
        answers = session.receive(message)
        if session.request is not None and session.request.finish:  # its last token has been named
            self._awaited.discard(session.number)
            self._release(seat)
        if answers or repeated:  # and perhaps in the batch under way already
            return [*answers]
        self._awaited.discard(session.number)
        self._at_hand.add(session.number)
        if grant is not None and grant.length > 0:
            draft_s = message.draft_us * 1e-6
            upload_s = now_s - seat.granted_at_s - draft_s
            self.controller.observe_draft(
                session.number, message.length, draft_s, 8 * frame_bytes, grant.bandwidth_hz, upload_s
            )
        return []

    def _law(self, seat: _Seat, message: Law, frame_bytes: int) -> list[Downlink]:
        """Decide a refused draft by the law that it was drawn from; the next plan has a grant for it."""
        session = seat.session
        stage = session.stage
        verdict = session.receive_law(message)
        if isinstance(stage, Refused):
            self._asked.discard(session.number)
            self.controller.observe_law(session.number, 8 * frame_bytes)
            self._decided(seat, verdict, len(stage.draft))
        return [verdict]

    def _decided(self, seat: _Seat, verdict: Verdict, drafted: int) -> None:
        """Note a verdict for the report; a text that has ended gives its slot back."""
        delivered = verdict.accepted + 1  # the token to be found from an offer counts here, not when it is named
        self._rows.append(_Row(seat.session.number, drafted, verdict.accepted, delivered))
        if verdict.finish:
            self._release(seat)

    def _law_s(self, seat: _Seat, band_hz: float) -> float:
        """Planned time to send one law up [s]; 0 where no link has been granted."""
        request = seat.session.request
        if request is None or band_hz <= 0.0:
            return 0.0
        bits = uplink_bits_per_rejection(request.rule, request.form) + framing_bits(request.rule, request.form)
        return self.controller.upload_s(seat.session.number, bits, band_hz)

    def _release(self, seat: _Seat) -> None:
        """Give the slot back, now or when the batch that uses it is done."""
        if seat.slot is None:
            return
        if seat.slot in self._busy:
            self._closing.append(seat.slot)
        else:
            self.engine.close(seat.slot)
        seat.slot = None

    def _owes(self, seat: _Seat) -> bool:
        """Whether the edge waits for a draft or a law of it."""
        return seat.running and isinstance(seat.session.stage, Granted | Refused)

    def _prompt_due(self, seat: _Seat) -> int:
        """Tokens to be read now: a lost device's text is read on when it is back, if it still has its slot then."""
        return self._prompt_left(seat) if seat.connected else 0

    def _prompt_left(self, seat: _Seat) -> int:
        """Committed tokens, all but the newest, that are not in the cache yet."""
        request = seat.session.request
        if seat.slot is None or request is None or request.finish:
            return 0
        return max(0, len(request.committed) - 1 - self.engine.cached(seat.slot))
