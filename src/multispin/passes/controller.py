"""The controller: beliefs in, everybody's draft length and band for the next round out.

It decides when to plan anew and lets `control.plan` decide what. Does not know sockets, tokens or slots, nor where its
beliefs come from.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from multispin.checks import not_negative, one_of, positive
from multispin.control import (
    REACTIVE,
    RUNTIME_POLICIES,
    Cell,
    Plan,
    Scenario,
    next_length,
    plan,
    plan_for_lengths,
    policy_named,
)
from multispin.control.latency import verification_s
from multispin.control.who import MODES
from multispin.errors import InputError
from multispin.passes.beliefs import Beliefs, LearnedBeliefs, View
from multispin.passes.chooser import Chooser
from multispin.passes.plans import Member, RoundPlan, SessionPlan

_USUAL_LENGTHS = (2, 8)
"""Draft lengths over which a frame's fixed bits are spread on trial, beside each device's last one."""
_GUESS_EVERY = 8
"""For the same sessions, try the usual lengths only in every 8th plan: each costs a solve, and the round waits."""
_RELATIVE_GAP = 0.01
_MAX_EFFORT = 5e6
"""What a plan may work through, see `plan`: about a tenth of a second on one core, as a round waits for its plan."""
_NEGLIGIBLE = 0.01
"""Fixed bits are not worth several guesses where they are a smaller share of a one-token draft than this."""
_LOOKED_AT = 64
"""Sessions whose beliefs are looked at in every round to tell whether to plan anew."""
_MANY = 32
"""Beyond so many sessions a search begins with the last plan's lengths; below, it is quick and exact anyway."""
_FIRST_LENGTH = 4
"""Draft length assumed of a session before its first plan."""


@dataclass(frozen=True)
class ControllerSettings:
    """What the operator decides.

    Attributes:
        policy: one of `RUNTIME_POLICIES`.
        bandwidth_hz: uplink band that all devices share [Hz].
        bits_per_id: bits of one drafted id on the air.
        max_draft_length: longest draft that may be granted [tokens]; default 16.
        replan_tolerance: a plan's draft lengths are kept while the beliefs that it was made from have drifted by no
            more than this (`Controller.plan`); 0 plans anew whenever anything has changed; default 0.02.
        frame_bits: frame overhead per draft [bit], assumed until a device's own is measured; default 0. Where only ids
            are sent this is most of a frame, and a device that is charged less gets too little band for its first one.
        multiple_access: "fdma" (default), each device has a share of the band; or "tdma", they send in turns.
        mode: "rounds" (default), devices draft as the policy says; "plain", nobody drafts; "edge", only the edge's own
            drafter does; "auto", for each session whatever pays.
        edge_drafts: whether the edge has a drafter of its own; default no.

    """

    policy: str
    bandwidth_hz: float
    bits_per_id: int
    max_draft_length: int = 16
    replan_tolerance: float = 0.02
    frame_bits: float = 0.0
    multiple_access: str = "fdma"
    mode: str = "rounds"
    edge_drafts: bool = False

    def __post_init__(self) -> None:
        one_of("mode", self.mode, MODES)
        if self.mode == "edge" and not self.edge_drafts:
            raise InputError("mode = 'edge' needs a drafter of the edge's own, and there is none")
        if self.mode == "auto" and self.multiple_access == "tdma":
            raise InputError("mode = 'auto' is for devices with a band each, not for those that send in turns (tdma)")
        one_of("policy", self.policy, RUNTIME_POLICIES)
        positive("bandwidth_hz", self.bandwidth_hz)
        not_negative("replan_tolerance", self.replan_tolerance)
        not_negative("frame_bits", self.frame_bits)


@dataclass(frozen=True)
class _Basis:
    """A plan from scratch, and what it was made from.

    Attributes:
        plan: the plan.
        views: what was believed of its members, by session.
        lengths: draft lengths that no end of a text has cut short, by session.
        verify_s: predicted time of its verification [s].
        band_hz: band that was there to be shared [Hz].

    """

    plan: Plan
    views: dict[int, View]
    lengths: dict[int, int]
    verify_s: float
    band_hz: float


@dataclass
class _History:
    """What the controller keeps of a session beside beliefs.

    Attributes:
        planned: draft length of the last plan from scratch; at least 1.
        reactive: draft length by the +2/−1 rule.

    """

    planned: int = _FIRST_LENGTH
    reactive: int = _FIRST_LENGTH


