"""A site under a virtual clock: the real round loop, sessions, controller and estimators, with simulated devices.

Only the clock, the links and the engine are replaced: `Edge` from `multispin.edge` decides everything here that it
decides in the server, which is why this room imports that one. A drafted token is RIGHT or WRONG: a device draws
which when it drafts, from its acceptance rate or profile, and the engine accepts the leading RIGHT ones.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from multispin.control import Device, Plan, Scenario, plan
from multispin.edge import Batch, Controller, ControllerSettings, Edge, Limits, Member
from multispin.models import Feed, SlotsTakenError
from multispin.protocol import PROTOCOL_VERSION, DeviceSession, Downlink, Hello, Profile, Progress
from multispin.radio import Channel, StaticChannel, TokenBucket
from multispin.speculation import Outcome, SamplingParams

RIGHT, WRONG = 0, 1
_FINGERPRINT = "simulated"
_MAX_LENGTH = 2**20
_UNLIMITED_TOKENS = _MAX_LENGTH - 1


@dataclass(frozen=True)
class Behaviour:
    """What happens at a site beside drafting.

    Attributes:
        tokens_per_request: length of every text; a device goes on with its next request. None: one endless text.
        straggler_probability: share of drafts that are delayed …
        straggler_delay_s: … by so much.
        losses_s: device name and time at which it vanishes for good.

    """

    tokens_per_request: int | None = None
    straggler_probability: float = 0.0
    straggler_delay_s: float = 0.0
    losses_s: tuple[tuple[str, float], ...] = ()


class EventQueue:
    """Callbacks in the order of their times; the clock jumps from one to the next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time_s: float, callback: Callable[[], None]) -> None:
        """Call back at `time_s`; events of one time come in the order of their making."""
        self._count += 1
        heapq.heappush(self._heap, (max(time_s, self.now_s), self._count, callback))

    def step(self) -> bool:
        """Run the next event; False if there is none."""
        if not self._heap:
            return False
        self.now_s, _, callback = heapq.heappop(self._heap)
        callback()
        return True


class SimulatedEngine:
    """An `Engine` without a model: accepts the leading RIGHT tokens, and says how long a batch takes.

    Args:
        scenario: its verification latency is the truth.

    """

    def __init__(self, scenario: Scenario) -> None:
        self.slots = len(scenario.devices)
        self.max_length = _MAX_LENGTH
        self.vocabulary_size = 2
        self._verifier = scenario.verifier
        self._free = list(range(self.slots))
        self._cached = [0] * self.slots

    def open(self) -> int:
        """Take a slot."""
        if not self._free:
            raise SlotsTakenError(f"all {self.slots} slots are taken")
        slot = self._free.pop()
        self._cached[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)

    def cached(self, slot: int) -> int:
        """Positions cached."""
        return self._cached[slot]

    def commit(self, slot: int, length: int) -> None:
        """Forget what lies beyond `length`."""
        self._cached[slot] = length

    def verify(self, feeds: Sequence[Feed]) -> list[Outcome | None]:
        """Accept the leading RIGHT tokens of every draft."""
        outcomes: list[Outcome | None] = []
        for feed in feeds:
            self._cached[feed.slot] = feed.start + len(feed.tokens)
            drafted = feed.tokens[1:]
            accepted = next((i for i, token in enumerate(drafted) if token != RIGHT), len(drafted))
            outcomes.append(None if feed.params is None else Outcome(accepted, RIGHT))
        return outcomes

    def latency_s(self, batch: Batch) -> float:
        """T_ver = fixed + per device · K + per token · tokens (eq. 7 of arXiv 2606.04581, and its packed form)."""
        verifier, lengths = self._verifier, [len(job.feed.tokens) for job in batch.jobs]
        tokens = len(lengths) * max(lengths) if verifier.padded else sum(lengths)
        return verifier.fixed_s + verifier.per_device_s * len(lengths) + verifier.per_token_s * tokens


@dataclass
class DeviceRecord:
    """What a device did, for the report.

    Attributes:
        name: of the device.
        drafted: tokens drafted.
        accepted: of them accepted.
        rejected: of them verified and not accepted.
        tokens: tokens of text, the calibrated and bonus ones included.
        token_times_s: when tokens came, and how many: (time, count) per verdict.
        requested_s: when the first request was opened.
        drafting_s: time spent drafting.
        air_hz_s: band times time spent uploading.

    """

    name: str
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    tokens: int = 0
    token_times_s: list[tuple[float, int]] = field(default_factory=list)
    requested_s: float = 0.0
    drafting_s: float = 0.0
    air_hz_s: float = 0.0


