"""A simulated device: the real session around a draft of known outcome, and a record of what came of it."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from multispin.control import Cell, Device
from multispin.protocol import (
    PROTOCOL_VERSION,
    Chunk,
    DeviceSession,
    Downlink,
    Draft,
    Grant,
    Hello,
    Open,
    Profile,
    Request,
    Resume,
    Tail,
)
from multispin.protocol.device_stream import DeviceStreaming
from multispin.simulation.acceptance import Acceptance, acceptance_of
from multispin.simulation.clock import EventQueue
from multispin.simulation.uplink import Channel, FrameQueue
from multispin.speculation import (
    ID_RULES,
    DistributionFormat,
    Drafter,
    Rule,
    SamplingParams,
    TruncatedDistribution,
)

RIGHT, WRONG = 0, 1
FINGERPRINT = "simulated"
_PROFILED_HZ = 1e6
"""Band for which a device whose rate is limited by a noise density states its spectral efficiency at first."""


@dataclass(slots=True)
class DeviceRecord:
    """Counts of a device. Every drafted token is accepted, rejected, dropped or wasted once, or under way.

    Attributes:
        name: name of the device.
        drafted: number of drafted tokens.
        accepted: number of them that were accepted.
        rejected: number of them that were verified and not accepted, or lay beyond the end of the request.
        dropped: number of them that were never answered, because the device had gone.
        wasted: number of them that were drafted ahead in a stream and never verified, because the text said something
            else before, or said the same already.
        under_way: number of them that are not answered yet.
        tokens: tokens of text, recovered and bonus tokens included.
        times_s: times at which text came, one per verdict [s].
        counts: number of tokens that came at each of these times.
        gaps_s: time since the verdict before, or since the request was opened, for each of them [s].
        first: which of the verdicts were the first of a request.
        requests: requests that were finished.
        drafting_s: time spent drafting, up to `busy_until_s` [s].
        busy_until_s: when the drafting ends that `drafting_s` counts [s].
        air_hz_s: band times time spent uploading drafts that arrived [Hz s].
        present_s: time spent at the site [s], up to `arrived_s` if it is there.
        arrived_s: when it came last [s].

    """

    name: str
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    dropped: int = 0
    wasted: int = 0
    under_way: int = 0
    tokens: int = 0
    times_s: "array[float]" = field(default_factory=lambda: array("d"))
    counts: "array[int]" = field(default_factory=lambda: array("B"))
    gaps_s: "array[float]" = field(default_factory=lambda: array("d"))
    first: "array[int]" = field(default_factory=lambda: array("L"))
    requests: int = 0
    drafting_s: float = 0.0
    busy_until_s: float = 0.0
    air_hz_s: float = 0.0
    present_s: float = 0.0
    arrived_s: float = 0.0

    def drafts(self, from_s: float, to_s: float) -> None:
        """It drafts between these times; a time that is counted already counts once."""
        self.drafting_s += max(0.0, to_s - max(from_s, self.busy_until_s))
        self.busy_until_s = max(to_s, self.busy_until_s)

    def drafted_s(self, now_s: float) -> float:
        """Time spent drafting so far, without what the present draft will take yet [s]."""
        return self.drafting_s - max(0.0, self.busy_until_s - now_s)

    def leave(self, now_s: float) -> None:
        """The device goes: what is under way will not be answered, and what it drafts is not finished."""
        self.present_s += now_s - self.arrived_s
        self.drafting_s, self.busy_until_s = self.drafted_s(now_s), min(self.busy_until_s, now_s)
        self.drop()

    def drop(self) -> None:
        """Count all that is under way as dropped: it will not be answered."""
        self.dropped += self.under_way
        self.under_way = 0


@dataclass
class Drafting:
    """Tokens that a device is drafting in a stream, one after the other.

    Attributes:
        epoch: number of the chain that they continue.
        start: position of the first of them in the text.
        since_s: when the first was begun [s].
        count: number of tokens to draft.

    """

    epoch: int
    start: int
    since_s: float
    count: int


class SimulatedDevice:
    """A device: drafts at its speed, with its luck.

    Attributes:
        truth: true speed, link and acceptance of the device.
        heard: the same as this round's channel lets it be heard.
        number: number of its session; None while it is not at the site.
        away: whether its connection is lost.
        losses: how often it was lost; what was on its way then never arrives.
        frames: its frames of streams that have not left.
        gone: whether it will not come back.

    Args:
        truth: true speed, link and acceptance of the device.
        cell: the shared uplink.
        bits_per_token: payload of a drafted token.
        channel: radio channel of the device.
        acceptance: source of accepted and rejected tokens.
        generator: draws what happens to it.
        events: queue of events with the virtual clock.
        distributions: whether its drafts carry distributions, by the rule `rejection`; default no.

    """

    def __init__(
        self,
        truth: Device,
        cell: Cell,
        bits_per_token: float,
        channel: Channel,
        acceptance: Acceptance,
        generator: np.random.Generator,
        events: EventQueue,
        distributions: bool = False,
    ) -> None:
        self.truth = self.heard = truth
        self.bits_per_token = bits_per_token
        self.acceptance = acceptance
        self.generator = generator
        self._params, self._rule = SamplingParams(), Rule.GREEDY
        if distributions:
            self._params, self._rule = SamplingParams(temperature=1.0), Rule.REJECTION
        self.record = DeviceRecord(truth.name)
        self.number: int | None = None
        self.away = False
        self.losses = 0
        self.gone = False
        self._channel, self._events = channel, events
        drafts = truth.max_draft_length is None or truth.max_draft_length > 0
        profile = Profile(truth.seconds_per_token, truth.efficiency_at(_PROFILED_HZ))
        self._hello = Hello(PROTOCOL_VERSION, FINGERPRINT, truth.name[:80], "simulated", drafts, profile)
        self.session = DeviceSession(self._hello)
        self._waits_since_s = 0.0
        self._listened_s = -1.0
        self._begun = True
        self.frames = FrameQueue(events, lambda: self.listen(events.now_s))
        self._lost_chain = -1  # epoch of the newest chain with a wrong token
        self._free_s = 0.0  # time until which it is busy with a wasted token
        self.drafting: Drafting | None = None

    def becomes(self, truth: Device) -> None:
        """Be another device from now on: its drafter warms up, its text changes, its link gets worse.

        What it says of itself in its drafts follows; what it said when it came does not. Frames of a stream that have
        not left go at the speed of its new link; a draft of a round that is on the air arrives as it would have.

        Args:
            truth: what it is like from now on.

        """
        self.truth = self.heard = truth
        self._listened_s = -1.0
        self.acceptance = acceptance_of(truth, None, self.generator)
        self.frames.link_changed()

    def greet(self) -> Hello | Resume:
        """Come to the site as a new device; returns its first message."""
        self.session = DeviceSession(self._hello)
        self._lost_chain, self.drafting, self.away = -1, None, False
        return self.session.greet()

    def breaks_off(self, message: Downlink) -> float | None:
        """How long its connection is lost after a message [s]; None: it holds."""
        return None

    def lose(self) -> None:
        """Its connection is lost, with all that is on its way."""
        self.session.lose()
        self.record.drop()
        self.away = True
        self.losses += 1

    def present_s(self, now_s: float) -> float:
        """Time spent at the site so far [s]."""
        return self.record.present_s + (0.0 if self.number is None else now_s - self.record.arrived_s)

    def listen(self, now_s: float) -> Device:
        """The device as its channel lets it be heard in the round that begins now; looked at once per moment."""
        if now_s != self._listened_s:
            self._listened_s = now_s
            self.heard = self._channel.heard(self.truth, now_s)
        return self.heard

    def begin(self, prompt_tokens: int, tokens: int, now_s: float) -> Open:
        """The next request."""
        self.session.begin(Request(tuple(self._prompt(prompt_tokens)), self._params, tokens, rule=self._rule))
        self._waits_since_s, self._begun = now_s, False
        return self.session.open()

    def draft(self, grant: Grant) -> tuple[Draft, float]:
        """Answer a grant: the draft, and the time that it takes [s]."""
        ids = self._ids(grant.length)
        draft_s = len(ids) * self.truth.seconds_per_token
        self.record.drafted += len(ids)
        self.record.under_way += len(ids)
        self.record.drafts(self._events.now_s, self._events.now_s + draft_s)
        sure = [] if self._rule in ID_RULES else [_only(token, self.session.form) for token in ids]
        return self.session.answer(ids, draft_s, sure), draft_s

    # Streams: tokens are drafted some at a time, as many as go into a frame -----------------------------------------

    def draft_on(self, now_s: float) -> "Drafting | None":
        """Begin to draft the tokens of the next frame, if there is room; None if not, or if it drafts already."""
        session = self.session
        stage = session.stage
        if self.drafting is not None or not isinstance(stage, DeviceStreaming) or (room := session.room_ahead) <= 0:
            return None
        held = len(stage.ids)
        count = min(room, max(1, stage.window.chunk - (held - stage.sent)))
        self.drafting = Drafting(session.epoch, len(session.committed) + held, now_s, count)
        return self.drafting

    def drafted(self, drafting: "Drafting") -> list[Chunk]:
        """Take in all tokens that it was drafting; returns the frames to send now."""
        self.drafting = None
        self._take(drafting, drafting.count)
        frames = []
        while (frame := self.session.chunk()) is not None:
            frames.append(frame)
        return frames

    def _take(self, drafting: "Drafting", count: int) -> None:
        """Take in the first `count` of the tokens that it is drafting."""
        session, record = self.session, self.record
        part = replace(drafting, count=count)
        draft_s = count * self.truth.seconds_per_token
        record.drafted += count
        record.under_way += count
        record.drafts(part.since_s, part.since_s + draft_s)
        before = session.wasted
        ids = self._chain(part) if session.epoch == part.epoch else [WRONG] * count
        session.drafted(part.epoch, part.start, ids, draft_s)
        self._waste(session.wasted - before)
        if isinstance(session.stage, DeviceStreaming) and not session.stage.ids:
            self._lost_chain = -1  # the text became another meanwhile, and the next token follows it

    def _keep_what_is_done(self, now_s: float, drafting: Drafting) -> None:
        """Take those of a frame's tokens that are drafted by now, and compare them with the present text."""
        token_s = self.truth.seconds_per_token
        done = min(drafting.count - 1, int((now_s - drafting.since_s) / token_s + 1e-9))
        if done > 0:
            self._take(drafting, done)
            drafting.start += done
            drafting.count -= done
            drafting.since_s += done * token_s

    def diverted(self, now_s: float) -> float | None:
        """When it can start over, if the text differs from what it is drafting or is beyond it [s]; else None.

        A token that has been begun is finished.
        """
        drafting, session = self.drafting, self.session
        if drafting is None:
            return self._free_s if self._free_s > now_s else None
        token_s = self.truth.seconds_per_token
        done = math.ceil((now_s - drafting.since_s) / token_s - 1e-9)
        overtaken = len(session.committed) > drafting.start + done
        if session.epoch == drafting.epoch and not overtaken and isinstance(session.stage, DeviceStreaming):
            return None
        self.drafting = None
        done = min(max(done, 0), drafting.count)
        self.record.drafted += done
        self.record.under_way += done
        self._free_s = drafting.since_s + done * token_s
        self.record.drafts(drafting.since_s, self._free_s)
        self._waste(done)
        return self._free_s

    def late_s(self) -> float:
        """How long it holds back the frame that it drafted last [s]."""
        return 0.0

    def _waste(self, count: int) -> None:
        self.record.under_way -= count
        self.record.wasted += count

    def _chain(self, drafting: "Drafting") -> list[int]:
        """The next tokens of the chain: once one is wrong, all after it are."""
        session, ids = self.session, []
        for place in range(drafting.start, drafting.start + drafting.count):
            ahead = max(0, place - len(session.committed))
            if self._lost_chain != drafting.epoch and not self.acceptance.right_after(
                place - session.prompt_tokens, ahead
            ):
                self._lost_chain = drafting.epoch
            ids.append(WRONG if self._lost_chain == drafting.epoch else RIGHT)
        return ids

    def _prompt(self, length: int) -> list[int]:
        return [RIGHT] * length

    def _ids(self, length: int) -> list[int]:
        session = self.session
        right = self.acceptance.right(len(session.committed) - session.prompt_tokens, length)
        return [RIGHT] * right + [WRONG] * (length - right)

    def hear(self, message: Downlink, now_s: float) -> None:
        """Take in a message and note what it brings."""
        if self.drafting is not None:
            self._keep_what_is_done(now_s, self.drafting)
        progress, record = self.session.receive(message), self.record
        if isinstance(message, Tail):  # the draft under way was stale
            record.drop()
        if progress.wasted:
            self._waste(progress.wasted)
        if not progress.tokens:
            return
        record.under_way -= progress.drafted
        record.accepted += progress.accepted
        record.rejected += progress.drafted - progress.accepted
        record.tokens += len(progress.tokens)
        if not self._begun:
            self._begun = True
            record.first.append(len(record.times_s))
        record.times_s.append(now_s)
        record.counts.append(len(progress.tokens))
        record.gaps_s.append(now_s - self._waits_since_s)
        self._waits_since_s = now_s


@cache
def _only(token: int, form: DistributionFormat) -> TruncatedDistribution:
    """The distribution of a token that is certain, so that the edge draws the same one from it."""
    return TruncatedDistribution(np.array([token]), np.array([form.total]), form)


class LiveDevice(SimulatedDevice):
    """A device that drafts with a real drafter, on real prompts.

    Args:
        drafter: drafter of the device.
        prompts: endless iterator of prompts, each as token ids.
        more: as for a simulated device.

    """

    def __init__(self, drafter: Drafter, prompts: Iterator[Sequence[int]], *more: Any) -> None:
        super().__init__(*more)
        self._drafter = drafter
        self._prompts = prompts

    def _prompt(self, length: int) -> list[int]:
        return list(next(self._prompts))

    def _ids(self, length: int) -> list[int]:
        return self._drafter.draft(self.session.committed, length, self.session.params)

    def _chain(self, drafting: Drafting) -> list[int]:
        return self._drafter.draft(self.session.ahead, drafting.count, self.session.params)
