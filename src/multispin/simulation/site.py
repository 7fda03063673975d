"""A site under a virtual clock: the real round loop, sessions, controller and estimators, with simulated devices.

Only the clock, the links and the engine are replaced: `Edge` from `multispin.edge` decides everything here that it
decides in the server, which is why this room imports that one. A drafted token is RIGHT or WRONG: a device knows
which when it drafts (`simulation.acceptance`), and the engine accepts the leading RIGHT ones.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

import numpy as np

from multispin.control import Device, Plan, Scenario, Verification
from multispin.passes import Batch, Controller, ControllerSettings, Edge, Limits, Member
from multispin.passes.batch import EXPIRY_PERIOD_S
from multispin.passes.controller import View
from multispin.protocol import Close, Downlink, Draft, Grant
from multispin.simulation.acceptance import acceptance_of
from multispin.simulation.device import FINGERPRINT, RIGHT, WRONG, LiveDevice, SimulatedDevice
from multispin.simulation.live import USUAL_TOKENS, LiveModels
from multispin.simulation.setup import MAX_TOKENS, Behaviour, DeviceLife, Setup, Whole
from multispin.simulation.uplink import (
    Air,
    Channel,
    ConstantChannel,
    FrequencyDivision,
    RayleighChannel,
    TimeDivision,
    in_turns,
)
from multispin.speculation import ID_RULES, Engine, Failure, Feed, Finding, Outcome, SlotTable

_MAX_LENGTH = 2 * MAX_TOKENS


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


class SimulatedEngine(SlotTable):
    """An `Engine` without a model: accepts the leading RIGHT tokens.

    Args:
        slots: texts held at once.

    """

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.max_length = _MAX_LENGTH
        self.vocabulary_size = 2
        self.rules = ID_RULES

    def verify(self, feeds: Sequence[Feed]) -> list[Finding | Failure | None]:
        """Accept the leading RIGHT tokens of every draft."""
        outcomes: list[Finding | Failure | None] = []
        self.take(feeds)
        for feed in feeds:
            drafted = feed.tokens[1:]
            accepted = drafted.index(WRONG) if WRONG in drafted else len(drafted)
            outcomes.append(None if feed.params is None else Outcome(accepted, RIGHT))
        return outcomes


def batch_verification_s(verifier: Verification, batch: Batch) -> float:
    """T_ver of a batch, prompts in it included [s]."""
    return verifier.verify_s([len(job.feed.tokens) - 1 for job in batch.jobs])


class SiteController(Controller):
    """The real controller, or one that knows the truth; every plan begins with the next state of the channels.

    Args:
        settings: of the controller.
        scenario: the truth.
        knows: whether it knows the truth …
        knows_acceptance: … and that includes how often each device's drafts are accepted.
        queue: tells the time.

    """

    def __init__(
        self,
        settings: ControllerSettings,
        scenario: Scenario,
        knows: bool,
        queue: EventQueue,
        knows_acceptance: bool = True,
    ) -> None:
        super().__init__(settings)
        self._truth = scenario
        self._knows = knows
        self._knows_acceptance = knows and knows_acceptance
        self._queue = queue
        self.devices: dict[int, SimulatedDevice] = {}

    def plan(self, members: Sequence[Member], reserved_hz: float = 0.0) -> Plan | None:
        """Let the channels change, then plan."""
        for member in members:
            self.devices[member.session].listen(self._queue.now_s)
        return super().plan(members, reserved_hz)

    def observe_draft(
        self, session: int, length: int, draft_s: float, frame_bits: int, bandwidth_hz: float, upload_s: float
    ) -> None:
        """Learn, if there is anything to learn."""
        if not self._knows:
            super().observe_draft(session, length, draft_s, frame_bits, bandwidth_hz, upload_s)

    def _view(self, session: int) -> View:
        if not self._knows:
            return super()._view(session)
        device = self.devices[session]
        heard = device.heard
        known_rate = heard.acceptance_rate or 0.0
        return (
            known_rate if self._knows_acceptance else self.acceptance_rate(session),
            heard.seconds_per_token,
            device.bits_per_token / heard.efficiency_at(self._truth.cell.bandwidth_hz),
        )

    def _device(self, member: Member, length: int) -> Device:
        if not self._knows:
            return super()._device(member, length)
        device = self.devices[member.session]
        shortest, longest = self._truth.limits(device.truth)
        longest = min(longest, member.room)
        heard = device.heard
        if not self._knows_acceptance:
            heard = replace(heard, acceptance_rate=self.acceptance_rate(member.session), acceptance_profile=None)
        return replace(
            heard,
            name=str(member.session),
            bits_per_token=device.bits_per_token,
            max_draft_length=longest,
            min_draft_length=min(shortest, longest),
        )

    def _verification(self) -> Verification:
        return self._truth.verifier if self._knows else super()._verification()

    def _verify_s(self, lengths: dict[int, int]) -> float:
        # A truth does not move.
        return 1.0 if self._knows else super()._verify_s(lengths)

    def _scenario(self, members: Sequence[Member], lengths: Sequence[int], reserved_hz: float) -> Scenario:
        scenario = super()._scenario(members, lengths, reserved_hz)
        access = in_turns(self._truth)
        return replace(scenario, cell=replace(scenario.cell, multiple_access="tdma")) if access else scenario

    def _band_hz(self, reserved_hz: float) -> float:
        # Who is late under TDMA holds no band: it waits for its turn again.
        return super()._band_hz(0.0 if in_turns(self._truth) else reserved_hz)

    def _fixed_part(self, members: Sequence[Member]) -> float:
        return 0.0 if self._knows else super()._fixed_part(members)


class Site:
    """One edge and its devices under a virtual clock.

    Args:
        setup: what is there, and what happens to it.
        policy: how the edge plans.
        seed: of everything drawn.
        knows: whether the controller knows the truth or learns it.
        replan_tolerance: how far estimates may drift before it plans anew (`ControllerSettings`).
        live: real models that write the texts, in place of acceptance rates.
        knows_acceptance: whether the truth that it knows includes acceptance.

    """

    def __init__(
        self,
        setup: Setup,
        policy: str,
        seed: int,
        knows: bool = False,
        replan_tolerance: float = ControllerSettings.replan_tolerance,
        live: LiveModels | None = None,
        knows_acceptance: bool = True,
    ) -> None:
        self.queue = EventQueue()
        self.setup = setup
        scenario, behaviour = setup.scenario, setup.behaviour
        count = len(scenario.devices)
        self._models = live
        slots, longest = behaviour.slots or count, _greatest(behaviour.tokens_per_request or USUAL_TOKENS)
        self.engine: Engine = SimulatedEngine(slots) if live is None else live.engine(slots, longest)
        cell = scenario.cell
        settings = ControllerSettings(
            *(policy, cell.bandwidth_hz, math.ceil(cell.bits_per_token), cell.max_draft_length, replan_tolerance),
            behaviour.frame_bits,
        )
        self.controller = SiteController(settings, scenario, knows, self.queue, knows_acceptance)
        limits = Limits(
            max_sessions=count,
            max_waiting=count,
            prefill_tokens_per_round=behaviour.prefill_tokens_per_round,
            prefill_share=behaviour.prefill_share,
            deadline_factor=behaviour.deadline_factor,
            deadline_slack_s=behaviour.deadline_slack_s,
        )
        self.edge = Edge(self.engine, self.controller, FINGERPRINT, limits, new_token=self._token)
        self._tokens = 0
        self.rounds = 0
        self.verifying_s = 0.0
        self.air: Air = TimeDivision() if in_turns(scenario) else FrequencyDivision()
        self._verifying = False
        self._deadline_s = -1.0  # the last one at which a look is due already
        self._looks = False  # whether a look is due at this very moment
        self._watching = False  # whether a look for lost devices is due
        site_generator = np.random.default_rng([seed, 2**31])
        self._stragglers = np.random.default_rng([seed, 2**31, 1])
        self.devices: list[SimulatedDevice] = []
        self._present: dict[int, SimulatedDevice] = self.controller.devices
        arrival_s = 0.0
        for k, (truth, life) in enumerate(zip(scenario.devices, setup.lives, strict=True)):
            bits = cell.bits_per_token if truth.bits_per_token is None else truth.bits_per_token
            # Three sources, so that what happens to a device is the same under every policy.
            lucky, fading, living = (np.random.default_rng([seed, k, use]) for use in range(3))
            acceptance = acceptance_of(truth, life.traces, lucky)
            what = (truth, cell, bits, _channel(behaviour, life, fading), acceptance, living)
            if live is None:
                device = SimulatedDevice(*what)
            else:
                texts = live.fitting(longest)
                prompts = islice(cycle(texts), int(living.integers(len(texts))), None)
                device = LiveDevice(live.drafter_for(longest), prompts, *what)
            self.devices.append(device)
            if behaviour.arrivals_per_s is not None:
                arrival_s += float(site_generator.exponential(1.0 / behaviour.arrivals_per_s))
            self._live(device, life, life.arrives_s + arrival_s)

    def run(self, rounds: int, progress: Callable[[int], None] = lambda _: None) -> None:
        """Go on until so many rounds have been verified, or nothing is left to happen.

        Args:
            rounds: how many.
            progress: told how many there were, every now and then.

        """
        told = self.rounds
        while self.rounds < rounds and self.queue.step():
            if self.rounds >= told + 10:
                told = self.rounds
                progress(told)
        progress(self.rounds)

    # Devices ------------------------------------------------------------------------------------------------------

    def _live(self, device: SimulatedDevice, life: DeviceLife, arrives_s: float) -> None:
        """Put into the queue what the scenario says of a device."""
        self.queue.at(arrives_s, lambda: self._arrive(device))
        if life.leaves_s is not None:
            self.queue.at(life.leaves_s, lambda: self._leave(device, back=False))
        if life.lost_s is not None:
            self.queue.at(life.lost_s, lambda: self._lose(device))

    def _arrive(self, device: SimulatedDevice) -> None:
        """A device comes (back) and begins a request."""
        if device.gone:
            return
        self._join(device)
        stay_s = self.setup.behaviour.mean_stay_s
        if stay_s is not None:
            number, until_s = device.number, self.queue.now_s + float(device.generator.exponential(stay_s))
            self.queue.at(until_s, lambda: self._leave(device, back=True) if device.number == number else None)

    def _join(self, device: SimulatedDevice) -> None:
        number, answers = self.edge.connect(device.greet(), self.queue.now_s)
        self._present[number] = device
        device.number = number
        device.record.arrived_s = self.queue.now_s
        for answer in answers:
            device.session.receive(answer)
        self._request(device)

    def _leave(self, device: SimulatedDevice, back: bool) -> None:
        """A device says goodbye, for good or to come back."""
        away_s = self.setup.behaviour.mean_away_s
        device.gone = not back or away_s is None
        if device.number is not None:
            self.edge.receive(device.number, Close(device.number), 0, self.queue.now_s)
            self._forget(device)
        if not device.gone and away_s is not None:
            self.queue.at(self.queue.now_s + float(device.generator.exponential(away_s)), lambda: self._arrive(device))
        self._wake()

    def _lose(self, device: SimulatedDevice) -> None:
        """A device vanishes; the edge hears no more than a broken connection."""
        device.gone = True
        if device.number is not None:
            self.edge.disconnect(device.number, self.queue.now_s)
            self._forget(device, keep=True)
            if not self._watching:
                self._watching = True
                self.queue.at(self.queue.now_s + EXPIRY_PERIOD_S, self._watch)
        self._wake()

    def _forget(self, device: SimulatedDevice, keep: bool = False) -> None:
        """End a device's presence; the edge may keep a lost one's session, whose number then stays known."""
        assert device.number is not None
        device.record.leave(self.queue.now_s)
        if not keep:
            del self._present[device.number]
        device.number = None

    def _watch(self) -> None:
        """While sessions of lost devices are kept, look every so often for those that have been lost for too long."""
        self._expire()
        self._watching = any(device.number != number for number, device in self._present.items())
        if self._watching:
            self.queue.at(self.queue.now_s + EXPIRY_PERIOD_S, self._watch)

    def _expire(self) -> None:
        for number in self.edge.expire(self.queue.now_s):
            device = self._present.pop(number)
            if device.number == number:  # a straggler that was let go: it greets anew and begins its next request
                self._present[number] = device
                self._forget(device)
                self._join(device)
        self._wake()

    def _request(self, device: SimulatedDevice) -> None:
        behaviour = self.setup.behaviour
        prompt = _drawn(behaviour.prompt_tokens, device.generator)
        endless = MAX_TOKENS if self._models is None else USUAL_TOKENS
        recorded = device.acceptance.next_text() if self._models is None else None
        tokens = recorded or _drawn(behaviour.tokens_per_request or endless, device.generator)
        assert device.number is not None
        self.edge.receive(device.number, device.begin(prompt, tokens, self.queue.now_s), 0, self.queue.now_s)
        self._wake()

    def _hear(self, number: int, message: Downlink) -> None:
        """A message reaches a device; the downlink takes no time (eq. 9)."""
        device = self._present[number]
        if device.number != number:  # lost
            return
        device.hear(message, self.queue.now_s)
        if device.session.finish:
            device.record.requests += 1
            if device.record.requests == self.setup.behaviour.texts:
                self._leave(device, back=False)
                return
            pause_s = self.setup.behaviour.pause_s
            if pause_s > 0.0:
                next_s = self.queue.now_s + float(device.generator.exponential(pause_s))
                self.queue.at(next_s, lambda: self._request(device) if device.number == number else None)
            else:
                self._request(device)
        elif device.session.grant is not None and device.session.grant.length > 0:
            self._draft(number, device, device.session.grant)

    def _draft(self, number: int, device: SimulatedDevice, grant: Grant) -> None:
        message, draft_s = device.draft(grant)
        ready_s = self.queue.now_s + draft_s + self._delay_s()
        if isinstance(self.air, TimeDivision):  # who is ready first sends first
            self.queue.at(ready_s, partial(self._send, number, device, grant, message, ready_s))
        else:
            self._send(number, device, grant, message, ready_s)

    def _send(self, number: int, device: SimulatedDevice, grant: Grant, message: Draft, ready_s: float) -> None:
        if device.number != number:
            return
        bits = message.length * device.bits_per_token + self.setup.behaviour.frame_bits
        begins_s, leaves_s = self.air.send(device.heard, ready_s, bits, grant.bandwidth_hz)
        if math.isfinite(leaves_s):
            self.queue.at(leaves_s, partial(self._arrived, number, device, grant, message, bits, begins_s))

    def _arrived(
        self, number: int, device: SimulatedDevice, grant: Grant, message: Draft, bits: float, since_s: float
    ) -> None:
        if device.number != number:
            return
        now_s = self.queue.now_s
        device.record.air_hz_s += grant.bandwidth_hz * (now_s - since_s)
        for answer in self.edge.receive(number, message, math.ceil(bits / 8), now_s):
            self._hear(number, answer)
        if not self.edge.wait_s(now_s):  # complete, overdue or empty: else it is as it was
            self._wake()

    def _delay_s(self) -> float:
        behaviour = self.setup.behaviour
        if behaviour.straggler_probability == 0.0:
            return 0.0
        late = self._stragglers.random() < behaviour.straggler_probability
        return behaviour.straggler_delay_s if late else 0.0

    def _token(self) -> str:
        self._tokens += 1
        return f"session-{self._tokens}"

    # The server's loop: what `EdgeServer` does with a real clock ---------------------------------------------------

    def _wake(self) -> None:
        """Have a look once everything of this moment has happened."""
        if not self._looks:
            self._looks = True
            self.queue.at(self.queue.now_s, self._look)

    def _look(self) -> None:
        """Schedule, collect or wait, whichever it is time for."""
        self._looks = False
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
        elif wait_s is not None and self.edge.deadline_s != self._deadline_s:
            self._deadline_s = self.edge.deadline_s
            self.queue.at(self._deadline_s, self._look)

    def _verify(self) -> None:
        batch = self.edge.collect()
        outcomes = self.edge.verify(batch)
        latency_s = batch_verification_s(self.setup.scenario.verifier, batch)
        self._verifying = True

        def done() -> None:
            self._verifying = False
            self.verifying_s += latency_s
            report, messages = self.edge.deliver(batch, outcomes, latency_s, self.queue.now_s)
            self.rounds += bool(report.members)
            for number, message in messages:
                self._hear(number, message)
            self._wake()

        self.queue.at(self.queue.now_s + latency_s + self.setup.behaviour.round_overhead_s, done)


def _drawn(tokens: Whole, generator: np.random.Generator) -> int:
    return tokens if isinstance(tokens, int) else int(generator.integers(tokens[0], tokens[1], endpoint=True))


def _greatest(tokens: Whole) -> int:
    return tokens if isinstance(tokens, int) else tokens[1]


def _channel(behaviour: Behaviour, life: DeviceLife, generator: np.random.Generator) -> Channel:
    if life.link is not None:
        return life.link
    if behaviour.fading == "rayleigh":
        return RayleighChannel(behaviour.coherence_s, generator)
    return ConstantChannel()
