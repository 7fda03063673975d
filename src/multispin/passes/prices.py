"""Prices of streams: what time is worth at this edge now. A thin shell around `control.worth`.

Prices are found again when sessions have come or gone or beliefs have drifted, but not too often. Meanwhile the last
ones are scaled by the goodput of plain decoding for the present sessions, since time is worth less when three of four
users have left. This file knows nothing of slots, tokens or messages.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from multispin.control import policy_named
from multispin.control.fairness import fairly_weighted
from multispin.control.latency import verification_s
from multispin.control.worth import Price, SessionWorth, Worth, learned_price, worth
from multispin.passes.background import Background
from multispin.passes.beliefs import Beliefs, View
from multispin.passes.planning import Planning, least_period_s
from multispin.passes.plans import Member
from multispin.passes.settings import ControllerSettings

USUAL_PERIOD_S = 2.0
"""Time after which prices are found again even if no session came or went [s], or sooner if beliefs have drifted …"""
DRIFTED = 0.05
"""… by this relative change: of a pass's time, of the edge's drafter or, on average, of the devices."""
LOOKED_AT = 64
"""Number of sessions whose beliefs are compared for that …"""
LOOKS = 8
"""… at most this often within the shortest time between two prices."""
SAME = 0.02
"""Relative difference below which prices count as equal."""
NOTHING = SessionWorth()
"""The prices of a session before its own are known."""


class Prices:
    """The price of time for the present sessions.

    Attributes:
        worth: worth of the engine's and the devices' time when prices were last found; None before.

    Args:
        settings: the operator's settings.
        beliefs: beliefs about sessions, verifier and the edge's drafter.

    """

    def __init__(self, settings: ControllerSettings, beliefs: Beliefs) -> None:
        self._settings = settings
        self._beliefs = beliefs
        self._background: Background[_WorthAndGoodputs] = Background()
        self._fair = policy_named(settings.policy).fair
        self._goodputs: Mapping[str, float] = {}  # goodputs of the best rates by session, for fair weights
        self.worth: Worth | None = None
        self._learned = Price()  # relative to plain decoding of the sessions at the time
        self._promised = Price()  # the same, from the expected results of passes
        self._there = 0  # number of present sessions
        self._plain = math.nan  # goodput of plain decoding for the sessions of `worth` [tokens/s] …
        self._asked_plain = math.nan  # … and for those for which prices are being found
        self._by = math.nan
        self._unscaled: dict[int, SessionWorth] = {}  # at the price of time of the best rates
        self._scaled: dict[int, SessionWorth] = {}  # at the engine's present price
        self._bands_hz: dict[int, float] | None = None
        self._asked_s = -USUAL_PERIOD_S
        self._asked: frozenset[int] = frozenset()
        self._streaming: frozenset[int] = frozenset()  # sessions with a stream
        self._views: list[View] = []  # beliefs at that time
        self._looked_s = -math.inf  # time of the last comparison with them
        self._asks = 0

    def use(self, executor: Executor) -> None:
        """Find prices in another thread from now on, one at a time."""
        self._background.use(executor)

    def learn(self, tokens: float, seconds: float, pass_s: float) -> None:
        """Learn from weighted tokens and the engine time that they took [s]; a pass usually takes `pass_s`."""
        self._learned = learned_price(self._learned, tokens / self._plain_now(), seconds, pass_s)
        self._scale_sessions()

    def promise(self, tokens: float, seconds: float, pass_s: float) -> None:
        """Learn from a pass that begins: its expected weighted tokens, and its time with the wait before it [s].

        Expected tokens count, not actual ones, since chance and the time of prompts would hide what devices add.
        """
        self._promised = learned_price(self._promised, tokens / self._plain_now(), seconds, pass_s)
        self._scale_sessions()

    def look(self, sessions: Mapping[int, int], edge_rooms: bool, now_s: float) -> None:
        """Begin to find prices again if that is due, and use those that were found.

        Args:
            sessions: for each session, the tokens in a frame of its stream, over which a frame's fixed bits are spread;
                0 if its device cannot draft or drafts in grants: then only its weight and the time of a ride count.
            edge_rooms: whether the edge's own drafter can draft for them and its speed is known.
            now_s: present time of the driver's clock [s].

        """
        there = frozenset(sessions)
        if len(there) != self._there:
            self._there = len(there)
            self._scale_sessions()
        if there and self._background.idle and (not self._asked or self._due(there, edge_rooms, now_s)):
            self._asked_s, self._asked, self._asks = now_s, there, self._asks + 1
            self._streaming = frozenset(number for number, tokens in sessions.items() if tokens)
            self._asked_plain = self._plain_now()
            self._views = self._viewed(sorted(there), edge_rooms)
            planning = Planning(self._settings, self._beliefs.snapshot(sorted(there)), 0.0)
            most = self._settings.max_draft_length
            members = [Member(n, most if sessions[n] else 0, most if edge_rooms else 0) for n in sorted(there)]
            before = self._goodputs if self._fair else None
            chunks = [sessions[each] for each in sorted(there)]
            self._background.begin(partial(_priced, planning, members, chunks, edge_rooms, before))
        if (found := self._background.take()) is not None:
            self.worth, self._goodputs = found
            self._by, self._plain = math.nan, self._asked_plain
            self._unscaled = dict(zip(sorted(self._asked), self.worth.sessions, strict=True))
            self._bands_hz = {number: self._unscaled[number].bandwidth_hz for number in self._streaming}
            self._scale_sessions()

    def _due(self, there: frozenset[int], edge_rooms: bool, now_s: float) -> bool:
        """Whether prices are to be found again for these sessions."""
        waited_s, period_s = now_s - self._asked_s, least_period_s(len(there), self._asks)
        if waited_s < period_s:
            return False
        if there != self._asked or waited_s >= USUAL_PERIOD_S:
            return True
        if now_s - self._looked_s < period_s / LOOKS:
            return False
        self._looked_s = now_s
        return self._drift(sorted(there), edge_rooms) > DRIFTED

    def _viewed(self, sessions: Sequence[int], edge_rooms: bool) -> list[View]:
        """Beliefs that prices depend on: the time of a pass, the edge's drafter, and some sessions' devices."""
        drafter = self._beliefs.edge_drafter()
        pass_s = self._beliefs.verifier().verify_s([0] * len(sessions))
        edge = (drafter.acceptance_rate, drafter.step_s(len(sessions))) if edge_rooms else (0.0, 1.0)
        every = -(-len(sessions) // LOOKED_AT)
        return [(*edge, pass_s), *(self._beliefs.view(session, 1) for session in sessions[::every])]

    def _drift(self, sessions: Sequence[int], edge_rooms: bool) -> float:
        """How far beliefs have drifted since prices were found: of the edge, or on average of the devices."""
        edge, *devices = (
            abs(now[0] - then[0]) + abs(now[1] / then[1] - 1.0) + abs(now[2] / then[2] - 1.0)
            for now, then in zip(self._viewed(sessions, edge_rooms), self._views, strict=True)
        )
        return max(edge, sum(devices) / len(devices))

    @property
    def engine_tokens_per_s(self) -> float:
        """The price of a second of the engine now [tokens/s]; 0 before anything is known."""
        if self.worth is None:
            return self._learned.tokens_per_s * self._plain_now()
        learned, share = self._of_those_asked(self.worth)
        price = self.worth.price(learned, share)
        if not self._streaming:  # the best rates count no device that drafts in grants
            price = max(price, learned)
        return self._plain_now() / self._plain * price

    @property
    def bands_hz(self) -> dict[int, float] | None:
        """B_k of the best rates, by session [Hz]; a new object whenever they are found again; None before."""
        return self._bands_hz

    def of(self, session: int) -> SessionWorth:
        """The prices for one session, at the engine's present price."""
        return self._scaled.get(session, NOTHING)

    def _plain_now(self) -> float:
        """Goodput of plain decoding for the present sessions, one token each in a pass [tokens/s]."""
        v, count = self._beliefs.verifier(), max(1, self._there)
        return count / verification_s(v.fixed_s, v.per_device_s, v.per_token_s, count, count)

    def _of_those_asked(self, worth: Worth) -> tuple[float, float]:
        """The goodput of the sessions for which prices were found [tokens/s], and the worth of the devices' time.

        The latter is a share of its price, 1 before any pass was expected.
        """
        promised = worth.devices_share(self._promised.tokens_per_s * self._plain) if self._promised.seconds > 0 else 1.0
        return self._learned.tokens_per_s * self._plain, promised

    def _scale_sessions(self) -> None:
        """Compute each session's worth, which every pass needs once for each session."""
        if self.worth is not None:
            by = self._plain_now() / self._plain * self.worth.scale(*self._of_those_asked(self.worth))
            if not abs(by - self._by) <= SAME * self._by:
                self._by = by
                self._scaled = {number: each.scaled(by) for number, each in self._unscaled.items()}


_WorthAndGoodputs = tuple[Worth, Mapping[str, float]]
"""Prices, and the goodputs from which weights follow."""


def _priced(
    planning: Planning,
    members: Sequence[Member],
    chunks: Sequence[int],
    edge_drafts: bool,
    before: Mapping[str, float] | None,
) -> _WorthAndGoodputs:
    """Prices, with fair weights if earlier goodputs are given."""
    scenario = planning.scenario(members, chunks)
    if not edge_drafts:
        scenario = replace(scenario, edge_drafter=None)
    if before is None:
        return worth(scenario), {}
    scenario, goodputs = fairly_weighted(scenario, before)
    return worth(scenario), goodputs
