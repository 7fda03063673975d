"""Laws that fit on the air: a distribution as integers that both sides hold exactly.

A device that sends V̂ of V probabilities, rounded, keeps the target's law only if it *samples from* what it sends
(arXiv 2507.00605, 2512.16273). So the truncated, quantised law is the draft law: whole weights that sum to a fixed
total, drawn from by integer arithmetic, the same on every machine. Nothing of the drafter is known beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.codec import bits_per_id
from multispin.speculation.noise import derive_seed, uniform_numpy
from multispin.speculation.sampling import SamplingParams, truncated_logits

if TYPE_CHECKING:
    import torch

MAX_PROBABILITY_BITS = 32
_WORD_BITS = 52  # of one uniform variate


class Stream(IntEnum):
    """What a variate decides. No two decisions share one: a coin that also picks the residual would bias both."""

    DRAFT = 1
    ACCEPT = 2
    EMIT = 3
    RESOLVE = 4


def stream_seed(seed: int, stream: Stream, base: int) -> int:
    """The seed of one decision in the round whose draft begins at `base`.

    A retry of that round meets the same noise; the next round, with a larger base, meets fresh noise even at positions
    for which a draft was already drawn and thrown away.
    """
    return derive_seed(seed, stream, base)


def stream_word(seed: int, stream: Stream, base: int, position: int) -> int:
    """A uniform integer in 0 … 2^52 − 1 for one decision at one absolute position."""
    uniform = uniform_numpy(stream_seed(seed, stream, base), position, np.zeros(1, dtype=np.int64))[0]
    return int(uniform * 2.0**_WORD_BITS)


def scaled_word(word: int, total: int) -> int:
    """⌊word · total / 2^52⌋: uniform over 0 … total − 1, each value within 2^−52 of 1/total."""
    return (word * total) >> _WORD_BITS


@dataclass(frozen=True)
class LawFormat:
    """How laws are written on the air (eq. 9 of arXiv 2606.04581).

    Attributes:
        vocabulary_size: V, number of token ids.
        retained: V̂, most tokens that a law keeps; 1024 in the paper.
        probability_bits: Q_B, bits of one probability; 16 in the paper.
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
        """2^Q_B − 1, the sum of a law's weights: a law of one token still fits Q_B bits."""
        return (1 << self.probability_bits) - 1

    @property
    def entry_bits(self) -> int:
        """Q_B + ⌈log2 V⌉, one probability with its token id."""
        return self.probability_bits + bits_per_id(self.vocabulary_size)

    @property
    def count_bits(self) -> int:
        """Framing of one law: how many entries follow, 0 … V̂; 11 bits for V̂ = 1024."""
        return self.retained.bit_length()


def _check_entries(ids: NDArray[np.int64], weights: NDArray[np.int64], form: LawFormat) -> None:
    if ids.ndim != 1 or ids.shape != weights.shape:
        raise InputError(f"a law needs as many weights as ids, not {weights.shape} for {ids.shape}")
    if len(ids) > form.retained:
        raise InputError(f"a law has {len(ids)} tokens, more than the {form.retained} retained")
    if len(ids) and (ids[0] < 0 or ids[-1] >= form.vocabulary_size or (np.diff(ids) <= 0).any()):
        raise InputError(f"the ids of a law are not ascending and distinct within 0 … {form.vocabulary_size - 1}")
    if len(weights) and (weights.min() < 1 or weights.max() > form.total):
        raise InputError(f"a weight of a law is outside 1 … {form.total}")


