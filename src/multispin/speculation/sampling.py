"""The distribution that a request's parameters make of a row of logits, and one draw from it.

The order is vLLM's: logit bias and withheld ids (`shaped`), penalties (`penalties.penalised`), temperature, min-p,
top-k, top-p (`truncated_logits`). The distribution is a function of (logits, text before the position, parameters). A
draw is a function of (distribution, seed, position) by the Gumbel-max identity argmax_x(log p(x) + G(x)) ~ p.
Truncation happens before the draw, never after it. Device and edge apply the same functions to their own logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from typing import TYPE_CHECKING

from multispin.checks import shown
from multispin.errors import InputError
from multispin.speculation.grammar import MAX_GRAMMAR_CHARACTERS
from multispin.speculation.gumbel_max import gumbel_argmax_rows
from multispin.speculation.noise import check_seed
from multispin.speculation.scoring import MAX_LOGPROBS

if TYPE_CHECKING:
    import torch

_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_WHOLE = ("top_k", "seed", "prompt_tokens", "withheld_until")
MIN_TEMPERATURE = 1e-6
"""Smallest temperature above 0: logits divided by it are still finite numbers, whatever the rule."""
MAX_TEMPERATURE = 10.0
MAX_TOP_K = 2**31 - 1
MAX_BIASES = 300
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 10.0
_CUTOFFS = (1e-2, 1e-3, 1e-4, 1e-5)  # weights relative to the most probable token


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn from the target's logits.

    Attributes:
        temperature: 0 is greedy decoding; otherwise 1e-6 … 10, by which logits are divided; default 0.0.
        top_k: keep the k largest logits; 0 (default) keeps all.
        top_p: keep the smallest set of most probable tokens whose probability reaches top_p; 1 keeps all; default 1.0.
        seed: seed of the request's noise; without effect at temperature 0.
        logit_bias: pairs (id, number added to its logit) for a few ids; ±100 practically forces or forbids an id; by
            default none.
        withheld: ids that have probability 0 at positions below `withheld_until`; used for a text's minimal length; by
            default none.
        withheld_until: first absolute position at which the withheld ids are possible; default 0.
        min_p: keep tokens with at least this share of the most probable token's probability; 0 keeps all; default 0.0.
        presence_penalty: subtracted from the logit of each token that was generated before; −2 … 2; default 0.0.
        frequency_penalty: subtracted as often as the token was generated before; −2 … 2; default 0.0.
        repetition_penalty: logits of tokens of the prompt or the generated text are divided by it where they are above
            0, and multiplied where they are below; above 0, at most 10; 1 changes nothing; default 1.0.
        prompt_tokens: length of the prompt; tokens after it count as generated; default 0.
        grammar: form that the generated text must have, as `Grammars.matcher` takes it; empty allows every text.
        logprobs: report the log probability of each token and of so many of the likeliest at its place, 0 … 20; None
            reports nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    withheld: tuple[int, ...] = ()
    withheld_until: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    prompt_tokens: int = 0
    grammar: str = ""
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if self.temperature != 0.0 and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise InputError(
                f"temperature = {self.temperature} is neither 0 (greedy) nor in {MIN_TEMPERATURE} … {MAX_TEMPERATURE}"
            )
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise InputError(f"top_k = {self.top_k} is outside 0 … {MAX_TOP_K} (0 keeps every token)")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p = {self.top_p} is outside (0, 1]")
        if not 0.0 <= self.min_p <= 1.0:
            raise InputError(f"min_p = {self.min_p} is outside 0 … 1")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -MAX_PENALTY <= (value := getattr(self, name)) <= MAX_PENALTY:
                raise InputError(f"{name} = {value} is outside −{MAX_PENALTY:g} … {MAX_PENALTY:g}")
        if not 1.0 / MAX_REPETITION_PENALTY <= self.repetition_penalty <= MAX_REPETITION_PENALTY:
            raise InputError(
                f"repetition_penalty = {self.repetition_penalty} is outside {1.0 / MAX_REPETITION_PENALTY:g} … "
                f"{MAX_REPETITION_PENALTY:g}"
            )
        if len(self.logit_bias) > MAX_BIASES:
            raise InputError(f"logit_bias names {len(self.logit_bias)} ids, over the limit of {MAX_BIASES}")
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise InputError("logit_bias names an id twice")
        for token, bias in self.logit_bias:
            if not math.isfinite(bias) or abs(bias) > MAX_BIAS:
                raise InputError(f"logit_bias = {bias} for id {token} is outside −{MAX_BIAS:.0f} … {MAX_BIAS:.0f}")
        if len(self.grammar) > MAX_GRAMMAR_CHARACTERS:
            raise InputError(f"grammar of {len(self.grammar)} characters is over the limit of {MAX_GRAMMAR_CHARACTERS}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise InputError(f"logprobs = {self.logprobs} is outside 0 … {MAX_LOGPROBS}")
        check_seed(self.seed)

    def _check_types(self) -> None:
        """InputError unless numbers are numbers, and the biases pairs of them."""
        for names, kind, called in ((_NUMBERS, Real, "number"), (_WHOLE, Integral, "whole number")):
            for name in names:
                if not isinstance(value := getattr(self, name), kind):
                    raise InputError(f"{name} = {shown(value)} is no {called}")
        pairs = isinstance(self.logit_bias, Sequence) and all(
            isinstance(pair, Sequence)
            and len(pair) == 2
            and isinstance(pair[0], Integral)
            and isinstance(pair[1], Real)
            for pair in self.logit_bias
        )
        if not pairs:
            raise InputError(f"logit_bias = {shown(self.logit_bias)} is no sequence of pairs (id, number)")

    @property
    def greedy(self) -> bool:
        """Whether every draw is the plain argmax."""
        return self.temperature == 0.0

    @cached_property
    def remembers(self) -> bool:
        """Whether the distribution depends on which tokens stand before the position (penalties)."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def features(self) -> frozenset[str]:
        """Names of these parameters that not every engine can apply."""
        changed = {
            "presence_penalty": self.presence_penalty != 0.0,
            "frequency_penalty": self.frequency_penalty != 0.0,
            "repetition_penalty": self.repetition_penalty != 1.0,
            "grammar": bool(self.grammar),
            "logprobs": self.logprobs is not None,
        }
        return frozenset(name for name, used in changed.items() if used)

    @cached_property
    def of_shaped(self) -> SamplingParams:
        """The parameters that remain for logits that bias, withheld ids and penalties have already changed."""
        return replace(
            self, logit_bias=(), withheld=(), presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0
        )

    def with_min_tokens(self, stop_ids: Sequence[int], prompt_tokens: int, min_tokens: int) -> SamplingParams:
        """The parameters for a text with a prompt of this length, its stop ids withheld for the first `min_tokens`.

        Args:
            stop_ids: ids that end the text.
            prompt_tokens: length of the prompt.
            min_tokens: generated tokens before which none of the stop ids may come.
        """
        return replace(
            self,
            withheld=tuple(sorted(stop_ids)),
            withheld_until=prompt_tokens + min_tokens,
            prompt_tokens=prompt_tokens,
        )

    def check_vocabulary(self, size: int) -> None:
        """InputError if an id is outside a vocabulary of `size` ids, or if no token is left."""
        named = [*(token for token, _ in self.logit_bias), *self.withheld]
        if wrong := [token for token in named if not 0 <= token < size]:
            raise InputError(f"biased or stop id {wrong[0]} is outside 0 … {size - 1}")
        if len(set(self.withheld)) >= size:
            raise InputError("the stop ids are the whole vocabulary: before min_tokens no token is left")


