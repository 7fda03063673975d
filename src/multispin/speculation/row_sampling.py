"""Sampling from one row of numpy logits: what a drafter that runs without PyTorch draws with.

The functions mirror `speculation.sampling` and `speculation.penalties` (bias and withheld ids, penalties, temperature,
min-p, top-k, top-p, then the draw with the shared noise) for a single row on a CPU. A drafter's draw decides only how
often its drafts are accepted, never which text comes out, so these functions need not agree with the target's to the
last bit.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.distributions import DistributionFormat, TruncatedDistribution, quantise
from multispin.speculation.gumbel_max import gumbel_argmax_row
from multispin.speculation.penalties import seen_before
from multispin.speculation.sampling import SamplingParams

Row = NDArray[np.float32]
"""[V] float32 logits."""


def fitted_row(row: Row, size: int) -> Row:
    """[size] logits of a row: ids from `size` on cannot be drawn, nor ids that the drafter lacks (−inf).

    Args:
        row: logits of the drafter, of its own vocabulary.
        size: V, number of token ids that may be drawn.
    """
    if size <= len(row):
        return row[:size]
    return np.pad(row, (0, size - len(row)), constant_values=-np.inf)


def shaped_row(row: Row, position: int, params: SamplingParams) -> Row:
    """Logits with the request's bias added and its withheld ids at −inf.

    Args:
        row: [V] logits of the drafter.
        position: absolute position of the token that the row is for.
        params: sampling parameters of the request.

    Returns:
        [V]: the row itself where the request asks for nothing, else a changed copy.
    """
    early = bool(params.withheld) and position < params.withheld_until
    if not params.logit_bias and not early:
        return row
    changed = row.copy()
    for token, bias in params.logit_bias:
        changed[token] += np.float32(bias)
    if early:
        changed[list(params.withheld)] = -np.inf
    return changed


def truncated_row(row: Row, params: SamplingParams) -> Row:
    """Logits of the sampling distribution, −inf outside its support; in the order temperature, min-p,
    top-k, top-p.

    Args:
        row: [V] logits, shaped already.
        params: sampling parameters with temperature > 0.

    Returns:
        [V] float32, which may be the row itself; its softmax is the distribution. Ties at the top-k edge are all
        kept, and min-p and top-p always keep the most probable token.
    """
    scaled: Row = row if params.temperature == 1.0 else row / np.float32(params.temperature)
    if params.min_p > 0.0:
        scaled = np.where(scaled < scaled.max() + np.float32(math.log(params.min_p)), np.float32(-np.inf), scaled)
    if 0 < params.top_k < len(scaled):
        edge = np.partition(scaled, -params.top_k)[-params.top_k]
        scaled = np.where(scaled < edge, np.float32(-np.inf), scaled)
    if params.top_p < 1.0:
        weights = np.exp(scaled - scaled.max())
        total = float(weights.sum(dtype=np.float64))
        # All tokens below this weight together hold less than half of 1 − top_p, so the nucleus lies above it.
        heavy = np.flatnonzero(weights > 0.5 * (1.0 - params.top_p) * total / len(scaled))
        order = heavy[np.argsort(-weights[heavy], kind="stable")]
        sizes = weights[order].astype(np.float64)
        kept = order[np.cumsum(sizes) - sizes < params.top_p * total]
        nucleus = np.full_like(scaled, -np.inf)
        nucleus[kept] = scaled[kept]
        scaled = nucleus
    return scaled


def shaped_row_after(row: Row, text: Sequence[int], params: SamplingParams) -> Row:
    """Logits with the request's bias, withheld ids and penalties, for the token that follows a text.

    Args:
        row: [V] logits of the drafter.
        text: ids of the text before the token, prompt and drafted tokens included.
        params: sampling parameters of the request.

    Returns:
        [V]: the row itself where the request asks for nothing, else a changed copy.
    """
    row = shaped_row(row, len(text), params)
    if not params.remembers:
        return row
    (ids, (times,), (anywhere,)) = seen_before(text, (), params.prompt_tokens, len(row))
    z, factor = row[ids], np.float32(params.repetition_penalty)
    z = np.where(anywhere, np.where(z > 0, z / factor, z * factor), z)
    changed = row.copy()
    changed[ids] = z - np.float32(params.frequency_penalty) * times - np.float32(params.presence_penalty) * (times > 0)
    return changed


def draw_row(row: Row, text: Sequence[int], params: SamplingParams) -> int:
    """The token that the request's distribution emits after a text, from a drafter's logits.

    Args:
        row: [V] logits of the drafter.
        text: ids of the text before the token, prompt and drafted tokens included.
        params: sampling parameters of the request, and its seed.

    Returns:
        A token id: the argmax at temperature 0, else the Gumbel-max draw with the noise of (seed, position), which
        leaves out what is 14 nats or more below the most probable token.
    """
    row = shaped_row_after(row, text, params)
    if params.greedy:
        return int(row.argmax())
    return gumbel_argmax_row(truncated_row(row, params), params.seed, len(text), far=False)


def truncate_row(
    row: Row, text: Sequence[int], params: SamplingParams, form: DistributionFormat
) -> TruncatedDistribution:
    """The distribution that a device drafts from and sends under the rejection rules, as whole weights.

    Args:
        row: [V] logits of the drafter.
        text: ids of the text before the token, prompt and drafted tokens included.
        params: sampling parameters of the request; temperature > 0.
        form: V, V̂ and Q_B.

    Returns:
        The V̂ most probable tokens, renormalised, in Q_B bits. InputError if the row does not fit the vocabulary.
    """
    if params.greedy:
        raise InputError("at temperature = 0 there is no distribution to compare drafts with: use the rule greedy")
    if len(row) != form.vocabulary_size:
        raise InputError(f"{len(row)} logits do not fit a vocabulary of {form.vocabulary_size}")
    scaled = truncated_row(shaped_row_after(row, text, params), params).astype(np.float64)
    retained = min(form.retained, len(scaled))
    ids = np.sort(np.argpartition(scaled, -retained)[-retained:]).astype(np.int64)
    probabilities = np.exp(scaled[ids] - scaled.max())
    weights = quantise(probabilities, form.total)
    return TruncatedDistribution(ids[weights > 0], weights[weights > 0], form)
