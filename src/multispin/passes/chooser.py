"""Who drafts for each session until the next plan: the thin shell around `control.decide`.

It decides again when beliefs have drifted, but not too often. Meanwhile it keeps the choices, and adds probes of
drafters that are not used. It knows nothing of slots, tokens or messages.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from multispin.control import Plan, Scenario
from multispin.control.who import Choice, Decision
from multispin.passes.bare_passes import BarePasses
from multispin.passes.beliefs import Beliefs, View
from multispin.passes.planning import MOST_DRAFT_S, least_period_s
from multispin.passes.plans import DEVICE, EDGE, NOBODY, Member, Probe, RoundPlan, SessionPlan
from multispin.passes.probing import COST_SHARE, PROBE_LENGTH, Probes
from multispin.passes.turns import Turns

LEAST_TOLERANCE = 0.05
"""Greatest drift of beliefs for which a decision is kept, or the settings' tolerance if that is greater."""
PROBES_AT_ONCE = 8
"""One of this many sessions may be probed at a time, and at least one."""
PROBE_BAND = 0.1
"""Share of the band for all probes together while other devices draft …"""
IDLE_PROBE_BAND = 0.5
"""… and while none does. Probes still hold their share when the next plan is made, so some band must be left for it."""
_LOOKED_AT = 64
"""Number of sessions whose beliefs are compared to see whether to decide again."""
_EDGE = -1
"""Key of the edge's own drafter among the probes."""

Made = Callable[[Sequence[Member], Sequence[int]], tuple[Scenario, Plan]]
"""Makes the scenario of some members, and the plan for given draft lengths of their devices."""


@dataclass(frozen=True)
class _LastDecision:
    """A decision and its inputs.

    Attributes:
        decision: decision of `control.decide`.
        usual: drafter and draft length of most sessions.
        drafting: number of devices that draft, at least 1.
        views: beliefs about the sessions and the edge's drafter at that time.
        delays_s: believed one-way delays of the sessions at that time [s].
        verify_s: believed time of a verification of everybody [s].
        edge_room: longest useful draft of the edge for any session [tokens].
        at_s: time of the decision [s].

    """

    decision: Decision
    usual: tuple[str, int]
    drafting: int
    views: dict[int, View]
    delays_s: dict[int, float]
    verify_s: float
    edge_room: int
    at_s: float


