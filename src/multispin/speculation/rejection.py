"""The rejection rules: how much of a draft stands, and which token follows it.

p is the target's distribution after temperature, top-k and top-p, in float64; q is the draft's, a
`TruncatedDistribution` that both sides know exactly. Three payloads (arXiv 2608.29618, 2507.12000):

`rejection`       the whole of q for every drafted token goes up. The draft is decided as a whole (block.py).
`rejection-up`    q(x) of every drafted token x goes up, and one whole q after a rejection.
`rejection-down`  q(x) of every drafted token x goes up, and one whole p comes down after a rejection.

The last two decide token by token, because block verification needs the whole of q at every drafted position: a drafted
x ~ q stands with probability min(1, p(x)/q(x)), the rule of Leviathan et al. (arXiv 2211.17192) and of eq. 4 of
arXiv 2606.04581. docs/losslessness.md has the proofs.

A rule is written once, as a generator. It asks for whatever takes a step over the whole vocabulary: a token drawn from
weights, or the part of a distribution that fits on the air. Here each question is answered when it is asked; `together`
answers those of many drafts at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.block import Stop, block_stops
from multispin.speculation.distributions import (
    DistributionFormat,
    FlooredDistribution,
    Purpose,
    TruncatedDistribution,
    floor_distribution,
    residual,
    scaled_word,
    stream_seed,
    stream_word,
    target_distribution,
)
from multispin.speculation.gumbel_max import gumbel_argmax
from multispin.speculation.rules import Outcome
from multispin.speculation.sampling import SamplingParams, shaped

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Rejection:
    """The first refused token of a draft. It waits for the distribution that the token was drawn from.

    Attributes:
        accepted: number of leading drafted tokens that stand.
        token: the refused token's id.
        weight: q(token) · total, as the device sent it.
        form: V, V̂ and Q_B of the draft's distributions.
        base: position where the draft began; the refused token's position is base + accepted.
        seed: seed of the request.
        distribution: [V] float64, the target's distribution p at that position.
    """

    accepted: int
    token: int
    weight: int
    form: DistributionFormat
    base: int
    seed: int
    distribution: torch.Tensor


@dataclass(frozen=True, eq=False)
class Offer:
    """The edge's message after a rejection, from which the device finds the next token itself.

    Attributes:
        accepted: number of leading drafted tokens that stand.
        base: position where the draft began.
        floor: the part of the target's distribution that fits on the air.
        rest_token: a token drawn from the part that does not fit.
    """

    accepted: int
    base: int
    floor: FlooredDistribution
    rest_token: int


Deciding = Generator["Draw | Floor", Any, "Outcome | Rejection | Offer"]
"""A rule at work on one draft."""


class Draw(NamedTuple):
    """A question: which token is drawn in proportion to these weights? The answer is its id.

    Attributes:
        weights: computes [V] float64 weights.
        position: absolute position of the token.
    """

    weights: Callable[[], torch.Tensor]
    position: int


class Floor(NamedTuple):
    """A question: which part of the target's distribution after `accepted` drafted tokens fits on the air?"""

    accepted: int


class Targets(Protocol):
    """The target's distributions along a draft, and numbers of them that a rule asks for."""

    def distribution(self, index: int) -> torch.Tensor:
        """The target's p after the first `index` drafted tokens, [V] float64, index = 0 … L."""

    def chance(self, index: int) -> float:
        """What p gives to drafted token `index` at its place."""

    @property
    def shares(self) -> Callable[[int], NDArray[np.float64]] | None:
        """Computes what p gives to the ids of the draft's distribution `index`, [n]; None if `distribution` says it."""


def verify_distributions(
    drafted: Sequence[int],
    distributions: Sequence[TruncatedDistribution],
    logits: torch.Tensor,
    base: int,
    params: SamplingParams,
) -> Outcome:
    """`rejection` by block verification, with every draft distribution uploaded: V̂(Q_B + ⌈log2 V⌉) bits per token.

    Args:
        drafted: L token ids for the absolute positions base … base+L−1.
        distributions: L draft distributions; token i was drawn from distribution i.
        logits: [L + 1, V] of the target, row i for the token at position base + i.
        base: number of tokens committed (prompt included) when the draft began.
        params: the request's sampling parameters and seed; temperature > 0.
    """
    check_distributions(drafted, distributions, logits)
    targets = _LazyTargets(drafted, logits, base, params)
    found = _answered(
        decide_distributions(drafted, distributions, targets, base, params.seed), targets, base, params.seed
    )
    assert isinstance(found, Outcome)
    return found


