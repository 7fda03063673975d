"""The controller: everybody's estimates in, everybody's draft length and band out, once a round.

A thin shell around pure pieces. It keeps one set of estimators per session and one for the verifier, turns them into
a `Scenario`, and lets `control.plan` decide. What it does not know: sockets, tokens, slots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multispin.control import (
    REACTIVE,
    RUNTIME_POLICIES,
    Cell,
    Device,
    Plan,
    Scenario,
    Verification,
    next_length,
    plan,
    plan_for_lengths,
    policy_named,
)
from multispin.errors import InputError
from multispin.estimation import AcceptanceEstimator, DraftSpeedEstimator, LinkEstimator, VerificationEstimator

_USUAL_LENGTHS = (2, 8)
"""Draft lengths over which a frame's fixed bits are spread on trial, beside each device's last one."""
_GUESS_EVERY = 8
"""Only every so many plans for the same sessions are tried with the usual lengths too: each guess is a plan more, and a
round waits for its plan."""
_RELATIVE_GAP = 0.01
_NEGLIGIBLE = 0.01
"""Fixed bits of a frame are not worth several guesses below this share of a one-token frame."""
_LOOKED_AT = 64
"""Sessions whose estimates are looked at in every round to tell whether to plan anew."""
_MANY = 32
"""Beyond so many sessions a search begins with the last plan's lengths; below, it is quick and exact anyway."""


@dataclass(frozen=True)
class ControllerSettings:
    """What the operator decides.

    Attributes:
        policy: one of `RUNTIME_POLICIES`.
        bandwidth_hz: the cell's uplink band, shared by all devices.
        bits_per_id: bits of one drafted id on the air.
        max_draft_length: longest draft that may be granted.
        replan_tolerance: a plan's draft lengths are kept while the estimates that it was made from have drifted by
            no more than this (`Controller.plan`); 0 plans anew whenever anything has changed.
        frame_bits: of a draft on the air beside its tokens, until a device's own have been seen. Where ids are all that
            is sent this is most of a frame, and whoever is charged less gets too little band for the first one.

    """

    policy: str
    bandwidth_hz: float
    bits_per_id: int
    max_draft_length: int = 16
    replan_tolerance: float = 0.02
    frame_bits: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in RUNTIME_POLICIES:
            raise InputError(f"policy = {self.policy!r} is not one of {', '.join(RUNTIME_POLICIES)}")
        if not 0.0 < self.bandwidth_hz < math.inf:
            raise InputError(f"bandwidth_hz = {self.bandwidth_hz} is not a positive number")
        if not 0.0 <= self.replan_tolerance < math.inf:
            raise InputError(f"replan_tolerance = {self.replan_tolerance} is not a finite number >= 0")
        if not 0.0 <= self.frame_bits < math.inf:
            raise InputError(f"frame_bits = {self.frame_bits} is not a finite number >= 0")


class Member(NamedTuple):
    """A session that may draft in the next round.

    Attributes:
        session: its number.
        name: for people.
        room: longest draft that still makes sense, from the tokens that remain; 0 for plain decoding.

    """

    session: int
    name: str
    room: int


View = tuple[float, float, float]
"""What a session's draft length depends on: α, T^S in s, and the band times time that a token needs, Q/r in Hz·s."""


@dataclass(frozen=True)
class _Basis:
    """A plan, and what it was made from.

    Attributes:
        plan: made from scratch.
        views: of its members, by session.
        lengths: their draft lengths, by session.
        verify_s: predicted time of its verification.
        band_hz: that was there to be shared.

    """

    plan: Plan
    views: dict[int, View]
    lengths: dict[int, int]
    verify_s: float
    band_hz: float


