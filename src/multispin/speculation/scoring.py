"""Log probabilities that are reported beside a text: of each token, and of the likeliest tokens at its place.

They are those of the model itself, log softmax of its logits, before bias, penalties, temperature and truncation: what
vLLM reports by default (`raw_logprobs`). They do not change the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

from msgspec import Meta

if TYPE_CHECKING:
    import torch

MAX_LOGPROBS = 20
"""Most alternatives that can be reported per token, as in OpenAI's and vLLM's API."""
LEAST_LOGPROB = -9999.0
"""Stands for the logarithm of 0, which JSON cannot write; vLLM's number."""


Logprob = Annotated[float, Meta(ge=LEAST_LOGPROB, le=0.0)]
"""A log probability from another machine: finite, because JSON can write neither NaN nor infinity."""


class Score(NamedTuple):
    """The log probability of one token, and the likeliest tokens at its place.

    Attributes:
        logprob: natural logarithm of its probability, `LEAST_LOGPROB` … 0.
        top: ids of the likeliest tokens at its place with theirs, the likeliest first.

    """

    logprob: Logprob
    top: Annotated[
        tuple[tuple[Annotated[int, Meta(ge=0, le=2**31 - 1)], Logprob], ...], Meta(max_length=MAX_LOGPROBS)
    ] = ()


def scores(logits: torch.Tensor, tokens: Sequence[int], most: int) -> tuple[Score, ...]:
    """The scores of some tokens.

    Args:
        logits: [R, V] of the model, unchanged; row i is for token i, R at least the number of tokens.
        tokens: ids of the committed tokens.
        most: alternatives to report per token, 0 … `MAX_LOGPROBS`.
    """
    import torch

    rows = logits[: len(tokens)].float().log_softmax(-1).clamp_(LEAST_LOGPROB, 0.0)
    own = rows.gather(-1, torch.tensor([[token] for token in tokens], device=rows.device))[:, 0].tolist()
    best = rows.topk(min(most, rows.shape[-1]), dim=-1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(
        Score(logprob, tuple(zip(ids, values, strict=True))) for logprob, (ids, values) in zip(own, tops, strict=True)
    )