class SimulatedDevice:
    """A device: drafts at its speed, uploads at its rate, answers grants."""

    def __init__(self, truth: Device, bits_per_token: float, channel: Channel, generator: np.random.Generator) -> None:
        self.truth = truth
        self.channel = channel
        self.spectral_efficiency = truth.spectral_efficiency
        self.bits_per_token = bits_per_token
        self.record = DeviceRecord(truth.name)
        self.lost = False
        profile = Profile(truth.seconds_per_token, truth.spectral_efficiency)
        hello = Hello(PROTOCOL_VERSION, _FINGERPRINT, truth.name[:80], "simulated", _drafts(truth), profile)
        self.session = DeviceSession(hello)
        self._generator = generator
        self._bucket = TokenBucket(0.0)

    def draft(self, length: int) -> list[int]:
        """RIGHT up to the first token that will be refused, WRONG from there."""
        chances = self._generator.random(length)
        rates = [self._rate(position) for position in range(length)]
        right = next((i for i in range(length) if chances[i] >= rates[i]), length)
        return [RIGHT] * right + [WRONG] * (length - right)

    def upload_s(self, now_s: float, length: int, bandwidth_hz: float) -> float:
        """When the last bit of a draft that is ready now has left."""
        self._bucket.set_rate(now_s, bandwidth_hz * self.spectral_efficiency)
        departure_s = self._bucket.reserve(now_s, length * self.bits_per_token)
        self.record.air_hz_s += bandwidth_hz * (departure_s - now_s) if math.isfinite(departure_s) else 0.0
        return departure_s

    def _rate(self, position: int) -> float:
        profile = self.truth.acceptance_profile
        if profile is not None:
            return profile[min(position, len(profile) - 1)]
        return self.truth.acceptance_rate or 0.0


def _drafts(device: Device) -> bool:
    return device.max_draft_length is None or device.max_draft_length > 0


class SiteController(Controller):
    """The real controller, or one that knows the truth; draws the next fading block before every plan."""

    def __init__(self, settings: ControllerSettings, scenario: Scenario, knows: bool) -> None:
        super().__init__(settings)
        self._truth = scenario
        self._knows = knows
        self.devices: dict[int, SimulatedDevice] = {}

    def plan(self, members: Sequence[Member], reserved_hz: float = 0.0) -> Plan | None:
        """Plan from the true scenario, or from what has been learned."""
        for member in members:
            device = self.devices[member.session]
            device.spectral_efficiency = device.channel.next_round()
        if not self._knows or not members:
            return super().plan(members, reserved_hz)
        cell = self._truth.cell
        band_hz = max(cell.bandwidth_hz - reserved_hz, 1e-3 * cell.bandwidth_hz)
        devices = []
        for member in members:
            device = self.devices[member.session]
            longest = min(member.room, _or(device.truth.max_draft_length, cell.max_draft_length))
            devices.append(
                replace(
                    device.truth,
                    name=str(member.session),
                    spectral_efficiency=device.spectral_efficiency,
                    max_draft_length=longest,
                    min_draft_length=min(longest, _or(device.truth.min_draft_length, cell.min_draft_length)),
                )
            )
        scenario = Scenario(replace(cell, bandwidth_hz=band_hz), self._truth.verifier, tuple(devices))
        return plan(scenario, self.settings.policy)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


