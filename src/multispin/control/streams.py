"""Streams: who rides in the pass that begins now, with how many tokens, or how long is it better to wait?

Devices draft on while they are verified, so the engine chooses among what has arrived whenever it is free. The *price
of time* λ [tokens/s] decides: a session takes part if it brings more expected tokens than λ × the engine time that it
costs, and than it would by riding later. Everything here is a pure function. Does not know clocks, slots or messages,
nor how what it is told was estimated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from multispin.control.edge import edge_drafts, plain
from multispin.control.exact.fluid import fluid
from multispin.control.goodput import Floats, Ints, Mask
from multispin.control.latency import verification_s
from multispin.control.scenario import EdgeDrafter, Scenario, Verification

LEAST_WAIT_S = 0.001
"""Shortest time for which `choose` waits [s]: what is expected at once may be late."""
PRICE_MEMORY_S = 5.0
"""Default time after which what was learned of the price of time counts 1/e [s]."""


class Ready(NamedTuple):
    """What one session has when the engine is free.

    Attributes:
        session: its number.
        pending: drafted tokens of its device that have arrived and go on from the committed text.
        acceptance_rate: α of the device's tokens.
        weight: w_k, what one of its tokens counts; default 1.
        waited_s: time since it was last in a pass, or since it could first have been in one [s]; default 0.
        must_ride: whether it takes part whatever it brings, because it has waited for its longest wait; default no.
        next_s: time from now until more of its device's tokens are expected [s]; infinite (default) if none are.
        next_tokens: how many are expected then; default 0.
        tokens_per_s: rate at which its device's tokens come in the long run [tokens/s]; default 0.
        room: longest draft, device's and edge's tokens together, that still makes sense; default `pending`.
        edge_room: longest draft of the edge's own drafter that makes sense; default 0, it cannot draft.
        edge_acceptance_rate: α of the tokens of the edge's own drafter; default 0.
        least_tokens_per_s: goodput that it is to have at least, if that is more than plain decoding of all would give;
            default 0.
        token_worth: ν_k T_k, what the time in which its device drafts a token is worth, see `Worth` [tokens]; default
            0.
        restart_worth: what is lost if a verdict contradicts what its device has drafted meanwhile [tokens]; default 0.
    """

    session: int
    pending: int
    acceptance_rate: float
    weight: float = 1.0
    waited_s: float = 0.0
    must_ride: bool = False
    next_s: float = math.inf
    next_tokens: int = 0
    tokens_per_s: float = 0.0
    room: int | None = None
    edge_room: int = 0
    edge_acceptance_rate: float = 0.0
    least_tokens_per_s: float = 0.0
    token_worth: float = 0.0
    restart_worth: float = 0.0


class Ride(NamedTuple):
    """One session's part of a pass.

    Attributes:
        session: its number.
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
        rides: who takes part; at least one session.
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
    """

    for_s: float


def choose(
    ready: Sequence[Ready],
    verifier: Verification,
    price_tokens_per_s: float,
    edge_drafter: EdgeDrafter | None = None,
) -> Go | Wait:
    """Decide who rides in the pass that begins now, or to wait. A pure function.

    A session that rides with l tokens brings w E(l) and costs λ × the engine time of its ride, λ the price. Riding
    again later is worth more if its device goes on drafting; so it rides once its surplus

        w (E(l) − l (E(l + 1) − E(l))) − λ · its engine time

    is not negative. Its net tokens per drafted token, (w E(l) − λ · time) / l, are then at their greatest: another
    token would add less than those before it on average. This is the optimum of `exact.fluid`. Where a ride costs
    nothing, everybody rides. A token is verified while it is worth its own time, w α^l > λ · time. The edge's own
    drafter goes on after the device's tokens, or instead of them where that is worth more; a step of it is made while
    all riders together gain more by it than its time costs.

    Whoever would otherwise fall below plain decoding of all, or below its least goodput, rides whatever it brings.

    Args:
        ready: all sessions that could ride now; who has nothing pending may ride for its one token.
        verifier: T_ver = fixed + per_device·K + per_token·Σ(L_k + 1).
        price_tokens_per_s: λ, what a second of the engine is worth, see `Worth` [tokens/s].
        edge_drafter: the edge's own drafter; default none.

    Returns: a pass, or for how long to wait; `Wait(inf)` if nobody is ready.
    """
    if not ready:
        return Wait(math.inf)
    table = _Table(ready, verifier, price_tokens_per_s, edge_drafter)
    drafts = table.drafts()
    rides = drafts.surplus >= 0
    until_due_s = table.until_due(table.pass_s(drafts, rides))
    due = table.must | (until_due_s <= 0.0)
    if (due & ~rides).any():  # the edge may draft for those who ride although it does not pay
        table.must = due
        drafts = table.drafts()
        rides = (drafts.surplus >= 0) | due
    if not rides.any():
        return Wait(max(LEAST_WAIT_S, min(float(table.next_s.min()), float(until_due_s.min()))))
    chosen = np.flatnonzero(rides).tolist()
    device, edge = drafts.device.tolist(), drafts.edge.tolist()
    return Go(
        tuple(Ride(ready[k].session, device[k], edge[k]) for k in chosen),
        float(drafts.tokens[rides].sum()),
        table.pass_s(drafts, rides),
    )


@dataclass(frozen=True)
class _Drafts:
    """How much each session would bring, arrays over sessions.

    Attributes:
        device: tokens of the device.
        edge: tokens that the edge's drafter adds.
        tokens: w E[N].
        surplus: what riding now is worth beyond riding later, at the price of time.
        steps_cost: price of the steps of the edge's drafter that all share [tokens].
    """

    device: Ints
    edge: Ints
    tokens: Floats
    surplus: Floats
    steps_cost: float

    def worth(self, must: Mask) -> float:
        """What a pass is worth that everybody with a surplus rides in, and who must [tokens]."""
        return float(np.where(must, self.surplus, np.maximum(self.surplus, 0.0)).sum()) - self.steps_cost


class _Table:
    """What is ready, as arrays over sessions, and what it would bring."""

    def __init__(
        self, ready: Sequence[Ready], verifier: Verification, price: float, edge_drafter: EdgeDrafter | None
    ) -> None:
        columns = list(zip(*ready, strict=True))
        (
            pending,
            alpha,
            weight,
            waited,
            must,
            next_s,
            more,
            rate,
            room,
            edge_room,
            edge_alpha,
            least,
            token_worth,
            restart_worth,
        ) = columns[1:]
        self.verifier, self.drafter, self.price = verifier, edge_drafter, price
        self.pending: Ints = np.array(pending, dtype=np.int64)
        self.alpha, self.weight, self.waited_s = np.array(alpha, float), np.array(weight, float), np.array(waited)
        self.next_s, self.rate, self.edge_alpha = np.array(next_s), np.array(rate), np.array(edge_alpha, float)
        self.must = np.array(must, dtype=bool)
        self.more: Ints = np.array(more, dtype=np.int64)
        self.room: Ints = np.array(
            [had if each is None else each for each, had in zip(room, pending, strict=True)], dtype=np.int64
        )
        self.edge_room: Ints = np.array(edge_room, dtype=np.int64)
        self.token_worth, self.restart_worth = np.array(token_worth, float), np.array(restart_worth, float)
        plain_s = verifier.verify_s([0] * len(ready))
        self.floor = np.maximum(np.array(least, float), 1.0 / plain_s)
        self.plain_s = plain_s
        self.token_price = price * verifier.per_token_s

    def drafts(self) -> _Drafts:
        """The device's tokens first, or the edge's alone where its drafter is the better one: what is worth more."""
        own = np.minimum(self.pending, self.room)
        own = np.minimum(own, _steps(self.weight, self.alpha, self.token_price, own))
        found = self._with_edge(own)
        better = (self.edge_alpha > self.alpha) & (self.edge_room > 0) & (own > 0)
        if self.drafter is None or not better.any():
            return found
        other = self._with_edge(np.where(better, 0, own))
        mixed = self._with_edge(np.where(better & (other.surplus > found.surplus), 0, own))
        return max(found, other, mixed, key=lambda drafts: drafts.worth(self.must))

    def _with_edge(self, device: Ints) -> _Drafts:
        """What these tokens of the devices bring, and as many of the edge's after them as are worth their time."""
        verifier, price = self.verifier, self.price
        alive = self.alpha**device
        tokens = _expected(self.alpha, device)
        cost = price * verifier.per_device_s + self.token_price * (device + 1)
        edge: Ints = np.zeros_like(device)
        extra: Floats = np.zeros_like(alive)
        steps_cost = 0.0
        if self.drafter is not None:
            own = price * (verifier.per_token_s + self.drafter.per_device_s)
            most = np.minimum(self.edge_room, self.room - device)
            most = np.minimum(most, _steps(self.weight * alive, self.edge_alpha, own, most))
            steps = np.arange(1, int(most.max(initial=0)) + 1)[:, None]
            worth = np.where(steps <= most, self.weight * alive * self.edge_alpha**steps - own, 0.0)
            # Gains fall from step to step, so the first ones are the best. Who does not ride gains nothing.
            rides = self._rides_with(tokens + alive * (_expected(self.edge_alpha, most) - 1.0), cost + own * most)
            made = int((worth[:, rides].sum(axis=-1) > price * self.drafter.fixed_s).sum())
            edge = np.minimum(most, made)
            extra = _expected(self.edge_alpha, edge) - 1.0
            cost, steps_cost = cost + own * edge, price * self.drafter.fixed_s * made
        tokens = self.weight * (tokens + alive * extra)
        # What waiting for one more token would bring, against what the token's time is worth.
        grows = (device == self.pending) & (device < self.room) & ((self.rate > 0) | (self.more > 0))
        next_gain = self.weight * np.maximum(alive * (self.alpha - (1.0 - self.alpha) * extra), 0.0)
        contradicted = 1.0 - alive * self.alpha ** (edge + 1)
        worth_of_time = self.token_worth * device + self.restart_worth * contradicted
        grows &= (next_gain > self.token_worth) & (self.token_worth > 0)
        surplus = tokens - cost - np.where(grows, worth_of_time, 0.0)
        return _Drafts(device, edge, tokens, surplus, steps_cost)

    def _rides_with(self, tokens: Floats, cost: Floats) -> Mask:
        """Who may ride if as much as makes sense is drafted here, or rides anyway."""
        return np.asarray((self.weight * tokens >= cost) | self.must)

    def pass_s(self, drafts: _Drafts, rides: Mask) -> float:
        """Duration of a pass of these riders, or of the shortest ride if there are none [s]."""
        v, count = self.verifier, int(rides.sum())
        if not count:
            return verification_s(v.fixed_s, v.per_device_s, v.per_token_s, 1, 1.0)
        edge = drafts.edge[rides]
        drafting_s = 0.0 if self.drafter is None else self.drafter.draft_s(edge.tolist())
        tokens = float(drafts.device[rides].sum() + edge.sum()) + count
        return drafting_s + verification_s(v.fixed_s, v.per_device_s, v.per_token_s, count, tokens)

    def until_due(self, lasts_s: float) -> Floats:
        """Time until each session must begin to ride so as not to fall below its floor, if passes last so long [s].

        Riding in the pass after one that begins now, it would have waited for two passes by the end. Not sooner than
        half of a plain pass after its last ride: what it could bring is not known before.
        """
        comes = np.where(self.next_s < lasts_s, self.more + self.rate * np.maximum(lasts_s - self.next_s, 0.0), 0.0)
        later = _expected(self.alpha, np.minimum(self.pending + comes, self.room))
        allowed_s = np.maximum(later / self.floor - lasts_s, 0.5 * self.plain_s)
        return np.asarray(allowed_s - self.waited_s - lasts_s)


