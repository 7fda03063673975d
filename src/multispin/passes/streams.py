"""Streams: devices draft on while they are verified, and a session rides in a pass if it is worth the time.

Whenever the engine is free, `control.streams.choose` decides by the price of time: who rides with how many of the
pending tokens, for whom the edge's own drafter goes on, or to wait for the next arrival. Results are committed and sent
at once. `windows` decides how far devices may draft ahead. Texts under a rejection rule draft in grants (`grants`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from multispin.control import EdgeDrafter
from multispin.control.streams import Candidate, Decide, Go, Ride, Wait, choose
from multispin.passes.delays import Delays
from multispin.passes.edge_drafts import EdgeDrafts
from multispin.passes.edge_trials import EdgeTrials
from multispin.passes.flows import LATER
from multispin.passes.grants import Grants
from multispin.passes.half_passes import HalfPasses
from multispin.passes.next_pass import NextPass
from multispin.passes.probing import PROBE_LENGTH
from multispin.passes.seats import Seat
from multispin.passes.state import DecidedDraft, EdgeState
from multispin.passes.steps import Batch, DraftHere, EdgeDraft, Job, RoundReport, Send, Sleep, Step, Verify
from multispin.passes.windows import Windows
from multispin.protocol import Chunk, Distribution, Downlink, Draft, Error, Granted, Pending, Streaming
from multispin.speculation import Failure, Finding, Outcome

UNLEARNED_PASSES = 12
"""Number of the edge's first passes in which no session counts as behind plain decoding: its time is still a guess."""
LOOK_S = 2e-5
"""Least time between two decisions while waiting, for each session [s]; a decision takes about half of it."""
SHORTEST_SLEEP_S = 2e-4
"""Least time of a wait for an expected arrival [s]."""