@dataclass(frozen=True, eq=False)
class TruncatedLaw:
    """A draft law q(x) = weight(x) / total, exactly, on both sides.

    Attributes:
        ids: [n] int64 token ids, strictly ascending, 1 ≤ n ≤ V̂.
        weights: [n] int64, each 1 … total; they sum to total = 2^Q_B − 1.
        form: V, V̂ and Q_B.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.int64]
    form: LawFormat

    def __post_init__(self) -> None:
        _check_entries(self.ids, self.weights, self.form)
        if (found := int(self.weights.sum())) != self.form.total:
            raise InputError(f"the weights of a law sum to {found}, not to {self.form.total}")

    def weight(self, token: int) -> int:
        """q(token) · total; 0 outside the support."""
        return _weight(self.ids, self.weights, token)

    def dense(self) -> NDArray[np.float64]:
        """[V] probabilities."""
        probabilities = np.zeros(self.form.vocabulary_size)
        probabilities[self.ids] = self.weights / self.form.total
        return probabilities


@dataclass(frozen=True, eq=False)
class FlooredLaw:
    """The part of a target law p that fits on the air: floor(x) = ⌊p(x) · total⌋ for its V̂ most probable tokens.

    Attributes:
        ids: [n] int64 token ids, strictly ascending, 0 ≤ n ≤ V̂.
        weights: [n] int64, each 1 … total; they sum to at most total.
        form: V, V̂ and Q_B.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.int64]
    form: LawFormat

    def __post_init__(self) -> None:
        _check_entries(self.ids, self.weights, self.form)
        if self.rest < 0:
            raise InputError(f"the weights of a floored law sum to more than {self.form.total}")

    @property
    def rest(self) -> int:
        """What the floor leaves of the total: the weight of p's truncated tail and rounded-off parts."""
        return self.form.total - int(self.weights.sum())

    def weight(self, token: int) -> int:
        """⌊p(token) · total⌋; 0 outside the retained tokens."""
        return _weight(self.ids, self.weights, token)


def _weight(ids: NDArray[np.int64], weights: NDArray[np.int64], token: int) -> int:
    place = int(np.searchsorted(ids, token))
    return int(weights[place]) if place < len(ids) and ids[place] == token else 0


def target_law(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """[rows, V] float64 probabilities of the sampling law of [rows, V] logits, `shaped` already; temperature > 0."""
    if params.greedy:
        raise InputError("temperature = 0 has no law to reject against; its rule is greedy")
    return truncated_logits(logits, params).double().softmax(dim=-1)


def quantise(probabilities: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole weights that sum to `total` and are nearest to [n] probabilities (largest remainders).

    No weight is off by 1 or more, and the total variation to the normalised input is at most n / (4·total).
    Example: [0.5, 0.3, 0.2] at total 7 becomes [4, 2, 1].
    """
    exact = probabilities / probabilities.sum() * total
    weights: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    missing = total - int(weights.sum())
    weights[np.argsort(weights - exact, kind="stable")[:missing]] += 1
    return weights


def _most_probable(law: torch.Tensor, retained: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids, ascending, and probabilities of the `retained` most probable tokens of a [V] law."""
    ids = law.topk(min(retained, len(law))).indices.sort().values
    return ids.cpu().numpy(), law[ids].cpu().numpy()


def truncate(logits: torch.Tensor, params: SamplingParams, form: LawFormat) -> TruncatedLaw:
    """The law that a device drafts from and sends: its V̂ most probable tokens, renormalised, in Q_B bits.

    Args:
        logits: [V] of the drafter, `shaped` already.
        params: the request's sampling law, applied before the truncation; temperature > 0.
        form: V, V̂ and Q_B. Tokens whose probability rounds to nothing are neither sent nor drafted.
    """
    if len(logits) != form.vocabulary_size:
        raise InputError(f"{len(logits)} logits do not fit a vocabulary of {form.vocabulary_size}")
    ids, probabilities = _most_probable(target_law(logits[None], params)[0], form.retained)
    weights = quantise(probabilities, form.total)
    return TruncatedLaw(ids[weights > 0], weights[weights > 0], form)


def certain_law(token: int, form: LawFormat) -> TruncatedLaw:
    """The law of a guess that was not drawn: all of the weight on one token."""
    return TruncatedLaw(np.array([token], dtype=np.int64), np.array([form.total], dtype=np.int64), form)


def floor_law(law: torch.Tensor, form: LawFormat) -> FlooredLaw:
    """The part of a [V] float64 target law that V̂ entries of Q_B bits can carry from below."""
    ids, probabilities = _most_probable(law, form.retained)
    weights = np.floor(probabilities * form.total).astype(np.int64)
    return FlooredLaw(ids[weights > 0], weights[weights > 0], form)


def draft_token(law: TruncatedLaw, seed: int, base: int, position: int) -> int:
    """The token that a device drafts from exactly `law`, by integer inversion of its cumulative weights.

    The server gets the same token from the same law, so the drafted ids need not be sent beside whole laws, and a
    draft that was not drawn from the law sent with it can be found out.
    """
    place = scaled_word(stream_word(seed, Stream.DRAFT, base, position), law.form.total)
    return int(law.ids[np.searchsorted(np.cumsum(law.weights), place, side="right")])
