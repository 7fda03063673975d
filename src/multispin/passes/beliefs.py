"""The controller's beliefs about sessions and verifier: the interface between learning and planning.

A running edge learns (`LearnedBeliefs`, with the estimators). A simulation may know all or part of the truth instead.
Beliefs know nothing of policies, plans or rounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from multispin.control import Device, EdgeDrafter, Verification
from multispin.estimation import (
    AcceptanceEstimator,
    DraftSpeedEstimator,
    LinkEstimator,
    RoundTripEstimator,
    VerificationEstimator,
)

View = tuple[float, float, float]
"""Inputs of a session's best draft length: α, T^S [s], and the band times time that a token needs, Q/r [Hz·s]."""

_EDGE_STEP_PRIOR_S = (0.004, 0.0004)
"""Assumed time of a drafting step of the edge, and of each token in it, before any was measured [s]."""

_EDGE_SHARED_TRIALS = 16.0
"""Number of trials after which a session's own acceptance of the edge's drafts has half of the weight …"""
_EDGE_HALF_LIFE_TRIALS = 400.0
"""… and number of other sessions' trials that halves this weight: a session long without drafts counts as average."""


class Believed(Protocol):
    """The beliefs that a plan needs."""

    @property
    def leaves_out(self) -> bool:
        """Whether a device that is not worth waiting for may be left out.

        It may not if the truth is known, nor if a scenario asks for every device's drafts.
        """

    def view(self, session: int, length: int) -> View:
        """Inputs of the best draft length, for a draft of about `length` tokens."""

    def fixed_share(self, session: int) -> float:
        """Share of a one-token draft's bits that a longer draft does not send again, 0 … 1."""

    def delay_s(self, session: int) -> float:
        """One-way delay between a device and the edge [s]."""

    def device(self, session: int, room: int, length: int, edge_room: int = 0) -> Device:
        """The planner's device.

        Args:
            session: number of the session, which becomes the device's name.
            room: longest useful draft of the device [tokens].
            length: length of the draft over which its fixed bits are spread [tokens].
            edge_room: longest useful draft of the edge's own drafter [tokens]; default 0.

        """

    def verifier(self) -> Verification:
        """The planner's verifier."""

    def edge_drafter(self) -> EdgeDrafter:
        """The planner's view of the edge's own drafter; meaningless without one."""


class Beliefs(Believed, Protocol):
    """Beliefs that learn from observations.

    Attributes:
        verification: estimator of the time of verifications, from observations.

    """

    verification: VerificationEstimator

    def join(self, session: int, seconds_per_token: float, spectral_efficiency: float) -> None:
        """Begin with what a device says of itself.

        Args:
            session: number of the session.
            seconds_per_token: T^S, time per drafted token [s].
            spectral_efficiency: r of its link [bit/s/Hz].

        """

    def leave(self, session: int) -> None:
        """Forget a session."""

    def charge(self, session: int, token_bits: float | None = None, refusal_bits: float = 0.0) -> None:
        """Begin a request whose rule puts other things on the air than ids.

        Args:
            session: number of the session.
            token_bits: most bits of one drafted token [bit]; default None: those of an id.
            refusal_bits: most additional uplink bits of a refused draft [bit]; default 0.

        """

    def observe_draft(
        self, session: int, length: int, draft_s: float, frame_bits: int, bandwidth_hz: float, upload_s: float
    ) -> None:
        """Learn from a draft that arrived.

        Args:
            session: number of the session.
            length: number of drafted tokens.
            draft_s: time that the device says it spent drafting [s].
            frame_bits: size of the frame on the wire [bit].
            bandwidth_hz: granted bandwidth [Hz].
            upload_s: time between the end of drafting and the arrival [s].

        """

    def observe_distribution(self, session: int, frame_bits: int) -> None:
        """Learn the cost of a refusal from the frame of the distribution that followed it [bit]."""

    def observe_outcome(self, session: int, drafted: int, accepted: int) -> None:
        """Learn from a device's draft that was verified.

        Args:
            session: number of the session.
            drafted: tokens of the draft.
            accepted: number of accepted tokens.

        """

    def renew(self, session: int) -> None:
        """Forget the acceptance of a device's tokens, since the device has changed."""

    def observe_verification(self, devices: int, tokens: int, seconds: float) -> None:
        """Learn from a pass.

        Args:
            devices: number of sessions in the batch.
            tokens: tokens fed for them.
            seconds: time of the verification [s].

        """

    def observe_edge_draft(self, lengths: Sequence[int], seconds: float) -> None:
        """Learn from drafts that the edge's own drafter made together.

        Args:
            lengths: draft length of each session [tokens].
            seconds: time of all drafts together [s].

        """

    def observe_edge_outcome(self, session: int, drafted: int, accepted: int) -> None:
        """Learn from a verified draft of the edge's own drafter; arguments as for `observe_outcome`."""

    def acceptance_rate(self, session: int) -> float:
        """The estimate of α, from outcomes alone."""

    def seconds_per_token(self, session: int) -> float:
        """The estimate of T^S [s], from drafts alone."""

    def upload_s(self, session: int, bits: float, bandwidth_hz: float) -> float:
        """Expected time to send this many bits over a band [s]."""

    def snapshot(self, sessions: Sequence[int]) -> Believed:
        """The present beliefs about these sessions, unchanging, so that another thread may plan from them."""