def check_distributions(
    drafted: Sequence[int], distributions: Sequence[TruncatedDistribution], logits: torch.Tensor
) -> None:
    """InputError if these are not the distributions of a draft.

    Args:
        drafted: L token ids.
        distributions: L draft distributions, all in one format.
        logits: [L + 1, V] of the target.
    """
    if len(distributions) != len(drafted):
        raise InputError(f"{len(drafted)} drafted tokens came with {len(distributions)} distributions")
    if not distributions:
        return
    if any(distribution.form != distributions[0].form for distribution in distributions):
        raise InputError("the distributions of one draft are written in different formats")
    weights = [distribution.weight(token) for distribution, token in zip(distributions, drafted, strict=True)]
    check_draft(drafted, weights, distributions[0].form, logits)


def decide_distributions(
    drafted: Sequence[int], distributions: Sequence[TruncatedDistribution], targets: Targets, base: int, seed: int
) -> Deciding:
    """The rule of `verify_distributions`, for a draft that `check_distributions` has let through.

    Args:
        drafted: L token ids for the absolute positions base … base+L−1.
        distributions: L draft distributions; token i was drawn from distribution i.
        targets: the target's distributions along the draft.
        base: number of tokens committed (prompt included) when the draft began.
        seed: seed of the request.

    Returns:
        A generator that asks for one Draw and then returns an Outcome.
    """

    def stands(stop: Stop) -> bool:
        """Toss the coin of a prefix, which is that of its last drafted token; the empty prefix always stands."""
        return not stop.accepted or _coin(seed, base, base + stop.accepted - 1) < stop.chance

    stops = block_stops(drafted, distributions, targets.distribution, targets.chance, targets.shares)
    stop = next(filter(stands, stops))
    return Outcome(stop.accepted, (yield Draw(stop.weights, base + stop.accepted)))


def verify_scalars(
    drafted: Sequence[int],
    weights: Sequence[int],
    form: DistributionFormat,
    logits: torch.Tensor,
    base: int,
    params: SamplingParams,
) -> Outcome | Rejection:
    """`rejection-up`: one scalar per drafted token, ⌈log2 V⌉ + Q_B bits; a rejection asks for its distribution.

    Args:
        drafted: L token ids for the absolute positions base … base+L−1.
        weights: L integers, q(x) · total of each drafted token x.
        form: V, V̂ and Q_B.
        logits: [L + 1, V] of the target.
        base: number of tokens committed when the draft began.
        params: the request's sampling parameters and seed; temperature > 0.

    Returns:
        The outcome if every token stands, or else the rejection, to be finished by `resolve_up`.
    """
    check_draft(drafted, weights, form, logits)
    targets = _LazyTargets(drafted, logits, base, params)
    found = _answered(decide_scalars(drafted, weights, form, targets, base, params.seed), targets, base, params.seed)
    assert not isinstance(found, Offer)
    return found


def decide_scalars(
    drafted: Sequence[int], weights: Sequence[int], form: DistributionFormat, targets: Targets, base: int, seed: int
) -> Deciding:
    """The rule of `verify_scalars`, for a draft that `check_draft` has let through.

    Args:
        drafted: L token ids for the absolute positions base … base+L−1.
        weights: L integers, q(x) · total of each drafted token x.
        form: V, V̂ and Q_B.
        targets: the target's distributions along the draft.
        base: number of tokens committed (prompt included) when the draft began.
        seed: seed of the request.

    Returns:
        A generator that returns a Rejection, or asks for one Draw and then returns an Outcome.
    """
    for index, (token, weight) in enumerate(zip(drafted, weights, strict=True)):
        if _coin(seed, base, base + index) * (weight / form.total) >= targets.chance(index):
            return Rejection(index, token, weight, form, base, seed, targets.distribution(index).clone())
    return Outcome(len(drafted), (yield _bonus(drafted, targets, base)))


def resolve_up(rejection: Rejection, distribution: TruncatedDistribution) -> Outcome:
    """Finish a rejection with the distribution that the device sent up: draw from max(0, p − q), normalised.

    Args:
        rejection: the rejection that `verify_scalars` returned.
        distribution: q, that the refused token was drawn from.

    Raises:
        InputError: its format, or the weight that it gives to the refused token, is not the draft's.
    """
    if distribution.form != rejection.form:
        raise InputError(f"the distribution is written as {distribution.form}, the draft as {rejection.form}")
    if distribution.weight(rejection.token) != rejection.weight:
        raise InputError(
            f"the distribution gives token {rejection.token} the weight {distribution.weight(rejection.token)}, "
            f"the draft said {rejection.weight}"
        )
    weights = residual(rejection.distribution, distribution)
    position = rejection.base + rejection.accepted
    return Outcome(rejection.accepted, emit(weights, rejection.base, position, rejection.seed))


