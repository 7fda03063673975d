"""The state of a running demo, filled from the events of the edge and the devices."""

from dataclasses import dataclass, field
from typing import Any

from multispin.demo.crew import DeviceSpec
from multispin.protocol.events import Done, Event, Round, RoundDevice, Written


@dataclass
class DeviceState:
    """The state of a running device.

    Attributes:
        spec: the device's name, drafter and emulated speed.
        text: its text so far.
        tokens: tokens of that text.
        drafted: its own drafted tokens that were verified.
        accepted: its own drafted tokens that were accepted.
        verified: tokens drafted for it, by itself or by the edge, that were verified.
        kept: tokens drafted for it, by itself or by the edge, that were accepted.
        acceptance_rate: the edge's estimate, α in [0, 1]; None before its first round.
        length: draft length granted for this round [tokens].
        bandwidth_hz: band granted for this round [Hz].
        done: its event at the end of its text; None before.
        lost: why its process ended early, as a sentence; empty if it did not.
        started_s: the edge's clock when its prompt was read [s], or later when all prompts were; None before.
        last_s: the edge's clock at its newest tokens [s].
        timed_tokens: tokens committed between these two times.
        before_tokens_per_s: its rate before all prompts were read [tokens/s], used if its text was complete by then.
        slowest_draft_s: the edge's longest estimate of its time per drafted token [s].

    """

    spec: DeviceSpec
    text: str = ""
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    verified: int = 0
    kept: int = 0
    acceptance_rate: float | None = None
    length: int = 0
    bandwidth_hz: float = 0.0
    done: Done | None = None
    lost: str = ""
    started_s: float | None = None
    last_s: float = 0.0
    timed_tokens: int = 0
    before_tokens_per_s: float = 0.0
    slowest_draft_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second between the time when all prompts were read and its last token; 0 while unknown."""
        if self.started_s is None or self.last_s <= self.started_s:
            return self.before_tokens_per_s
        return self.timed_tokens / (self.last_s - self.started_s)

    def count_from(self, now_s: float) -> None:
        """Restart the count, since all prompts have been read."""
        self.before_tokens_per_s, self.timed_tokens, self.started_s = self.tokens_per_s, 0, now_s


@dataclass
class DemoState:
    """The state of one play.

    Attributes:
        devices: the devices by name.
        label: name of this way of playing, for people.
        slower: factor by which the site is slowed down.
        passes: number of passes so far that brought tokens.
        rounds: planned rounds verified so far.
        began_s: monotonic time of the start signal [s]; 0 before.
        ended_s: monotonic time of the end of the last text [s].
        first_s: the edge's clock when the first grants went out [s].
        last_s: the edge's clock when the last verdicts went out [s].
        delivered: tokens committed between these two times.
        planned_tokens: tokens that the plans of those rounds predicted.
        planned_s: planned time of those rounds [s].
        log: the edge's event of each round, including rounds that only read prompts.

    """

    devices: dict[str, DeviceState] = field(default_factory=dict)
    label: str = ""
    slower: float = 1.0
    passes: int = 0
    rounds: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0
    delivered: int = 0
    planned_tokens: float = 0.0
    planned_s: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)
    _together: bool = False
    _plan: tuple[float, float] | None = None

    def edge_event(self, event: Event) -> None:
        """Take in an event of the edge."""
        if not isinstance(event, Round):
            return
        for row in event.devices:
            self._device_row(self.devices[row.name], row, event.time_s)
        self.log.append(
            {
                "time_s": event.time_s,
                "planned_round_s": self._plan[1] if self._plan else None,
                "verify_s": event.verify_s,
                "prompt_tokens": event.prompt_tokens,
                "drafted": {row.name: row.drafted for row in event.devices},
                "tokens": {row.name: row.tokens for row in event.devices},
                "seconds_per_token": {row.name: row.seconds_per_token for row in event.devices},
            }
        )
        self.passes += bool(event.devices)
        for grant in event.grants:  # in streams, a window
            device = self.devices[grant.name]
            device.length, device.bandwidth_hz = grant.length, grant.bandwidth_hz
        if event.devices and self._plan is not None:
            self.rounds += 1
            self.delivered += sum(row.tokens for row in event.devices)
            self.last_s = event.time_s
            self.planned_tokens += self._plan[0]
            self.planned_s += self._plan[1]
        self._plan = None
        if event.planned_round_s is not None and event.planned_goodput_tokens_per_s is not None:
            if self.first_s is None:
                self.first_s = event.time_s
            self._plan = (event.planned_goodput_tokens_per_s * event.planned_round_s, event.planned_round_s)
            for grant in event.grants:
                device = self.devices[grant.name]
                if device.started_s is None:
                    device.started_s = event.time_s
        # Passes that read prompts are longer, and here more so than at the site, so the comparison begins after them.
        if not self._together and all(d.started_s is not None or d.lost for d in self.devices.values()):
            self._together = True
            for device in self.devices.values():
                device.count_from(event.time_s)

    def _device_row(self, device: DeviceState, row: RoundDevice, now_s: float) -> None:
        device.acceptance_rate = row.acceptance_rate
        device.verified += row.drafted
        device.kept += row.accepted
        if row.drafted:
            device.slowest_draft_s = max(device.slowest_draft_s, row.seconds_per_token)
        if device.started_s is None:
            device.started_s = now_s
        else:
            device.timed_tokens += row.tokens
        device.last_s = now_s

    def device_event(self, device: DeviceState, event: Event) -> None:
        """Take in an event of a device."""
        if isinstance(event, Written | Done):
            device.text, device.tokens = event.text, event.tokens
            device.drafted, device.accepted = event.drafted, event.accepted
        if isinstance(event, Done):
            device.done = event

    @property
    def goodput_tokens_per_s(self) -> float:
        """Tokens committed per second between the first grant and the last verdict, at the edge."""
        if self.first_s is None or self.last_s <= self.first_s:
            return 0.0
        return self.delivered / (self.last_s - self.first_s)

    @property
    def predicted_goodput_tokens_per_s(self) -> float:
        """The goodput that the plans predicted for the same rounds, as a mean over their planned time."""
        return self.planned_tokens / self.planned_s if self.planned_s > 0 else 0.0