def shaped(logits: torch.Tensor, positions: Sequence[int], params: SamplingParams) -> torch.Tensor:
    """Logits with the request's bias added and its withheld ids at −inf; both sides do this before any rule.

    Args:
        logits: rows of logits, [rows, V].
        positions: absolute position of the token that each row is for.
        params: the request's sampling parameters.

    Returns:
        [rows, V]: the logits themselves if nothing changes, or else a float32 copy.
    """
    early = (
        [row for row, position in enumerate(positions) if position < params.withheld_until] if params.withheld else []
    )
    if not params.logit_bias and not early:
        return logits
    changed = logits.float().clone()
    for token, bias in params.logit_bias:
        changed[:, token] += bias
    if early:
        import torch

        changed[torch.tensor(early)[:, None], torch.tensor(params.withheld)[None, :]] = -math.inf
    return changed


def largest(logits: torch.Tensor) -> list[int]:
    """Index of the first largest logit of each row of [rows, V]: the draw at temperature 0.

    On a CPU numpy's search is vectorised and 10 to 20 times faster than torch's; both take the first of equals.
    """
    if logits.device.type != "cpu":
        found: list[int] = logits.argmax(dim=-1).tolist()
    else:
        found = logits.detach().float().numpy().argmax(axis=-1).tolist()
    return found


