"""Devices that lie, stall or fall silent: what one such peer can cost the others (`benchmarks/bench_liars.py`)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from msgspec import structs

from multispin.protocol import Chunk, Commit, Downlink, Draft, Grant, Profile, Verdict
from multispin.simulation.device import WRONG, Drafting, SimulatedDevice
from multispin.speculation import pack_ids, unpack_ids

LIES = {
    "claims 3,600 s per token, silent": "says that it is slow, and never answers",
    "claims 1e-9 bit/s/Hz, silent": "says that its link is bad, and never answers",
    "claims 3,600 s per token": "says that it is slow, and is not",
    "claims 1e-9 bit/s/Hz": "says that its link is bad, and it is not",
    "falls silent": "answers twenty grants and no more",
    "0.4 s late": "answers every grant 0.4 s late",
    "just under the deadline": "knows each deadline and answers 1 ms before it",
    "feels for the deadline": "is a little later with each draft, until one has missed its round, and then less late",
    "claims to be 100 times faster": "says so at first and in each draft",
    "100 times slower than it claims": "drafts 100 times slower than it says at first and in each draft",
    "drafts nothing": "answers every grant at once, with an empty draft",
    "says that a draft took an hour": "answers in time, and says so",
    "never right": "none of its tokens is accepted",
    "stalls": "is 2 s late with every third draft",
    "right, then never right": "none of its tokens is accepted after the thirtieth draft",
    "quick, then 0.4 s late": "answers 0.4 s late after the thirtieth draft",
    "drafts one token": "answers every grant with one token; in streams it drafts as told",
    "claims to be 100 times faster, drafts one token": "so that it is granted much and uses little",
    "says that drafts take no time": "at first and in each draft",
    "claims a perfect link": "says 1,000 bit/s/Hz, and has an ordinary link",
    "claims a link 30 times worse": "so that a plan gives it much of the band",
    "right and wrong in turns": "none of its tokens is accepted in every other thirty drafts",
    "quick and late in turns": "is 0.4 s late in every other thirty drafts",
    "answers every second grant": "and in streams sends every second chain",
    "silent for ten drafts in twenty": "and in streams goes on with the chain that it left out a part of",
    "comes back at each verdict": "its connection breaks when it has heard one, and it resumes at once",
    "away at each verdict": "the same, and it is away for 0.3 s",
    "right in the first token only": "the rest of each draft costs the engine and brings nothing",
    "later and later": "each draft is 10 ms later than the one before, up to 2 s, and then it begins anew",
    "says an hour and no time in turns": "of its drafting, which takes as long as ever",
    "a frame for each token": "sends each token of a stream by itself, however many it is told to send together",
}
"""Kinds of peers, and their meaning. In streams a frame takes the place of a draft. They have no deadlines:
there "just under the deadline" is 0.4 s late, and "feels for the deadline" just in time."""

LIAR_DELAY_S = 0.4
FELT_S = 0.05
FELT_MORE, FELT_LESS = 1.05, 0.8
AWAY_S = 0.3
STALL_S = 2.0
LATER_S = 0.01
HOUR_US = 3_600_000_000
MARGIN_S = 1e-3
ANSWERED = 20
PAUSES = 10
TURNS = 30
"""A peer that turns bad is honest for this many drafts."""
_LATER = ("quick, then 0.4 s late", "right, then never right")
_IN_TURNS = ("quick and late in turns", "right and wrong in turns")


class Liar(SimulatedDevice):
    """A device that does one of `LIES`.

    Args:
        lie: kind of lie, one of `LIES`.
        deadline_s: function that returns when the round under way ends without it [s].
        now_s: function that returns the time [s].
        more: as for a simulated device.

    """

    def __init__(self, lie: str, deadline_s: Callable[[], float], now_s: Callable[[], float], *more: Any) -> None:
        super().__init__(*more)
        self._lie, self._deadline_s, self._now_s = lie, deadline_s, now_s
        self._drafts = 0
        self._felt_s, self._round = FELT_S, 0
        said = self._hello.profile
        if lie.startswith("claims 3,600 s"):
            said = Profile(3600.0, said.spectral_efficiency)
        elif lie.startswith("claims 1e-9"):
            said = Profile(said.seconds_per_token, 1e-9)
        elif lie == "claims a perfect link":
            said = Profile(said.seconds_per_token, 1000.0)
        elif lie == "claims a link 30 times worse":
            said = Profile(said.seconds_per_token, said.spectral_efficiency / 30.0)
        elif lie == "says that drafts take no time":
            said = Profile(1e-9, said.spectral_efficiency)
        elif lie.startswith("claims to be"):
            said = Profile(said.seconds_per_token / 100.0, said.spectral_efficiency)
        elif lie.startswith("100 times slower"):
            self.truth = self.heard = replace(self.truth, seconds_per_token=100.0 * said.seconds_per_token)
        self._hello = structs.replace(self._hello, profile=said)

    def draft(self, grant: Grant) -> tuple[Draft, float]:
        """Answer a grant, or do not."""
        self._drafts += 1
        if self._lie == "drafts nothing":
            return self.session.answer([], 0.0), 0.0
        message, draft_s = super().draft(grant)
        match self._lie:
            case "0.4 s late":
                return message, draft_s + LIAR_DELAY_S
            case "quick, then 0.4 s late" | "quick and late in turns" if self._has_turned:
                return message, draft_s + LIAR_DELAY_S
            case "answers every second grant" if self._drafts % 2 == 0:
                return message, math.inf
            case "says that drafts take no time":
                return structs.replace(message, draft_us=0), draft_s
            case "says an hour and no time in turns":
                return structs.replace(message, draft_us=self._said_in_turns), draft_s
            case "later and later":
                return message, draft_s + self._later_s
            case "feels for the deadline":
                return message, draft_s + self._feel(message.round)
            case "just under the deadline":
                return message, max(draft_s, self._deadline_s() - self._now_s() - MARGIN_S)
            case "falls silent" if self._drafts > ANSWERED:
                return message, math.inf
            case "silent for ten drafts in twenty" if self._drafts // PAUSES % 2:
                return message, math.inf
            case "stalls" if self._drafts % 3 == 0:
                return message, draft_s + STALL_S
            case "says that a draft took an hour":
                return structs.replace(message, draft_us=HOUR_US), draft_s
            case "claims to be 100 times faster" | "100 times slower than it claims":
                return structs.replace(message, draft_us=message.draft_us // 100), draft_s
        return message, math.inf if self._lie.endswith("silent") else draft_s

    def _feel(self, number: int) -> float:
        """How late it dares to be with its draft of a round [s]: if the round before went on without it, less late."""
        self._felt_s *= FELT_MORE if number <= self._round + 1 else FELT_LESS
        self._round = number
        return self._felt_s

    # Streams ------------------------------------------------------------------------------------------------------

    def drafted(self, drafting: Drafting) -> list[Chunk]:
        """The frames of a stream, as far as they are sent, and what they say."""
        frames = super().drafted(drafting)
        self._drafts += len(frames)
        match self._lie:
            case "drafts nothing":
                return []
            case "falls silent" if self._drafts > ANSWERED:
                return []
            case "silent for ten drafts in twenty" if self._drafts // PAUSES % 2:
                return []
            case "says that a draft took an hour":
                return [structs.replace(frame, draft_us=HOUR_US) for frame in frames]
            case "claims to be 100 times faster" | "100 times slower than it claims":
                return [structs.replace(frame, draft_us=frame.draft_us // 100) for frame in frames]
            case "says that drafts take no time":
                return [structs.replace(frame, draft_us=0) for frame in frames]
            case "says an hour and no time in turns":
                return [structs.replace(frame, draft_us=self._said_in_turns) for frame in frames]
            case "answers every second grant":
                return [frame for frame in frames if frame.epoch % 2]
            case "a frame for each token":
                return [single for frame in frames for single in self._singles(frame)]
        return [] if self._lie.endswith("silent") else frames

    def late_s(self) -> float:
        """How long it holds back a frame of a stream, and those behind it [s]."""
        if self._lie in ("0.4 s late", "just under the deadline") or (
            self._lie.startswith("quick") and self._has_turned
        ):
            return LIAR_DELAY_S
        if self._lie == "stalls" and self._drafts % 3 == 0:
            return STALL_S
        return self._later_s if self._lie == "later and later" else 0.0

    def _singles(self, frame: Chunk) -> list[Chunk]:
        """A frame as one for each of its tokens."""
        welcome = self.session.welcome
        assert welcome is not None
        size = welcome.vocabulary_size
        return [
            Chunk(frame.epoch, frame.start + place, 1, pack_ids([token], size), frame.draft_us // frame.length)
            for place, token in enumerate(unpack_ids(frame.ids, frame.length, size))
        ]

    def breaks_off(self, message: Downlink) -> float | None:
        """How long it is away after a message [s]; None if its connection holds."""
        if isinstance(message, Verdict | Commit) and not message.finish:
            return {"comes back at each verdict": 0.0, "away at each verdict": AWAY_S}.get(self._lie)
        return None

    @property
    def _has_turned(self) -> bool:
        """Whether it is bad by now, if it is one that turns."""
        if self._lie in _IN_TURNS:
            return self._drafts // TURNS % 2 == 1
        return self._lie in _LATER and self._drafts > TURNS

    @property
    def _later_s(self) -> float:
        return self._drafts * LATER_S % STALL_S

    @property
    def _said_in_turns(self) -> int:
        return HOUR_US if self._drafts % 2 else 0

    @property
    def _is_wrong(self) -> bool:
        return self._lie == "never right" or (self._lie.startswith("right") and self._has_turned)

    def _chain(self, drafting: Drafting) -> list[int]:
        return self._spoilt(super()._chain(drafting))

    def _ids(self, length: int) -> list[int]:
        length = min(1, length) if self._lie.endswith("drafts one token") else length
        return self._spoilt(super()._ids(length))

    def _spoilt(self, ids: list[int]) -> list[int]:
        """The peer's own tokens, made from the right ones."""
        right = 1 if self._lie == "right in the first token only" else 0 if self._is_wrong else len(ids)
        return ids[:right] + [WRONG] * (len(ids) - right)
