"""The controller: everybody's estimates in, everybody's draft length and band out, once a round.

A thin shell around pure pieces. It keeps one set of estimators per session and one for the verifier, turns them into
a `Scenario`, and lets `control.plan` decide. What it does not know: sockets, tokens, slots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from multispin.control import RUNTIME_POLICIES, Cell, Device, Plan, Scenario, Verification, plan, plan_for_lengths
from multispin.errors import InputError
from multispin.estimation import AcceptanceEstimator, DraftSpeedEstimator, LinkEstimator, VerificationEstimator

_EQUAL_BANDS = ("fixed", "uniform-bandwidth", "goodput-argmax")
_USUAL_LENGTHS = (2, 8)
"""Draft lengths over which a frame's fixed bits are spread on trial, beside each device's last one."""
_RELATIVE_GAP = 0.01


@dataclass(frozen=True)
class ControllerSettings:
    """What the operator decides.

    Attributes:
        policy: one of `RUNTIME_POLICIES`.
        bandwidth_hz: the cell's uplink band, shared by all devices.
        bits_per_id: bits of one drafted id on the air.
        max_draft_length: longest draft that may be granted.

    """

    policy: str
    bandwidth_hz: float
    bits_per_id: int
    max_draft_length: int = 16

    def __post_init__(self) -> None:
        if self.policy not in RUNTIME_POLICIES:
            raise InputError(f"policy = {self.policy!r} is not one of {', '.join(RUNTIME_POLICIES)}")
        if not 0.0 < self.bandwidth_hz < math.inf:
            raise InputError(f"bandwidth_hz = {self.bandwidth_hz} is not a positive number")


@dataclass(frozen=True)
class Member:
    """A session that may draft in the next round.

    Attributes:
        session: its number.
        name: for people.
        room: longest draft that still makes sense, from the tokens that remain; 0 for plain decoding.

    """

    session: int
    name: str
    room: int


class _Estimates:
    """What has been learned of one session."""

    def __init__(self, seconds_per_token: float, spectral_efficiency: float) -> None:
        self.acceptance = AcceptanceEstimator()
        self.speed = DraftSpeedEstimator(prior_seconds_per_token=seconds_per_token)
        self.link = LinkEstimator(prior_spectral_efficiency=spectral_efficiency)
        self.overhead_bits = 0.0  # of a draft's frame beyond its ids
        self.last_length = 4

    def device(self, member: Member, settings: ControllerSettings, length: int) -> Device:
        """The planner's view; a frame's fixed bits are charged as if the draft were `length` tokens long."""
        limit = min(member.room, settings.max_draft_length)
        return Device(
            name=str(member.session),
            seconds_per_token=self.speed.seconds_per_token,
            spectral_efficiency=self.link.spectral_efficiency,
            acceptance_rate=self.acceptance.rate,
            bits_per_token=settings.bits_per_id + self.overhead_bits / max(1, length),
            max_draft_length=limit,
            min_draft_length=min(1, limit),
        )


class Controller:
    """Learns from every round and plans the next one."""

    def __init__(self, settings: ControllerSettings) -> None:
        self.settings = settings
        self.verification = VerificationEstimator()
        self._sessions: dict[int, _Estimates] = {}

    def join(self, session: int, seconds_per_token: float, spectral_efficiency: float) -> None:
        """Begin with what a device believes of itself."""
        self._sessions[session] = _Estimates(seconds_per_token, spectral_efficiency)

    def leave(self, session: int) -> None:
        """Forget a session."""
        self._sessions.pop(session, None)

    def acceptance_rate(self, session: int) -> float:
        """The estimate of α for a session."""
        return self._sessions[session].acceptance.rate

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
        estimates.overhead_bits = float(max(0, frame_bits - length * self.settings.bits_per_id))
        if bandwidth_hz > 0 and upload_s > 0:
            estimates.link.observe(frame_bits, bandwidth_hz, upload_s)

    def observe_outcome(self, session: int, drafted: int, accepted: int) -> None:
        """Learn acceptance from a verification."""
        self._sessions[session].acceptance.observe(drafted, accepted)

    def observe_verification(self, devices: int, tokens: int, seconds: float) -> None:
        """Learn verification latency from a batch of `tokens` fed by `devices` sessions."""
        self.verification.observe(devices, tokens, seconds)

    def plan(self, members: Sequence[Member], reserved_hz: float = 0.0) -> Plan | None:
        """Plan the next round for `members`; None if there are none.

        Args:
            members: sessions that get a grant.
            reserved_hz: band still in use by drafts that are late.

        Returns:
            A plan whose devices are named by session number, in the order of `members`.

        """
        if not members:
            return None
        last = [self._sessions[member.session].last_length for member in members]
        chosen = max(
            (
                self._try(members, spread, reserved_hz)
                for spread in (last, *([n] * len(members) for n in _USUAL_LENGTHS))
            ),
            key=self._value,
        )
        for member, device in zip(members, chosen.devices, strict=True):
            self._sessions[member.session].last_length = max(1, device.draft_length)
        return chosen

    def _try(self, members: Sequence[Member], spread: Sequence[int], reserved_hz: float) -> Plan:
        """Plan with each frame's fixed bits spread over a guessed length, then charge them over the planned one.

        The paper's payload has no fixed part (eq. 9); a frame has one, and spreading it over too short a guess would
        make every draft look too dear to grow. So several guesses are tried, and judged by what they really cost.
        """
        policy = self.settings.policy
        planned = plan(self._scenario(members, spread, reserved_hz), policy, relative_gap=_RELATIVE_GAP)
        lengths = [device.draft_length for device in planned.devices]
        scenario = self._scenario(members, lengths, reserved_hz)
        return plan_for_lengths(scenario, lengths, policy=policy, equal_bands=policy in _EQUAL_BANDS)

    def _value(self, candidate: Plan) -> float:
        """What the policy maximises: sum goodput, or the sum of its logarithms for `fair`."""
        if self.settings.policy != "fair":
            return candidate.goodput_tokens_per_s
        return sum(math.log(device.expected_tokens / candidate.round_s) for device in candidate.devices)

    def _scenario(self, members: Sequence[Member], lengths: Sequence[int], reserved_hz: float) -> Scenario:
        settings, learned = self.settings, self.verification
        return Scenario(
            cell=Cell(
                # Late drafts may hold nearly all of the band; what is left is never nothing.
                bandwidth_hz=max(settings.bandwidth_hz - reserved_hz, 1e-3 * settings.bandwidth_hz),
                bits_per_token=settings.bits_per_id,
                max_draft_length=settings.max_draft_length,
                min_draft_length=0,
            ),
            verifier=Verification(learned.fixed_s, learned.per_device_s, learned.per_token_s),
            devices=tuple(
                self._sessions[member.session].device(member, settings, length)
                for member, length in zip(members, lengths, strict=True)
            ),
        )
