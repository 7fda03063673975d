"""Streams: devices draft on while they are verified, and whoever is worth it rides in the pass that begins now.

Whenever the engine is free, `control.streams.choose` decides by the price of time who rides with how many of the tokens
that have come, for whom the edge's own drafter goes on, or to wait for the next arrival. What was found is committed
and told at once. Each text that streams has a window, which is told when the text begins and again when it has changed
in a way that matters. Texts under a rejection rule draft in grants beside (`grants`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from multispin.control import Device, EdgeDrafter
from multispin.control.streams import Go, Ready, Ride, Wait, choose
from multispin.passes.bands import Bands
from multispin.passes.batches import collect, job_of, pending_job, prompt_due
from multispin.passes.beliefs import View
from multispin.passes.edge_drafts import EdgeDrafts
from multispin.passes.edge_trials import EdgeTrials
from multispin.passes.flows import Flow, matters, window_of
from multispin.passes.grants import Grants, is_idle
from multispin.passes.half_passes import HalfPasses
from multispin.passes.planning import MOST_S
from multispin.passes.plans import DEVICE, EDGE
from multispin.passes.probing import PROBE_LENGTH
from multispin.passes.seats import Seat
from multispin.passes.state import EdgeState, Row
from multispin.passes.steps import Batch, DraftHere, EdgeDraft, Job, RoundReport, Send, Sleep, Step, Verify
from multispin.protocol import Chunk, Distribution, Downlink, Draft, Error, Pending, Streaming
from multispin.speculation import Failure, Finding, Outcome

LOOK_EVERY = 8
"""Windows are looked at again after so many passes of their session."""
MOST_GONE = 64
"""What was known of so many streams of sessions that have gone may stay for a while."""
TRIALS_AT_ONCE = 8
"""One of so many devices may be tried at a time, and at least one."""
TRIED_RATE = 0.8
"""In a trial a device drafts, and a few of its tokens are verified, as if they were right with this probability."""
UNLEARNED_PASSES = 12
"""In the edge's first passes nobody counts as short of plain decoding: what that would take is still a guess."""
MOST_WAIT = 0.15
"""A pass that is worth its time is put off for at most this share of the usual time of a pass."""
LOOK_S = 2e-5
"""Whoever waits looks again so long later for each session, at least: a look at all of them takes half of that [s]."""
SHORTEST_SLEEP_S = 2e-4
"""A wait for what is expected is at least so long [s]."""


class _Ride(NamedTuple):
    """One session's part of the pass to come.

    Attributes:
        seat: the session's.
        ride: what was decided.
        epoch: of the chain that its device's tokens are of.

    """

    seat: Seat
    ride: Ride
    epoch: int