class _Estimates:
    """What has been learned of one session."""

    def __init__(self, seconds_per_token: float, spectral_efficiency: float, settings: ControllerSettings) -> None:
        self.acceptance = AcceptanceEstimator()
        self.speed = DraftSpeedEstimator(prior_seconds_per_token=seconds_per_token)
        self.link = LinkEstimator(prior_spectral_efficiency=spectral_efficiency)
        self.charge(settings.bits_per_id, 0.0)
        self.overhead_bits = settings.frame_bits  # of a draft's frame beyond its tokens
        self.last_length = 4
        self.reactive_length = 4

    def charge(self, token_bits: float, refusal_bits: float) -> None:
        """Take what a drafted token and a refusal cost at most under the request's rule."""
        self.most_token_bits = self.token_bits = float(token_bits)
        self.refusal_bits = float(refusal_bits)

    def fixed_bits(self, length: int) -> float:
        """Expected uplink bits of a draft of `length` tokens beyond its tokens: its frame, and a refusal's payload."""
        refused = 1.0 - self.acceptance.rate**length if self.refusal_bits else 0.0
        return self.overhead_bits + refused * self.refusal_bits

    def bits_per_token(self, length: int) -> float:
        """All expected uplink bits of a draft of `length` tokens, spread over them."""
        return self.token_bits + self.fixed_bits(max(1, length)) / max(1, length)

    def device(self, member: Member, settings: ControllerSettings, length: int) -> Device:
        """The planner's view; a frame's fixed bits are charged as if the draft were `length` tokens long."""
        limit = min(member.room, settings.max_draft_length)
        return Device(
            name=str(member.session),
            seconds_per_token=self.speed.seconds_per_token,
            spectral_efficiency=self.link.spectral_efficiency,
            acceptance_rate=self.acceptance.rate,
            bits_per_token=self.bits_per_token(length),
            max_draft_length=limit,
            min_draft_length=min(1, limit),
        )


