"""A simulated device's radio: what its channel offers in a round, and when a draft has left.

The planner is shown a device as the round finds it, a `Device` of its own with that round's spectral efficiency, so
that a planner that knows the truth knows the fading too.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from multispin.checks import shown
from multispin.control import Device, Scenario
from multispin.errors import InputError
from multispin.outside import read_file
from multispin.radio import shannon_efficiency
from multispin.simulation.clock import EventQueue

_NEARLY_LINEAR = 500.0
"""Beyond so many bit/s/Hz, log2(1 + SNR) is log2(SNR) in floating point, and the SNR soon overflows."""


class Channel(Protocol):
    """Says how well a device is heard in the round that begins."""

    def heard(self, device: Device, now_s: float) -> Device:
        """The device with this round's spectral efficiency."""
        ...


class ConstantChannel:
    """A channel that stays as the scenario says."""

    def heard(self, device: Device, now_s: float) -> Device:
        """The device itself."""
        return device


class RayleighChannel:
    """Rayleigh fading around the scenario's signal-to-noise ratio, constant within a round.

    The scenario's ratio is multiplied by |h|², h ~ CN(0, 1), as in eq. 8 and section VI of arXiv 2606.04581 with the
    scenario's as the mean. From one round to the next h keeps the share ρ = exp(−Δt / coherence_s) and the rest is
    drawn anew (a first-order Gauss-Markov process); 0 s draws every round anew, which is the paper's block fading.

    Args:
        coherence_s: time in which the memory of h falls to 1/e [s].
        generator: source of randomness, two draws per round.

    """

    def __init__(self, coherence_s: float, generator: np.random.Generator) -> None:
        self._coherence_s = coherence_s
        self._generator = generator
        self._h = complex(*generator.normal(0.0, math.sqrt(0.5), 2))
        self._at_s = 0.0

    def heard(self, device: Device, now_s: float) -> Device:
        """The device under this round's fading."""
        kept = math.exp((self._at_s - now_s) / self._coherence_s) if self._coherence_s > 0 else 0.0
        drawn = complex(*self._generator.normal(0.0, math.sqrt(0.5), 2))
        self._h = kept * self._h + math.sqrt(1.0 - kept * kept) * drawn
        self._at_s = now_s
        return _with_gain(device, max(abs(self._h) ** 2, 1e-12))


@dataclass(frozen=True)
class EfficiencyTrace:
    """A recorded link: spectral efficiency over time, played again and again.

    Attributes:
        times_s: when each value begins to hold [s], ascending from 0; the last lasts as long as the one before it.
        spectral_efficiency: spectral efficiency of the uplink [bit/s/Hz].

    """

    times_s: tuple[float, ...]
    spectral_efficiency: tuple[float, ...]

    def heard(self, device: Device, now_s: float) -> Device:
        """The device with the value of that moment."""
        times = self.times_s
        period_s = 2 * times[-1] - times[-2] if len(times) > 1 else math.inf
        index = bisect_right(times, math.fmod(now_s, period_s)) - 1
        return replace(device, spectral_efficiency=self.spectral_efficiency[index], snr_hz=None)