class Streams:
    """The scheduler of streams.

    Args:
        state: sessions and messages that the parts of the loop share.
        edge_drafts: the edge's own drafter at work; None if it has none.
        decide: decides who rides; default `control.streams.choose`.

    """

    def __init__(self, state: EdgeState, edge_drafts: EdgeDrafts | None, decide: Decide = choose) -> None:
        self._state = state
        self._seats = state.seats
        self._beliefs = state.controller.beliefs
        self._settings = state.controller.settings
        self._edge_drafts = edge_drafts
        self._edge_trials = EdgeTrials()
        self._half_passes = HalfPasses()
        self._decide = decide
        self._grants = Grants(state)
        self._windows = Windows(state, self._grants, edge_drafts)
        self._next = NextPass(state, edge_drafts)
        self._number = 0
        self._present = 0  # sessions that could ride
        self._busy = False  # whether a batch is verified, or the edge's drafter works
        self._added: dict[int, Sequence[int]] | None = None  # drafts of the edge's drafter for the next pass
        self._prices = state.controller.prices
        self._paying = state.controller.paying
        self._since_s: float | None = None  # start of the counted engine time [s]; None: the engine is not needed
        self._report: RoundReport | None = None
        self._looks_s = 0.0  # time of the next decision while waiting [s]
        self._planned: Go | None = None  # the next or current pass
        self._delays = Delays()

    @property
    def number(self) -> int:
        """Number of the last pass that began."""
        return self._number

    @property
    def deadline_s(self) -> float:
        """0, since no pass waits for drafts."""
        return 0.0

    @property
    def price_tokens_per_s(self) -> float:
        """The price of time [tokens/s]."""
        return float(self._prices.engine_tokens_per_s)

    @property
    def _pass_s(self) -> float:
        """Usual time of a pass [s]."""
        return self._windows.pass_s

    # What a driver needs ------------------------------------------------------------------------------------------

    def advance(self, now_s: float) -> Step:
        """The driver's next step: sleep, draft here, verify a batch, or send messages."""
        if not self._busy and not self._state.outbox and self._report is None and now_s < self._looks_s:
            return Sleep(self._looks_s)
        if not self._busy:
            self._grants.let_go_of_the_late(now_s)
            self._seats.fill()
            self._windows.look(now_s)
        if self._state.outbox or self._report is not None:
            messages, self._state.outbox = self._state.outbox, []
            report, self._report = self._report, None
            return Send(messages, report)
        if self._busy:
            return Sleep()
        if self._added is not None:
            added, self._added = self._added, None
            if (step := self._verify(added, now_s)) is not None:
                return step
        return self._go_or_wait(now_s)

    def _go_or_wait(self, now_s: float) -> Step:
        """Begin a pass if that is best now, with the edge's own drafter or with its verification."""
        ready = self._ready(now_s)
        decision = self._decided(ready, now_s)
        if self._edge_drafts is not None and (drafting := self._next.to_draft()) is not None:
            self._busy = True
            return drafting
        wait_s = decision.for_s if isinstance(decision, Wait) else math.inf
        # A pass of prompts alone would delay sessions that become worth a pass before its end.
        if (isinstance(decision, Go) or wait_s >= self._pass_s) and (step := self._verify({}, now_s)) is not None:
            return step
        if isinstance(decision, Wait):
            self._looks_s = now_s + LOOK_S * len(ready)
        return self._sleep(wait_s, now_s)

    def _decided(self, ready: Sequence[Candidate], now_s: float) -> Go | Wait:
        """Decide who rides, and put them into the next pass."""
        self._present = len(ready)
        if ready and self._since_s is None:
            self._since_s = now_s
        verifier, price, drafter = self._beliefs.verifier(), self._price(ready), self._edge_drafter()
        decision = self._decide(ready, verifier, price, drafter, *self._delays.patience(now_s, self._pass_s))
        waited_s = self._delays.decided(decision, bool(ready), now_s)
        if isinstance(decision, Go):
            self._prices.promise(decision.expected_tokens, waited_s + decision.pass_s, self._pass_s)
        self._planned = decision if isinstance(decision, Go) else None
        rides = decision.rides if isinstance(decision, Go) else ()
        rides = self._half_passes.chosen(rides, {each.session for each in ready if each.must_ride})
        if self._edge_drafts is not None:
            # Before the edge's drafter is timed, `edge_room` is too short to try a device with more tokens.
            rooms = {each.session: (each.room or 0) if each.edge_room else 0 for each in ready}
            timed = drafter if self._edge_drafts.timed else None
            pass_s = decision.pass_s if isinstance(decision, Go) else 0.0
            rides = self._edge_trials.added(rides, rooms, now_s, verifier.per_token_s, timed, pass_s)
        self._next.board(rides)
        return decision

    def waits(self, now_s: float) -> bool:
        """Whether `advance` can only say Sleep."""
        return self._busy and not self._state.outbox and self._report is None

    def drafted(self, step: DraftHere, drafts: Sequence[EdgeDraft], draft_s: float, now_s: float) -> None:
        """Take the drafts of the edge's own drafter, and begin their pass."""
        assert self._edge_drafts is not None
        self._edge_drafts.drafted(step, drafts, draft_s, now_s)
        self._edge_trials.ended(now_s, timed=not self._edge_drafts.reads)
        added: dict[int, Sequence[int]] = {each.session: ids for each, (ids, _) in zip(step.asks, drafts, strict=True)}
        self._busy, self._added = False, added

    def verified(
        self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float, now_s: float
    ) -> None:
        """Commit the findings, learn from them, and send the results."""
        self._half_passes.rode(len(batch.jobs))
        self._windows.pass_s += 0.2 * (verify_s - self._windows.pass_s)
        self._plain_per_s = 1.0 / self._beliefs.verifier().verify_s([0] * max(1, self._present))
        self._busy = False
        for job, finding in zip(batch.jobs, findings, strict=True):
            seat = self._seats.get(job.session)
            if seat is None or finding is None or seat.slot != job.feed.slot:
                continue
            if isinstance(finding, Failure):
                self._state.tell(job.session, Error(finding.code, finding.reason))
                self._state.leave(job.session)
            elif isinstance(seat.session.stage, Streaming):
                assert isinstance(finding, Outcome)
                self._settle(seat, seat.session.stage, job, finding, now_s)
            elif isinstance(seat.session.stage, Pending):
                answer = self._grants.settle(seat, job, finding, now_s)
                if answer is not None:
                    self._state.tell(job.session, answer)
        self._seats.end_batch()
        self._learn_price(now_s)
        report, planned = self._state.report(batch, verify_s, None), self._planned
        if planned is not None:
            report = replace(report, planned_pass_s=planned.pass_s, planned_tokens=planned.expected_tokens)
        self._report = report

    # Messages -----------------------------------------------------------------------------------------------------

    def receive(
        self, seat: Seat, message: Draft | Distribution | Chunk, frame_bytes: int, now_s: float
    ) -> list[Downlink]:
        """Take a device's draft, or a distribution that it was asked for. Returns the immediate answers."""
        match message:
            case Chunk():  # nearly all messages
                self._windows.take(seat, message, frame_bytes, now_s)
                return []
            case Draft():
                return self._grants.receive(seat, message, frame_bytes, now_s)
            case Distribution():
                return self._state.receive_distribution(seat, message, frame_bytes)

    def came_back(self, seat: Seat) -> None:
        """Note that a device is connected again: it has got its window again, and begins another chain."""
        self._windows.forget(seat.session.number)

    # Before a pass ------------------------------------------------------------------------------------------------

    def _ready(self, now_s: float) -> list[Candidate]:
        """All candidates for a pass that begins now."""
        found, drafter = list[Candidate](), self._edge_drafter()
        edge_rate = drafter.acceptance_rate if drafter is not None else 0.0
        chunks: dict[int, int] = {}
        for seat in self._seats:
            if not (seat.connected and seat.running):
                continue
            session, stage = seat.session, seat.session.stage
            if isinstance(stage, Streaming):
                if self._seats.unread(seat):  # its prompt is not read yet
                    if (flow := self._windows.flow(session.number)) is not None:
                        flow.since_s = now_s
                elif (each := self._candidate(seat, stage, edge_rate, now_s)) is not None:
                    found.append(each)
                    chunks[session.number] = stage.window.chunk if session.hello.drafts else 0
            elif not self._seats.unread(seat):  # it drafts in grants
                chunks[session.number] = 0
                if isinstance(stage, Pending):
                    found.append(self._ready_of_grant(seat, stage, edge_rate))
                elif isinstance(stage, Granted):
                    found.append(self._absent(seat, stage, now_s))
        self._prices.look(chunks, self._edge_drafts is not None and self._edge_drafts.timed, now_s)
        return found

    def _candidate(self, seat: Seat, stage: Streaming, edge_rate: float, now_s: float) -> Candidate | None:
        """A stream as a candidate; None while it has no window."""
        session, number, request = seat.session, seat.session.number, seat.session.request
        if (flow := self._windows.flow(number)) is None:
            return None
        pending, waited_s = len(stage.pending), now_s - flow.since_s
        full = request is not None and pending >= request.remaining - 1  # it gets no more, and costs the same later
        room, own_rate = min(session.room, self._settings.max_draft_length), flow.device.edge_acceptance_rate
        view = flow.believed(number, stage.window.chunk, self._beliefs)
        tried = (least := self._windows.least_rate(number)) > view[0]
        next_s, next_tokens, tokens_per_s = flow.comes(stage, view, now_s)
        return Candidate(
            number,
            min(pending, PROBE_LENGTH) if tried else pending,
            least if tried else view[0],
            waited_s=waited_s,
            must_ride=full or waited_s >= self._state.limits.longest_wait_s,
            next_s=next_s,
            next_tokens=next_tokens,
            tokens_per_s=tokens_per_s,
            room=room,
            edge_room=self._edge_drafts.room(room) if self._edge_drafts is not None else 0,
            edge_acceptance_rate=edge_rate if own_rate is None else own_rate,
            behind_tokens=flow.behind_tokens,
            short_tokens=flow.short_tokens,
            worth=self._prices.of(number),
        )

    def _ready_of_grant(self, seat: Seat, stage: Pending, edge_rate: float) -> Candidate:
        """A session that drafts in grants as a candidate, with its whole draft: its device waits for the verdict."""
        number, length = seat.session.number, len(stage.draft)
        edge_room, worth = 0 if length else self._windows.edge_room(seat), self._prices.of(number)
        if edge_room and (own_rate := self._windows.device(seat).edge_acceptance_rate) is not None:
            edge_rate = own_rate
        return Candidate(
            number,
            length,
            self._beliefs.view(number, 1)[0],
            must_ride=True,
            room=max(length, edge_room),
            edge_room=edge_room,
            edge_acceptance_rate=edge_rate,
            worth=worth,
        )

    def _absent(self, seat: Seat, stage: Granted, now_s: float) -> Candidate:
        """A session whose granted draft is on its way, and for which a pass may wait."""
        number, length = seat.session.number, stage.grant.length
        left_s = seat.asked_at_s + LATER * seat.planned_s - now_s
        return Candidate(
            number,
            0,
            self._beliefs.view(number, 1)[0],
            next_s=left_s if left_s > 0.0 else math.inf,
            next_tokens=length,
            room=length,
            absent=True,
            worth=self._prices.of(number),
        )

    def _price(self, ready: Sequence[Candidate]) -> float:
        """The price of time [tokens/s]; at least the goodput of plain decoding of these, even before any is known."""
        plain_s = self._beliefs.verifier().verify_s([0] * max(1, len(ready)))
        return max(self.price_tokens_per_s, sum(each.worth.weight for each in ready) / plain_s)

    def _edge_drafter(self) -> EdgeDrafter | None:
        return self._beliefs.edge_drafter() if self._edge_drafts is not None else None

    def _verify(self, added: dict[int, Sequence[int]], now_s: float) -> Verify | None:
        """Begin the next pass, with the edge's drafts for it; None if it would be empty."""
        batch = self._next.batch(self._number + 1, added, partial(self._first_ride, now_s=now_s))
        if batch is None:
            return None
        self._busy, self._number = True, batch.round
        return Verify(batch)

    def _first_ride(self, seat: Seat, now_s: float) -> Ride | None:
        """A session's first ride, in the pass that reads the last of its prompt; None if it cannot ride yet.

        It costs nothing but its tokens, since the session is in the pass already.
        """
        stage = seat.session.stage
        if not isinstance(stage, Streaming):
            return Ride(seat.session.number, 0) if self._grants.begin(seat, now_s) else None
        if (each := self._candidate(seat, stage, 0.0, now_s)) is None:
            return None
        alone, price = [each._replace(must_ride=True)], self.price_tokens_per_s
        decision = choose(alone, self._beliefs.verifier(), price)
        return decision.rides[0] if isinstance(decision, Go) else None

    def _sleep(self, for_s: float, now_s: float) -> Sleep:
        """Wait for this time, or until a granted draft is late."""
        until_s = now_s + max(for_s, SHORTEST_SLEEP_S)
        due_s = self._grants.due_s
        if due_s is not None:
            until_s = min(until_s, due_s)
        return Sleep(until_s if until_s < math.inf else None)

    # After a pass -------------------------------------------------------------------------------------------------

    def _settle(self, seat: Seat, stage: Streaming, job: Job, outcome: Outcome, now_s: float) -> None:
        """Commit a stream's findings, send the result, and learn from it."""
        session, number, request = seat.session, job.session, seat.session.request
        riding, was_alive, stood = stage.riding, stage.alive, len(stage.pending) >= stage.window.length
        if riding is None or request is None:
            return
        self._state.engine.commit(job.feed.slot, job.feed.newest + 1 + outcome.accepted)
        commit, comparison = session.settle_stream(outcome)
        self._state.tell(number, commit)
        delivered = commit.accepted + len(commit.ids)
        self._state.rows.append(DecidedDraft(number, job.drafted, min(outcome.accepted, delivered), delivered))
        if comparison.compared:
            self._state.controller.observe_outcome(number, comparison.compared, comparison.equal)
        if len(riding.ids) > riding.own and outcome.accepted >= riding.own:
            of_edge = len(riding.ids) - riding.own
            self._beliefs.observe_edge_outcome(number, of_edge, outcome.accepted - riding.own)
        changed = self._pays(seat, min(delivered, outcome.accepted, riding.own), delivered, now_s)
        if request.finish:
            self._seats.release(seat)
            self._windows.ended(number, now_s)
            return
        if (flow := self._windows.flow(number)) is not None and self._number > UNLEARNED_PASSES:
            flow.owes(now_s, delivered, self._plain_per_s, self._prices.of(number))
        self._windows.settled(seat, was_alive and not stage.alive, stood, changed, now_s)

    def _pays(self, seat: Seat, own: int, delivered: int, now_s: float) -> bool:
        """Note how many new tokens are the device's. Returns whether the device begins to rest or to draft."""
        number = seat.session.number
        changed = seat.session.hello.drafts and self._paying.settled(number, own, delivered, now_s)
        if changed and not self._paying.rests(number):
            self._beliefs.renew(number)  # earlier observations are from when it did not pay
        return changed

    def _learn_price(self, now_s: float) -> None:
        """Learn the goodput of the engine's time; idle time without work does not count."""
        if self._since_s is not None:
            tokens = sum(self._prices.of(row.session).weight * row.delivered for row in self._state.rows)
            self._prices.learn(tokens, max(0.0, now_s - self._since_s), self._pass_s)
        self._since_s = now_s if any(seat.running and seat.connected for seat in self._seats) else None