class Controller:
    """Learns from every round and plans the next one."""

    def __init__(self, settings: ControllerSettings) -> None:
        self.settings = settings
        self.verification = VerificationEstimator()
        self._sessions: dict[int, _Estimates] = {}
        self._basis: _Basis | None = None
        self._turn = 0  # which sessions are looked at for drift
        self._plans = 0  # made from scratch
        self._latest: tuple[object, Plan] | None = None  # the last plan and what must stay the same to use it again

    def join(self, session: int, seconds_per_token: float, spectral_efficiency: float) -> None:
        """Begin with what a device believes of itself."""
        self._sessions[session] = _Estimates(seconds_per_token, spectral_efficiency, self.settings)

    def charge(self, session: int, token_bits: float | None = None, refusal_bits: float = 0.0) -> None:
        """Begin a request whose rule puts other things on the air than ids.

        Args:
            session: whose.
            token_bits: most bits of one drafted token; None for an id.
            refusal_bits: further bits that a refused draft sends up, charged with the chance of a refusal.

        """
        self._sessions[session].charge(self.settings.bits_per_id if token_bits is None else token_bits, refusal_bits)

    def leave(self, session: int) -> None:
        """Forget a session."""
        self._sessions.pop(session, None)

    def acceptance_rate(self, session: int) -> float:
        """The estimate of α for a session."""
        return self._sessions[session].acceptance.rate

    def seconds_per_token(self, session: int) -> float:
        """The estimate of T^S for a session: what its device says that drafting takes it [s]."""
        return self._sessions[session].speed.seconds_per_token

    def observe_draft(
        self, session: int, length: int, draft_s: float, frame_bits: int, bandwidth_hz: float, upload_s: float
    ) -> None:
        """Learn speed and link from a draft that arrived.

        Args:
            session: whose.
            length: tokens drafted.
            draft_s: time that the device says it spent drafting.
            frame_bits: size of the frame on the wire.
            bandwidth_hz: band that had been granted.
            upload_s: time between the end of drafting and the arrival.

        """
        estimates = self._sessions[session]
        if length == 0:
            return
        estimates.speed.observe(length, draft_s)
        # Laws are often shorter than they may be: then what the last draft took is believed.
        estimates.token_bits = min(estimates.most_token_bits, frame_bits / length)
        estimates.overhead_bits = max(0.0, frame_bits - length * estimates.most_token_bits)
        if bandwidth_hz > 0 and upload_s > 0:
            estimates.link.observe(frame_bits, bandwidth_hz, upload_s)

    def observe_law(self, session: int, frame_bits: int) -> None:
        """Learn what a refusal costs from a law that came up after one."""
        self._sessions[session].refusal_bits = float(frame_bits)

    def upload_s(self, session: int, bits: float, bandwidth_hz: float) -> float:
        """Expected time to send so many bits over a band [s]."""
        return bits / (self._sessions[session].link.spectral_efficiency * bandwidth_hz)

    def observe_outcome(self, session: int, drafted: int, accepted: int) -> None:
        """Learn acceptance from a verification."""
        self._sessions[session].acceptance.observe(drafted, accepted)
        self.react(session, drafted, accepted)

    def react(self, session: int, drafted: int, accepted: int) -> None:
        """Let the +2/−1 rule take its step."""
        known = self._sessions[session]
        longest = self.settings.max_draft_length
        known.reactive_length = next_length(known.reactive_length, drafted, accepted, longest=longest)

    def observe_verification(self, devices: int, tokens: int, seconds: float) -> None:
        """Learn verification latency from a batch of `tokens` fed by `devices` sessions."""
        self.verification.observe(devices, tokens, seconds)

    def plan(self, members: Sequence[Member], reserved_hz: float = 0.0) -> Plan | None:
        """Plan the next round for `members`; None if there are none.

        Planning takes time, and estimates wander a little with every round. So the draft lengths of the last plan
        made from scratch are kept while the drift since then is within `replan_tolerance`: the mean over the sessions
        (of many, some are looked at) of |Δα| + |ΔT|/T + |ΔA|/A with A = Q/r, where a session that came or went
        counts 1, plus the relative changes of the verification time and of the band. The band is split anew if
        anybody came, went or must draft less.

        Args:
            members: sessions that get a grant.
            reserved_hz: band still in use by drafts that are late.

        Returns:
            A plan whose devices are named by session number, in the order of `members`.

        """
        if not members:
            return None
        if self.settings.policy == REACTIVE:
            lengths = [min(member.room, self._sessions[member.session].reactive_length) for member in members]
            return self._with_lengths(members, lengths, reserved_hz)
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
        self._latest = frame, made
        return made

    def _from_scratch(self, members: Sequence[Member], reserved_hz: float) -> Plan:
        """Plan with each frame's fixed bits spread over a guessed length, then charge them over the planned one.

        The paper's payload has no fixed part (eq. 9); a frame has one, and spreading it over too short a guess would
        make every draft look too dear to grow. So several guesses are tried, and judged by what they really cost: for
        sessions that were not planned for together before, and now and then.
        """
        last = [self._sessions[member.session].last_length for member in members]
        guesses = [last]
        known = self._basis is not None and self._basis.views.keys() == {member.session for member in members}
        if self._fixed_part(members) > _NEGLIGIBLE and not (known and self._plans % _GUESS_EVERY):
            guesses += [[length] * len(members) for length in _USUAL_LENGTHS]
        self._plans += 1
        chosen = max((self._try(members, spread, reserved_hz) for spread in guesses), key=self._value)
        for member, device in zip(members, chosen.devices, strict=True):
            self._sessions[member.session].last_length = max(1, device.draft_length)
        return chosen

    def _try(self, members: Sequence[Member], spread: Sequence[int], reserved_hz: float) -> Plan:
        warm = self._basis.plan if self._basis is not None and len(members) > _MANY else None
        scenario = self._scenario(members, spread, reserved_hz)
        planned = plan(scenario, self.settings.policy, relative_gap=_RELATIVE_GAP, warm_start=warm)
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
        """How far the estimates have moved since a plan was made; `plan` has the formula."""
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
        """What is believed of a session."""
        known = self._sessions[session]
        bits = known.bits_per_token(known.last_length)
        return known.acceptance.rate, known.speed.seconds_per_token, bits / known.link.spectral_efficiency

    def _band_hz(self, reserved_hz: float) -> float:
        """Band to share: late drafts may hold nearly all of it, but what is left is never nothing."""
        return max(self.settings.bandwidth_hz - reserved_hz, 1e-3 * self.settings.bandwidth_hz)

    def _verify_s(self, lengths: dict[int, int]) -> float:
        """Predicted time to verify drafts of these lengths, by session [s]."""
        return self.verification.predict(len(lengths), sum(lengths.values()) + len(lengths))

    def _device(self, member: Member, length: int) -> Device:
        """The planner's view of a session whose draft would be `length` tokens long."""
        return self._sessions[member.session].device(member, self.settings, length)

    def _verification(self) -> Verification:
        """The planner's view of the verifier."""
        return Verification(self.verification.fixed_s, self.verification.per_device_s, self.verification.per_token_s)

    def _fixed_part(self, members: Sequence[Member]) -> float:
        """The largest share that fixed bits have in a frame of one token."""
        known = [self._sessions[member.session] for member in members]
        return max(1.0 - each.token_bits / each.bits_per_token(1) for each in known)

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
            ),
            verifier=self._verification(),
            devices=tuple(self._device(member, length) for member, length in zip(members, lengths, strict=True)),
        )
