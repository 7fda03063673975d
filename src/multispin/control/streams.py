"""Streams: who rides in the pass that begins now, with how many tokens, or how long is it better to wait?

Devices draft on while they are verified, so the engine chooses among what has arrived whenever it is free. The *price
of time* G [tokens/s] decides: a session takes part if it brings more expected tokens than G × the engine time that it
costs, and the engine waits for the next arrival if that raises expected tokens − G × time. Everything here is a pure
function. Does not know clocks, slots or messages, nor how what it is told was estimated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multispin.control.scenario import EdgeDrafter, Verification

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
    edge_drafter: EdgeDrafter | None = None,  # noqa: ARG001 - not used yet
) -> Go | Wait:
    """Decide who rides in the pass that begins now, or to wait. A pure function.

    Args:
        ready: all sessions that could ride now; who has nothing pending may ride for its one token.
        verifier: T_ver = fixed + per_device·K + per_token·Σ(L_k + 1).
        price_tokens_per_s: G, what a second of the engine is worth, see `Price` [tokens/s].
        edge_drafter: the edge's own drafter; default none.

    Returns: a pass, or for how long to wait; `Wait(inf)` if nobody is ready.
    """
    if not ready:
        return Wait(math.inf)
    own_s = verifier.per_device_s + verifier.per_token_s
    rides, tokens = [], 0.0
    for each in ready:
        brought = each.weight * sum(each.acceptance_rate**j for j in range(each.pending + 1))
        if each.must_ride or brought > price_tokens_per_s * (own_s + each.pending * verifier.per_token_s):
            rides.append(Ride(each.session, each.pending))
            tokens += brought
    if not rides:
        for_s = min(each.next_s for each in ready)
        if for_s < math.inf:
            return Wait(for_s)
        rides = [Ride(each.session, each.pending) for each in ready]
        tokens = sum(each.weight * sum(each.acceptance_rate**j for j in range(each.pending + 1)) for each in ready)
    return Go(tuple(rides), tokens, verifier.verify_s([ride.device_tokens for ride in rides]))


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