def load_efficiency_trace(path: Path) -> EfficiencyTrace:
    """Read lines of "seconds,bit/s/Hz"; a first line that holds no numbers is a header."""
    times: list[float] = []
    values: list[float] = []
    for number, line in enumerate(read_file(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            time, value = (float(part) for part in line.split(","))
        except ValueError:
            if number == 1:
                continue
            raise InputError(f"{path}, line {number}: {shown(line)} is not two numbers, seconds and bit/s/Hz") from None
        if not (math.isfinite(time) and 0 < value < math.inf) or (time <= times[-1] if times else time != 0):
            raise InputError(
                f"{path}, line {number}: times must begin with 0 and rise, spectral efficiencies must be > 0"
            )
        times.append(time)
        values.append(value)
    if not times:
        raise InputError(f"{path} has no line of two numbers, seconds and bit/s/Hz")
    return EfficiencyTrace(tuple(times), tuple(values))


def _with_gain(device: Device, gain: float) -> Device:
    """The device when its mean signal-to-noise ratio is multiplied by `gain`."""
    if device.snr_hz is not None:
        return replace(device, snr_hz=gain * device.snr_hz)
    assert device.spectral_efficiency is not None  # one of them is given
    if device.spectral_efficiency > _NEARLY_LINEAR:  # 2^r would overflow
        return replace(device, spectral_efficiency=device.spectral_efficiency + math.log2(gain))
    snr = math.expm1(device.spectral_efficiency * math.log(2))
    return replace(device, spectral_efficiency=shannon_efficiency(gain * snr))


def in_turns(scenario: Scenario) -> bool:
    """Whether devices send one after the other."""
    return getattr(scenario.cell, "multiple_access", "fdma") == "tdma"


class Air(Protocol):
    """How devices share the uplink."""

    def send(self, device: Device, now_s: float, bits: float, bandwidth_hz: float) -> tuple[float, float]:
        """Time at which a draft that is ready now begins to be sent, and that of its last bit [s] (infinite: never)."""
        ...


class FrequencyDivision:
    """Everybody has the granted band to itself (FDMA, eq. 8 and 9 of arXiv 2606.04581): the real device's pacing."""

    def send(self, device: Device, now_s: float, bits: float, bandwidth_hz: float) -> tuple[float, float]:
        """Paced at the granted rate; a device has one draft under way at a time, so nothing else is in its queue."""
        return now_s, now_s + sending_s(device, bits, bandwidth_hz)


class TimeDivision:
    """One after the other over the whole band, in the order in which drafts become ready (TDMA)."""

    def __init__(self) -> None:
        self._free_s = 0.0

    def send(self, device: Device, now_s: float, bits: float, bandwidth_hz: float) -> tuple[float, float]:
        """Wait until the air is free. A device that vanishes keeps it until its draft would have left."""
        begins_s = max(now_s, self._free_s)
        leaves_s = begins_s + sending_s(device, bits, bandwidth_hz)
        if math.isfinite(leaves_s):
            self._free_s = leaves_s
        return begins_s, leaves_s


def sending_s(device: Device, bits: float, bandwidth_hz: float) -> float:
    """Q / R_k [s] (eq. 9): what the real device's pacing comes to where one draft at a time is under way."""
    rate = device.rate_bits_per_s(bandwidth_hz)
    if rate > 0.0:
        return bits / rate
    return math.inf if bits > 0 else 0.0


@dataclass(slots=True)
class _Frame:
    bits: float  # that have not left
    band_hz: float
    late_s: float
    left: Callable[[float], None]
    begun_s: float | None = None


class FrameQueue:
    """A device's frames of streams: sent one after the other, each at the speed that the link has meanwhile.

    Args:
        events: queue of events with the virtual clock.
        heard: function that returns the device as it is heard now.

    """

    def __init__(self, events: EventQueue, heard: Callable[[], Device]) -> None:
        self._events, self._heard = events, heard
        self._frames: deque[_Frame] = deque()
        self._since_s = 0.0  # since when the first of them goes at this rate [s]
        self._rate = 0.0  # [bit/s]
        self._turn = 0

    def send(self, bits: float, band_hz: float, left: Callable[[float], None], late_s: float = 0.0) -> None:
        """Put a frame at the end of the queue.

        Args:
            bits: size of the frame [bit].
            band_hz: its band, more than 0 [Hz].
            left: function that is called when its last bit has left, with the time that it was on the air [s].
            late_s: time that it is held back before, with all frames behind it; default 0 [s].

        """
        self._frames.append(_Frame(bits, band_hz, late_s, left))
        if len(self._frames) == 1:
            self._begin()

    def link_changed(self) -> None:
        """The rest of the frame on the air goes at the new speed."""
        if not self._frames:
            return
        frame, passed_s = self._frames[0], self._events.now_s - self._since_s
        frame.bits = max(0.0, frame.bits - self._rate * max(0.0, passed_s - frame.late_s))
        frame.late_s = max(0.0, frame.late_s - passed_s)
        self._begin()

    def _begin(self) -> None:
        frame, self._since_s = self._frames[0], self._events.now_s
        if frame.begun_s is None:
            frame.begun_s = self._since_s
        self._rate = self._heard().rate_bits_per_s(frame.band_hz)
        self._turn += 1
        if self._rate > 0.0:  # else it waits for a link that is better
            self._events.at(self._since_s + frame.late_s + frame.bits / self._rate, partial(self._leave, self._turn))

    def _leave(self, turn: int) -> None:
        if turn != self._turn:  # the link has changed meanwhile
            return
        frame = self._frames.popleft()
        assert frame.begun_s is not None
        frame.left(self._events.now_s - frame.begun_s)
        if self._frames:
            self._begin()