class _Estimates:
    """The estimators of one session."""

    __slots__ = (
        "acceptance",
        "belief",
        "edge_acceptance",
        "edge_trials",
        "link",
        "most_token_bits",
        "overhead_bits",
        "refusal_bits",
        "round_trip",
        "speed",
        "token_bits",
    )

    def __init__(
        self, seconds_per_token: float, spectral_efficiency: float, frame_bits: float, least_frames: int
    ) -> None:
        self.acceptance = AcceptanceEstimator()
        self.speed = DraftSpeedEstimator(prior_seconds_per_token=seconds_per_token)
        self.link = LinkEstimator(prior_spectral_efficiency=spectral_efficiency, least_frames=least_frames)
        self.round_trip = RoundTripEstimator(prior_spectral_efficiency=spectral_efficiency)
        self.edge_acceptance: AcceptanceEstimator | None = None  # None before any draft of the edge was verified
        self.edge_trials = 0.0  # trials of all sessions when its last one was verified
        self.belief: _Belief | None = None  # computed from the others; None: to be computed again
        self.most_token_bits = self.token_bits = self.refusal_bits = 0.0
        self.overhead_bits = frame_bits  # bits of a draft's frame beside its tokens


class _Belief(NamedTuple):
    """The beliefs about one session.

    Attributes:
        acceptance_rate: α, per token.
        seconds_per_token: drafting time of a token, T^S [s].
        spectral_efficiency: r, spectral efficiency of the uplink [bit/s/Hz].
        delay_s: one-way delay [s].
        token_bits: payload of one drafted token [bit].
        overhead_bits: size of a draft's frame beyond its tokens [bit].
        refusal_bits: additional uplink bits of a refused draft [bit].
        edge_acceptance_rate: α of the edge's own drafter; None: that of all sessions.

    """

    acceptance_rate: float
    seconds_per_token: float
    spectral_efficiency: float
    delay_s: float
    token_bits: float
    overhead_bits: float
    refusal_bits: float
    edge_acceptance_rate: float | None

    def bits_per_token(self, length: int) -> float:
        """Expected uplink bits of a draft of `length` tokens over its tokens, its frame and a refusal included."""
        length = max(1, length)
        refused = 1.0 - self.acceptance_rate**length if self.refusal_bits else 0.0
        return self.token_bits + (self.overhead_bits + refused * self.refusal_bits) / length

    def view(self, length: int) -> View:
        """Inputs of the best draft length."""
        token_hz_s = self.bits_per_token(length) / self.spectral_efficiency
        return self.acceptance_rate, self.seconds_per_token, token_hz_s

    def fixed_share(self) -> float:
        """Share of a one-token draft's bits that a longer draft does not send again."""
        return 1.0 - self.token_bits / self.bits_per_token(1)

    def device(self, session: int, longest: int, length: int, edge_longest: int, shortest: int = 1) -> Device:
        """The planner's device, for drafts of at least and at most this many tokens."""
        return Device(
            name=str(session),
            seconds_per_token=self.seconds_per_token,
            spectral_efficiency=self.spectral_efficiency,
            acceptance_rate=self.acceptance_rate,
            bits_per_token=self.bits_per_token(length),
            max_draft_length=longest,
            min_draft_length=min(shortest, longest),
            delay_s=self.delay_s,
            edge_acceptance_rate=self.edge_acceptance_rate,
            edge_max_draft_length=edge_longest,
        )