class Site:
    """One edge and its devices under a virtual clock.

    Args:
        scenario: the truth about cell, verifier and devices.
        policy: how the edge plans.
        seed: of everything drawn.
        knows: whether the controller knows the truth or learns it.
        behaviour: requests, stragglers and losses.
        channels: one per device; by default each keeps its scenario's spectral efficiency.

    """

    def __init__(
        self,
        scenario: Scenario,
        policy: str,
        seed: int,
        knows: bool = False,
        behaviour: Behaviour | None = None,
        channels: Sequence[Channel] | None = None,
    ) -> None:
        self.queue = EventQueue()
        self.behaviour = behaviour or Behaviour()
        self.engine = SimulatedEngine(scenario)
        cell = scenario.cell
        settings = ControllerSettings(policy, cell.bandwidth_hz, math.ceil(cell.bits_per_token), cell.max_draft_length)
        self.controller = SiteController(settings, scenario, knows)
        limits = Limits(max_sessions=len(scenario.devices), max_waiting=len(scenario.devices))
        tokens = iter(f"device-{k}" for k in range(len(scenario.devices)))
        self.edge = Edge(self.engine, self.controller, _FINGERPRINT, limits, new_token=lambda: next(tokens))
        self.devices: dict[int, SimulatedDevice] = {}
        self.rounds = 0
        self.verifying_s = 0.0
        self._verifying = False
        self._stragglers = np.random.default_rng([seed, 2**31])
        for k, truth in enumerate(scenario.devices):
            bits = cell.bits_per_token if truth.bits_per_token is None else truth.bits_per_token
            channel = channels[k] if channels else StaticChannel(truth.spectral_efficiency)
            self._join(SimulatedDevice(truth, bits, channel, np.random.default_rng([seed, k])))
        for name, time_s in self.behaviour.losses_s:
            self.queue.at(time_s, lambda name=name: self._lose(name))  # type: ignore[misc]

    def run(self, rounds: int) -> None:
        """Go on until so many rounds have been verified, or nothing is left to happen."""
        self._look()
        while self.rounds < rounds and self.queue.step():
            pass

    # Devices ------------------------------------------------------------------------------------------------------

    def _join(self, device: SimulatedDevice) -> None:
        number, answers = self.edge.connect(device.session.greet(), self.queue.now_s)
        self.devices[number] = self.controller.devices[number] = device
        for answer in answers:
            device.session.receive(answer)
        device.record.requested_s = self.queue.now_s
        self._request(number, device)

    def _request(self, number: int, device: SimulatedDevice) -> None:
        tokens = self.behaviour.tokens_per_request or _UNLIMITED_TOKENS
        device.session.begin([RIGHT], SamplingParams(), tokens)
        self.edge.receive(number, device.session.open(), 0, self.queue.now_s)

    def _hear(self, number: int, message: Downlink) -> None:
        """A message reaches a device; the downlink takes no time (eq. 9)."""
        device = self.devices[number]
        if device.lost:
            return
        self._count(device, device.session.receive(message))
        if device.session.finish:
            self._request(number, device)
        elif device.session.grant is not None and device.session.grant.length > 0:
            self._draft(number, device)

    def _draft(self, number: int, device: SimulatedDevice) -> None:
        grant = device.session.grant
        assert grant is not None
        ids = device.draft(grant.length)
        draft_s = len(ids) * device.truth.seconds_per_token
        device.record.drafted += len(ids)
        device.record.drafting_s += draft_s
        message = device.session.answer(ids, draft_s)
        frame_bytes = math.ceil(len(ids) * device.bits_per_token / 8)
        delay_s = 0.0
        if self.behaviour.straggler_probability > 0.0:
            late = self._stragglers.random() < self.behaviour.straggler_probability
            delay_s = self.behaviour.straggler_delay_s if late else 0.0

        def ready() -> None:
            departure_s = device.upload_s(self.queue.now_s, len(ids), grant.bandwidth_hz)
            if math.isfinite(departure_s):
                self.queue.at(departure_s, arrived)

        def arrived() -> None:
            if not device.lost:
                for answer in self.edge.receive(number, message, frame_bytes, self.queue.now_s):
                    self._hear(number, answer)
                self._look()

        self.queue.at(self.queue.now_s + draft_s + delay_s, ready)

    def _count(self, device: SimulatedDevice, progress: Progress) -> None:
        if progress.tokens:
            record = device.record
            record.accepted += progress.accepted
            record.rejected += progress.drafted - progress.accepted
            record.tokens += len(progress.tokens)
            record.token_times_s.append((self.queue.now_s, len(progress.tokens)))

    def _lose(self, name: str) -> None:
        for number, device in self.devices.items():
            if device.truth.name == name and not device.lost:
                device.lost = True
                self.edge.disconnect(number, self.queue.now_s)
                grace_s = self.edge.limits.resume_grace_s
                self.queue.at(self.queue.now_s + 1.01 * grace_s, lambda: self._expire())
        self._look()

    def _expire(self) -> None:
        self.edge.expire(self.queue.now_s)
        self._look()

    # The server's loop: what `EdgeServer` does with a real clock ---------------------------------------------------

    def _look(self) -> None:
        """Schedule, collect or wait, whichever it is time for."""
        if self._verifying:
            return
        wait_s = self.edge.wait_s(self.queue.now_s)
        if wait_s is None:
            _, grants = self.edge.schedule(self.queue.now_s)
            for number, grant in grants.items():
                self._hear(number, grant)
            wait_s = self.edge.wait_s(self.queue.now_s)
        if wait_s == 0.0:
            self._verify()
        elif wait_s is not None:
            self.queue.at(self.queue.now_s + wait_s, self._look)

    def _verify(self) -> None:
        batch = self.edge.collect()
        outcomes = self.edge.verify(batch)
        latency_s = self.engine.latency_s(batch)
        self._verifying = True

        def done() -> None:
            self._verifying = False
            self.verifying_s += latency_s
            report, messages = self.edge.deliver(batch, outcomes, latency_s, self.queue.now_s)
            self.rounds += bool(report.members)
            for number, message in messages:
                self._hear(number, message)
            self._look()

        self.queue.at(self.queue.now_s + latency_s, done)
