"""When the edge's own drafter is tried although its drafts do not seem to pay, so that what is believed of it is true.

Before it has drafted, only a guess is known of it. So where no ride of a pass has a draft of the edge, some of them
get a short one now and then, ever more seldom (`probing`): trials take at most `COST_SHARE` of the time in the long
run, the verification of their tokens included, which may take longer than the drafting.
A session that is tried seldom has much for the drafter to read first, and then its time says nothing of drafting. So it
is tried again in the next pass, when that was read: else a first guess of the time would be believed for ever.

Does not know prices or texts.
"""

from collections.abc import Mapping, Sequence

from multispin.control import EdgeDrafter
from multispin.control.streams import Ride
from multispin.passes.probing import COST_SHARE, Probes

AT_ONCE = 4
"""The edge's drafter is tried for this many sessions at once, or for one in this many if there are more, or for as many
as take no longer than the steps: all of them wait for those, and each session more tells what they are worth."""
MOST_AT_ONCE = 64
"""More sessions than this at once teach nothing that matters."""
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
        self._turn = 0
        self._tried: frozenset[int] = frozenset()  # sessions of the trial under way
        self._again = False  # whether they are tried once more
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
            self._tried, self._again = frozenset(), False
            self._probes.begin(_EDGE, now_s)
            return tuple(rides)
        able = [k for k, ride in enumerate(rides) if rooms.get(ride.session, 0) > ride.device_tokens]
        again = [k for k in able if rides[k].session in self._tried] if self._again else []
        if again:
            tried = [rides[k] for k in again]
        elif able and (self._again or self._probes.due(_EDGE, now_s)):
            free = [k for k in able if not rides[k].device_tokens]
            if not free and not self._again and self._put_off < PUT_OFF:
                self._put_off += 1
                return tuple(rides)
            able, self._again, self._put_off = free or able, False, 0
            self._turn += 1
            first, count = self._turn % len(able), max(AT_ONCE, len(able) // AT_ONCE)
            if not any(rides[k].device_tokens for k in able):
                count = max(count, _as_cheap(token_s, drafter))
            tried = [rides[k] for k in [*able[first:], *able[:first]][:count]]
        else:
            return tuple(rides)
        self._tried = frozenset(each.session for each in tried)
        lengths = {each.session: min(TRIAL_LENGTH, rooms[each.session] - each.device_tokens) for each in tried}
        if not again:
            given_up_s = pass_s * sum(each.device_tokens > 0 for each in tried) / len(rides)
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
        self._again = not timed and not self._again and bool(self._tried)
        if not self._again:
            self._tried = frozenset()
            self._probes.end(_EDGE, now_s)


def _as_cheap(token_s: float, drafter: EdgeDrafter | None) -> int:
    """Sessions whose tokens take as long as a step of the edge's drafter, drafting and verification together."""
    if drafter is None:
        return 0
    each_s = token_s + drafter.per_device_s
    return min(MOST_AT_ONCE, int(drafter.fixed_s / each_s)) if each_s > 0.0 else MOST_AT_ONCE
