"""The controller: plans everybody's draft length and band for the next round from beliefs.

It decides when to plan again, and what is used until the new plan is ready; `passes.planning` makes plans. It knows
nothing of sockets, tokens or slots, nor where its beliefs come from.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from multispin.control import REACTIVE, Decision, Plan, Scenario, decide, next_length
from multispin.passes.background import Background
from multispin.passes.beliefs import Beliefs, Believed, LearnedBeliefs, View
from multispin.passes.chooser import Chooser
from multispin.passes.paying import Paying
from multispin.passes.planning import Planning
from multispin.passes.plans import Member, RoundPlan, SessionPlan
from multispin.passes.prices import Prices
from multispin.passes.settings import ControllerSettings

_GUESS_EVERY = 8
"""For the same sessions, try the usual lengths only in every 8th plan: each costs one more solve."""
_PLANNING = 0.01
"""Largest share of a processor for plans made in a thread, which also take Python's lock."""
_LOOKED_AT = 64
"""Number of sessions whose beliefs are compared in every round to see whether to plan again."""
_MANY = 32
"""Number of sessions from which on a search begins with the last plan's lengths; with fewer it is quick and exact."""
_FIRST_LENGTH = 4
"""Draft length assumed of a session before its first plan."""
_FIRST_PHASE_S = 2.0
"""Longest expected time of a draft before the first plan [s]."""
_AS_LONG = 2.0
"""Longest time of a newcomer's draft, as a multiple of the others' drafts."""


@dataclass(frozen=True)
class _FreshPlan:
    """A plan that was made from scratch.

    Attributes:
        members: sessions that the plan is for.
        reserved_hz: band that was not available [Hz].
        beliefs: beliefs about them at that time.
        plan: the plan for all of their devices.
        given: whether its draft lengths were given, so that it cannot be the basis of later plans.
        decision: the decision who drafts; None in mode "rounds".
        at_s: time at which it was begun [s].

    """

    members: Sequence[Member]
    reserved_hz: float
    beliefs: Believed
    plan: Plan
    given: bool
    decision: Decision | None
    at_s: float


@dataclass(frozen=True)
class _LastPlan:
    """A plan from scratch, and its inputs.

    Attributes:
        plan: the plan that was made.
        views: beliefs about its members at that time, by session.
        delays_s: believed one-way delays of its members at that time, by session [s].
        lengths: draft lengths before any were cut short by the end of a text, by session.
        verify_s: predicted time of its verification [s].
        band_hz: band that was available [Hz].

    """

    plan: Plan
    views: dict[int, View]
    delays_s: dict[int, float]
    lengths: dict[int, int]
    verify_s: float
    band_hz: float


@dataclass
class _History:
    """The controller's state of a session beside beliefs.

    Attributes:
        planned: draft length of the last plan from scratch; at least 1.
        reactive: draft length of the +2/−1 rule.

    """

    planned: int = _FIRST_LENGTH
    reactive: int = _FIRST_LENGTH


