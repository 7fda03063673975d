"""Streams: what time is worth, of the engine and of each device, and what was learned of it.

The prices follow from the best rates (`control.exact.fluid`) of what is known of a site, and are scaled by the goodput
that it really has. Pure functions. Does not know what is decided by the prices (`control.streams`).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from multispin.control.edge import edge_drafts, plain
from multispin.control.exact.fluid import fluid
from multispin.control.scenario import Scenario

PRICE_MEMORY_S = 5.0
"""Time after which the weight of an observed price falls to 1/e [s]."""
PRICE_MEMORY_PASSES = 36.0
"""Passes after which it does, if these take longer: a site that the demo slows down then remembers as many."""
ATTAINED = 0.75
"""Share of the best rates' goodput that streams are taken to reach at least; 0.72 to 0.9 were measured."""
DEVICES_ATTAIN = 0.33
"""A device's time is worth all that the best rates say if devices add this share of what they add in these rates."""


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


def learned_price(price: Price, tokens: float, seconds: float, pass_s: float = 0.0) -> Price:
    """The price after a pass: Σ w_k of the tokens that it brought, in the time since the pass before ended.

    Args:
        price: the price of time that was known before.
        tokens: weighted tokens that were committed.
        seconds: time since the last call, waiting included [s].
        pass_s: usual time of a pass, which bounds how soon one is forgotten; default 0, by `PRICE_MEMORY_S` alone [s].
    """
    kept = math.exp(-seconds / max(PRICE_MEMORY_S, PRICE_MEMORY_PASSES * pass_s))
    return Price(kept * price.tokens + tokens, kept * price.seconds + seconds)


class SessionWorth(NamedTuple):
    """What a session's tokens and its device's time are worth, by the best rates. All but the weight are 0 by default.

    Attributes:
        bandwidth_hz: part of the band by the best rates, B_k [Hz].
        token_worth: ν_k T_k, what the time of a drafted token is worth [tokens].
        restart_worth: ν_k × (a pass and a round trip), what a contradiction loses [tokens].
        least_tokens_per_s: what plain decoding would give the session, or its least goodput [tokens/s].
        weight: w_k, what one of its tokens counts; default 1.
        asked_tokens_per_s: goodput that was asked for it [tokens/s], if the best rates have that; else 0.
    """

    bandwidth_hz: float = 0.0
    token_worth: float = 0.0
    restart_worth: float = 0.0
    least_tokens_per_s: float = 0.0
    weight: float = 1.0
    asked_tokens_per_s: float = 0.0

    def scaled(self, by: float) -> "SessionWorth":
        """The same where all prices are higher by a factor."""
        return self._replace(token_worth=by * self.token_worth, restart_worth=by * self.restart_worth)


@dataclass(frozen=True)
class Worth:
    """The price of time at a site, and how the band is shared.

    Args:
        engine_share: λ over the goodput, in the best rates (`exact.fluid`): the part of the goodput that the engine
            earns and not the devices; 1 at most, as λ pays for floors too where these are dear.
        most_tokens_per_s: goodput of the best rates [tokens/s].
        alone_tokens_per_s: goodput of the edge alone, by plain decoding or with its own drafter [tokens/s]. It can make
            this of any second in which no device drafts, so no second of edge and devices together is worth less.
        sessions: worth of each session, in the order of the scenario's devices.
    """

    engine_share: float
    most_tokens_per_s: float
    alone_tokens_per_s: float
    sessions: tuple[SessionWorth, ...]

    def price(self, learned_tokens_per_s: float, devices_share: float = 1.0) -> float:
        """λ [tokens/s], from the goodput that was learned (`Price`) and what the devices' time is worth of its price.

        The price of the engine and those of the devices' time add up to a goodput, and are scaled together: if λ alone
        were raised, say to what the edge makes alone, devices would seem to earn what the edge has been paid for.
        A goodput that is poor because the price was too low must not lower the price further. So the
        assumed goodput is at least what the edge makes alone and, as far as devices are worth their price, `ATTAINED`
        of the best rates' goodput. It is at most that of the best rates. Where devices add nothing, as on a band so
        narrow that their drafts come too late, a price by the best rates would have the edge refuse the passes that it
        can make alone.
        """
        earned_by_devices = devices_share * (1.0 - self.engine_share)
        return (1.0 - earned_by_devices) * self._goodput(learned_tokens_per_s, devices_share)

    def scale(self, learned_tokens_per_s: float, devices_share: float = 1.0) -> float:
        """The price over that of the best rates, for the prices of `sessions`."""
        return devices_share * self._goodput(learned_tokens_per_s, devices_share) / self.most_tokens_per_s

    def devices_share(self, expected_tokens_per_s: float) -> float:
        """The share of their price that the devices' time is worth, 0 … 1, from the goodput that passes promise.

        The best rates bound what devices can add to what the edge makes alone. Where they add less, their time has been
        priced too high: the edge then drafts too little, to spare streams that bring little.
        """
        added = expected_tokens_per_s - self.alone_tokens_per_s
        wanted = DEVICES_ATTAIN * (self.most_tokens_per_s - self.alone_tokens_per_s)
        return min(1.0, max(0.0, added) / wanted) if wanted > 0.0 else 1.0

    def _goodput(self, learned_tokens_per_s: float, devices_share: float) -> float:
        """The goodput that prices add up to, that of the engine and those of the devices' time [tokens/s]."""
        by_devices = max(0.0, ATTAINED * self.most_tokens_per_s - self.alone_tokens_per_s)
        least = self.alone_tokens_per_s + devices_share * by_devices
        return min(max(learned_tokens_per_s, least), self.most_tokens_per_s)


def worth(scenario: Scenario) -> Worth:
    """Compute the price of time at a site. A pure function; it takes some milliseconds, so not for every pass.

    Nobody is to have less than plain decoding of all would give it. The goodput by the edge's own drafts is no
    such floor. Where it is near to what the devices make, some session is always a little behind it and rides without
    a draft, and all sessions get less.

    Args:
        scenario: the site as it is known; its weights may be those of `fair_weights`.

    Raises:
        InputError: as in `fluid`.
    """
    least = plain(scenario)
    alone_tokens_per_s = least.goodput_tokens_per_s
    if scenario.edge_drafter is not None:
        alone_tokens_per_s = max(alone_tokens_per_s, edge_drafts(scenario).goodput_tokens_per_s)
    floors = [tokens / least.pass_s for tokens in least.expected_tokens]
    best = fluid(scenario, floors)
    pass_s, can_be_had = 1.0 / best.passes_per_s, best.status == "feasible"
    return Worth(
        min(1.0, best.engine_tokens_per_s / best.goodput_tokens_per_s),
        best.goodput_tokens_per_s,
        alone_tokens_per_s,
        tuple(
            SessionWorth(
                rates.bandwidth_hz,
                rates.drafting_tokens_per_s * device.seconds_per_token,
                rates.drafting_tokens_per_s * (pass_s + 2.0 * device.delay_s),
                max(floor, device.min_goodput_tokens_per_s or 0.0),
                device.weight,
                (device.min_goodput_tokens_per_s or 0.0) if can_be_had else 0.0,
            )
            for device, rates, floor in zip(scenario.devices, best.devices, floors, strict=True)
        ),
    )
