"""Grants of rounds: what a plan gives each session, and whose draft is late.

This file knows plans, grants and times, and nothing of batches.
"""

import heapq
from dataclasses import dataclass, field

from multispin.passes.batches import pending_job
from multispin.passes.edge_drafts import EdgeDrafts
from multispin.passes.plans import DEVICE, NOBODY, Member, RoundPlan, SessionPlan
from multispin.passes.round_deadlines import RoundDeadlines
from multispin.passes.seats import Seat, TrialDraft
from multispin.passes.state import EdgeState
from multispin.passes.steps import Job
from multispin.protocol import Grant, Granted, Idle, Pending


@dataclass
class OpenRound:
    """The current round.

    Attributes:
        number: number of the round.
        planned_s: its planned time [s].
        deadline_s: time at which it goes on without the missing drafts [s].
        members: seats whose drafts may still be awaited; those at the end that are not are dropped when it is checked.
        expected_s: time at which all of its drafts are expected to have come [s].
        riders: decisions for the sessions without device drafts, by number.
        passes: number of further passes planned for these before that time.

    """

    number: int = 0
    planned_s: float = 0.0
    deadline_s: float = 0.0
    members: list[Seat] = field(default_factory=list)
    expected_s: float = 0.0
    riders: dict[int, SessionPlan] = field(default_factory=dict)
    passes: int = 0