def truncated_logits(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Logits after temperature, min-p, top-k and top-p, in this order; −inf outside the support.

    Args:
        logits: [rows, V], any float type, `shaped` already.
        params: sampling parameters with a temperature > 0.

    Returns:
        [rows, V] float32; the softmax of a row is the distribution. Ties at the top-k edge are all kept, so that both
        sides keep the same tokens. Min-p and top-p always keep the most probable token.
    """
    import torch

    scaled = logits.float() / params.temperature
    if params.min_p > 0.0:
        scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + math.log(params.min_p), -math.inf)
    vocabulary = scaled.shape[-1]
    if 0 < params.top_k < vocabulary:
        edge = scaled.topk(params.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < edge, -math.inf)
    if params.top_p < 1.0:
        if scaled.device.type != "cpu":
            return nuclei(scaled, params.top_p)
        rows = [_nucleus(row, params.top_p) for row in scaled]
        scaled = torch.stack(rows) if rows else scaled
    return scaled


def nuclei(rows: torch.Tensor, top_p: float) -> torch.Tensor:
    """`_nucleus` of each row of [R, V] by one full sort, which is cheap on an accelerator.

    Args:
        rows: logits, already divided by the temperature.
        top_p: probability that each row's set must reach, in (0, 1].

    Returns:
        [R, V], −inf outside each row's set.
    """
    import torch

    weights = (rows - rows.amax(-1, keepdim=True)).exp()
    order = rows.argsort(dim=-1, descending=True, stable=True)
    sizes = weights.gather(-1, order).double()
    kept = sizes.cumsum(-1) - sizes < top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
    return rows.masked_fill(~torch.zeros_like(kept).scatter(-1, order, kept), -math.inf)


def _nucleus(row: torch.Tensor, top_p: float) -> torch.Tensor:
    """A [V] row with −inf outside the smallest set of most probable tokens that reaches `top_p`; ties: lowest id first.

    Only tokens above some weight need sorting, if together they hold more than `top_p`. Those above (1 − top_p)/2V
    of the total always do, as all others hold less than half of 1 − top_p.
    """
    import torch

    weights = (row - row.max()).exp()
    total = weights.sum(dtype=torch.float64)
    for cutoff in (*_CUTOFFS, float(0.5 * (1.0 - top_p) * total / len(row))):
        heavy = torch.nonzero(weights > cutoff).squeeze(-1)
        if weights[heavy].sum(dtype=torch.float64) > top_p * total * (1.0 + 1e-9):  # clear of rounding
            break
    order = row[heavy].argsort(descending=True, stable=True)
    sizes = weights[heavy][order].double()
    kept = heavy[order[sizes.cumsum(-1) - sizes < top_p * total]]
    return torch.full_like(row, -math.inf).index_copy(0, kept, row[kept])


def draw(logits: torch.Tensor, positions: list[int], params: SamplingParams) -> list[int]:
    """Draw one token at each position.

    Args:
        logits: [rows, V]; row i holds the logits for the token at absolute position positions[i].
        positions: absolute position (prompt included, from 0) of the token to be emitted, one per row.
        params: sampling parameters and seed.

    Returns:
        One token id per row: a function of (row, position, params) and of nothing else.
    """
    logits = shaped(logits, positions, params)
    if params.greedy:
        return largest(logits)
    distribution = truncated_logits(logits, params)
    return gumbel_argmax_rows(distribution, params.seed, positions)
