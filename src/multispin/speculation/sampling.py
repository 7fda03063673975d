"""The sampling law: what temperature, top-k and top-p make of a row of logits, and one draw from it.

The law is a function of (logits, parameters); a draw is a function of (law, seed, position) by the Gumbel-max
identity argmax_x(log p(x) + G(x)) ~ p. Truncation happens before the draw, never after it, and device and server
apply the same functions to their own logits.
"""

from dataclasses import dataclass

import torch

from multispin.errors import InputError
from multispin.speculation.gumbel_max import gumbel_argmax
from multispin.speculation.noise import check_seed

MAX_TEMPERATURE = 10.0
_CUTOFFS = (1e-2, 1e-3, 1e-4, 1e-5)  # weights relative to the most probable token


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn from the target's logits.

    Attributes:
        temperature: 0 is greedy decoding; otherwise logits are divided by it.
        top_k: keep the k largest logits; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose probability reaches top_p; 1 keeps all.
        seed: the noise of the whole request; irrelevant at temperature 0.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= MAX_TEMPERATURE:
            raise InputError(f"temperature = {self.temperature} is outside 0 … {MAX_TEMPERATURE}")
        if self.top_k < 0:
            raise InputError(f"top_k = {self.top_k} is negative (0 keeps every token)")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p = {self.top_p} is outside (0, 1]")
        check_seed(self.seed)

    @property
    def greedy(self) -> bool:
        """Whether every draw is the plain argmax."""
        return self.temperature == 0.0


def truncated_logits(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Logits of the sampling law, −inf outside its support; in the order temperature, top-k, top-p.

    Args:
        logits: [rows, V], any float type.
        params: temperature > 0.

    Returns:
        [rows, V] float32; softmax of a row is the law. Ties at the top-k edge are all kept (a tie is broken by
        neither side alone), and top-p always keeps the most probable token.
    """
    scaled = logits.float() / params.temperature
    vocabulary = scaled.shape[-1]
    if 0 < params.top_k < vocabulary:
        edge = scaled.topk(params.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < edge, -torch.inf)
    if params.top_p < 1.0:
        rows = [_nucleus(row, params.top_p) for row in scaled]
        scaled = torch.stack(rows) if rows else scaled
    return scaled


def _nucleus(row: torch.Tensor, top_p: float) -> torch.Tensor:
    """A [V] row with −inf outside the smallest set of most probable tokens that reaches `top_p`; ties: lowest id first.

    Only tokens above some weight need sorting, if together they hold more than `top_p`. Those above (1 − top_p)/2V
    of the total always do, as all others hold less than half of 1 − top_p.
    """
    weights = (row - row.max()).exp()
    total = weights.sum(dtype=torch.float64)
    for cutoff in (*_CUTOFFS, float(0.5 * (1.0 - top_p) * total / len(row))):
        heavy = torch.nonzero(weights > cutoff).squeeze(-1)
        if weights[heavy].sum(dtype=torch.float64) > top_p * total * (1.0 + 1e-9):  # clear of rounding
            break
    order = row[heavy].argsort(descending=True, stable=True)
    sizes = weights[heavy][order].double()
    kept = heavy[order[sizes.cumsum(-1) - sizes < top_p * total]]
    return torch.full_like(row, -torch.inf).index_copy(0, kept, row[kept])


def draw(logits: torch.Tensor, positions: list[int], params: SamplingParams) -> list[int]:
    """The token that the law emits at each position.

    Args:
        logits: [rows, V]; row i holds the logits for the token at absolute position positions[i].
        positions: absolute position (prompt included, from 0) of the token to be emitted, one per row.
        params: the law and its seed.

    Returns:
        One token id per row: a function of (row, position, params) and of nothing else.
    """
    if params.greedy:
        return [int(token) for token in logits.argmax(dim=-1)]
    law = truncated_logits(logits, params)
    return [gumbel_argmax(row, params.seed, position) for row, position in zip(law, positions, strict=True)]