class Chooser:
    """Chooses who drafts, from beliefs.

    Args:
        mode: "plain", "edge" or "mixture".
        bandwidth_hz: uplink band that all devices share [Hz].
        tolerance: drift within which a decision is kept.
        beliefs: beliefs about sessions, verifier and the edge's drafter.

    """

    def __init__(self, mode: str, bandwidth_hz: float, tolerance: float, beliefs: Beliefs) -> None:
        self.probes = Probes()
        self._edge_probes = Probes(COST_SHARE)
        self._bandwidth_hz = bandwidth_hz
        self._bare_passes = BarePasses()
        self._turns = Turns()  # for which sessions the edge's drafter is tried
        self._mode = mode
        self._tolerance = max(tolerance, LEAST_TOLERANCE)
        self._beliefs = beliefs
        self._choices: dict[int, tuple[str, int]] = {}  # of all sessions, those between two texts included
        self._basis: _LastDecision | None = None
        self._adopted = 0  # decisions so far
        self._latest: tuple[object, RoundPlan] | None = None

    def plan(self, members: Sequence[Member], now_s: float, made: Made) -> RoundPlan:
        """The plan: each member's task until the next plan."""
        basis = self._basis
        if basis is None:  # nobody drafts, or nothing is known yet
            pass_s = self._verify_s(members)
            sessions = tuple(SessionPlan(member.session, 0, 0.0, NOBODY) for member in members)
            return RoundPlan(sessions, pass_s, len(members) / pass_s, 0.0)
        trusted = self.trusted(members)
        chosen = [self._chosen(basis, member) for member in trusted]
        frame = tuple(chosen), tuple(member.session for member in members)
        if self._latest is None or self._latest[0] != frame:
            self._latest = frame, self._carried_out(basis, trusted, chosen, made)
        plan = self._latest[1]
        if self._bare_passes.due(sum(each.draft_length for each in plan.sessions if each.drafter == EDGE)):
            return replace(plan, sessions=tuple(map(_without_edge, plan.sessions)))
        return self._with_probes(plan, trusted if self._mode == "edge" else members, now_s)

    def trusted(self, members: Sequence[Member]) -> list[Member]:
        """The members, without room for devices that may not draft or whose last draft has not come."""
        return [m._replace(room=0) if self._mode == "edge" or self.probes.distrusted(m.session) else m for m in members]

    @property
    def decision(self) -> Decision | None:
        """The present decision; None before the first."""
        return None if self._basis is None else self._basis.decision

    def adopt(self, chosen: Mapping[Member, Choice], decision: Decision, at_s: float) -> None:
        """Use a decision from now on.

        Args:
            chosen: the choice for each of its members that is still here.
            decision: decision of `control.decide`.
            at_s: time at which that was begun [s].

        """
        if not chosen:
            return
        members = list(chosen)
        choices = {member.session: (choice.drafter, choice.draft_length) for member, choice in chosen.items()}
        self._choices |= choices
        usual = Counter(drafter for drafter, _ in choices.values()).most_common(1)[0][0]
        lengths = sorted(length for drafter, length in choices.values() if drafter == usual)
        drafting = sum(drafter == DEVICE for drafter, _ in choices.values())
        self._latest = None
        self._adopted += 1
        self._basis = _LastDecision(
            decision,
            (usual, lengths[len(lengths) // 2]),
            max(1, drafting),
            self._views(members),
            self._delays_s(members),
            self._verify_s(members),
            _edge_room(members),
            at_s,
        )

    def _chosen(self, basis: _LastDecision, member: Member) -> tuple[str, int]:
        """Drafter and draft length of a session, limited by its room. A newcomer gets the usual ones.

        A newcomer's draft is only as long as its device can make in the time of the others' drafts.
        """
        drafter, length = self._choices.get(member.session) or (basis.usual[0], -1)
        if drafter == DEVICE and not member.room:
            drafter, length = basis.usual if basis.usual[0] == EDGE else (NOBODY, 0)
        if length < 0:
            length = basis.usual[1]
            if drafter == DEVICE:
                device = self._beliefs.device(member.session, member.room, length)
                air_s = (device.bits_per_token or 0.0) / device.rate_bits_per_s(self._bandwidth_hz / basis.drafting)
                left_s = basis.decision.device_phase_s - 2.0 * device.delay_s
                length = min(length, max(0, int(left_s / (device.seconds_per_token + air_s))))
        length = min(length, member.room if drafter == DEVICE else member.edge_room)
        return (drafter, length) if length else (NOBODY, 0)

    def _carried_out(
        self, basis: _LastDecision, members: Sequence[Member], chosen: Sequence[tuple[str, int]], made: Made
    ) -> RoundPlan:
        """The plan for these drafters and draft lengths."""
        lengths = [length if drafter == DEVICE else 0 for drafter, length in chosen]
        bands, phase_s, round_s = [0.0] * len(members), 0.0, basis.decision.period_s
        if any(lengths):
            drafting = [m if length else m._replace(room=0) for m, length in zip(members, lengths, strict=True)]
            scenario, plan = made(drafting, lengths)
            bands = [device.bandwidth_hz for device in plan.devices]
            phase_s = max(0.0, plan.round_s - scenario.verifier.verify_s([d.draft_length for d in plan.devices]))
            round_s = max(plan.round_s, basis.decision.period_s)
        return RoundPlan(
            tuple(
                SessionPlan(member.session, length, band, drafter)
                for member, (drafter, length), band in zip(members, chosen, bands, strict=True)
            ),
            round_s,
            basis.decision.goodput_tokens_per_s,
            phase_s,
            basis.decision.extra_passes,
        )

    def leave(self, session: int) -> None:
        """Forget a session."""
        self.probes.leave(session)
        self._choices.pop(session, None)

    # Probes -------------------------------------------------------------------------------------------------------

    def _with_probes(self, plan: RoundPlan, members: Sequence[Member], now_s: float) -> RoundPlan:
        """The plan with probes that are due, of devices that do not draft and of the edge's drafter if it does not."""
        plan = self.with_trials(plan, members, now_s)
        if self._turns.under_way:  # their texts have ended before it drafted for them
            self._turns.clear()
            self._edge_probes.break_off(_EDGE, now_s)
        able = [(session, m) for session, m in zip(plan.sessions, members, strict=True) if m.edge_room]
        if not able or any(session.drafter == EDGE for session in plan.sessions):
            return plan
        if not self._turns.owed and not self._edge_probes.due(_EDGE, now_s):
            return plan
        edge_idle = any(session.drafter == NOBODY for session, _ in able)
        # If every device drafts, a probe replaces a device's draft, and costs these sessions a period.
        rooms = {m.session: m.edge_room for session, m in able if not edge_idle or session.drafter == NOBODY}
        most = max(PROBES_AT_ONCE, len(members) // PROBES_AT_ONCE)
        edge = self._turns.once_more(list(rooms)) or self._turns.next(list(rooms), most)
        lengths = {session: min(PROBE_LENGTH, rooms[session]) for session in edge}
        verify_s = self._beliefs.verifier().per_token_s * sum(lengths.values())
        taken_s = 0.0 if edge_idle else plan.round_s * len(edge) / len(members)
        self._edge_probes.begin(_EDGE, now_s, 1.0, taken_s + verify_s)
        return replace(
            plan,
            sessions=tuple(
                SessionPlan(each.session, lengths[each.session], 0.0, EDGE) if each.session in lengths else each
                for each in plan.sessions
            ),
        )

    def with_trials(
        self, plan: RoundPlan, members: Sequence[Member], now_s: float, *, in_turns: bool = False
    ) -> RoundPlan:
        """The plan with probes of devices that do not draft, if they are due and likely to arrive.

        Args:
            plan: the plan that was made.
            members: members of the plan.
            now_s: present time of the driver's clock [s].
            in_turns: whether devices send in turns, so that a probe shares nobody's band; default False.

        """
        sessions = list(plan.sessions)
        able = [
            index
            for index, (member, session) in enumerate(zip(members, sessions, strict=True))
            if member.room
            and not (session.drafter == DEVICE and session.draft_length)
            and self.probes.due(member.session, now_s)
        ]
        if not able:
            return plan
        count = min(len(able), max(1, len(members) // PROBES_AT_ONCE))
        shared = not in_turns and any(session.bandwidth_hz for session in sessions)
        band_hz = self._bandwidth_hz * (1.0 if in_turns else (PROBE_BAND if shared else IDLE_PROBE_BAND) / count)
        begun: dict[int, SessionPlan] = {}
        for index in sorted(able, key=lambda k: self.probes.due_since_s(members[k].session)):
            number, probe = members[index].session, self._probe(members[index], band_hz)
            # If the text does not show what would have been accepted, the session waits for its probe. It loses no more
            # than the share of its time that probes may take: a further cost only beside what others lose.
            beside = members[index].comparable and self._mode != "rounds"
            lost = shared * (PROBE_BAND / count + (0.0 if beside else 1.0 / len(members)))
            if probe.expected_s > MOST_DRAFT_S:
                continue
            self.probes.begin(number, now_s, lost)
            waits = SessionPlan(number, probe.draft_length, band_hz, DEVICE, probe)
            begun[index] = sessions[index]._replace(probe=probe) if beside else waits
            if len(begun) == count:
                break
        if begun and shared:
            sessions = [each._replace(bandwidth_hz=each.bandwidth_hz * (1.0 - PROBE_BAND)) for each in sessions]
            plan = _longer(plan, 1.0 / (1.0 - PROBE_BAND))
        return replace(plan, sessions=tuple(begun.get(index, each) for index, each in enumerate(sessions)))

    def _probe(self, member: Member, band_hz: float) -> Probe:
        length = min(PROBE_LENGTH, member.room)
        device = self._beliefs.device(member.session, length, length)
        air_s = length * (device.bits_per_token or 0.0) / device.rate_bits_per_s(band_hz)
        return Probe(length, band_hz, 2.0 * device.delay_s + length * device.seconds_per_token + air_s)

    def edge_drafted(self, now_s: float, timed: bool = True) -> None:
        """Note that the edge's drafter has drafted.

        Args:
            now_s: present time of the driver's clock [s].
            timed: whether the time that it took shows how fast it drafts; default True. If not, the probe is repeated
                in the next pass. Later its sessions would have text to read again, and it would never be timed.

        """
        self._turns.drafted(timed)
        self._edge_probes.end(_EDGE, now_s)

    # Drift --------------------------------------------------------------------------------------------------------

    def stale(self, members: Sequence[Member], now_s: float) -> bool:
        """Whether a new decision is due."""
        basis = self._basis
        if basis is None or self._mode == "plain":
            return self._mode != "plain"
        if now_s < basis.at_s + least_period_s(len(members), self._adopted):
            return False
        # The edge's drafter had little room before it was timed, or while texts ended.
        return _edge_room(members) > basis.edge_room or self._drift(basis, members) > self._tolerance

    def _drift(self, basis: _LastDecision, members: Sequence[Member]) -> float:
        """Mean over sessions of |Δα| + |ΔT|/T + |ΔA|/A + |Δ round trip|/period, plus the verification's change.

        A session that came or went counts one. Only sessions that could draft are looked at.
        """
        now = self._views(members)
        known = [session for session in now if session in basis.views]
        changed = len(now) + len(basis.views) - 2 * len(known)
        moved = 0.0
        for session in known:
            (rate, token_s, token_hz_s), then = now[session], basis.views[session]
            moved += abs(rate - then[0]) + abs(token_s / then[1] - 1.0) + abs(token_hz_s / then[2] - 1.0)
        period_s = max(basis.decision.period_s, basis.verify_s)
        for session, delay_s in self._delays_s(members).items():
            if session in basis.delays_s:
                moved += 2.0 * abs(delay_s - basis.delays_s[session]) / period_s
        mean = (moved + changed) / max(1, len(known) + changed)
        return mean + abs(self._verify_s(members) / basis.verify_s - 1.0)

    def _looked_at(self, members: Sequence[Member]) -> list[Member]:
        return [member for member in members[:: -(-len(members) // _LOOKED_AT)] if member.room]

    def _delays_s(self, members: Sequence[Member]) -> dict[int, float]:
        looked_at = self._looked_at(members)
        return {m.session: self._beliefs.device(m.session, PROBE_LENGTH, PROBE_LENGTH).delay_s for m in looked_at}

    def _views(self, members: Sequence[Member]) -> dict[int, View]:
        found = {m.session: self._beliefs.view(m.session, PROBE_LENGTH) for m in self._looked_at(members)}
        if self._mode == "edge" or any(member.edge_room for member in members):
            drafter = self._beliefs.edge_drafter()
            found[_EDGE] = drafter.acceptance_rate, drafter.step_s(len(members)), 1.0
        return found

    def _verify_s(self, members: Sequence[Member]) -> float:
        return self._beliefs.verifier().verify_s([0] * len(members))


def _edge_room(members: Sequence[Member]) -> int:
    return max((member.edge_room for member in members), default=0)


def _without_edge(session: SessionPlan) -> SessionPlan:
    """The session's plan without a draft of the edge."""
    return session if session.drafter != EDGE else SessionPlan(session.session, 0, 0.0, NOBODY)


def _longer(plan: RoundPlan, by: float) -> RoundPlan:
    """The plan with drafts' times longer by a factor, so that a device with a narrower band does not count as late."""
    phase_s = plan.round_s if plan.phase_s is None else plan.phase_s
    longer_s = None if plan.phase_s is None else by * phase_s
    return replace(plan, round_s=plan.round_s + (by - 1.0) * phase_s, phase_s=longer_s)
