"""When to try the edge's own drafter although it does not seem to pay, so that beliefs about it stay true.

Before it has drafted, only a guess is known of it. So where no ride of a pass has a draft of the edge, some of them
get a short one now and then, ever more seldom (`probing`): trials take at most `COST_SHARE` of the time in the long
run, the verification of their tokens included, which may take longer than the drafting.

This file knows nothing of prices and texts.
"""

from collections.abc import Mapping, Sequence

from multispin.control import EdgeDrafter
from multispin.control.streams import Ride
from multispin.passes.probing import COST_SHARE, Probes
from multispin.passes.turns import Turns

AT_ONCE = 4
"""The edge's drafter is tried for this many sessions at once, or for one in this many if there are more, or for as many
as take no longer than the steps: all of them wait for those, and each session more tells what they are worth."""
MOST_AT_ONCE = 64
"""Most sessions of a trial; more would teach little."""
PUT_OFF = 32
"""Where every session has tokens of its device, which a trial takes the place of, it is put off for so many passes: a
short text would be over before the edge has gained by it."""
TRIAL_LENGTH = 2
"""Tokens of a trial, for each of them. All sessions wait for each step, and tokens after a wrong one teach nothing."""
_EDGE = -1


class EdgeTrials:
    """The trials of the edge's own drafter."""

    def __init__(self) -> None:
        self._probes = Probes(COST_SHARE)
        self._turns = Turns()
        self._put_off = 0  # passes for which a trial has been put off

    def added(
        self,
        rides: Sequence[Ride],
        rooms: Mapping[int, int],
        now_s: float,
        token_s: float = 0.0,
        drafter: EdgeDrafter | None = None,
        pass_s: float = 0.0,
    ) -> tuple[Ride, ...]:
        """The rides of the pass to come, with short drafts of the edge where a trial is due.

        Args:
            rides: rides of the pass, as `choose` decided.
            rooms: longest draft of the edge for each session that makes sense [tokens].
            now_s: present time of the driver's clock [s].
            token_s: time that the verification of a token takes; default 0 [s].
            drafter: belief about the edge's drafter; default None, not known yet.
            pass_s: time of the pass; default 0 [s].

        """
        if any(ride.edge_tokens for ride in rides):
            self._turns.clear()
            self._probes.begin(_EDGE, now_s)
            return tuple(rides)
        drafted = {ride.session: ride.device_tokens for ride in rides}
        able = [session for session, tokens in drafted.items() if rooms.get(session, 0) > tokens]
        owed = bool(self._turns.owed)
        tried = again = self._turns.once_more(able)
        if not again:
            if not able or not (owed or self._probes.due(_EDGE, now_s)):
                return tuple(rides)
            free = [session for session in able if not drafted[session]]
            if not free and not owed and self._put_off < PUT_OFF:
                self._put_off += 1
                return tuple(rides)
            able, self._put_off = free or able, 0
            count = max(AT_ONCE, len(able) // AT_ONCE)
            tried = self._turns.next(able, max(count, _as_cheap(token_s, drafter)) if free else count)
        lengths = {session: min(TRIAL_LENGTH, rooms[session] - drafted[session]) for session in tried}
        if not again:
            given_up_s = pass_s * sum(drafted[session] > 0 for session in tried) / len(rides)
            self._probes.begin(_EDGE, now_s, 1.0, token_s * sum(lengths.values()) + given_up_s)
        # After tokens of the device it would show what the edge's are worth only where all of those stand.
        return tuple(
            Ride(ride.session, 0, lengths[ride.session]) if ride.session in lengths else ride for ride in rides
        )

    def ended(self, now_s: float, timed: bool = True) -> None:
        """The edge's drafter has drafted.

        Args:
            now_s: present time of the driver's clock [s].
            timed: whether the time that it took says how fast it drafts; default yes.

        """
        self._turns.drafted(timed)
        if not self._turns.owed:
            self._probes.end(_EDGE, now_s)


def _as_cheap(token_s: float, drafter: EdgeDrafter | None) -> int:
    """Sessions whose tokens take as long as a step of the edge's drafter, drafting and verification together."""
    if drafter is None:
        return 0
    each_s = token_s + drafter.per_device_s
    return min(MOST_AT_ONCE, int(drafter.fixed_s / each_s)) if each_s > 0.0 else MOST_AT_ONCE