def verify_floored(
    drafted: Sequence[int],
    weights: Sequence[int],
    form: DistributionFormat,
    logits: torch.Tensor,
    base: int,
    params: SamplingParams,
) -> Outcome | Offer:
    """`rejection-down`: one scalar per drafted token, and the target's distribution sent down after a rejection.

    The device cannot draw from the residual of a p that it was not sent whole. So a token is accepted against the
    part of p that can be sent, p⁻ ≤ p: with probability min(1, p⁻(x)/q(x)). What is then missing from p is
    max(0, p⁻ − q), which the device can compute, plus p − p⁻, from which the edge draws one token and sends it
    along. The result follows p exactly. Acceptance is 1 − TV(p, q) less at most 1 − Σp⁻.

    Args:
        drafted: L token ids for the absolute positions base … base+L−1.
        weights: L integers, q(x) · total of each drafted token x.
        form: V, V̂ and Q_B, of q and of what is sent down.
        logits: [L + 1, V] of the target.
        base: number of tokens committed when the draft began.
        params: the request's sampling parameters and seed; temperature > 0.

    Returns:
        The outcome if every token stands, or else the offer, to be finished by `resolve_down`.
    """
    check_draft(drafted, weights, form, logits)
    targets = _LazyTargets(drafted, logits, base, params, form)
    found = _answered(decide_floored(drafted, weights, form, targets, base, params.seed), targets, base, params.seed)
    assert not isinstance(found, Rejection)
    return found


def decide_floored(
    drafted: Sequence[int], weights: Sequence[int], form: DistributionFormat, targets: Targets, base: int, seed: int
) -> Deciding:
    """The rule of `verify_floored`, for a draft that `check_draft` has let through.

    Args:
        drafted: L token ids for the absolute positions base … base+L−1.
        weights: L integers, q(x) · total of each drafted token x.
        form: V, V̂ and Q_B.
        targets: the target's distributions along the draft.
        base: number of tokens committed (prompt included) when the draft began.
        seed: seed of the request.

    Returns:
        A generator that asks for Floors and at most one Draw, and then returns an Outcome or an Offer.
    """
    for index, (token, weight) in enumerate(zip(drafted, weights, strict=True)):
        chance, floor = targets.chance(index), None
        floored = math.floor(chance * form.total)
        # At most 1/p tokens are as probable as one of probability p: it is then surely among those retained.
        if chance * form.retained < 1.0:
            floor = yield Floor(index)
            floored = floor.weight(token)
        coin = stream_word(seed, Purpose.ACCEPT, base, base + index)
        if coin * weight >= floored << 52:
            floor = floor or (yield Floor(index))
            rest = partial(residual, targets.distribution(index), floor)
            return Offer(index, base, floor, (yield Draw(rest, base + index)))
    return Outcome(len(drafted), (yield _bonus(drafted, targets, base)))


def resolve_down(offer: Offer, distribution: TruncatedDistribution, seed: int) -> int:
    """The device's next token after a rejection, from its own distribution and what the edge sent.

    Weights are whole numbers and the noise is shared, so everyone who knows the distribution gets the same token. The
    device names it at the start of its next draft. An edge that asks for the distribution can check it.

    Args:
        offer: the offer that `verify_floored` returned.
        distribution: the draft's distribution at position base + accepted.
        seed: seed of the request.
    """
    form, floor = offer.floor.form, offer.floor
    if distribution.form != form:
        raise InputError(f"the distribution is written as {distribution.form}, the offer as {form}")
    excess = floor.weights.copy()
    _, ours, theirs = np.intersect1d(floor.ids, distribution.ids, assume_unique=True, return_indices=True)
    excess[ours] = np.maximum(excess[ours] - distribution.weights[theirs], 0)
    bounds = np.cumsum(np.append(excess, floor.rest))
    if bounds[-1] == 0:
        raise InputError("the offer equals the draft's distribution: nothing can have been refused")
    word = stream_word(seed, Purpose.RESOLVE, offer.base, offer.base + offer.accepted)
    place = int(np.searchsorted(bounds, scaled_word(word, int(bounds[-1])), side="right"))
    return int(floor.ids[place]) if place < len(floor.ids) else offer.rest_token


