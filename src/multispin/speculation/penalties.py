"""Penalties: how a text's own tokens change the logits of what may follow it.

They make the distribution at a position a function of the whole text before it. At a drafted position that text is the
committed one and the drafted tokens before the position. So a drafted token that stands has been judged by exactly the
distribution that plain decoding has at its place.

For logit z of token x, with n the times that x was generated and θ, f, s the repetition, frequency and presence
penalty (the definition of vLLM and of Keskar et al., arXiv 1909.05858, for θ):

    z ← z/θ if z > 0, else z·θ         where x stands in the prompt or in the generated text
    z ← z − f·n − s·[n > 0]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.sampling import SamplingParams, draw, shaped

if TYPE_CHECKING:
    import torch


class Seen(NamedTuple):
    """Which tokens stand before each of some positions.

    Attributes:
        ids: [U] int64 ids of all tokens that stand before any of the positions, ascending.
        times: [R, U] float32: how often each was generated before each position.
        anywhere: [R, U] bool: whether it stands before the position, in the prompt or after it.
    """

    ids: NDArray[np.int64]
    times: NDArray[np.float32]
    anywhere: NDArray[np.bool_]


def seen_before(text: Sequence[int], drafted: Sequence[int], prompt_tokens: int, size: int) -> Seen:
    """Count the tokens before each drafted position and the one after the draft.

    Args:
        text: ids of the committed text, prompt included.
        drafted: L ids that were drafted after it; row i of the result is for the token after i of them.
        prompt_tokens: length of the prompt.
        size: number of ids; larger ones have no logit and are left out.
    """
    known, draft = np.array(text, dtype=np.int64), np.array(drafted, dtype=np.int64)
    prompt, written = known[:prompt_tokens], known[prompt_tokens:]
    ids = np.unique(np.concatenate([known, draft]))
    ids = ids[ids < size]
    rows = np.zeros((len(draft) + 1, len(ids)), dtype=np.float32)
    rows[0] = _counts(ids, written)
    for index, token in enumerate(draft):
        rows[index + 1] = rows[index] + (ids == token)
    return Seen(ids, rows, (rows > 0) | (_counts(ids, prompt) > 0))


def _counts(ids: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each of some ascending ids stands among tokens."""
    ordered = np.sort(tokens)
    found: NDArray[np.int64] = np.searchsorted(ordered, ids, side="right") - np.searchsorted(ordered, ids, side="left")
    return found


def penalised(
    logits: torch.Tensor, text: Sequence[int], drafted: Sequence[int], params: SamplingParams
) -> torch.Tensor:
    """Logits after the request's penalties.

    Args:
        logits: [L + 1, V], `shaped` already; row i is for the token after `text` and i drafted tokens.
        text: ids of the committed text, prompt included.
        drafted: the L drafted ids.
        params: the request's penalties, and the length of its prompt.

    Returns:
        [L + 1, V] float32, a copy.
    """
    import torch

    seen = seen_before(text, drafted, params.prompt_tokens, logits.shape[-1])
    ids, times, anywhere = (torch.from_numpy(each).to(logits.device) for each in seen)
    changed = logits.float().clone()
    z, factor = changed[:, ids], params.repetition_penalty
    z = torch.where(anywhere, torch.where(z > 0, z / factor, z * factor), z)
    changed[:, ids] = z - params.frequency_penalty * times - params.presence_penalty * (times > 0).float()
    return changed


def shaped_after(
    logits: torch.Tensor, text: Sequence[int], drafted: Sequence[int], params: SamplingParams
) -> tuple[torch.Tensor, SamplingParams]:
    """Logits after everything that depends on the text before them, and the parameters that are still to be applied.

    Args:
        logits: [L + 1, V], row i for the token after `text` and i drafted tokens.
        text: ids of the committed text, prompt included.
        drafted: the L drafted ids.
        params: the request's sampling parameters.
    """
    if len(logits) != len(drafted) + 1:
        raise InputError(f"{len(drafted)} drafted tokens do not fit {len(logits)} rows of logits")
    logits = shaped(logits, range(len(text), len(text) + len(logits)), params)
    return (penalised(logits, text, drafted, params) if params.remembers else logits), params.of_shaped


def draw_after(logits: torch.Tensor, text: Sequence[int], drafted: Sequence[int], params: SamplingParams) -> int:
    """Draw the token that follows a text and a draft, from [1, V] logits: what a drafter and plain decoding do.

    Args:
        logits: [1, V], for the token after `text` and `drafted`.
        text: ids of the committed text, prompt included.
        drafted: ids that were drafted after it.
        params: the request's sampling parameters and seed.

    Returns:
        The token's id.
    """
    if params.remembers:
        text, drafted = [*text, *drafted], ()
        logits, params = shaped_after(logits, text, (), params)
    return draw(logits, [len(text) + len(drafted)], params)[0]