class Streams:
    """The scheduler of streams.

    Args:
        state: the sessions.
        edge_drafts: the edge's own drafter at work; None if it has none.

    """

    def __init__(self, state: EdgeState, edge_drafts: EdgeDrafts | None) -> None:
        self._state = state
        self._seats = state.seats
        self._beliefs = state.controller.beliefs
        self._settings = state.controller.settings
        self._edge_drafts = edge_drafts
        self._edge_trials = EdgeTrials()
        self._half_passes = HalfPasses()
        self._grants = Grants(state)
        self._flows: dict[int, Flow] = {}
        self._number = 0
        self._drafting = 0  # devices that draft
        self._present = 0  # sessions that could ride
        self._busy = False  # whether a batch is verified, or the edge's drafter is at work
        self._rides: list[_Ride] = []  # of the pass to come
        self._added: dict[int, Sequence[int]] | None = None  # what the edge's drafter has drafted for it
        self._prices = state.controller.prices
        self._paying = state.controller.paying
        self._since_s: float | None = None  # since when the engine's time is counted [s]; None: nobody wants it
        self._pass_s = state.controller.beliefs.verifier().verify_s([0])
        self._bands = Bands(state.controller.settings.bandwidth_hz)
        self._report: RoundReport | None = None
        self._looks_s = 0.0  # it is better to wait, and whether it still is is not asked before [s]
        self._put_off_s: float | None = None  # since when a pass that is worth its time is put off [s]
        self._planned: Go | None = None  # the pass to come, or under way

    @property
    def number(self) -> int:
        """Number of the last pass that began."""
        return self._number

    @property
    def deadline_s(self) -> float:
        """No pass waits for drafts."""
        return 0.0

    @property
    def price_tokens_per_s(self) -> float:
        """The price of time [tokens/s]."""
        return float(self._prices.engine_tokens_per_s)

    # What a driver needs ------------------------------------------------------------------------------------------

    def advance(self, now_s: float) -> Step:
        """What to do next: sleep, draft here, verify a batch, or send messages."""
        if not self._busy and not self._state.outbox and self._report is None and now_s < self._looks_s:
            return Sleep(self._looks_s)
        if not self._busy:
            self._grants.let_go_of_the_late(now_s)
            self._seats.fill()
            self._seat(now_s)
        if self._state.outbox or self._report is not None:
            messages, self._state.outbox = self._state.outbox, []
            report, self._report = self._report, None
            return Send(messages, report)
        if self._busy:
            return Sleep()
        if self._added is not None:
            added, self._added = self._added, None
            if (batch := self._batch(added)) is not None:
                return self._verify(batch)
        ready = self._ready(now_s)
        self._present = len(ready)
        if ready and self._since_s is None:
            self._since_s = now_s
        patience_s = MOST_WAIT * self._pass_s - (0.0 if self._put_off_s is None else now_s - self._put_off_s)
        decision = choose(ready, self._beliefs.verifier(), self._price(ready), self._edge_drafter(), patience_s)
        if isinstance(decision, Go):
            self._put_off_s = None
        elif decision.puts_off and self._put_off_s is None:
            self._put_off_s = now_s
        self._planned = decision if isinstance(decision, Go) else None
        rides = decision.rides if isinstance(decision, Go) else ()
        rides = self._half_passes.chosen(rides, {each.session for each in ready if each.must_ride})
        if self._edge_drafts is not None:
            rides = self._edge_trials.added(rides, {each.session: each.edge_room for each in ready}, now_s)
        self._rides = [self._as_ride(ride) for ride in rides]
        if (step := self._to_draft()) is not None:
            return step
        wait_s = decision.for_s if isinstance(decision, Wait) else math.inf
        # A pass of prompts alone would keep those waiting who are worth a pass before it is over.
        if (isinstance(decision, Go) or wait_s >= self._pass_s) and (batch := self._batch({})) is not None:
            return self._verify(batch)
        if isinstance(decision, Wait):
            self._looks_s = now_s + LOOK_S * len(ready)
        return self._sleep(wait_s, now_s)

    def waits(self, now_s: float) -> bool:
        """Whether `advance` can only say Sleep."""
        return self._busy and not self._state.outbox and self._report is None

    def drafted(self, step: DraftHere, drafts: Sequence[EdgeDraft], draft_s: float, now_s: float) -> None:
        """Take what the edge's own drafter drafted, and begin the pass that it was for."""
        assert self._edge_drafts is not None
        self._edge_drafts.drafted(step, drafts, draft_s, now_s)
        self._edge_trials.ended(now_s)
        added: dict[int, Sequence[int]] = {each.session: ids for each, (ids, _) in zip(step.asks, drafts, strict=True)}
        self._busy, self._added = False, added

    def verified(
        self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float, now_s: float
    ) -> None:
        """Commit what was found, learn from it, and have it told."""
        self._beliefs.observe_verification(len(batch.jobs), batch.tokens, verify_s)
        self._half_passes.rode(len(batch.jobs))
        self._pass_s += 0.2 * (verify_s - self._pass_s)
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
        """Take what a device drafted, or a distribution that it was asked for; returns what is answered at once."""
        match message:
            case Chunk():  # as nearly always
                self._take(seat, message, frame_bytes, now_s)
                return []
            case Draft():
                return self._grants.receive(seat, message, frame_bytes, now_s)
            case Distribution():
                return self._state.receive_distribution(seat, message, frame_bytes)

    def _take(self, seat: Seat, message: Chunk, frame_bytes: int, now_s: float) -> None:
        """Take some tokens of a stream, and learn from them."""
        session, number = seat.session, seat.session.number
        wasted = session.counts.wasted
        arrival = session.receive_chunk(message)
        self._state.late_tokens += session.counts.wasted - wasted
        flow, stage = self._flows.get(number), session.stage
        if flow is None or not isinstance(stage, Streaming):
            return
        way_s = flow.arrived(message, arrival, now_s)
        if way_s > 0.0 or flow.is_sample:
            draft_s, band_hz = message.draft_us * 1e-6, stage.window.bandwidth_hz
            self._beliefs.observe_draft(number, message.length, draft_s, 8 * frame_bytes, band_hz, way_s)
        if arrival.trials.compared:
            self._state.controller.observe_outcome(number, arrival.trials.compared, arrival.trials.equal)
            if arrival.trials.equal < arrival.trials.compared and self._paying.tried(number):
                self._rest(seat, now_s)

    def came_back(self, seat: Seat) -> None:
        """A device is connected again: it has been told its window again, and begins another chain."""
        self._flows.pop(seat.session.number, None)

    # Before a pass ------------------------------------------------------------------------------------------------

    def _seat(self, now_s: float) -> None:
        """Tell whoever can take part for the first time, or again, how far it may draft."""
        drafting: list[Seat] = []
        idle: list[Seat] = []
        resting: list[Seat] = []
        for seat in self._seats:
            if not (seat.running and seat.connected):
                continue
            if seat.session.hello.drafts:
                (resting if self._rests(seat) else drafting).append(seat)
            if is_idle(seat) or (isinstance(seat.session.stage, Streaming) and seat.session.number not in self._flows):
                idle.append(seat)
        self._drafting = len(drafting)
        if len(self._flows) > 2 * len(self._seats) + MOST_GONE:  # of sessions that ended before their texts did
            self._flows = {number: flow for number, flow in self._flows.items() if self._seats.get(number) is not None}
        if self._bands.look([seat.session.number for seat in drafting], self._prices.bands_hz):
            for number, flow in list(self._flows.items()):
                if (known := self._seats.get(number)) is None:
                    del self._flows[number]
                else:
                    self._tune(known, flow)
        for seat in idle:
            request, session = seat.session.request, seat.session
            assert request is not None
            if not request.ids_only:
                if not self._seats.unread(seat):
                    self._grants.grant(seat, self._bands.of(session.number), self._pass_s, now_s)
            else:  # its device may draft while its prompt is read
                flow = self._flows[session.number] = self._flow(seat, now_s)
                self._tune(seat, flow)
        if resting:
            self._try(resting, len(drafting), now_s)

    def _rests(self, seat: Seat) -> bool:
        """Whether the seat's device is only tried now and then. Rules that draft in grants have probes of their own."""
        request = seat.session.request
        return self._paying.rests(seat.session.number) and request is not None and request.ids_only

    def _try(self, resting: Sequence[Seat], drafting: int, now_s: float) -> None:
        """End trials that had their time, and begin those that are due, a few at a time."""
        for seat in resting:
            if self._paying.late(seat.session.number, now_s):
                self._rest(seat, now_s)
        tried = {seat.session.number for seat in resting if self._paying.tried(seat.session.number)}
        self._bands.take_back_but_from(tried)
        free = max(1, (len(resting) + drafting) // TRIALS_AT_ONCE) - len(tried)
        for seat in resting:
            if free <= 0:
                return
            number, flow, request = seat.session.number, self._flows.get(seat.session.number), seat.session.request
            if flow is None or request is None or self._seats.unread(seat) or not self._paying.due(number, now_s):
                continue
            token_s = flow.device.seconds_per_token
            expected_s = 2.0 * (flow.device.delay_s + self._pass_s) + PROBE_LENGTH * token_s
            if expected_s > MOST_S or not self._bands.lend(number):
                continue
            self._paying.begin(number, expected_s, now_s)
            flow.starts_over(len(request.committed), now_s)
            self._tune(seat, flow)
            free -= 1

    def _rest(self, seat: Seat, now_s: float) -> None:
        """A trial has come to nothing: the device is told to stop."""
        number = seat.session.number
        self._end_trial(number, now_s)
        if (flow := self._flows.get(number)) is not None:
            self._tune(seat, flow)

    def _end_trial(self, number: int, now_s: float) -> None:
        self._paying.end(number, now_s)
        self._bands.take_back(number)

    def _flow(self, seat: Seat, now_s: float) -> Flow:
        session = seat.session
        committed = len(session.request.committed) if session.request is not None else 0
        return Flow(now_s, now_s, committed, now_s, self._device(seat))

    def _device(self, seat: Seat) -> Device:
        return self._beliefs.device(seat.session.number, seat.session.room, 1, self._edge_room(seat))

    def _edge_room(self, seat: Seat) -> int:
        """Longest draft of the edge's own drafter that makes sense for a session [tokens]."""
        return 0 if self._edge_drafts is None else self._edge_drafts.room(seat.session.room)

    def _tune(self, seat: Seat, flow: Flow) -> None:
        """Look at a device anew, and tell it its window if that has changed in a way that matters."""
        session, number = seat.session, seat.session.number
        stage, request = session.stage, session.request
        if request is None or not request.ids_only or request.finish:
            return
        flow.device, flow.rides, flow.view = self._device(seat), 0, None
        length, chunk, band_hz = 0, 1, 0.0
        if session.hello.drafts and (not self._paying.rests(number) or self._paying.tried(number)):
            band_hz = self._bands.of(number)
            least = self._least_rate(number)

            def view(tokens: int) -> View:
                rate, token_s, token_hz_s = self._beliefs.view(number, tokens)
                return max(rate, least), token_s, token_hz_s

            length, chunk = window_of(
                view,
                flow.device.delay_s,
                band_hz,
                self._pass_s,
                self._settings.max_draft_length,
                self._drafting,
            )
        if not isinstance(stage, Streaming):
            window = session.stream(length, chunk, band_hz)
            if length:
                self._state.tell(number, window)
            return
        old = stage.window
        if matters((old.length, old.chunk, old.bandwidth_hz), (length, chunk, band_hz)):
            self._state.tell(number, session.stream(length, chunk, band_hz))

    def _least_rate(self, number: int) -> float:
        """What is believed of a device's tokens at least: in a trial it does not count what was seen before."""
        return TRIED_RATE if self._paying.tried(number) else 0.0

    def _ready(self, now_s: float) -> list[Ready]:
        """Everybody who could ride in a pass that begins now."""
        found, longest_s = [], self._state.limits.longest_wait_s
        drafter = self._edge_drafter()
        edge_rate = drafter.acceptance_rate if drafter is not None else 0.0
        chunks: dict[int, int] = {}
        for seat in self._seats:
            if not (seat.connected and seat.running):
                continue
            session, stage = seat.session, seat.session.stage
            if isinstance(stage, Streaming):
                number = session.number
                flow = self._flows.get(number)
                if flow is None:
                    continue
                if self._seats.unread(seat):  # it cannot be in a pass yet
                    flow.since_s = now_s
                    continue
                room = min(session.room, self._settings.max_draft_length)
                edge_room = self._edge_drafts.room(room) if self._edge_drafts is not None else 0
                worth = self._prices.of(number)
                each = flow.ready(number, stage, self._beliefs, worth, now_s, longest_s, room, edge_room, edge_rate)
                if (least := self._least_rate(number)) > each.acceptance_rate:
                    each = each._replace(pending=min(each.pending, PROBE_LENGTH), acceptance_rate=least)
                found.append(each)
                chunks[number] = stage.window.chunk if session.hello.drafts else 0
            elif not self._seats.unread(seat):  # it drafts in grants
                chunks[session.number] = 0
                if isinstance(stage, Pending):
                    found.append(self._ready_of_grant(seat, stage, edge_rate))
        self._prices.look(chunks, self._edge_drafts is not None and self._edge_drafts.timed, now_s)
        return found

    def _ready_of_grant(self, seat: Seat, stage: Pending, edge_rate: float) -> Ready:
        """A session that drafts in grants rides with all that has come: its device waits for the verdict."""
        number, length = seat.session.number, len(stage.draft)
        edge_room, worth = 0 if length else self._edge_room(seat), self._prices.of(number)
        if edge_room and (own_rate := self._device(seat).edge_acceptance_rate) is not None:
            edge_rate = own_rate
        return Ready(
            number,
            length,
            self._beliefs.view(number, 1)[0],
            worth.weight,
            must_ride=True,
            room=max(length, edge_room),
            edge_room=edge_room,
            edge_acceptance_rate=edge_rate,
        )

    def _price(self, ready: Sequence[Ready]) -> float:
        """The price of time [tokens/s]; at least what plain decoding of these makes of it, also before any is known."""
        plain_s = self._beliefs.verifier().verify_s([0] * max(1, len(ready)))
        return max(self.price_tokens_per_s, sum(each.weight for each in ready) / plain_s)

    def _edge_drafter(self) -> EdgeDrafter | None:
        return self._beliefs.edge_drafter() if self._edge_drafts is not None else None

    def _as_ride(self, ride: Ride) -> _Ride:
        seat = self._seats[ride.session]
        stage = seat.session.stage
        return _Ride(seat, ride, stage.epoch if isinstance(stage, Streaming) else 0)

    def _to_draft(self) -> DraftHere | None:
        """What the edge's own drafter is to draft for the pass to come; None if there is nothing."""
        if self._edge_drafts is None or not any(ride.edge_tokens for _, ride, _ in self._rides):
            return None
        texts: list[tuple[Seat, Sequence[int], int]] = []
        for seat, ride, _ in self._rides:
            request, stage = seat.session.request, seat.session.stage
            if request is None or not ride.edge_tokens:
                continue
            text: Sequence[int] = request.committed
            if isinstance(stage, Streaming):
                text = [*text, *stage.pending[: ride.device_tokens]]
            else:
                seat.drafter, seat.to_draft = EDGE, ride.edge_tokens
            texts.append((seat, text, ride.edge_tokens))
        step = self._edge_drafts.step(texts)
        self._busy = step is not None
        return step

    def _batch(self, added: Mapping[int, Sequence[int]]) -> Batch | None:
        """Everybody's part of the pass to come, and prompts; None if there is nothing.

        Who has gone while the edge's drafter was at work has no part, and what that has drafted after a chain which
        has ended is not used.
        """
        jobs = [job for each in self._rides if (job := self._job(each, added)) is not None]
        self._rides = []
        if not jobs and not any(prompt_due(self._state, seat) for seat in self._seats):
            return None
        return collect(self._state, self._number + 1, jobs, self._pass_s)

    def _job(self, each: _Ride, added: Mapping[int, Sequence[int]]) -> Job | None:
        seat, ride, epoch = each
        session, stage = seat.session, seat.session.stage
        if self._seats.get(session.number) is not seat or not seat.running:
            return None
        if isinstance(stage, Pending):
            return pending_job(seat)
        if not isinstance(stage, Streaming):
            return None
        more, own = added.get(session.number, ()), min(ride.device_tokens, session.room)
        if own and (stage.epoch != epoch or own > len(stage.pending)):
            more = ()
        ids = stage.take(own, more[: session.room - own])
        own = min(own, len(ids))
        return job_of(seat, ids, None, own, EDGE if len(ids) > own == 0 else DEVICE)

    def _verify(self, batch: Batch) -> Verify:
        self._busy, self._number = True, batch.round
        return Verify(batch)

    def _sleep(self, for_s: float, now_s: float) -> Sleep:
        """Wait for so long, or until a draft that was granted is late."""
        until_s = now_s + max(for_s, SHORTEST_SLEEP_S)
        due_s = self._grants.due_s
        if due_s is not None:
            until_s = min(until_s, due_s)
        return Sleep(until_s if until_s < math.inf else None)

    # After a pass -------------------------------------------------------------------------------------------------

    def _settle(self, seat: Seat, stage: Streaming, job: Job, outcome: Outcome, now_s: float) -> None:
        """Commit what was found of a stream, have it told, and learn from it."""
        session, number, request = seat.session, job.session, seat.session.request
        riding, was_alive, stood = stage.riding, stage.alive, len(stage.pending) >= stage.window.length
        if riding is None or request is None:
            return
        self._state.engine.commit(job.feed.slot, job.feed.start + 1 + outcome.accepted)
        wasted = session.counts.wasted
        commit, trials = session.settle_stream(outcome)
        self._state.late_tokens += session.counts.wasted - wasted
        self._state.tell(number, commit)
        delivered = commit.accepted + len(commit.ids)
        self._state.rows.append(Row(number, job.drafted, min(outcome.accepted, delivered), delivered))
        if trials.compared:
            self._state.controller.observe_outcome(number, trials.compared, trials.equal)
        if len(riding.ids) > riding.own and outcome.accepted >= riding.own:
            of_edge = len(riding.ids) - riding.own
            self._beliefs.observe_edge_outcome(number, of_edge, outcome.accepted - riding.own)
        own = min(delivered, outcome.accepted, riding.own)
        changed = session.hello.drafts and self._paying.settled(number, own, delivered, now_s)
        if changed and not self._paying.rests(number):
            self._beliefs.renew(number)  # what is known of its tokens is of when it did not pay
        if request.finish:
            self._seats.release(seat)
            self._flows.pop(number, None)
            self._end_trial(number, now_s)  # what is drafted of it is of a text that has ended
            return
        flow = self._flows.get(number)
        if flow is None:
            return
        if self._number > UNLEARNED_PASSES:
            flow.owes(now_s, delivered, self._plain_per_s, self._prices.of(number))
        flow.rode(now_s)
        if flow.young:
            flow.device = self._device(seat)
        if was_alive and not stage.alive:
            flow.starts_over(len(request.committed), now_s)
        elif stood:
            flow.resumed_s = now_s
        if changed:
            self._bands.take_back(number)
            if self._paying.rests(number):
                self._tune(seat, flow)
            else:  # it is seated anew, with a band of its own
                self._flows.pop(number)
            return
        if was_alive and not stage.alive and self._paying.tried(number):
            self._rest(seat, now_s)
        if flow.rides >= LOOK_EVERY:
            self._tune(seat, flow)

    def _learn_price(self, now_s: float) -> None:
        """Learn what the engine makes of its time; time in which nobody wants it does not count."""
        if self._since_s is not None:
            tokens = sum(self._prices.of(row.session).weight * row.delivered for row in self._state.rows)
            self._prices.learn(tokens, max(0.0, now_s - self._since_s), self._pass_s)
        self._since_s = now_s if any(seat.running and seat.connected for seat in self._seats) else None