@dataclass(frozen=True)
class _Snapshot:
    """The beliefs at one moment, as `Believed`."""

    sessions: dict[int, _Belief]
    max_draft_length: int
    of_verifier: Verification
    of_edge_drafter: EdgeDrafter
    leaves_out: bool

    def view(self, session: int, length: int) -> View:
        return self.sessions[session].view(length)

    def fixed_share(self, session: int) -> float:
        return self.sessions[session].fixed_share()

    def delay_s(self, session: int) -> float:
        return self.sessions[session].delay_s

    def device(self, session: int, room: int, length: int, edge_room: int = 0) -> Device:
        most = self.max_draft_length
        return self.sessions[session].device(session, min(room, most), length, min(edge_room, most))

    def verifier(self) -> Verification:
        return self.of_verifier

    def edge_drafter(self) -> EdgeDrafter:
        return self.of_edge_drafter


class LearnedBeliefs:
    """Beliefs learned from observations, beginning with each device's own estimates.

    Args:
        bits_per_id: bits of one drafted id on the air.
        max_draft_length: longest draft that may be granted [tokens].
        frame_bits: frame overhead per draft [bit], assumed until a device's own is measured; default 0.
        delays: whether delay and rate of a link are fitted together, as streams need it, where frames are short and
            differ; default False: delay is what no frame was without (`LinkEstimator`), as fading asks for it where
            everybody is waited for.

    """

    def __init__(
        self, bits_per_id: float, max_draft_length: int, frame_bits: float = 0.0, delays: bool = False
    ) -> None:
        self.leaves_out = True
        self.verification = VerificationEstimator()
        # The same model as for verification, with drafting steps for devices and drafted tokens for tokens.
        self._edge_time = VerificationEstimator(0.0, *_EDGE_STEP_PRIOR_S)
        self._edge_acceptance = AcceptanceEstimator()  # over all sessions
        self._edge_trials = 0.0
        self._delays = delays
        self._bits_per_id = bits_per_id
        self._max_draft_length = max_draft_length
        self._frame_bits = frame_bits
        self._sessions: dict[int, _Estimates] = {}
        self._verifier: Verification | None = None  # None: to be computed again
        self._edge_drafter: EdgeDrafter | None = None

    def join(self, session: int, seconds_per_token: float, spectral_efficiency: float) -> None:
        """Begin with what a device says of itself."""
        # A device that may be left out is believed to be far away after a single late draft: nobody waits for it then,
        # and it is tried again soon.
        least_frames = 1 if self.leaves_out else 2
        self._sessions[session] = _Estimates(seconds_per_token, spectral_efficiency, self._frame_bits, least_frames)
        self.charge(session)

    def leave(self, session: int) -> None:
        """Forget a session."""
        self._sessions.pop(session, None)

    def charge(self, session: int, token_bits: float | None = None, refusal_bits: float = 0.0) -> None:
        """Begin a request whose rule puts other things on the air than ids."""
        known = self._changing(session)
        known.most_token_bits = known.token_bits = float(self._bits_per_id if token_bits is None else token_bits)
        known.refusal_bits = float(refusal_bits)

    def observe_draft(
        self, session: int, length: int, draft_s: float, frame_bits: int, bandwidth_hz: float, upload_s: float
    ) -> None:
        """Learn speed, link and frame size from a draft that arrived."""
        if length == 0:
            return
        known = self._changing(session)
        # A device cannot have drafted for longer than it took.
        known.speed.observe(length, min(draft_s, max(0.0, draft_s + upload_s)))
        # Distributions are often shorter than their limit, so the size of the last draft is believed.
        known.token_bits = min(known.most_token_bits, frame_bits / length)
        known.overhead_bits = max(0.0, frame_bits - length * known.most_token_bits)
        if bandwidth_hz > 0 and upload_s > 0:
            if self._delays:
                known.round_trip.observe(frame_bits, bandwidth_hz, upload_s, length)
            else:
                known.link.observe(frame_bits, bandwidth_hz, upload_s)

    def observe_distribution(self, session: int, frame_bits: int) -> None:
        """Learn what a refusal costs."""
        self._changing(session).refusal_bits = float(frame_bits)

    def observe_outcome(self, session: int, drafted: int, accepted: int) -> None:
        """Learn acceptance."""
        self._changing(session).acceptance.observe(drafted, accepted)

    def renew(self, session: int) -> None:
        """Forget acceptance."""
        self._changing(session).acceptance = AcceptanceEstimator()

    def observe_verification(self, devices: int, tokens: int, seconds: float) -> None:
        """Learn the time of a verification."""
        self.verification.observe(devices, tokens, seconds)
        self._verifier = None

    def observe_edge_draft(self, lengths: Sequence[int], seconds: float) -> None:
        """Learn the time of a drafting step."""
        self._edge_drafter = None
        if any(lengths):
            self._edge_time.observe(max(lengths), sum(lengths), seconds)

    def observe_edge_outcome(self, session: int, drafted: int, accepted: int) -> None:
        """Learn how often the edge's own drafts are accepted, for this session and for all."""
        self._edge_drafter = None
        self._edge_acceptance.observe(drafted, accepted)
        self._edge_trials += min(accepted + 1, drafted)
        known = self._changing(session)
        known.edge_trials = self._edge_trials
        if known.edge_acceptance is None:
            known.edge_acceptance = AcceptanceEstimator(self._edge_acceptance.rate)
        known.edge_acceptance.observe(drafted, accepted)

    def acceptance_rate(self, session: int) -> float:
        """The estimate of α."""
        return self._sessions[session].acceptance.rate

    def seconds_per_token(self, session: int) -> float:
        """The estimate of T^S [s], from the drafting times that the device reports."""
        return self._sessions[session].speed.seconds_per_token

    def upload_s(self, session: int, bits: float, bandwidth_hz: float) -> float:
        """Expected time to send this many bits over a band [s]."""
        return bits / (self._efficiency(self._sessions[session]) * bandwidth_hz)

    def view(self, session: int, length: int) -> View:
        """Inputs of the best draft length."""
        return self._belief(session).view(length)

    def fixed_share(self, session: int) -> float:
        """Share of a one-token draft's bits that a longer draft does not send again."""
        return self._belief(session).fixed_share()

    def delay_s(self, session: int) -> float:
        """One-way delay between a device and the edge [s]."""
        return self._belief(session).delay_s

    def device(self, session: int, room: int, length: int, edge_room: int = 0) -> Device:
        """The planner's device."""
        most = self._max_draft_length
        return self._belief(session).device(session, min(room, most), length, min(edge_room, most))

    def snapshot(self, sessions: Sequence[int]) -> Believed:
        """The beliefs about these sessions now."""
        known = {session: self._belief(session) for session in sessions}
        return _Snapshot(known, self._max_draft_length, self.verifier(), self.edge_drafter(), self.leaves_out)

    def verifier(self) -> Verification:
        """The planner's verifier."""
        if self._verifier is None:
            known = self.verification
            self._verifier = Verification(known.fixed_s, known.per_device_s, known.per_token_s)
        return self._verifier

    def edge_drafter(self) -> EdgeDrafter:
        """The planner's view of the edge's own drafter."""
        if self._edge_drafter is None:
            step_s, token_s = self._edge_time.per_device_s, self._edge_time.per_token_s
            self._edge_drafter = EdgeDrafter(step_s, token_s, self._edge_acceptance.rate)
        return self._edge_drafter

    def _changing(self, session: int) -> _Estimates:
        """The estimators of a session, for changing them."""
        known = self._sessions[session]
        known.belief = None
        return known

    def _belief(self, session: int) -> _Belief:
        known = self._sessions[session]
        if known.belief is None:
            known.belief = self._found(known)
        elif known.edge_acceptance is not None and known.edge_trials != self._edge_trials:
            known.belief = known.belief._replace(edge_acceptance_rate=self._edge_rate(known))
        return known.belief

    def _found(self, known: _Estimates) -> _Belief:
        return _Belief(
            known.acceptance.rate,
            known.speed.seconds_per_token + (known.round_trip.untold_s_per_token if self._delays else 0.0),
            self._efficiency(known),
            0.5 * (known.round_trip if self._delays else known.link).delay_s,
            known.token_bits,
            known.overhead_bits,
            known.refusal_bits,
            self._edge_rate(known),
        )

    def _edge_rate(self, known: _Estimates) -> float | None:
        """α of the edge's drafts for a session: its own as far as it is known and recent, else that of all sessions."""
        if known.edge_acceptance is None:
            return None
        age = (self._edge_trials - known.edge_trials) / _EDGE_HALF_LIFE_TRIALS
        weight = known.edge_acceptance.trials * math.exp2(-age)
        shared = _EDGE_SHARED_TRIALS * self._edge_acceptance.rate
        return (shared + weight * known.edge_acceptance.rate) / (_EDGE_SHARED_TRIALS + weight)

    def _efficiency(self, known: _Estimates) -> float:
        """R [bit/s/Hz]."""
        return (known.round_trip if self._delays else known.link).spectral_efficiency
