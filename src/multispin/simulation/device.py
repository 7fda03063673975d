"""A simulated device: the real session around a draft of known outcome, and a record of what came of it."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multispin.control import Cell, Device
from multispin.protocol import (
    PROTOCOL_VERSION,
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
from multispin.simulation.acceptance import Acceptance
from multispin.simulation.uplink import Channel
from multispin.speculation import Drafter, SamplingParams

RIGHT, WRONG = 0, 1
FINGERPRINT = "simulated"
_PROFILED_HZ = 1e6
"""Band for which a device whose rate is limited by a noise density states its spectral efficiency at first."""


@dataclass
class DeviceRecord:
    """What a device did. Every drafted token is accepted, rejected or dropped once, or under way.

    Attributes:
        name: the device's name.
        drafted: number of drafted tokens.
        accepted: number of them that were accepted.
        rejected: number of them that were verified and not accepted, or lay beyond the end of the request.
        dropped: number of them that were never answered, because the device had gone.
        under_way: number of them that are not answered yet.
        tokens: tokens of text, recovered and bonus tokens included.
        times_s: times at which text came, one per verdict [s].
        counts: number of tokens that came at each of these times.
        gaps_s: time since the verdict before, or since the request was opened, for each of them [s].
        first: which of the verdicts were the first of a request.
        requests: requests that were finished.
        drafting_s: time spent drafting.
        air_hz_s: band times time spent uploading drafts that arrived.
        present_s: time spent at the site, up to `arrived_s` if it is there.
        arrived_s: when it came last.

    """

    name: str
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    dropped: int = 0
    under_way: int = 0
    tokens: int = 0
    times_s: "array[float]" = field(default_factory=lambda: array("d"))
    counts: "array[int]" = field(default_factory=lambda: array("B"))
    gaps_s: "array[float]" = field(default_factory=lambda: array("d"))
    first: "array[int]" = field(default_factory=lambda: array("L"))
    requests: int = 0
    drafting_s: float = 0.0
    air_hz_s: float = 0.0
    present_s: float = 0.0
    arrived_s: float = 0.0

    def leave(self, now_s: float) -> None:
        """The device goes: what is under way will not be answered."""
        self.present_s += now_s - self.arrived_s
        self.drop()

    def drop(self) -> None:
        """What is under way will not be answered."""
        self.dropped += self.under_way
        self.under_way = 0


class SimulatedDevice:
    """A device: drafts at its speed, with its luck.

    Attributes:
        truth: what it is like.
        heard: the same as this round's channel lets it be heard.
        number: of its session; None while it is not at the site.
        gone: whether it will not come back.

    Args:
        truth: what it is like.
        cell: where it is.
        bits_per_token: payload of a drafted token.
        channel: its radio channel.
        acceptance: its luck.
        generator: draws what happens to it.

    """

    def __init__(
        self,
        truth: Device,
        cell: Cell,
        bits_per_token: float,
        channel: Channel,
        acceptance: Acceptance,
        generator: np.random.Generator,
    ) -> None:
        self.truth = self.heard = truth
        self.bits_per_token = bits_per_token
        self.acceptance = acceptance
        self.generator = generator
        self.record = DeviceRecord(truth.name)
        self.number: int | None = None
        self.gone = False
        self._channel = channel
        drafts = truth.max_draft_length is None or truth.max_draft_length > 0
        profile = Profile(truth.seconds_per_token, truth.efficiency_at(_PROFILED_HZ))
        self._hello = Hello(PROTOCOL_VERSION, FINGERPRINT, truth.name[:80], "simulated", drafts, profile)
        self.session = DeviceSession(self._hello)
        self._waits_since_s = 0.0
        self._listened_s = -1.0
        self._begun = True

    def greet(self) -> Hello | Resume:
        """Come to the site as a new device."""
        self.session = DeviceSession(self._hello)
        return self.session.greet()

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
        self.session.begin(Request(tuple(self._prompt(prompt_tokens)), SamplingParams(), tokens))
        self._waits_since_s, self._begun = now_s, False
        return self.session.open()

    def draft(self, grant: Grant) -> tuple[Draft, float]:
        """Answer a grant: the draft, and the time that it takes [s]."""
        ids = self._ids(grant.length)
        draft_s = len(ids) * self.truth.seconds_per_token
        self.record.drafted += len(ids)
        self.record.under_way += len(ids)
        self.record.drafting_s += draft_s
        return self.session.answer(ids, draft_s), draft_s

    def _prompt(self, length: int) -> list[int]:
        return [RIGHT] * length

    def _ids(self, length: int) -> list[int]:
        session = self.session
        right = self.acceptance.right(len(session.committed) - session.prompt_tokens, length)
        return [RIGHT] * right + [WRONG] * (length - right)

    def hear(self, message: Downlink, now_s: float) -> None:
        """Take in a message and note what it brings."""
        progress, record = self.session.receive(message), self.record
        if isinstance(message, Tail):  # the draft under way was stale
            record.drop()
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


class LiveDevice(SimulatedDevice):
    """A device that drafts with a real drafter, on real prompts.

    Args:
        drafter: its own.
        prompts: as ids, the first of them first; without end.
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
