"""Streams: who rides in the pass that begins now, with how many tokens, or how long is it better to wait?

Devices draft on while they are verified, so the engine chooses among what has arrived whenever it is free. The *price
of time* λ [tokens/s] decides: a session takes part if it brings more expected tokens than λ × the engine time that it
costs, and than it would by riding later. Everything here is a pure function, without clocks, slots or messages. It
does not know how its inputs were estimated.

A session that rides with l tokens of its device and m of the edge's drafter brings w E(l, m) and costs λ × the
engine time of its ride, λ the price. It gives up what waiting would bring: drafting time is worth ν T for each of
the p tokens that have come, verified now or not, as long as another token of its device would bring more than that.
If the verdict contradicts what the device has drafted meanwhile, a pass and a round trip of drafting are lost. Drafts
of the edge cost the device, too. A stream that goes on has drafted the same m tokens in vain, if it was as quick; a
contradicted stream hears of it later by the time of the m steps. With t = m steps + pass + 2 d, its surplus is

    w E(l, m) − λ · its engine time − ν T min(p, l*) − ν min(m T, t) σ(l, m) − ν t (1 − σ(l, m)).

It rides if that is not negative. Without the edge's drafts this is the optimum of `exact.fluid`: a session rides
when its net tokens per second of drafting are at their greatest. Where a ride costs nothing, everybody rides.
A token is verified while it is worth its own time, w α^l > λ · time. The edge's own drafter goes on after the
device's tokens, or instead of them where that is worth more. It makes as many steps as give the greatest sum of
all surpluses less the price of the steps. All numbers of steps are compared, not only neighbouring ones: whether
a step pays depends on who rides because of it.

A session that would otherwise fall below plain decoding of all, or below its least goodput, rides whatever it
brings. If it rides in every pass already, only shorter passes help it. So a session that is short of f_k counts by
π_k more, and time is dearer by Σ π_k f_k, f_k = `LEAST_OF_PLAIN` of plain decoding, or what was asked for it. π_k
doubles with every missing token: this finds the price of the floor f_k (a virtual queue), and no session falls
further behind. But each session that is short of plain decoding, and not of what was asked for it, may cost the
others only `FLOOR_COSTS` of the tokens per second that the pass would bring them if π_k were 0; π_k is limited
accordingly.

A pass that is worth its time is put off to an expected arrival if the sum of all surpluses less 1.5 λ times the
wait is greater then: where a pass takes many times as long as a useful draft, it pays to wait for devices that start
over. Time is dearer while some session is short of its floor, so passes are then put off less.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from multispin.control.edge import LEAST_OF_PLAIN
from multispin.control.goodput import Floats, Mask
from multispin.control.latency import verification_s
from multispin.control.scenario import EdgeDrafter, Verification
from multispin.control.worth import SessionWorth

WAIT_PRICE = 1.5
"""Waiting before a pass costs this many times λ: expected drafts may not come, and the other sessions wait too."""
LEAST_WAIT_S = 0.001
"""Shortest time for which `choose` waits [s]: drafts that are expected at once may be late."""
WAITS = 4
"""A pass that begins now is compared with passes that begin at this many expected arrivals, at most."""
SLACK_TOKENS = 2.0
"""A session may be short of its floor by this much before its tokens count more [tokens]."""
DOUBLES_TOKENS = 1.0
"""With each further shortfall of this size they count twice as much [tokens]."""
FLOOR_COSTS = 0.03
"""A session that is short of plain decoding may cost the others at most this share of their tokens per second."""
MOST_OWED = (16.0, 4.0, 1.0, 0.25, 0.0)
"""Limits of π_k where a session would cost more: the first at which it does not applies to all who are short."""
MOST_OWED_WAITING = 3.0
"""Limit of π_k where a pass may be put off: one bad device does not keep the others from waiting for each other."""


class Candidate(NamedTuple):
    """A session that may be in the next pass: its state when the engine is free.

    Attributes:
        session: number of the session.
        pending: drafted tokens of its device that have arrived and go on from the committed text.
        acceptance_rate: α of the device's tokens.
        waited_s: time since it was last in a pass, or since it could first have been in one [s]; default 0.
        must_ride: whether it takes part whatever it brings, because it has waited for its longest wait; default no.
        next_s: time from now until more of its device's tokens are expected [s]; infinite (default) if none are.
        next_tokens: how many are expected then; default 0.
        tokens_per_s: rate at which its device's tokens come in the long run [tokens/s]; default 0.
        room: longest draft, device's and edge's tokens together, that still makes sense; default `pending`.
        edge_room: longest draft of the edge's own drafter that makes sense; default 0, it cannot draft.
        edge_acceptance_rate: α of the tokens of the edge's own drafter; default 0.
        behind_tokens: how far it is behind what it is to have at least, plain decoding included, as of its last ride;
            negative where it is ahead [tokens]; default 0.
        short_tokens: how far it is behind `LEAST_OF_PLAIN` of plain decoding, or what was asked for it if that is more,
            as of its last ride; negative where it is ahead [tokens]; default 0.
        absent: whether it can ride only once what is expected has come, because its device drafts in a grant; default
            no.
        worth: its weight and least goodputs, and what its device's time is worth; default: it counts like any other,
            and its device's time is worth nothing.
    """

    session: int
    pending: int
    acceptance_rate: float
    waited_s: float = 0.0
    must_ride: bool = False
    next_s: float = math.inf
    next_tokens: int = 0
    tokens_per_s: float = 0.0
    room: int | None = None
    edge_room: int = 0
    edge_acceptance_rate: float = 0.0
    behind_tokens: float = 0.0
    short_tokens: float = 0.0
    absent: bool = False
    worth: SessionWorth = SessionWorth()


class Ride(NamedTuple):
    """One session's part of a pass.

    Attributes:
        session: number of the session.
        device_tokens: pending tokens of its device that are verified, the first of them.
        edge_tokens: tokens that the edge's own drafter adds after them, before the verification.
    """

    session: int
    device_tokens: int
    edge_tokens: int = 0


@dataclass(frozen=True)
class Go:
    """A pass begins now.

    Args:
        rides: the sessions in the pass, at least one.
        expected_tokens: Σ w_k E[N_k] of the pass [tokens].
        pass_s: its expected duration, the edge's drafting included [s].
    """

    rides: tuple[Ride, ...]
    expected_tokens: float
    pass_s: float


@dataclass(frozen=True)
class Wait:
    """It is better to wait; a message that comes earlier is a reason to ask again.

    Args:
        for_s: time from now after which to ask again [s]; infinite: only a message changes anything.
        puts_off: whether a pass that is worth its time is put off, because it is worth more then; default no.
    """

    for_s: float
    puts_off: bool = False


Decide = Callable[[Sequence[Candidate], Verification, float, EdgeDrafter | None, float, float], Go | Wait]
"""Decides who rides in the pass that begins now, or to wait: `choose`, or another function of its arguments."""


def choose(
    ready: Sequence[Candidate],
    verifier: Verification,
    price_tokens_per_s: float,
    edge_drafter: EdgeDrafter | None = None,
    patience_s: float = 0.0,
    patience_for_all_s: float = 0.0,
) -> Go | Wait:
    """Decide who rides in the pass that begins now, or to wait, as the head of this file says. A pure function.

    Args:
        ready: all sessions that could ride now; one without pending tokens may ride for its one token.
        verifier: T_ver = fixed + per_device·K + per_token·Σ(L_k + 1).
        price_tokens_per_s: λ, what a second of the engine is worth, see `Worth` [tokens/s].
        edge_drafter: the edge's own drafter; default none.
        patience_s: how long a pass that is worth its time may be put off for the sake of a few, at most [s]; default 0,
            not at all.
        patience_for_all_s: the same where everybody is waited for, or a session that is absent, if that is longer [s];
            between the two it grows with the square of the share of those who are. So one slow device does not hold up
            many. Default 0: no longer than for a few.

    Returns: a pass, or for how long to wait; `Wait(inf)` if nobody is ready.
    """
    if not ready:
        return Wait(math.inf)
    told = ready, verifier, price_tokens_per_s, edge_drafter
    table = _PendingTable(*told)
    found = table.pass_now()
    if table.short.any():
        free = _PendingTable(*told, most_owed=0.0)
        least_per_s = (1.0 - FLOOR_COSTS) ** int(table.short.sum()) * free.rate_of_others(free.pass_now())
        for most in MOST_OWED:
            if table.rate_of_others(found) >= least_per_s:
                break
            table = _PendingTable(*told, most_owed=most)
            found = table.pass_now()
    if not found.rides.any():
        return Wait(max(LEAST_WAIT_S, min(float(table.next_s.min()), float(found.until_due_s.min()))))
    if (wait_s := table.worth_waiting(found.due, patience_s, max(patience_s, patience_for_all_s))) > 0.0:
        return Wait(wait_s, puts_off=True)
    drafts, chosen = found.drafts, np.flatnonzero(found.rides).tolist()
    device, edge = drafts.device.astype(int).tolist(), drafts.edge.astype(int).tolist()
    return Go(
        tuple(Ride(ready[k].session, device[k], edge[k]) for k in chosen),
        float(drafts.tokens[found.rides].sum()),
        found.pass_s,
    )


class _Drafts(NamedTuple):
    """How much each session would bring, arrays over sessions.

    Attributes:
        device: tokens of the device.
        edge: tokens that the edge's drafter adds.
        tokens: w E[N].
        surplus: worth of riding now over not riding, at the price of time [tokens].
    """

    device: Floats
    edge: Floats
    tokens: Floats
    surplus: Floats


class _PassNow(NamedTuple):
    """The pass that could begin now, arrays over sessions.

    Attributes:
        drafts: how much each session would bring.
        rides: sessions that ride, because they are worth it or due.
        due: sessions that ride whatever they bring.
        until_due_s: time until each is due, if passes last as long as this one [s].
        pass_s: its duration [s].
    """

    drafts: _Drafts
    rides: Mask
    due: Mask
    until_due_s: Floats
    pass_s: float


class _PendingTable:
    """Pending tokens as arrays over sessions, [K], and their worth with m tokens of the edge each, [M + 1, K].

    Arrays over times of a wait, too, have them as their first axis, [T, M + 1, K].

    Attributes:
        must: sessions that ride whatever they bring.
        short: sessions that have less than plain decoding would give them, and for which nothing was asked.
        next_s: time until more is expected [s].

    Args:
        ready, verifier, price, edge_drafter: as in `choose`.
        most_owed: limit of π_k of those who are short; default: none.
    """

    def __init__(
        self,
        ready: Sequence[Candidate],
        verifier: Verification,
        price: float,
        edge_drafter: EdgeDrafter | None,
        *,
        most_owed: float = math.inf,
    ) -> None:
        columns: Floats = np.array([(*each[1:-1], *each.worth[1:]) for each in ready], dtype=np.float64).T
        pending, alpha, self._waited_s, must, self.next_s, self._more, self._rate, room = columns[:8]
        edge_room, edge_alpha, self._behind, short, absent = columns[8:13]
        token_worth, restart_worth, least, weight, asked = columns[13:]
        room = np.where(np.isnan(room), pending, room)
        self.must: Mask = must > 0.0
        self._absent: Mask = absent > 0.0
        self._verifier, self._drafter = verifier, edge_drafter
        self._pending, self._alpha, self._room = pending, alpha, room
        self._plain_s = verifier.verify_s([0] * len(ready))
        self._floor = np.maximum(least, 1.0 / self._plain_s)
        # A session below plain decoding, or below what was asked for it, counts more. Time is dearer by the tokens that
        # it should get in it.
        owed, floor, self.short = _owed(short, asked, self._plain_s, most_owed)
        waiting = np.where(self.short, np.minimum(owed, MOST_OWED_WAITING), owed)
        self._wait_price = price + float(waiting @ floor)
        price += float(owed @ floor)
        self._weight, self._own_weight = weight + owed, weight
        self._token_price, self._ride_price = price * verifier.per_token_s, price * verifier.per_device_s
        drafts_on = self._rate > 0.0
        self._token_worth = np.where(drafts_on, token_worth, 0.0)
        self._lost = np.where(drafts_on, restart_worth, 0.0)
        if edge_drafter is None:
            edge, self._extra = np.zeros((1, 1)), np.zeros((1, 1))
            self._step_price, self._edge_price = 0.0, edge
        else:
            most = np.minimum(edge_room, room)
            edge = np.minimum(np.arange(int(most.max()) + 1)[:, None], most)
            self._extra = _expected(edge_alpha, edge) - 1.0
            self._step_price = price * edge_drafter.fixed_s
            self._edge_price = (self._token_price + price * edge_drafter.per_device_s) * edge
            # A contradicted device hears of it only after the edge has drafted.
            self._lost = self._lost + self._token_worth * self._rate * edge_drafter.fixed_s * edge
        self._edge = edge
        self._vain = np.minimum(self._token_worth * edge, self._lost)  # instead, the device may start over
        self._survives = alpha ** (edge + 1.0)
        # The n-th token of the device gains w α^n, and takes as much from what comes after it as that is less likely.
        after = self._extra + (self._lost - self._vain) * self._survives / np.maximum(self._weight, 1e-200)
        first = self._weight * (alpha - (1.0 - alpha) * after)
        self._most_device = np.where(first > self._token_price, room - edge, 0.0)
        if self._token_price > 0.0:
            self._most_device = np.minimum(self._most_device, _steps(first, alpha, self._token_price))
        self._most_held = _steps(self._weight * alpha, alpha, token_worth)
        self._device, self._tokens, self._surplus = self._valued(pending, self._weight)
        self._surplus[:, self._absent] = -math.inf
        self._best: Floats = np.maximum.accumulate(self._surplus, axis=0)

    def _valued(self, pending: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
        """Tokens of the device that ride, w E[N], and the surplus of each ride, where this many are pending."""
        device = np.minimum(pending, self._most_device)
        alive = self._alpha**device
        goes_on = alive * self._survives
        tokens = _expected(self._alpha, device) + alive * self._extra
        cost = self._ride_price + self._token_price * (device + 1.0) + self._edge_price
        held = self._token_worth * np.minimum(pending, self._most_held)
        surplus = weight * tokens - cost - held - self._vain * goes_on - self._lost * (1.0 - goes_on)
        return device, self._own_weight * tokens, surplus

    def pass_now(self) -> _PassNow:
        """The sessions that ride in a pass that begins now, and their drafts."""
        due, drafts = self.must, self.best(self.must)
        rides = (drafts.surplus >= 0.0) | due
        pass_s = self.pass_s(drafts, rides)
        until_due_s = self.until_due(pass_s)
        due = due | (until_due_s <= 0.0)
        if (due & ~rides).any():  # the edge may draft for sessions that must ride although they do not pay
            drafts = self.best(due)
            rides = (drafts.surplus >= 0.0) | due
            pass_s = self.pass_s(drafts, rides)
        return _PassNow(drafts, rides, due, until_due_s, pass_s)

    def rate_of_others(self, found: _PassNow) -> float:
        """Weighted tokens per second of the pass that come from sessions that are not short."""
        return float(found.drafts.tokens[found.rides & ~self.short].sum()) / found.pass_s

    def best(self, must: Mask) -> _Drafts:
        """Drafts of the number of steps with which a pass is worth most, if these ride in any case."""
        made, size = int(np.argmax(self.worths(must))), len(must)
        row, column = self._surplus[: made + 1].argmax(axis=0), np.arange(size)
        edge = np.broadcast_to(self._edge, self._surplus.shape)
        return _Drafts(self._device[row, column], edge[row, column], self._tokens[row, column], self._best[made])

    def worths(self, must: Mask) -> Floats:
        """Greatest sum of surpluses, less the price of the steps, for each number of steps of the edge, [M + 1]."""
        worth = np.where(must, self._best, np.maximum(self._best, 0.0)).sum(axis=1)
        return np.asarray(worth - self._step_price * np.arange(len(worth)))

    def worth_waiting(self, must: Mask, for_few_s: float, for_all_s: float) -> float:
        """The wait after which a pass is worth most, if these ride in any case; 0 if none is worth it [s].

        If n of K sessions are waited for, it is at most for_few + (n/K)² (for_all − for_few). A session that is absent
        may always be waited for up to for_all: who is left out has no token from the pass. While a session is short
        of its floor time is dearer, but its own tokens count no more than usual: else each pass would wait for the
        drafts of a device that is never right, because its user has too little.
        """
        if for_all_s < LEAST_WAIT_S:
            return 0.0
        # Drafts that are expected at once may be late by a little. Overdue drafts are not waited for: all frames of a
        # device with a long delay may be late, and each pass would begin later in vain.
        come_s = np.maximum(self.next_s, LEAST_WAIT_S)
        awaited = (self.next_s > 0.0) & (come_s <= for_all_s)
        rank = np.searchsorted(np.sort(come_s[awaited]), come_s, side="right")
        longest_s = for_few_s + (for_all_s - for_few_s) * (rank / len(come_s)) ** 2
        soon_s = np.unique(come_s[awaited & (self._absent | (come_s <= longest_s))]).tolist()
        if not soon_s:
            return 0.0
        if len(soon_s) > WAITS:
            soon_s = [soon_s[round(k * (len(soon_s) - 1) / (WAITS - 1))] for k in range(WAITS)]
        waits_s = np.array([0.0, *soon_s])
        pending = np.vstack([self._pending, self._pending_after(waits_s[1:, None])])
        surplus = self._valued(pending[:, None], self._own_weight)[2]
        surplus[np.broadcast_to((self._absent & (waits_s[:, None] < self.next_s))[:, None], surplus.shape)] = -math.inf
        best = np.maximum.accumulate(surplus, axis=1)
        gains = np.where(must, best, np.maximum(best, 0.0)).sum(axis=2) - self._step_price * np.arange(best.shape[1])
        return float(waits_s[int(np.argmax(gains.max(axis=1) - WAIT_PRICE * self._wait_price * waits_s))])

    def _pending_after(self, wait_s: Floats) -> Floats:
        """Pending tokens after each wait, if frames come as expected, [T, K]."""
        more = self._more + self._rate * np.maximum(wait_s - self.next_s, 0.0)
        frame = np.maximum(self._more, 1.0)
        come = np.where(wait_s >= self.next_s, frame * np.floor(more / frame + 1e-9), 0.0)
        return np.asarray(np.minimum(self._pending + come, np.maximum(self._pending, self._room)))

    def pass_s(self, drafts: _Drafts, rides: Mask) -> float:
        """Duration of a pass of these riders, or of the shortest ride if there are none [s]."""
        v, count = self._verifier, int(rides.sum())
        if not count:
            return verification_s(v.fixed_s, v.per_device_s, v.per_token_s, 1, 1.0)
        edge = drafts.edge[rides]
        drafting_s = 0.0 if self._drafter is None else self._drafter.draft_s(edge.tolist())
        tokens = float(drafts.device[rides].sum() + edge.sum()) + count
        return drafting_s + verification_s(v.fixed_s, v.per_device_s, v.per_token_s, count, tokens)

    def until_due(self, lasts_s: float) -> Floats:
        """Time until each session must begin to ride so as not to fall below its floor, if passes last this long [s].

        Riding in the pass after one that begins now, it would have waited for two passes by the end. A session that
        is behind its floor may wait for less, and one that is ahead for longer. No time is sooner than half of a plain
        pass after the last ride, because what the session could bring is not known before.
        """
        comes = np.where(self.next_s < lasts_s, self._more + self._rate * np.maximum(lasts_s - self.next_s, 0.0), 0.0)
        later = _expected(self._alpha, np.minimum(self._pending + comes, self._room))
        allowed_s = np.maximum((later - self._behind) / self._floor - lasts_s, 0.5 * self._plain_s)
        return np.where(self._absent, np.inf, allowed_s - self._waited_s - lasts_s)


def _owed(short: Floats, asked: Floats, plain_s: float, most: float) -> tuple[Floats, Floats, Mask]:
    """π_k and f_k of each session's floor, and who is short of plain decoding and not of what was asked for it, [K].

    Args:
        short: tokens by which it is short of f_k.
        asked: goodput that was asked for it; 0 if none was [tokens/s].
        plain_s: time of a pass in which nobody drafts [s].
        most: limit of π_k of those for whom nothing was asked.
    """
    owed = 2.0 ** np.maximum(0.0, (short - SLACK_TOKENS) / DOUBLES_TOKENS) - 1.0
    of_plain = (owed > 0.0) & (asked <= 0.0)
    return np.minimum(owed, np.where(of_plain, most, np.inf)), np.maximum(LEAST_OF_PLAIN / plain_s, asked), of_plain


def _expected(alpha: Floats, length: Floats) -> Floats:
    """E[N] of drafts, without the checks of `goodput.expected_tokens`."""
    rest = np.maximum(1.0 - alpha, 1e-12)
    return np.asarray((1.0 - (1.0 - rest) ** (length + 1.0)) / rest)


def _steps(first: Floats, alpha: Floats, cost: Floats | float) -> Floats:
    """How many of a draft's first tokens are worth their cost each: first · α^(l − 1) > cost; infinite if all are."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.ceil(1.0 + np.log(cost / first) / np.log(alpha)) - 1.0
    return np.where(first > cost, np.where(alpha < 1.0, steps, np.inf), 0.0)