class Controller:
    """Plans every round from what is believed.

    Args:
        settings: what the operator decides.
        beliefs: what is known of sessions and verifier; by default it is learned.

    """

    def __init__(self, settings: ControllerSettings, beliefs: Beliefs | None = None) -> None:
        self.settings = settings
        self.beliefs: Beliefs = beliefs or LearnedBeliefs(
            settings.bits_per_id, settings.max_draft_length, settings.frame_bits, delays=settings.mode != "rounds"
        )
        self.chooser = Chooser(
            settings.mode, settings.policy, settings.bandwidth_hz, settings.replan_tolerance, self.beliefs
        )
        self._histories: defaultdict[int, _History] = defaultdict(_History)
        self._basis: _Basis | None = None
        self._turn = 0  # which sessions are looked at for drift
        self._plans = 0  # made from scratch
        self._latest: tuple[object, RoundPlan] | None = (
            None  # the last plan, and what must stay the same to use it again
        )

    def leave(self, session: int) -> None:
        """Forget a session."""
        self.beliefs.leave(session)
        self.chooser.leave(session)
        self._histories.pop(session, None)

    def observe_outcome(self, session: int, drafted: int, accepted: int) -> None:
        """Learn from a verified draft."""
        self.beliefs.observe_outcome(session, drafted, accepted)
        if self.settings.policy == REACTIVE:
            history, longest = self._histories[session], self.settings.max_draft_length
            history.reactive = next_length(history.reactive, drafted, accepted, longest=longest)

    def plan(self, members: Sequence[Member], reserved_hz: float = 0.0, now_s: float = 0.0) -> RoundPlan | None:
        """Plan for `members`; None if there are none.

        Modes beside "rounds" choose for each session who drafts (`passes.chooser`). Devices' rounds are planned here:

        Planning takes time, and estimates wander a little with every round. So the draft lengths of the last plan
        made from scratch are kept while the drift since then is within `replan_tolerance`: the mean over the sessions
        (of many, some are looked at) of |Δα| + |ΔT|/T + |ΔA|/A with A = Q/r, where a session that came or went
        counts 1, plus the relative changes of the verification time and of the band. The band is split anew if
        anybody came, went or must draft less.

        Args:
            members: sessions that get a grant.
            reserved_hz: band still in use by drafts that are late [Hz].
            now_s: the time [s].

        """
        if not members:
            return None
        if self.settings.mode != "rounds":
            return self.chooser.plan(members, now_s, partial(self._made_of, reserved_hz=reserved_hz))
        if self.settings.policy == REACTIVE:
            lengths = [min(member.room, self._histories[member.session].reactive) for member in members]
            return _of_sessions(members, self._with_lengths(members, lengths, reserved_hz))
        # Rooms beyond the longest draft are all alike.
        most = self.settings.max_draft_length
        frame = (reserved_hz, tuple((member.session, min(member.room, most)) for member in members))
        if self._basis is None or self._drift(self._basis, members, reserved_hz) > self.settings.replan_tolerance:
            made = self._from_scratch(members, reserved_hz)
            self._basis = self._as_basis(made, members, reserved_hz)
        elif self._latest is not None and self._latest[0] == frame:
            return self._latest[1]
        else:
            made = self._kept(self._basis, members, reserved_hz)
        self._latest = frame, _of_sessions(members, made)
        return self._latest[1]

    def _made_of(
        self, members: Sequence[Member], lengths: Sequence[int] | None, reserved_hz: float
    ) -> tuple[Scenario, Plan]:
        """The scenario of these members, and the policy's plan for their devices, of given lengths if there are any."""
        if lengths is None and self.settings.policy == REACTIVE:
            lengths = [min(member.room, self._histories[member.session].reactive) for member in members]
        if lengths is None:
            made = self._from_scratch(members, reserved_hz)
            self._basis = self._as_basis(made, members, reserved_hz)
            return self._scenario(members, [device.draft_length for device in made.devices], reserved_hz), made
        return self._scenario(members, lengths, reserved_hz), self._with_lengths(members, lengths, reserved_hz)

    def _from_scratch(self, members: Sequence[Member], reserved_hz: float) -> Plan:
        """Plan with each frame's fixed bits spread over a guessed length, then charge them over the planned one.

        The paper's payload has no fixed part (eq. 9); a frame has one, and spreading it over too short a guess would
        make every draft look too dear to grow. So several guesses are tried, and judged by what they really cost: for
        sessions that were not planned for together before, and now and then.
        """
        last = [self._histories[member.session].planned for member in members]
        guesses = [last]
        known = self._basis is not None and self._basis.views.keys() == {member.session for member in members}
        fixed = max(self.beliefs.fixed_share(member.session) for member in members)
        if fixed > _NEGLIGIBLE and not (known and self._plans % _GUESS_EVERY):
            guesses += [[length] * len(members) for length in _USUAL_LENGTHS]
        self._plans += 1
        chosen = max((self._try(members, spread, reserved_hz) for spread in guesses), key=self._value)
        for member, device in zip(members, chosen.devices, strict=True):
            self._histories[member.session].planned = max(1, device.draft_length)
        return chosen

    def _try(self, members: Sequence[Member], spread: Sequence[int], reserved_hz: float) -> Plan:
        warm = self._basis.plan if self._basis is not None and len(members) > _MANY else None
        scenario = self._scenario(members, spread, reserved_hz)
        planned = plan(
            scenario, self.settings.policy, relative_gap=_RELATIVE_GAP, warm_start=warm, max_effort=_MAX_EFFORT
        )
        return self._with_lengths(members, [device.draft_length for device in planned.devices], reserved_hz)

    def _with_lengths(self, members: Sequence[Member], lengths: Sequence[int], reserved_hz: float) -> Plan:
        policy = self.settings.policy
        scenario = self._scenario(members, lengths, reserved_hz)
        return plan_for_lengths(scenario, lengths, policy=policy, equal_bands=policy_named(policy).equal_bands)

    def _as_basis(self, made: Plan, members: Sequence[Member], reserved_hz: float) -> _Basis:
        """What a plan from scratch leaves behind: lengths that no end of a text has cut short."""
        planned = [device.draft_length for device in made.devices]
        cut = [member.room < self.settings.max_draft_length for member in members]
        whole = [length for length, short in zip(planned, cut, strict=True) if not short]
        usual = round(sum(whole) / len(whole)) if whole else max(planned)
        before = self._basis.lengths if self._basis is not None else {}
        lengths = {
            member.session: max(length, before.get(member.session, usual)) if short else length
            for member, length, short in zip(members, planned, cut, strict=True)
        }
        views = {member.session: self._view(member.session) for member in members}
        return _Basis(made, views, lengths, self._verify_s(lengths), self._band_hz(reserved_hz))

    def _kept(self, basis: _Basis, members: Sequence[Member], reserved_hz: float) -> Plan:
        """The lengths of an earlier plan, as far as there is room for them; newcomers get what is usual."""
        usual = round(sum(basis.lengths.values()) / len(basis.lengths))
        lengths = [min(member.room, basis.lengths.get(member.session, usual)) for member in members]
        return self._with_lengths(members, lengths, reserved_hz)

    def _drift(self, basis: _Basis, members: Sequence[Member], reserved_hz: float) -> float:
        """How far beliefs have moved since a plan was made; `plan` has the formula."""
        known = [member.session for member in members if member.session in basis.views]
        changed = len(members) + len(basis.views) - 2 * len(known)
        # A mean over a thousand is known well enough from some of them; others are looked at every time.
        self._turn += 1
        step = -(-len(known) // _LOOKED_AT) if known else 1
        looked_at = known[self._turn % step :: step]
        moved = 0.0
        for session in looked_at:
            (rate, token_s, token_hz_s), then = self._view(session), basis.views[session]
            moved += abs(rate - then[0]) + abs(token_s / then[1] - 1.0) + abs(token_hz_s / then[2] - 1.0)
        mean = (moved / len(looked_at) * len(known) + changed) / len(members) if known else math.inf
        shared = abs(self._verify_s(basis.lengths) / basis.verify_s - 1.0)
        return mean + shared + abs(self._band_hz(reserved_hz) / basis.band_hz - 1.0)

    def _view(self, session: int) -> View:
        return self.beliefs.view(session, self._histories[session].planned)

    def _band_hz(self, reserved_hz: float) -> float:
        """Band to share [Hz]. Late drafts may hold nearly all of it, but what is left is never nothing.

        Under TDMA a late draft holds no band: it waits for its turn again.
        """
        whole_hz = self.settings.bandwidth_hz
        return whole_hz if self._in_turns else max(whole_hz - reserved_hz, 1e-3 * whole_hz)

    @property
    def _in_turns(self) -> bool:
        return self.settings.multiple_access == "tdma"

    def _verify_s(self, lengths: dict[int, int]) -> float:
        """Believed time to verify drafts of these lengths, by session [s]."""
        verifier = self.beliefs.verifier()
        tokens = sum(lengths.values()) + len(lengths)
        return verification_s(verifier.fixed_s, verifier.per_device_s, verifier.per_token_s, len(lengths), tokens)

    def _value(self, candidate: Plan) -> float:
        """What the policy maximises."""
        rates = [device.expected_tokens / candidate.round_s for device in candidate.devices]
        return policy_named(self.settings.policy).value(rates, [1.0] * len(rates))

    def _scenario(self, members: Sequence[Member], lengths: Sequence[int], reserved_hz: float) -> Scenario:
        settings = self.settings
        return Scenario(
            cell=Cell(
                bandwidth_hz=self._band_hz(reserved_hz),
                bits_per_token=settings.bits_per_id,
                max_draft_length=settings.max_draft_length,
                min_draft_length=0,
                multiple_access=settings.multiple_access,
            ),
            verifier=self.beliefs.verifier(),
            devices=tuple(
                self.beliefs.device(member.session, member.room, length, member.edge_room)
                for member, length in zip(members, lengths, strict=True)
            ),
            edge_drafter=self.beliefs.edge_drafter() if settings.edge_drafts else None,
        )


def _of_sessions(members: Sequence[Member], made: Plan) -> RoundPlan:
    """A plan's devices as sessions: they come in the order of the members."""
    return RoundPlan(
        tuple(
            SessionPlan(member.session, device.draft_length, device.bandwidth_hz)
            for member, device in zip(members, made.devices, strict=True)
        ),
        made.round_s,
        made.goodput_tokens_per_s,
    )
