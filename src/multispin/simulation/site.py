"""A site under a virtual clock: the real passes, sessions, controller and estimators, with simulated devices.

Only the clock, the links and the engine are replaced: `Passes` decides everything here that it decides in the server.
A drafted token is RIGHT or WRONG: a device knows which when it drafts (`simulation.acceptance`), and the engine accepts
the leading RIGHT ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice

import numpy as np

from multispin.control.streams import Decide, choose
from multispin.control.texts import Whole
from multispin.errors import InputError
from multispin.passes import (
    EXPIRY_PERIOD_S,
    Batch,
    Beliefs,
    Controller,
    ControllerSettings,
    DraftHere,
    EdgeDraft,
    Passes,
    RoundReport,
)
from multispin.protocol import Chunk, Close, Downlink, Draft, Grant, ProtocolError, Tail
from multispin.protocol.device_stream import DeviceStreaming
from multispin.simulation.acceptance import acceptance_of
from multispin.simulation.beliefs import BoundedBeliefs, TrueBeliefs
from multispin.simulation.clock import EventQueue
from multispin.simulation.device import FINGERPRINT, Drafting, LiveDevice, SimulatedDevice
from multispin.simulation.driver import VirtualDriver
from multispin.simulation.engine import SimulatedEdgeDrafter, SimulatedEngine, batch_verification_s
from multispin.simulation.liars import Liar
from multispin.simulation.live import USUAL_TOKENS, LiveModels
from multispin.simulation.setup import MAX_TOKENS, Behaviour, DeviceLife, Setup
from multispin.simulation.uplink import (
    Air,
    Channel,
    ConstantChannel,
    FrequencyDivision,
    RayleighChannel,
    TimeDivision,
    in_turns,
)
from multispin.speculation import Engine, Failure, Finding

MAX_COMINGS_PER_PASS = 100
"""How often a device may come between two passes, on average: with longer passes a run would not end."""


class Site(VirtualDriver):
    """One edge and its devices under a virtual clock.

    Args:
        setup: the site, and what happens to it.
        policy: how the edge plans.
        seed: seed of everything that is drawn.
        knows: whether the controller knows the truth or learns it; default False.
        replan_tolerance: how far estimates may drift before it plans anew (`ControllerSettings`); default that of
            `ControllerSettings`.
        live: real models that write the texts, in place of acceptance rates; default None.
        knows_acceptance: whether the truth that it knows includes acceptance; default True.
        mode: who drafts (`ControllerSettings`); by default the devices do, as the policy says.
        lies: devices that do not do as they should, by their place in the scenario (`simulation.liars`); default None.
        decide: decides in streams who rides in a pass; default `control.streams.choose`.

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
        mode: str = "rounds",
        lies: Mapping[int, str] | None = None,
        decide: Decide = choose,
    ) -> None:
        self.queue = EventQueue()
        self.setup = setup
        scenario, behaviour = setup.scenario, setup.behaviour
        self._models = live
        if live is not None and behaviour.distributions:
            raise InputError("simulation.distributions does not work with real models: leave one of the two out")
        slots = behaviour.slots or len(scenario.devices)
        longest = _greatest(behaviour.tokens_per_request or USUAL_TOKENS)
        self.engine: Engine = SimulatedEngine(slots) if live is None else live.engine(slots, longest)
        settings = _settings(setup, policy, replan_tolerance, mode, live is None)
        drafter = SimulatedEdgeDrafter(scenario, seed) if settings.edge_drafts and mode != "rounds" else None
        self._edge_drafter = drafter
        self._present: dict[int, SimulatedDevice] = {}
        self.controller = Controller(settings, self._beliefs(mode, knows, knows_acceptance))
        passes = Passes(
            self.engine,
            self.controller,
            FINGERPRINT,
            setup.edge_limits(),
            new_token=self._token,
            edge_drafter=drafter,
            decide=decide,
        )
        super().__init__(self.queue, passes)
        self._tokens = 0
        self.rounds = 0
        self._comings = 0  # of devices, since the last pass that decided anything
        self.verifying_s = 0.0
        self.air: Air = TimeDivision() if in_turns(scenario) else FrequencyDivision()
        self._watching = False  # whether a look for lost devices is due
        self._stragglers = np.random.default_rng([seed, 2**31, 1])
        self.devices = [self._device(k, seed, longest, lies or {}) for k in range(len(scenario.devices))]
        self._expect_all(np.random.default_rng([seed, 2**31]))

    def run(self, rounds: int, progress: Callable[[int], None] = lambda _: None) -> None:
        """Go on until so many rounds have been verified, or nothing is left to happen.

        Args:
            rounds: number of verified rounds or passes at which it stops.
            progress: function that is called now and then with their number; by default none.

        """
        told = self.rounds
        while self.rounds < rounds and self.queue.step():
            if self.rounds >= told + 10:
                told = self.rounds
                progress(told)
        progress(self.rounds)

    def _beliefs(self, mode: str, knows: bool, knows_acceptance: bool) -> Beliefs:
        """The controller's beliefs: the truth, or what it learns."""
        scenario, frame_bits = self.setup.scenario, self.setup.behaviour.frame_bits
        if not knows:
            return BoundedBeliefs(scenario, self._present, frame_bits, mode != "rounds")
        return TrueBeliefs(scenario, self._present, self._now_s, knows_acceptance, frame_bits)

    # Devices ------------------------------------------------------------------------------------------------------

    def _device(self, place: int, seed: int, longest: int, lies: Mapping[int, str]) -> SimulatedDevice:
        """The device at a place of the scenario; `longest` is the longest text, prompt included [tokens]."""
        scenario, behaviour, life = self.setup.scenario, self.setup.behaviour, self.setup.lives[place]
        truth, cell = scenario.devices[place], scenario.cell
        bits = cell.bits_per_token if truth.bits_per_token is None else truth.bits_per_token
        # Three sources, so that what happens to a device is the same under every policy.
        lucky, fading, living = (np.random.default_rng([seed, place, use]) for use in range(3))
        acceptance = acceptance_of(truth, life.traces, lucky)
        channel = _channel(behaviour, life, fading)
        what = (truth, cell, bits, channel, acceptance, living, self.queue, behaviour.distributions)
        if place in lies:
            return Liar(lies[place], self._deadline_s, self._now_s, *what)
        if self._models is None:
            return SimulatedDevice(*what)
        texts = self._models.fitting(longest)
        prompts = islice(cycle(texts), int(living.integers(len(texts))), None)
        return LiveDevice(self._models.drafter_for(longest), prompts, *what)

    def _expect_all(self, generator: np.random.Generator) -> None:
        """Put into the queue when each device comes; times between arrivals are drawn where the scenario says so."""
        arrival_s, arrivals_per_s = 0.0, self.setup.behaviour.arrivals_per_s
        for device, life in zip(self.devices, self.setup.lives, strict=True):
            if arrivals_per_s is not None:
                arrival_s += float(generator.exponential(1.0 / arrivals_per_s))
            self._live(device, life, life.arrives_s + arrival_s)

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
        self._comings += 1
        if self._comings > MAX_COMINGS_PER_PASS * len(self.devices):
            raise InputError(
                f"devices came {self._comings} times while no pass ended: simulation.mean_stay_s is too short for "
                "the time of a pass, or all texts are written"
            )
        stay_s = self.setup.behaviour.mean_stay_s
        if stay_s is not None:
            number, until_s = device.number, self.queue.now_s + float(device.generator.exponential(stay_s))
            self.queue.at(until_s, lambda: self._leave(device, back=True) if device.number == number else None)

    def _join(self, device: SimulatedDevice) -> None:
        number, answers = self.passes.connect(device.greet(), self.queue.now_s)
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
            self.passes.receive(device.number, Close(device.number), 0, self.queue.now_s)
            self._forget(device)
        if not device.gone and away_s is not None:
            self.queue.at(self.queue.now_s + float(device.generator.exponential(away_s)), lambda: self._arrive(device))
        self.wake()

    def _lose(self, device: SimulatedDevice) -> None:
        """A device vanishes; the edge hears no more than a broken connection."""
        device.gone = True
        if device.number is not None:
            self.passes.disconnect(device.number, self.queue.now_s)
            self._forget(device, keep=True)
            if not self._watching:
                self._watching = True
                self.queue.at(self.queue.now_s + EXPIRY_PERIOD_S, self._watch)
        self.wake()

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
        for number in self.passes.expire(self.queue.now_s):
            device = self._present.pop(number)
            if device.number == number:  # a straggler that was let go: it greets anew and begins its next request
                self._present[number] = device
                self._forget(device)
                self._join(device)
        self.wake()

    def _request(self, device: SimulatedDevice) -> None:
        behaviour = self.setup.behaviour
        prompt = _drawn(behaviour.prompt_tokens, device.generator)
        endless = MAX_TOKENS if self._models is None else USUAL_TOKENS
        recorded = device.acceptance.next_text() if self._models is None else None
        tokens = recorded or _drawn(behaviour.tokens_per_request or endless, device.generator)
        assert device.number is not None
        self.passes.receive(device.number, device.begin(prompt, tokens, self.queue.now_s), 0, self.queue.now_s)
        self.wake()

    def tell(self, number: int, message: Downlink) -> None:
        """Send a message to a device. The downlink takes its one-way delay and nothing else (eq. 9)."""
        device = self._present[number]
        if device.away:
            return
        on = device.losses, device.record.requests
        if device.truth.delay_s > 0.0:
            heard_s = self.queue.now_s + device.truth.delay_s
            self.queue.at(heard_s, partial(self._hear, number, device, message, on))
        else:
            self._hear(number, device, message, on)

    def _hear(self, number: int, device: SimulatedDevice, message: Downlink, on: tuple[int, int]) -> None:
        """Hand a message to its device, unless the connection was lost or the text that it is about has ended."""
        if device.number != number or (device.losses, device.record.requests) != on:
            return
        if device.session.joined and _says_nothing(message):  # passes go on, and a draft under way is still awaited
            return
        device.hear(message, self.queue.now_s)
        if (away_s := device.breaks_off(message)) is not None:
            device.lose()
            self.passes.disconnect(number, self.queue.now_s)
            self.queue.at(self.queue.now_s + away_s, partial(self._resume, number, device))
            self.wake()
            return
        if (grant := device.session.grant) is not None:
            device.listen(self.queue.now_s)  # a round begins
        if device.session.finish:
            device.record.drop()  # a draft that came too late for its text
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
        elif grant is not None and grant.length > 0 and device.session.joined:  # else its Tail says what is wanted
            self._draft(number, device, grant)
        else:
            self._stream_on(number, device)

    def _resume(self, number: int, device: SimulatedDevice) -> None:
        """A device whose connection was lost is there again; what was on its way to it is lost."""
        if device.number != number:
            return
        device.away = False
        _, answers = self.passes.connect(device.session.greet(), self.queue.now_s)
        for answer in answers:
            self.tell(number, answer)
        self.wake()

    # Streams ------------------------------------------------------------------------------------------------------

    def _stream_on(self, number: int, device: SimulatedDevice) -> None:
        """Let a device draft on, or begin anew where the text has gone another way."""
        free_s = device.diverted(self.queue.now_s)
        if free_s is not None and free_s > self.queue.now_s:
            self.queue.at(free_s, partial(self._stream_on, number, device))
            return
        if device.number == number and (drafting := device.draft_on(self.queue.now_s)) is not None:
            done_s = self.queue.now_s + drafting.count * device.truth.seconds_per_token + self._delay_s()
            self.queue.at(done_s, partial(self._streamed, number, device, drafting))

    def _streamed(self, number: int, device: SimulatedDevice, drafting: Drafting) -> None:
        """A device has drafted some tokens of its stream."""
        if device.number != number or device.drafting is not drafting:  # gone, or it has begun anew
            return
        for chunk in device.drafted(drafting):
            self._send_chunk(number, device, chunk)
        self._stream_on(number, device)

    def _send_chunk(self, number: int, device: SimulatedDevice, chunk: Chunk) -> None:
        stage = device.session.stage
        if not isinstance(stage, DeviceStreaming):
            return
        band_hz = stage.window.bandwidth_hz
        bits = chunk.length * device.bits_per_token + self.setup.behaviour.frame_bits
        if band_hz > 0.0:  # else it never leaves
            on = device.losses, device.record.requests
            left = partial(self._chunk_left, number, device, chunk, bits, band_hz, on)
            device.frames.send(bits, band_hz, left, device.late_s())

    def _chunk_left(
        self, number: int, device: SimulatedDevice, chunk: Chunk, bits: float, band_hz: float, on: tuple[int, int],
        air_s: float,
    ) -> None:  # fmt: skip
        device.record.air_hz_s += band_hz * air_s
        arrived = partial(self._arrived, number, device, chunk, bits, on)
        self.queue.at(self.queue.now_s + device.truth.delay_s, arrived)

    def _draft(self, number: int, device: SimulatedDevice, grant: Grant) -> None:
        message, draft_s = device.draft(grant)
        if math.isinf(draft_s):
            return
        ready_s = self.queue.now_s + draft_s + self._delay_s()
        if isinstance(self.air, TimeDivision):  # the device that is ready first sends first
            self.queue.at(ready_s, partial(self._send, number, device, grant, message, ready_s))
        else:
            self._send(number, device, grant, message, ready_s)

    def _send(self, number: int, device: SimulatedDevice, grant: Grant, message: Draft, ready_s: float) -> None:
        if device.number != number:
            return
        bits = message.length * device.bits_per_token + self.setup.behaviour.frame_bits
        begins_s, leaves_s = self.air.send(device.heard, ready_s, bits, grant.bandwidth_hz)
        if math.isfinite(leaves_s):
            on = device.losses, device.record.requests
            used_hz_s = grant.bandwidth_hz * (leaves_s - begins_s)
            arrived = partial(self._arrived, number, device, message, bits, on, used_hz_s)
            self.queue.at(leaves_s + device.truth.delay_s, arrived)

    def _arrived(
        self, number: int, device: SimulatedDevice, message: Chunk | Draft, bits: float, on: tuple[int, int],
        used_hz_s: float = 0.0,
    ) -> None:  # fmt: skip
        """Hand what was drafted to the edge; a device that breaks the protocol is sent away, and greets anew."""
        if device.number != number:
            return
        device.record.air_hz_s += used_hz_s
        if (device.losses, device.record.requests) != on:  # its text has ended without it, or the connection broke
            return
        now_s = self.queue.now_s
        try:
            answers = self.passes.receive(number, message, math.ceil(bits / 8), now_s)
        except ProtocolError:
            self.passes.leave(number)
            self._forget(device)
            self._join(device)
            return
        for answer in answers:
            self.tell(number, answer)
        if not self.passes.waits(now_s):
            self.wake()

    def _delay_s(self) -> float:
        behaviour = self.setup.behaviour
        if behaviour.straggler_probability == 0.0:
            return 0.0
        late = self._stragglers.random() < behaviour.straggler_probability
        return behaviour.straggler_delay_s if late else 0.0

    def _token(self) -> str:
        self._tokens += 1
        return f"session-{self._tokens}"

    # What the driver asks ------------------------------------------------------------------------------------------

    def reported(self, report: RoundReport) -> None:
        """Count the passes that decided anything."""
        self.rounds += bool(report.members)
        if report.members:
            self._comings = 0

    def pass_s(self, batch: Batch) -> tuple[float, float]:
        """The scenario's time of a verification; its verdicts wait for what the edge does beside."""
        verify_s = batch_verification_s(self.setup.scenario.verifier, batch)
        return verify_s, verify_s + self.setup.behaviour.round_overhead_s

    def verified(self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float) -> None:
        """Count the engine's time."""
        self.verifying_s += verify_s
        super().verified(batch, findings, verify_s)

    def draft_here(self, step: DraftHere) -> tuple[list[EdgeDraft], float]:
        """The scenario's edge drafter; how many tokens are right is drawn."""
        assert self._edge_drafter is not None
        drafts = [self._edge_drafter.draft_for(self._present[each.session].truth, each.ask) for each in step.asks]
        return drafts, self._edge_drafter.draft_s([each.ask.length for each in step.asks])

    def _now_s(self) -> float:
        return self.queue.now_s

    def _deadline_s(self) -> float:
        return self.passes.deadline_s


def _settings(
    setup: Setup, policy: str, replan_tolerance: float, mode: str, edge_may_draft: bool
) -> ControllerSettings:
    cell = setup.scenario.cell
    return ControllerSettings(
        policy,
        cell.bandwidth_hz,
        math.ceil(cell.bits_per_token),
        cell.max_draft_length,
        replan_tolerance,
        setup.behaviour.frame_bits,
        cell.multiple_access,
        mode,
        setup.scenario.edge_drafter is not None and edge_may_draft,
    )


def _says_nothing(message: Downlink) -> bool:
    """Whether a message only shows that passes go on."""
    return isinstance(message, Tail) and not (message.count or message.grant or message.finish)


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