class Controller:
    """Plans every round from beliefs.

    Args:
        settings: the operator's settings.
        beliefs: beliefs about sessions and verifier; default: learned ones.

    """

    def __init__(self, settings: ControllerSettings, beliefs: Beliefs | None = None) -> None:
        self.settings = settings
        self.beliefs: Beliefs = beliefs or LearnedBeliefs(
            settings.bits_per_id, settings.max_draft_length, settings.frame_bits, delays=settings.mode != "rounds"
        )
        self._background: Background[_FreshPlan] = Background(_PLANNING)
        self.chooser = Chooser(settings.mode, settings.bandwidth_hz, settings.replan_tolerance, self.beliefs)
        self.prices = Prices(settings, self.beliefs)
        self.paying = Paying()
        self._histories: defaultdict[int, _History] = defaultdict(_History)
        self._basis: _LastPlan | None = None
        self._turn = 0  # which sessions are compared next
        self._plans = 0  # number of plans from scratch
        self._latest: tuple[object, RoundPlan] | None = None  # the last plan, and the conditions for using it again

    def plan_in(self, executor: Executor, clock: Callable[[], float] | None = None) -> None:
        """Make long plans in another thread from now on, one at a time; each is used until the next is ready.

        Args:
            executor: executor with one thread.
            clock: returns the processor time of the calling thread [s]; default none: plans cost nothing.

        """
        self._background.use(executor, clock)
        self.prices.use(executor)

    @property
    def sessions(self) -> frozenset[int]:
        """Numbers of the remembered sessions."""
        return frozenset(self._histories)

    def leave(self, session: int) -> None:
        """Forget a session."""
        self.beliefs.leave(session)
        self.chooser.leave(session)
        self.paying.leave(session)
        self._histories.pop(session, None)

    def observe_outcome(self, session: int, drafted: int, accepted: int) -> None:
        """Learn from a verified draft."""
        self.beliefs.observe_outcome(session, drafted, accepted)
        if self.settings.policy == REACTIVE:
            history, longest = self._histories[session], self.settings.max_draft_length
            history.reactive = next_length(history.reactive, drafted, accepted, longest=longest)

    def plan(self, members: Sequence[Member], reserved_hz: float = 0.0, now_s: float = 0.0) -> RoundPlan | None:
        """Plan for `members`; None if there are none.

        In modes other than "rounds", `passes.chooser` decides for each session who drafts. Rounds are planned here.

        Planning takes time, and estimates wander a little with every round. So the draft lengths of the last plan
        made from scratch are kept while the drift since then is within `replan_tolerance`: the mean over the sessions
        (of many, some are looked at) of |Δα| + |ΔT|/T + |ΔA|/A + |Δ round trip|/round with A = Q/r, where a session
        that came or went counts 1, plus the relative changes of the verification time and of the band. The band is
        split again if a session came, went or must draft less. With `plan_in`, a plan is kept until a new one is
        ready, and planning takes at most `_PLANNING` of a processor. Before the first plan, everybody drafts a few
        tokens.

        Args:
            members: sessions that get a grant.
            reserved_hz: band still in use by drafts that are late [Hz]; default 0.
            now_s: present time of the driver's clock [s]; default 0.

        """
        if not members:
            return None
        if self.settings.mode != "rounds":
            return self._chosen(members, reserved_hz, now_s)
        if self.settings.policy == REACTIVE:
            return _of_sessions(members, self._made_of(members, self._reactive(members), reserved_hz)[1])
        made = self._of_policy(members, reserved_hz, now_s)
        if not self.beliefs.leaves_out:
            return made
        return self.chooser.with_trials(made, members, now_s, in_turns=self.settings.in_turns)

    def _of_policy(self, members: Sequence[Member], reserved_hz: float, now_s: float) -> RoundPlan:
        """The policy's plan for everybody's devices."""
        frame = self._frame(members, reserved_hz)
        if self._background.rested(now_s) and self._drift(members, reserved_hz) > self.settings.replan_tolerance:
            self._begin(members, reserved_hz, now_s)
        found = self._take(now_s)
        if found is not None and self._frame(found.members, found.reserved_hz) == frame:
            made = found.plan
        elif self._latest is not None and self._latest[0] == frame:
            return self._latest[1]
        else:
            made = self._made_of(members, self._kept(members, reserved_hz), reserved_hz)[1]
        self._latest = frame, _of_sessions(members, made)
        return self._latest[1]

    def _frame(self, members: Sequence[Member], reserved_hz: float) -> object:
        """Conditions under which a plan is used again. All rooms beyond the longest draft count as equal."""
        most = self.settings.max_draft_length
        return reserved_hz, tuple((member.session, min(member.room, most)) for member in members)

    def _reactive(self, members: Sequence[Member]) -> list[int]:
        return [min(member.room, self._histories[member.session].reactive) for member in members]

    def _chosen(self, members: Sequence[Member], reserved_hz: float, now_s: float) -> RoundPlan:
        """The plan of a mode in which not every device has to draft."""
        trusted = self.chooser.trusted(members)
        if self._background.rested(now_s) and self.chooser.stale(trusted, now_s):
            self._begin(trusted, reserved_hz, now_s)
        if (found := self._take(now_s)) is not None and found.decision is not None:
            choices = zip(found.members, found.decision.sessions, strict=True)
            here = {member: choice for member, choice in choices if member.session in self._histories}
            self.chooser.adopt(here, found.decision, found.at_s)
        return self.chooser.plan(members, now_s, partial(self._made_of, reserved_hz=reserved_hz))

    def _made_of(self, members: Sequence[Member], lengths: Sequence[int], reserved_hz: float) -> tuple[Scenario, Plan]:
        """The scenario of these members, and the plan for these draft lengths of their devices."""
        return Planning(self.settings, self.beliefs, reserved_hz).with_lengths(members, lengths)

    # Plans from scratch -------------------------------------------------------------------------------------------

    def _begin(self, members: Sequence[Member], reserved_hz: float, now_s: float) -> None:
        """Begin to plan from scratch, with the present beliefs.

        The usual lengths are tried for sets of sessions that are planned for the first time, and now and then.
        """
        sessions = [member.session for member in members]
        last = [self._histories[session].planned for session in sessions]
        known = self._basis is not None and self._basis.views.keys() == set(sessions)
        usual = not (known and self._plans % _GUESS_EVERY)
        warm = self._basis.plan if self._basis is not None and len(members) > _MANY else None
        given = None  # lengths that are given, not planned
        if self.settings.mode != "rounds" and not any(member.room for member in members):
            given = [0] * len(members)
        elif self.settings.policy == REACTIVE:
            given = self._reactive(members)
        else:
            self._plans += 1
        planning = Planning(self.settings, self.beliefs.snapshot(sessions), reserved_hz)
        before = self.chooser.decision

        def work() -> _FreshPlan:
            if given is None:
                made = planning.from_scratch(members, last, warm, usual=usual)
            else:
                made = planning.with_lengths(members, given)[1]
            decision = None
            if self.settings.mode != "rounds":
                scenario = planning.scenario(members, [device.draft_length for device in made.devices])
                policy = self.settings.policy
                decision = decide(scenario, policy, mode=self.settings.mode, rounds=made, warm_start=before)
            return _FreshPlan(members, reserved_hz, planning.beliefs, made, given is not None, decision, now_s)

        self._background.begin(work)

    def _take(self, now_s: float) -> _FreshPlan | None:
        """The plan made since the last call, if any. It is the basis of later ones unless its lengths were given."""
        found = self._background.take(now_s)
        if found is None or found.given:
            return found
        for member, device in zip(found.members, found.plan.devices, strict=True):
            if member.session in self._histories:  # sessions that have left stay forgotten
                self._histories[member.session].planned = max(1, device.draft_length)
        self._basis = self._as_basis(found)
        return found

    def _as_basis(self, found: _FreshPlan) -> _LastPlan:
        """The record of a plan from scratch, with lengths before the end of a text cut any short."""
        planned = [device.draft_length for device in found.plan.devices]
        cut = [member.room < self.settings.max_draft_length for member in found.members]
        whole = [length for length, short in zip(planned, cut, strict=True) if length and not short]
        usual = round(sum(whole) / len(whole)) if whole else max(planned)
        before = self._basis.lengths if self._basis is not None else {}
        lengths = dict[int, int]()
        for member, length, short in zip(found.members, planned, cut, strict=True):
            left_out = member.room and not length
            more = before.get(member.session, usual) if short and not left_out else 0
            lengths[member.session] = max(length, more)
        views = {
            member.session: found.beliefs.view(member.session, max(1, length))
            for member, length in zip(found.members, planned, strict=True)
        }
        delays_s = {member.session: found.beliefs.delay_s(member.session) for member in found.members}
        planning = Planning(self.settings, found.beliefs, found.reserved_hz)
        return _LastPlan(found.plan, views, delays_s, lengths, planning.verify_s(lengths), planning.band_hz)

    def _kept(self, members: Sequence[Member], reserved_hz: float) -> list[int]:
        """The lengths of an earlier plan, limited by each session's room. Newcomers get the usual length.

        A newcomer's draft is no longer than its device makes in the time that the others' drafts take.
        """
        basis = self._basis
        if basis is None:
            usual, left_s, known = _FIRST_LENGTH, _FIRST_PHASE_S, dict[int, int]()
        else:
            drafting = [length for length in basis.lengths.values() if length]
            usual = round(sum(drafting) / len(drafting)) if drafting else 0
            left_s, known = _AS_LONG * max(0.0, basis.plan.round_s - basis.verify_s), basis.lengths
        planning = Planning(self.settings, self.beliefs, reserved_hz)
        lengths = []
        for member in members:
            length = min(member.room, known.get(member.session, usual))
            if member.session not in known and self.beliefs.leaves_out:
                token_s = planning.alone_s(member, min(1, member.room), len(members))
                length = min(length, int(left_s / token_s)) if token_s else length
            lengths.append(length)
        return lengths

    def _drift(self, members: Sequence[Member], reserved_hz: float) -> float:
        """How far beliefs have drifted since the last plan; `plan` has the formula."""
        basis = self._basis
        if basis is None:
            return math.inf
        known = [member.session for member in members if member.session in basis.views]
        changed = len(members) + len(basis.views) - 2 * len(known)
        # Some of a thousand sessions suffice for a mean; the sample changes every time.
        self._turn += 1
        step = -(-len(known) // _LOOKED_AT) if known else 1
        looked_at = known[self._turn % step :: step]
        moved = 0.0
        for session in looked_at:
            (rate, token_s, token_hz_s), then = self._view(session), basis.views[session]
            moved += abs(rate - then[0]) + abs(token_s / then[1] - 1.0) + abs(token_hz_s / then[2] - 1.0)
            moved += 2.0 * abs(self.beliefs.delay_s(session) - basis.delays_s[session]) / basis.plan.round_s
        mean = (moved / len(looked_at) * len(known) + changed) / len(members) if known else math.inf
        planning = Planning(self.settings, self.beliefs, reserved_hz)
        shared = abs(planning.verify_s(basis.lengths) / basis.verify_s - 1.0)
        return mean + shared + abs(planning.band_hz / basis.band_hz - 1.0)

    def _view(self, session: int) -> View:
        return self.beliefs.view(session, self._histories[session].planned)


def _of_sessions(members: Sequence[Member], made: Plan) -> RoundPlan:
    """A plan's devices as sessions: they come in the order of the members."""
    return RoundPlan(
        tuple(
            SessionPlan(member.session, device.draft_length, device.bandwidth_hz)
            for member, device in zip(members, made.devices, strict=True)
        ),
        made.round_s,
        made.goodput_tokens_per_s,
    )