def possible_after(offer: Offer, token: int) -> bool:
    """Whether `resolve_down` can give `token` under some q: the check of an edge that has not seen q.

    Args:
        offer: the offer that `verify_floored` returned.
        token: id that the device names.
    """
    return offer.floor.weight(token) > 0 or (offer.floor.rest > 0 and token == offer.rest_token)


def check_draft(drafted: Sequence[int], weights: Sequence[int], form: DistributionFormat, logits: torch.Tensor) -> None:
    """InputError if these are not the tokens and weights of a draft.

    Args:
        drafted: L token ids.
        weights: L integers, q(x) · total of each drafted token x.
        form: V, V̂ and Q_B.
        logits: [L + 1, V] of the target.
    """
    if len(weights) != len(drafted):
        raise InputError(f"{len(drafted)} drafted tokens came with {len(weights)} probabilities")
    if tuple(logits.shape) != (len(drafted) + 1, form.vocabulary_size):
        raise InputError(
            f"{len(drafted)} drafted tokens over {form.vocabulary_size} ids do not fit logits {tuple(logits.shape)}"
        )
    for token, weight in zip(drafted, weights, strict=True):
        if not 0 <= token < form.vocabulary_size:
            raise InputError(f"token id {token} is outside 0 … {form.vocabulary_size - 1}")
        if not 1 <= weight <= form.total:
            raise InputError(f"drafted token {token} has the weight {weight}, outside 1 … {form.total}")


def _coin(seed: int, base: int, position: int) -> float:
    """The uniform variate in (0, 1) that decides about the drafted token at an absolute position."""
    return (stream_word(seed, Purpose.ACCEPT, base, position) + 0.5) * 2.0**-52


def _bonus(drafted: Sequence[int], targets: Targets, base: int) -> Draw:
    """The token after a draft that stands whole."""
    return Draw(partial(targets.distribution, len(drafted)), base + len(drafted))


class _LazyTargets:
    """The target's distributions along a draft, each computed when it is asked for.

    Args:
        drafted: the L drafted token ids.
        logits: [L + 1, V].
        base: position of the first drafted token.
        params: the request's sampling parameters.
        form: how floors are written; only where they are asked for; default None.

    """

    shares = None

    def __init__(
        self,
        drafted: Sequence[int],
        logits: torch.Tensor,
        base: int,
        params: SamplingParams,
        form: DistributionFormat | None = None,
    ) -> None:
        self._drafted, self._logits, self._base, self._params, self._form = drafted, logits, base, params, form
        self._last: tuple[int, torch.Tensor] | None = None  # what is asked for again

    def distribution(self, index: int) -> torch.Tensor:
        """The target's p after the first `index` drafted tokens, [V] float64."""
        if self._last is None or self._last[0] != index:
            row = shaped(self._logits[index : index + 1], [self._base + index], self._params)
            self._last = index, target_distribution(row, self._params)[0]
        return self._last[1]

    def chance(self, index: int) -> float:
        """What p gives to drafted token `index` at its place."""
        return float(self.distribution(index)[self._drafted[index]])

    def floor(self, index: int) -> FlooredDistribution:
        """The part of the distribution there that fits on the air."""
        assert self._form is not None
        return floor_distribution(self.distribution(index), self._form)


def _answered(deciding: Deciding, targets: _LazyTargets, base: int, seed: int) -> Outcome | Rejection | Offer:
    """The decision of a rule, each of its questions answered when it is asked."""
    answer: Any = None
    while True:
        try:
            question = deciding.send(answer)
        except StopIteration as decided:
            found: Outcome | Rejection | Offer = decided.value
            return found
        if isinstance(question, Floor):
            answer = targets.floor(question.accepted)
        else:
            answer = emit(question.weights(), base, question.position, seed)


def emit(weights: torch.Tensor, base: int, position: int, seed: int) -> int:
    """Draw one token with probability proportional to [V] weights.

    Args:
        weights: float64, not negative; their sum need not be 1.
        base: number of tokens committed (prompt included) when the draft began.
        position: absolute position of the token.
        seed: seed of the request.

    Returns:
        The token's id.

    Raises:
        InputError: no weight is above 0.
    """
    return gumbel_argmax(weights.log(), stream_seed(seed, Purpose.EMIT, base), position)