class RoundGrants:
    """Grants of the sessions in rounds.

    Attributes:
        round: the current round.
        price_tokens_per_s: its planned goodput [tokens/s].
        rides: whether sessions without drafts have passes of their own.

    Args:
        state: sessions and messages that the parts of the loop share.
        edge_drafts: the edge's own drafter at work; None if it has none.

    """

    def __init__(self, state: EdgeState, edge_drafts: EdgeDrafts | None) -> None:
        self._state = state
        self._seats = state.seats
        self._controller = state.controller
        self._edge_drafts = edge_drafts
        self._deadlines = RoundDeadlines(state.limits)
        self.round = OpenRound()
        self.price_tokens_per_s = 0.0
        self.rides = state.controller.settings.mode != "rounds"
        self._due: list[tuple[float, int, int]] = []  # heap of (when a draft is late [s], session, round)

    @property
    def due_s(self) -> float | None:
        """Time from which the next grant is late [s]; None if none is awaited."""
        return self._due[0][0] if self._due else None

    def schedule(self, now_s: float) -> tuple[RoundPlan | None, dict[int, Grant]]:
        """Plan the next round, and grant it to every running session without an open draft."""
        self._seats.fill()
        members = [self._member(seat) for seat in self._seats if self.is_idle(seat)]
        plan = self._controller.plan(members, self._late_hz(), now_s)
        if plan is None:
            return None, {}
        self.price_tokens_per_s = plan.goodput_tokens_per_s
        phase_s = plan.phase_s
        if phase_s is None:
            phase_s = max(0.0, plan.round_s - self._controller.beliefs.verification.predict(len(members), len(members)))
        verify_s = self._controller.beliefs.verifier().verify_s(plan.lengths)
        wait_s = self._deadlines.wait_s(sum(map(bool, plan.lengths)), phase_s, verify_s)
        # Nobody waits for a device that was late before, nor for a probe.
        self.round = OpenRound(
            self.round.number + 1,
            plan.round_s,
            now_s + wait_s,
            [self._seats[each.session] for each in plan.sessions if each.drafter == DEVICE and each.probe is None],
            now_s + phase_s,
            {each.session: each for each in plan.sessions if each.drafter != DEVICE},
            plan.extra_passes,
        )
        grants = {}
        for each in plan.sessions:
            grant = self.give(each, now_s)
            if grant is not None:
                grants[each.session] = grant
        return plan, grants

    def is_idle(self, seat: Seat) -> bool:
        """Whether a plan decides for a session: it is connected, and nothing of it is open."""
        return seat.running and seat.connected and seat.session.grant is None and self._seats.unread(seat) == 0

    def _late_hz(self) -> float:
        """Band that stays reserved for late drafts [Hz]: of each at most an even share of the whole band.

        A device that was alone here may have been granted all of it, and may never answer.
        """
        running = sum(seat.running and seat.connected for seat in self._seats)
        most_hz = self._controller.settings.bandwidth_hz / max(1, running)
        return sum(min(seat.band_hz, most_hz) for seat in self._seats)

    def _member(self, seat: Seat) -> Member:
        room = seat.session.room
        drafter = self._edge_drafts
        edge_room = drafter.room(room) if drafter is not None and seat.session.offer is None else 0
        request = seat.session.request
        comparable = request is not None and request.ids_only
        able = seat.session.hello.drafts and seat.trial is None
        return Member(seat.session.number, room if able else 0, edge_room, comparable)

    def give(self, planned: SessionPlan, now_s: float) -> Grant | None:
        """Carry out a session's plan. Returns its grant, or None if there is nothing to tell its device."""
        seat = self._seats[planned.session]
        seat.drafter, seat.asked_at_s = planned.drafter, now_s
        of_device = planned.drafter == DEVICE
        length = planned.draft_length if of_device else 0
        seat.planned_s = self.round.expected_s - now_s if length else 0.0
        grant = seat.session.give(self.round.number, length, planned.bandwidth_hz)
        if not self.rides:
            return grant
        late_s = self.round.deadline_s
        if planned.probe is not None:
            late_s = (
                now_s
                + self._state.limits.deadline_factor * planned.probe.expected_s
                + self._state.limits.deadline_slack_s
            )
        if isinstance(seat.session.stage, Pending):
            seat.to_draft = 0 if of_device else planned.draft_length
            if planned.probe is None or of_device:
                return None  # the device has nothing to do
            grant = Grant(planned.session, self.round.number, planned.probe.draft_length, planned.probe.bandwidth_hz)
            request = seat.session.request
            seat.trial = TrialDraft(grant, len(request.committed) if request is not None else 0, now_s)
        heapq.heappush(self._due, (late_s, planned.session, grant.round))
        return grant

    def as_rider(self, seat: Seat) -> SessionPlan:
        """The session's task until the next plan: the planned one, or plain decoding for a newcomer."""
        number = seat.session.number
        planned = self.round.riders.get(number, SessionPlan(number, 0, 0.0, NOBODY))
        return planned._replace(draft_length=min(planned.draft_length, seat.session.room), probe=None)

    def begin(self, seat: Seat) -> Job | None:
        """A newcomer's one token without a draft, in the pass that reads the last of its prompt; None if it cannot."""
        session = seat.session
        if not isinstance(session.stage, Idle) or session.offer is not None or seat.trial is not None:
            return None
        seat.drafter, seat.to_draft = NOBODY, 0
        session.give(self.round.number, 0, 0.0)
        return pending_job(seat)

    def let_go_of_the_late(self, now_s: float) -> None:
        """Take back grants whose drafts have not come in time. Their sessions go on without, and are only probed."""
        while self._due and self._due[0][0] <= now_s:
            _, number, round_number = heapq.heappop(self._due)
            seat = self._seats.get(number)
            if seat is None or not seat.connected:
                continue
            stage, trial = seat.session.stage, seat.trial
            if trial is not None and trial.ids is None and trial.grant.round == round_number:
                for message in seat.session.catch_up(trial.base):
                    self._state.tell(number, message)
                seat.trial, asked_s = None, trial.asked_s
            elif isinstance(stage, Granted) and stage.offer is None and stage.grant.round == round_number:
                seat.session.withdraw()
                asked_s = seat.asked_at_s
                seat.let_go = round_number, seat.planned_s, asked_s
            else:
                continue
            self._controller.chooser.probes.miss(number, now_s, now_s - asked_s)

    def came(self, seat: Seat, round_number: int, now_s: float) -> None:
        """Note that a granted draft has come, maybe after its grant was taken back, and learn how late drafts are."""
        planned_s, asked_s = seat.planned_s, seat.asked_at_s
        if seat.let_go is not None and seat.let_go[0] == round_number:
            (_, planned_s, asked_s), seat.let_go = seat.let_go, None
        self._deadlines.observe(seat.session.number, planned_s, now_s - asked_s)
