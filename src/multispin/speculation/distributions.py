"""Distributions that fit on the air: whole weights that both sides hold exactly.

A device that sends V̂ of V probabilities, rounded, keeps the target's distribution only if it *samples from* what it
sends (arXiv 2507.00605, 2512.16273). So the truncated and rounded distribution is the draft's distribution: whole
weights with a fixed sum, drawn from by integer arithmetic, with the same result on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.codec import bits_per_id
from multispin.speculation.noise import derive_seed, uniform_word
from multispin.speculation.rule import MAX_PROBABILITY_BITS
from multispin.speculation.sampling import SamplingParams, truncated_logits

if TYPE_CHECKING:
    import torch

_WORD_BITS = 52  # of one uniform variate


class Purpose(IntEnum):
    """The purpose of a random number. No two decisions share one: a coin that also picks the next token biases it."""

    DRAFT = 1
    ACCEPT = 2
    EMIT = 3
    RESOLVE = 4


def stream_seed(seed: int, stream: Purpose, base: int) -> int:
    """The seed of one decision about the draft that begins at `base`.

    A retry of that draft meets the same noise. The next draft has a larger base and meets fresh noise, even at
    positions for which a token was already drawn and thrown away.

    Args:
        seed: seed of the request.
        stream: the decision that the noise is for.
        base: number of tokens committed (prompt included) when the draft began.
    """
    return derive_seed(seed, stream, base)


def stream_word(seed: int, stream: Purpose, base: int, position: int) -> int:
    """A uniform integer in 0 … 2^52 − 1 for one decision at one absolute position.

    Args:
        seed: seed of the request.
        stream: the decision that the number is for.
        base: number of tokens committed (prompt included) when the draft began.
        position: absolute position of the token that is decided about.
    """
    return uniform_word(stream_seed(seed, stream, base), position, 0)


def scaled_word(word: int, total: int) -> int:
    """⌊word · total / 2^52⌋: uniform over 0 … total − 1, each value within 2^−52 of 1/total.

    Args:
        word: a uniform integer in 0 … 2^52 − 1, as of `stream_word`.
        total: number of values, at least 1.
    """
    return (word * total) >> _WORD_BITS


@dataclass(frozen=True)
class DistributionFormat:
    """How distributions are written on the air (eq. 9 of arXiv 2606.04581).

    Attributes:
        vocabulary_size: V, number of token ids.
        retained: V̂, most tokens that a sent distribution keeps. Default 1024, as in the paper.
        probability_bits: Q_B, bits of one probability. Default 16, as in the paper.
    """

    vocabulary_size: int
    retained: int = 1024
    probability_bits: int = 16

    def __post_init__(self) -> None:
        bits_per_id(self.vocabulary_size)
        if not 1 <= self.retained <= self.vocabulary_size:
            raise InputError(f"retained = {self.retained} is outside 1 … {self.vocabulary_size}, the vocabulary")
        if not 2 <= self.probability_bits <= MAX_PROBABILITY_BITS:
            raise InputError(f"probability_bits = {self.probability_bits} is outside 2 … {MAX_PROBABILITY_BITS}")

    @property
    def total(self) -> int:
        """2^Q_B − 1, the sum of the weights. With it the weight of a certain token still fits Q_B bits."""
        return (1 << self.probability_bits) - 1

    @property
    def entry_bits(self) -> int:
        """Q_B + ⌈log2 V⌉, one probability with its token id."""
        return self.probability_bits + bits_per_id(self.vocabulary_size)

    @property
    def count_bits(self) -> int:
        """Bits of the number of entries of one distribution, 0 … V̂; 11 bits for V̂ = 1024."""
        return self.retained.bit_length()


def _check_entries(ids: NDArray[np.int64], weights: NDArray[np.int64], form: DistributionFormat) -> None:
    if ids.ndim != 1 or ids.shape != weights.shape:
        raise InputError(f"a distribution needs as many weights as ids, not {weights.shape} for {ids.shape}")
    if len(ids) > form.retained:
        raise InputError(f"a distribution has {len(ids)} tokens, more than the {form.retained} retained")
    if len(ids) and (ids[0] < 0 or ids[-1] >= form.vocabulary_size or (np.diff(ids) <= 0).any()):
        raise InputError(
            f"the ids of a distribution are not ascending and distinct within 0 … {form.vocabulary_size - 1}"
        )
    if len(weights) and (weights.min() < 1 or weights.max() > form.total):
        raise InputError(f"weights {weights.min()} … {weights.max()} of a distribution reach outside 1 … {form.total}")


@dataclass(frozen=True, eq=False)
class TruncatedDistribution:
    """A draft distribution q(x) = weight(x) / total, known exactly to both sides.

    Attributes:
        ids: [n] int64 token ids, strictly ascending, 1 ≤ n ≤ V̂.
        weights: [n] int64, each 1 … total; they sum to total = 2^Q_B − 1.
        form: V, V̂ and Q_B.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.int64]
    form: DistributionFormat

    def __post_init__(self) -> None:
        _check_entries(self.ids, self.weights, self.form)
        if (found := int(self.weights.sum())) != self.form.total:
            raise InputError(f"the weights of a distribution sum to {found}, not to {self.form.total}")

    def weight(self, token: int) -> int:
        """q(token) · total; 0 outside the support."""
        return _weight(self.ids, self.weights, token)

    def dense(self) -> NDArray[np.float64]:
        """[V] probabilities."""
        probabilities = np.zeros(self.form.vocabulary_size)
        probabilities[self.ids] = self.weights / self.form.total
        return probabilities


