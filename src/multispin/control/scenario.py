"""The controller's input for one round: the cell, the verifier and the devices, validated and in SI units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from multispin.checks import LEAST, not_negative, one_of, positive, probability, shown, whole
from multispin.control.access import ACCESS
from multispin.control.latency import tokens_of_pass, verification_s
from multispin.errors import InputError
from multispin.radio import shannon_efficiency

MAX_PLANNED_LENGTH = 1024
"""Longest draft that a scenario may allow: tables grow with it, and no language model profits from more."""


@dataclass(frozen=True)
class Cell:
    """The shared uplink, and what every device may draft unless it says otherwise.

    Args:
        bandwidth_hz: B, the band that all devices share [Hz].
        bits_per_token: Q_tok, uplink payload of one drafted token [bit] (eq. 9).
        max_draft_length: longest draft of a device [tokens]; default 25.
        min_draft_length: shortest draft [tokens]; 0 lets a device decode plainly in the batch; default 1.
        multiple_access: "fdma", each device has a share of the band, or "tdma", they send one after the other over all
            of it.
    """

    bandwidth_hz: float
    bits_per_token: float
    max_draft_length: int = 25
    min_draft_length: int = 1
    multiple_access: str = "fdma"

    def __post_init__(self) -> None:
        positive("bandwidth_hz", self.bandwidth_hz, of="cell.")
        positive("bits_per_token", self.bits_per_token, of="cell.")
        whole("max_draft_length", self.max_draft_length, 0, MAX_PLANNED_LENGTH, of="cell.")
        whole("min_draft_length", self.min_draft_length, 0, MAX_PLANNED_LENGTH, of="cell.")
        if self.min_draft_length > self.max_draft_length:
            raise _disordered("cell: ", self.min_draft_length, self.max_draft_length)
        one_of("multiple_access", self.multiple_access, tuple(ACCESS), of="cell.")


@dataclass(frozen=True)
class Verification:
    """Latency of one batched verification, the `[verifier]` table.

    T_ver = fixed_s + K·per_device_s + per_token_s·n, with n = Σ(L_k + 1) for a packed batch and
    n = K·(max L + 1) for a padded one. The paper's eq. 7 is the case per_token_s = 0.

    Args:
        fixed_s: T_fix [s].
        per_device_s: T_lin [s per device in the batch].
        per_token_s: time of one verified token [s]; default 0.0.
        padded: whether shorter drafts are padded to the longest one; default False.
        draft_seconds_per_token: one drafting step of the server for the whole batch [s], for `centralized` only;
            default None.
    """

    fixed_s: float
    per_device_s: float
    per_token_s: float = 0.0
    padded: bool = False
    draft_seconds_per_token: float | None = None

    def __post_init__(self) -> None:
        not_negative("fixed_s", self.fixed_s, of="verifier.")
        not_negative("per_device_s", self.per_device_s, of="verifier.")
        not_negative("per_token_s", self.per_token_s, of="verifier.")
        if self.fixed_s + self.per_device_s + self.per_token_s < LEAST:
            raise InputError("verifier: fixed_s, per_device_s and per_token_s are all 0; one of them must be positive")
        if not isinstance(self.padded, bool):
            raise InputError(f"verifier.padded is {shown(self.padded)}; it must be true or false", where=("padded",))
        if self.draft_seconds_per_token is not None:
            positive("draft_seconds_per_token", self.draft_seconds_per_token, of="verifier.")

    def verify_s(self, draft_lengths: Sequence[int]) -> float:
        """T_ver of one pass over drafts of these lengths, one for each session in it [s]."""
        count = len(draft_lengths)
        tokens = tokens_of_pass(count, float(sum(draft_lengths)), float(max(draft_lengths, default=0)), self.padded)
        return verification_s(self.fixed_s, self.per_device_s, self.per_token_s, count, tokens)


@dataclass(frozen=True)
class EdgeDrafter:
    """The edge's own drafter, the `[edge_drafter]` table: ordinary speculation on the edge's hardware.

    It drafts for several sessions at once, one token for each of them in a step. A step for n sessions takes
    fixed_s + n·per_device_s; a session takes part in as many steps as its draft has tokens.

    Args:
        fixed_s: time of one drafting step, whatever the number of sessions [s].
        per_device_s: further time of a step for each session in it [s].
        acceptance_rate: α of a token that it drafts, for sessions that do not say otherwise
            (`Device.edge_acceptance_rate`).
    """

    fixed_s: float
    per_device_s: float
    acceptance_rate: float

    def __post_init__(self) -> None:
        not_negative("fixed_s", self.fixed_s, of="edge_drafter.")
        not_negative("per_device_s", self.per_device_s, of="edge_drafter.")
        if self.fixed_s + self.per_device_s < LEAST:
            raise InputError("edge_drafter: fixed_s and per_device_s are both 0; one of them must be positive")
        probability("acceptance_rate", self.acceptance_rate, of="edge_drafter.")

    def step_s(self, sessions: int) -> float:
        """Time of one drafting step for this many sessions [s]; 0 for none."""
        return self.fixed_s + sessions * self.per_device_s if sessions else 0.0

    def draft_s(self, draft_lengths: Sequence[int]) -> float:
        """Time to draft this many tokens for each session [s]."""
        return self.fixed_s * max(draft_lengths, default=0) + self.per_device_s * sum(draft_lengths)


@dataclass(frozen=True)
class Mode:
    """One way for a device to speculate: an acceptance rule, how often it accepts, and what it puts on the air.

    Exactly one of `acceptance_rate` and `acceptance_profile` is given.

    Args:
        name: its name in plans; unique for a device.
        acceptance_rate: α, as in `Device`; default None.
        acceptance_profile: as in `Device`; default None.
        bits_per_token: payload per drafted token [bit]; None takes the cell's.
        bits_per_rejection: further uplink bits once a draft is refused, such as a whole distribution [bit]; default
            0.0.
        seconds_per_rejection: further time once a draft is refused, such as that of a distribution sent down [s];
            default 0.0.
    """

    name: str
    acceptance_rate: float | None = None
    acceptance_profile: tuple[float, ...] | None = None
    bits_per_token: float | None = None
    bits_per_rejection: float = 0.0
    seconds_per_rejection: float = 0.0

    def __post_init__(self) -> None:
        _named("mode", self.name)
        of = f"mode {shown(self.name)}: "
        _check_acceptance(self, of)
        if self.bits_per_token is not None:
            positive("bits_per_token", self.bits_per_token, of=of)
        not_negative("bits_per_rejection", self.bits_per_rejection, of=of)
        not_negative("seconds_per_rejection", self.seconds_per_rejection, of=of)


@dataclass(frozen=True)
class Device:
    """One device: how fast it drafts, how well it is heard, how often the target agrees.

    Exactly one of `spectral_efficiency` and `snr_hz` is given, and one of `acceptance_rate`, `acceptance_profile` and
    `modes`.

    Args:
        name: its name in plans and messages; unique in a scenario.
        seconds_per_token: T_k^S, time to draft one token [s].
        spectral_efficiency: r_k = log2(1 + SNR) [bit/s/Hz] (eq. 8), whatever the band; default None.
        snr_hz: p g / N₀, received power over noise density [Hz]: the rate in a band b is b log2(1 + snr_hz / b) (arXiv
            2608.29618); default None.
        acceptance_rate: α_k, probability that a drafted token is accepted, the same at every position; default None.
        acceptance_profile: probability that position 1, 2, … is accepted given that those before it were; the last
            value holds for all later positions; default None.
        bits_per_token: payload per drafted token [bit]; None takes the cell's.
        weight: w_k of the weighted sum goodput; default 1.0.
        min_goodput_tokens_per_s: least acceptable E[N_k] / round time [tokens/s]; None asks for nothing.
        max_draft_length: overrides the cell's [tokens]; 0 for a device without a drafter.
        min_draft_length: overrides the cell's [tokens]; None takes the cell's, or the maximum if that is smaller.
        modes: ways to speculate, of which a plan picks one; each says its acceptance and bits. `[[device.mode]]` in a
            file. By default none.
        delay_s: one-way delay between the device and the edge [s]. A round waits for it twice: the grant goes down, the
            draft comes up. A device that drafts nothing waits for neither. Default 0.0.
        edge_acceptance_rate: α of tokens that the edge's own drafter drafts for this device's text; None takes that
            of the `EdgeDrafter`.
        edge_max_draft_length: longest draft of the edge for this device's text [tokens]; None takes the cell's
            max_draft_length.
    """

    name: str
    seconds_per_token: float
    spectral_efficiency: float | None = None
    acceptance_rate: float | None = None
    acceptance_profile: tuple[float, ...] | None = None
    bits_per_token: float | None = None
    weight: float = 1.0
    min_goodput_tokens_per_s: float | None = None
    max_draft_length: int | None = None
    min_draft_length: int | None = None
    snr_hz: float | None = None
    modes: tuple[Mode, ...] = ()
    delay_s: float = 0.0
    edge_acceptance_rate: float | None = None
    edge_max_draft_length: int | None = None

    def efficiency_at(self, bandwidth_hz: float) -> float:
        """Bits per second and Hz that a band carries (eq. 8, or arXiv 2608.29618).

        Args:
            bandwidth_hz: the band b [Hz], above 0; of no effect on a `spectral_efficiency`.
        """
        if self.spectral_efficiency is not None:
            return self.spectral_efficiency
        assert self.snr_hz is not None  # exactly one of them is given
        return shannon_efficiency(self.snr_hz / bandwidth_hz)

    def rate_bits_per_s(self, bandwidth_hz: float) -> float:
        """Uplink rate R_k over a band, b times `efficiency_at` [bit/s].

        Args:
            bandwidth_hz: the band b [Hz]; 0 gives 0.
        """
        return bandwidth_hz * self.efficiency_at(bandwidth_hz) if bandwidth_hz > 0 else 0.0

    bits_per_rejection: ClassVar[float] = 0.0
    seconds_per_rejection: ClassVar[float] = 0.0

    @property
    def ways(self) -> "tuple[Mode | Device, ...]":
        """Its modes, or itself: its own keys describe the only one."""
        return self.modes or (self,)

    def __post_init__(self) -> None:
        _named("device", self.name)
        of = f"device {shown(self.name)}: "
        positive("seconds_per_token", self.seconds_per_token, of=of)
        if (self.spectral_efficiency is None) == (self.snr_hz is None):
            raise InputError(f"{of}give either spectral_efficiency or snr_hz, and not both")
        if self.spectral_efficiency is not None:
            positive("spectral_efficiency", self.spectral_efficiency, of=of)
        if self.snr_hz is not None:
            positive("snr_hz", self.snr_hz, of=of)
        if self.modes:
            self._check_modes(of)
        else:
            _check_acceptance(self, of)
        if self.bits_per_token is not None:
            positive("bits_per_token", self.bits_per_token, of=of)
        not_negative("weight", self.weight, of=of)
        if self.min_goodput_tokens_per_s is not None:
            not_negative("min_goodput_tokens_per_s", self.min_goodput_tokens_per_s, of=of)
        not_negative("delay_s", self.delay_s, of=of)
        if self.edge_acceptance_rate is not None:
            probability("edge_acceptance_rate", self.edge_acceptance_rate, of=of)
        if self.edge_max_draft_length is not None:
            whole("edge_max_draft_length", self.edge_max_draft_length, 0, MAX_PLANNED_LENGTH, of=of)
        if self.max_draft_length is not None:
            whole("max_draft_length", self.max_draft_length, 0, MAX_PLANNED_LENGTH, of=of)
        if self.min_draft_length is not None:
            whole("min_draft_length", self.min_draft_length, 0, MAX_PLANNED_LENGTH, of=of)
            if self.max_draft_length is not None and self.min_draft_length > self.max_draft_length:
                raise _disordered(of, self.min_draft_length, self.max_draft_length)

    def _check_modes(self, of: str) -> None:
        object.__setattr__(self, "modes", tuple(self.modes))
        for key in ("acceptance_rate", "acceptance_profile", "bits_per_token"):
            if getattr(self, key) is not None:
                raise InputError(f"{of}{key} is given beside modes; give it in each mode instead", where=(key,))
        names = [mode.name for mode in self.modes]
        if len(set(names)) < len(names):
            raise InputError(f"{of}two modes have the same name; names must be unique for a device")


@dataclass(frozen=True)
class Scenario:
    """Everything that a policy may look at. A `Plan` and a `Decision` are pure functions of it.

    Args:
        cell: the shared uplink.
        verifier: time of a verification.
        devices: one for each session, whether it drafts or not.
        edge_drafter: the edge's own drafter; None if it has none.
    """

    cell: Cell
    verifier: Verification
    devices: tuple[Device, ...]
    edge_drafter: EdgeDrafter | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.devices, tuple):
            object.__setattr__(self, "devices", tuple(self.devices))
        if not self.devices:
            raise InputError("scenario: there is no device; at least one is needed")
        seen: set[str] = set()
        for index, device in enumerate(self.devices):
            if device.name in seen:
                raise InputError(
                    f"device {shown(device.name)}: the name is used twice; names must be unique",
                    where=("device", index, "name"),
                )
            seen.add(device.name)
            try:
                self.limits(device)
            except InputError as error:
                raise InputError(str(error), where=("device", index, *error.where)) from error
            if device.delay_s and not ACCESS[self.cell.multiple_access].splits_band:
                raise InputError(
                    f"device {shown(device.name)}: delay_s is not supported with multiple_access = 'tdma'",
                    where=("device", index, "delay_s"),
                )
        if not any(device.weight >= LEAST for device in self.devices):
            raise InputError("device weights are all 0; at least one must be positive")

    def limits(self, device: Device) -> tuple[int, int]:
        """Shortest and longest draft of a device [tokens], its own values before the cell's.

        Args:
            device: one whose own limits, where it has any, count.

        Raises:
            InputError: its shortest draft is above its longest.
        """
        longest = self.cell.max_draft_length if device.max_draft_length is None else device.max_draft_length
        if device.min_draft_length is None:
            return min(self.cell.min_draft_length, longest), longest
        if device.min_draft_length > longest:
            raise _disordered(f"device {shown(device.name)}: ", device.min_draft_length, longest)
        return device.min_draft_length, longest


def _check_acceptance(holder: Device | Mode, of: str) -> None:
    if (holder.acceptance_rate is None) == (holder.acceptance_profile is None):
        raise InputError(f"{of}give either acceptance_rate or acceptance_profile, and not both")
    if holder.acceptance_rate is not None:
        probability("acceptance_rate", holder.acceptance_rate, of=of)
    if holder.acceptance_profile is not None:
        if isinstance(holder.acceptance_profile, list):
            object.__setattr__(holder, "acceptance_profile", tuple(holder.acceptance_profile))
        if not isinstance(holder.acceptance_profile, tuple) or not holder.acceptance_profile:
            raise InputError(
                f"{of}acceptance_profile is {shown(holder.acceptance_profile)}; "
                "it must be a non-empty list of probabilities in [0, 1]",
                where=("acceptance_profile",),
            )
        for position, value in enumerate(holder.acceptance_profile, start=1):
            probability("acceptance_profile", value, of=of, at=f" at position {position}")


def _named(kind: str, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise InputError(f"{kind}.name is {shown(name)}; it must be a non-empty text", where=("name",))


def _disordered(of: str, shortest: int, longest: int) -> InputError:
    return InputError(
        f"{of}min_draft_length {shortest} is above max_draft_length {longest}", where=("min_draft_length",)
    )