def _expected(alpha: Floats, length: Ints | Floats) -> Floats:
    """E[N] of drafts, without the checks of `goodput.expected_tokens`."""
    rest = np.maximum(1.0 - alpha, 1e-12)
    return np.asarray((1.0 - (1.0 - rest) ** (length + 1.0)) / rest)


def _steps(value: Floats, alpha: Floats, cost: float, most: Ints) -> Ints:
    """How many of a draft's first tokens are worth their cost: value · α^l > cost, at most `most`."""
    if cost <= 0.0:
        return np.where(alpha > 0.0, most, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.ceil(np.log(cost / value) / np.log(alpha)) - 1.0
    steps = np.where(alpha >= 1.0, np.where(value > cost, np.inf, 0.0), np.where(value * alpha > cost, steps, 0.0))
    return np.clip(steps, 0, most).astype(np.int64)


@dataclass(frozen=True)
class Price:
    """The price of time G, learned from what the engine has made of its time lately.

    Args:
        tokens: weighted tokens that came, what is long ago forgotten [tokens].
        seconds: time that they took, waiting included [s].
    """

    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """G [tokens/s]; 0 before anything was learned."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def learned(price: Price, tokens: float, seconds: float, memory_s: float = PRICE_MEMORY_S) -> Price:
    """The price after a pass: Σ w_k of the tokens that it brought, in the time since the pass before ended.

    Args:
        price: what was known before.
        tokens: weighted tokens that were committed.
        seconds: time since the last call, waiting included [s].
        memory_s: time after which a pass counts 1/e [s].
    """
    kept = math.exp(-seconds / memory_s)
    return Price(kept * price.tokens + tokens, kept * price.seconds + seconds)


_ATTAINED = 0.75
"""Share of the best rates' goodput that streams are taken to reach at least; seen are 0.72 to 0.9."""


@dataclass(frozen=True)
class SessionWorth:
    """What `Ready` and the device need to know of the best rates.

    Args:
        bandwidth_hz: B_k [Hz].
        token_worth: ν_k T_k, what the time of a drafted token is worth [tokens].
        restart_worth: ν_k × (a pass and a round trip), what a contradiction loses [tokens].
        least_tokens_per_s: what the edge alone would give the session, or its least goodput [tokens/s].
    """

    bandwidth_hz: float
    token_worth: float
    restart_worth: float
    least_tokens_per_s: float

    def scaled(self, by: float) -> "SessionWorth":
        """The same where all prices are higher by a factor."""
        return replace(self, token_worth=by * self.token_worth, restart_worth=by * self.restart_worth)


@dataclass(frozen=True)
class Worth:
    """What time is worth at a site, and how the band is shared out.

    Args:
        engine_share: λ over the goodput, in the best rates (`exact.fluid`): the part of the goodput that the engine
            earns and not the devices.
        most_tokens_per_s: goodput of the best rates [tokens/s].
        alone_tokens_per_s: goodput of the edge alone, by plain decoding or with its own drafter [tokens/s]. It can make
            this of any second, so no second is worth less.
        sessions: by device name.
    """

    engine_share: float
    most_tokens_per_s: float
    alone_tokens_per_s: float
    sessions: dict[str, SessionWorth]

    def price(self, learned_tokens_per_s: float) -> float:
        """λ [tokens/s], from the goodput that was learned (`Price`).

        A goodput that is poor because the price was too low must not lower the price further. So no less is believed
        than `_ATTAINED` of the best rates' goodput, and no more than that goodput.
        """
        most = self.most_tokens_per_s
        goodput = min(max(learned_tokens_per_s, _ATTAINED * most), most)
        return max(self.engine_share * goodput, self.alone_tokens_per_s)

    def scale(self, learned_tokens_per_s: float) -> float:
        """The price over that of the best rates, for the prices of `sessions`."""
        return self.price(learned_tokens_per_s) / max(self.engine_share * self.most_tokens_per_s, 1e-300)


def worth(scenario: Scenario) -> Worth:
    """What time is worth at a site. A pure function; it takes some milliseconds, so not for every pass.

    Nobody is to have less than the edge alone would give it: plain decoding, or the edge's own drafts if these are
    better for all together.

    Args:
        scenario: what is known; its weights may be those of `fair_weights`.

    Raises:
        InputError: as in `fluid`.
    """
    alone = plain(scenario)
    if scenario.edge_drafter is not None:
        alone = max(alone, edge_drafts(scenario), key=lambda each: each.goodput_tokens_per_s)
    floors = [tokens / alone.pass_s for tokens in alone.expected_tokens]
    best = fluid(scenario, floors)
    pass_s = 1.0 / best.passes_per_s
    return Worth(
        best.engine_tokens_per_s / best.goodput_tokens_per_s,
        best.goodput_tokens_per_s,
        alone.goodput_tokens_per_s,
        {
            device.name: SessionWorth(
                rates.bandwidth_hz,
                rates.drafting_tokens_per_s * device.seconds_per_token,
                rates.drafting_tokens_per_s * (pass_s + 2.0 * device.delay_s),
                max(floor, device.min_goodput_tokens_per_s or 0.0),
            )
            for device, rates, floor in zip(scenario.devices, best.devices, floors, strict=True)
        },
    )


def fair_weights(weights: Sequence[float], tokens_per_s: Sequence[float]) -> list[float]:
    """Weights with which a small gain of Σ w_k · goodput_k is one of Σ w_k log goodput_k, in tokens.

    The gradient is w_k / goodput_k; it is scaled so that all together are worth what they get now.

    Args:
        weights: w_k.
        tokens_per_s: what each has had lately, at least a little [tokens/s].
    """
    scale = sum(tokens_per_s) / sum(weights)
    return [weight * scale / rate for weight, rate in zip(weights, tokens_per_s, strict=True)]