@dataclass(frozen=True, eq=False)
class FlooredDistribution:
    """The part of a target distribution p that fits on the air: ⌊p(x) · total⌋ for its V̂ most probable tokens.

    Attributes:
        ids: [n] int64 token ids, strictly ascending, 0 ≤ n ≤ V̂.
        weights: [n] int64, each 1 … total; they sum to at most total.
        form: V, V̂ and Q_B.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.int64]
    form: DistributionFormat

    def __post_init__(self) -> None:
        _check_entries(self.ids, self.weights, self.form)
        if self.rest < 0:
            raise InputError(f"the weights of a floored distribution sum to more than {self.form.total}")

    @property
    def rest(self) -> int:
        """Total less the sum of the weights: the weight of p's truncated tail and of what rounding cut off."""
        return self.form.total - int(self.weights.sum())

    def weight(self, token: int) -> int:
        """⌊p(token) · total⌋; 0 outside the retained tokens."""
        return _weight(self.ids, self.weights, token)


def _weight(ids: NDArray[np.int64], weights: NDArray[np.int64], token: int) -> int:
    place = int(np.searchsorted(ids, token))
    return int(weights[place]) if place < len(ids) and ids[place] == token else 0


def target_distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The target's distributions, [rows, V] float64, of [rows, V] logits that are `shaped` already; temperature > 0.

    Args:
        logits: rows of logits, [rows, V], any float type.
        params: the request's sampling parameters.

    Raises:
        InputError: the temperature is 0.
    """
    if params.greedy:
        raise InputError("at temperature = 0 there is no distribution to compare drafts with: use the rule greedy")
    return truncated_logits(logits, params).double().softmax(dim=-1)


def quantise(probabilities: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole weights that sum to `total` and are nearest to [n] probabilities (largest remainders).

    No weight is off by 1 or more, and the total variation to the normalised input is at most n / (4·total).
    Example: [0.5, 0.3, 0.2] at total 7 becomes [4, 2, 1].

    Args:
        probabilities: [n], not negative; they are normalised here, so their sum need not be 1.
        total: sum of the weights, 2^Q_B − 1 for what goes on the air.

    Returns:
        [n] int64, some of which may be 0.
    """
    exact = probabilities / probabilities.sum() * total
    weights: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    missing = total - int(weights.sum())
    weights[np.argsort(weights - exact, kind="stable")[:missing]] += 1
    return weights


def _most_probable(distribution: torch.Tensor, retained: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids (ascending) and probabilities of the `retained` most probable tokens of a [V] distribution."""
    ids = distribution.topk(min(retained, len(distribution))).indices.sort().values
    return ids.cpu().numpy(), distribution[ids].cpu().numpy()


def truncate(logits: torch.Tensor, params: SamplingParams, form: DistributionFormat) -> TruncatedDistribution:
    """The distribution that a device drafts from and sends: its V̂ most probable tokens, renormalised, in Q_B bits.

    Args:
        logits: [V] logits of the drafter, `shaped` already.
        params: the request's sampling parameters, applied before the truncation; temperature > 0.
        form: V, V̂ and Q_B. Tokens whose probability rounds to zero are neither sent nor drafted.
    """
    if len(logits) != form.vocabulary_size:
        raise InputError(f"{len(logits)} logits do not fit a vocabulary of {form.vocabulary_size}")
    ids, probabilities = _most_probable(target_distribution(logits[None], params)[0], form.retained)
    if not np.isfinite(probabilities).all():
        raise InputError("the drafter's logits are not finite numbers")
    weights = quantise(probabilities, form.total)
    return TruncatedDistribution(ids[weights > 0], weights[weights > 0], form)


def certain_distribution(token: int, form: DistributionFormat) -> TruncatedDistribution:
    """The distribution of a token that was not drawn at random: all of the weight on it.

    Args:
        token: the token's id.
        form: V, V̂ and Q_B.
    """
    return TruncatedDistribution(np.array([token], dtype=np.int64), np.array([form.total], dtype=np.int64), form)


def residual(row: torch.Tensor, part: TruncatedDistribution | FlooredDistribution, weight: float = 1.0) -> torch.Tensor:
    """max(0, weight · p − part), [V]; p itself where nothing is left of it, which has probability 0.

    Args:
        row: p, [V] float64.
        part: the distribution, or the part of one, that is taken away.
        weight: factor of p, 0 … 1; default 1.0.

    """
    import torch

    left = weight * row
    left[torch.from_numpy(part.ids).to(row.device)] -= torch.from_numpy(part.weights / part.form.total).to(row.device)
    left.clamp_(min=0.0)
    return torch.where(left.sum() > 0.0, left, row)


def floor_distribution(distribution: torch.Tensor, form: DistributionFormat) -> FlooredDistribution:
    """The part of a [V] float64 target distribution that V̂ entries of Q_B bits can carry, rounded down.

    Args:
        distribution: p, [V] float64.
        form: V, V̂ and Q_B; tokens with p(x) · total below 1 are left out.
    """
    return floor_of(*_most_probable(distribution, form.retained), form)


def floor_of(
    ids: NDArray[np.int64], probabilities: NDArray[np.float64], form: DistributionFormat
) -> FlooredDistribution:
    """`floor_distribution`, from the [n] ids (ascending) and probabilities of the V̂ most probable tokens.

    Args:
        ids: [n] int64.
        probabilities: [n] float64, p of these ids.
        form: V, V̂ and Q_B.
    """
    weights = np.floor(probabilities * form.total).astype(np.int64)
    return FlooredDistribution(ids[weights > 0], weights[weights > 0], form)


def draft_token(distribution: TruncatedDistribution, seed: int, base: int, position: int) -> int:
    """The token that a device draws from exactly `distribution`, by integer inversion of its cumulative weights.

    The edge gets the same token from the same distribution. So drafted ids need not be sent beside whole
    distributions, and a draft that was not drawn from the distribution sent with it can be detected.

    Args:
        distribution: q, the distribution that the device sends for the token.
        seed: seed of the request.
        base: number of tokens committed (prompt included) when the draft began.
        position: absolute position of the token.

    Returns:
        The token's id.
    """
    place = scaled_word(stream_word(seed, Purpose.DRAFT, base, position), distribution.form.total)
    return int(distribution.ids[np.searchsorted(np.cumsum(distribution.weights), place, side="right")])
