"""One draw for every row of a pass, each by its own request's parameters, on the device that holds the logits.

`speculation.draw` is the definition, for a row on a CPU: bias and withheld ids, temperature, top-k, top-p, the shared
noise, argmax in double precision. Here the same steps run for all rows at once, without a sort and without a loop over
requests: the edges of top-k and top-p are found by bisection over the bits of a logit. A device rounds exponentials and
logarithms otherwise than a CPU in the last places. So a row whose token depends on that, because two scores are closer
than `TIE_MARGIN` or the token lies within `TOP_P_MARGIN` of the edge of top-p, is marked, and drawn by the definition
on the CPU.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from multispin.speculation import SamplingParams, draw
from multispin.speculation.noise import noise_keys

log = logging.getLogger(__name__)

TIE_MARGIN = 1e-9
"""Difference of scores below which a CPU may order them differently."""
TOP_P_MARGIN = 4e-6
"""Probability by which the edge of top-p may differ on a CPU."""
_KNOWN = frozenset(
    ["temperature", "top_k", "top_p", "seed", "logit_bias", "withheld", "withheld_until", "prompt_tokens"]
)  # requests with other parameters are drawn row by row
_PARTS = 8
_LOWEST = -(2**31)
_ZERO_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Lowest bits of a float32 that are 0 if it was converted from a narrower type."""

_LEAST_ROWS = 8

DrawnRow = tuple[SamplingParams, int]
"""A request's parameters, and the absolute position that a row of logits is for."""


_ANY: DrawnRow = (SamplingParams(), 0)


class BatchDrawing:
    """Draws tokens for many rows at once.

    Args:
        device: torch device that holds the logits.

    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps = Steps()
        self._compiled_dtype: torch.dtype | None = None

    @torch.inference_mode()
    def compile(self, width: int, padded_width: int, dtype: torch.dtype) -> None:
        """Compile the steps of a draw to few kernels, for any number of rows. Without it a draw is slower.

        This takes some seconds, once per machine. Without a compiler, the steps run one by one.

        Args:
            width: width V of the logits.
            padded_width: width of the rows that they are taken from.
            dtype: number type of the logits.

        """
        steps = Steps().compiled()
        try:
            for count in (24, 40):
                logits = torch.zeros(count, max(width, padded_width), dtype=dtype, device=self._device)[:, :width]
                block = self._block([(SamplingParams(0.5, 5, 0.5), 3)] * count)
                steps.plain(logits, block)
                draw_truncated_rows(logits, block, _ZERO_BITS.get(dtype, 0), steps)
        except Exception as error:  # if the compiler fails, the steps run uncompiled
            log.warning("the drawing of tokens could not be compiled and is slower: %s", str(error).splitlines()[0])
        else:
            self._steps, self._compiled_dtype = steps, dtype

    @staticmethod
    def takes(params: SamplingParams) -> bool:
        """Whether this class can draw for a request with these parameters."""
        others = (field for field in fields(params) if field.name not in _KNOWN)
        return all(getattr(params, field.name) == field.default for field in others)

    def __call__(self, logits: torch.Tensor, rows: Sequence[DrawnRow]) -> torch.Tensor:
        """Draw one token per row.

        Args:
            logits: rows of logits, [N, V].
            rows: N requests' parameters and positions.

        Returns:
            [2, N] int64 on the device: the tokens, and 1 where a token is to be drawn on the CPU instead. A row that is
            not finite gets any token.

        """
        block = self._block(rows)
        shaped = self._shaped(logits, rows)
        # Compiling for another number type now would make everybody wait.
        steps = self._steps if shaped.dtype == self._compiled_dtype else Steps()
        if any((params.top_k or params.top_p < 1.0) and not params.greedy for params, _ in rows):
            return draw_truncated_rows(shaped, block, _ZERO_BITS.get(shaped.dtype, 0), steps)
        found: torch.Tensor = steps.plain(shaped, block)
        return found

    def tokens(self, logits: Sequence[torch.Tensor], rows: Sequence[DrawnRow]) -> dict[int, int]:
        """The tokens of the rows that can be drawn here: finite, not near a tie, and with supported parameters.

        Args:
            logits: N rows, [V] each.
            rows: N requests' parameters and positions.

        Returns:
            Tokens by row, read in one copy. Missing rows must be drawn by the definition.

        """
        padding = max(0, _LEAST_ROWS - len(rows))  # what is compiled is compiled once more for a single row
        together = torch.stack([*logits, *[logits[0]] * padding])
        asked = [row if self.takes(row[0]) else _ANY for row in rows] + [_ANY] * padding
        found, unsure, finite = read_back((*self(together, asked), together.amax(-1).isfinite()))
        return {
            at: found[at] for at, (params, _) in enumerate(rows) if finite[at] and not unsure[at] and self.takes(params)
        }

    def _block(self, rows: Sequence[DrawnRow]) -> torch.Tensor:
        """[8, N] int64: four keys of the noise, greedy, top-k; then as float64 temperature and top-p."""
        block = np.zeros((_PARTS, len(rows)), dtype=np.int64)
        block[:4] = noise_keys([params.seed for params, _ in rows], [position for _, position in rows])
        block[4] = [params.greedy for params, _ in rows]
        block[5] = [0 if params.greedy else params.top_k for params, _ in rows]
        numbers = block[6:].view(np.float64)
        numbers[0] = [1.0 if params.greedy else params.temperature for params, _ in rows]
        numbers[1] = [1.0 if params.greedy else params.top_p for params, _ in rows]
        host = torch.from_numpy(block)
        if self._device.type != "cuda":
            return host
        return host.pin_memory().to(self._device, non_blocking=True)

    def _shaped(self, logits: torch.Tensor, rows: Sequence[DrawnRow]) -> torch.Tensor:
        """Logits with each request's bias added and its withheld ids at −inf; themselves if nobody asks for that."""
        biased = [(row, *pair) for row, (params, _) in enumerate(rows) for pair in params.logit_bias]
        held = [
            (row, token)
            for row, (params, position) in enumerate(rows)
            if params.withheld and position < params.withheld_until
            for token in params.withheld
        ]
        if not biased and not held:
            return logits
        changed = logits.float().clone()
        if biased:
            row, token, bias = zip(*biased, strict=True)
            places = torch.tensor([row, token], device=self._device)
            changed.index_put_((places[0], places[1]), torch.tensor(bias, device=self._device), accumulate=True)
        if held:
            row, token = zip(*held, strict=True)
            places = torch.tensor([row, token], device=self._device)
            changed[places[0], places[1]] = -torch.inf
        return changed


def drawn_on_cpu(logits: torch.Tensor, row: DrawnRow) -> int:
    """The token of one row, [V] logits, by the definition."""
    params, position = row
    return draw(logits[None].float().cpu(), [position], params)[0]


def draw_rows(logits: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Draw by temperature, noise and argmax.

    Args:
        logits: rows of shaped logits, [N, V].
        block: [8, N] int64, settings of the rows as `BatchDrawing` packs them.

    Returns:
        [2, N]: token, whether it is unsure.

    """
    scaled = logits.float() / block[6].view(torch.float64).float()[:, None]
    token, near = _best(scaled, block)
    return torch.stack((token, near.long()))


def draw_truncated_rows(
    logits: torch.Tensor, block: torch.Tensor, zero_bits: int, steps: "Steps | None" = None
) -> torch.Tensor:
    """Draw by temperature, top-k, top-p, noise and argmax; arguments and result as `draw_rows`.

    Args:
        logits: rows of shaped logits, [N, V].
        block: [8, N] int64, settings of the rows as `BatchDrawing` packs them.
        zero_bits: number of lowest bits that are 0 in each logit as a float32 [bit].
        steps: the parts that this is made of, compiled; by default as they are.

    """
    steps = steps or Steps()
    scaled, order, top_k, edge, step = steps.begin(logits, block, zero_bits > 0)
    lowest, reach = edge, step
    passes = len(range(30, zero_bits - 2, -2))  # two bits each
    for _ in range(passes):
        edge, step = steps.by_count(order, edge, step, top_k)
    weights, bound = steps.weigh(scaled, order, edge, block)
    inside, edge, step = edge, lowest, reach
    for _ in range(passes):
        edge, step = steps.by_mass(order, weights, edge, step, bound)
    # Not compiled: with a scan among its steps, PyTorch 2.11 compiles to code that fails.
    rank = (order == edge[:, None]).cumsum(-1, dtype=torch.int32)
    found: torch.Tensor = steps.pick(scaled, order, weights, inside, edge, rank, bound, block)
    return found


def _begin(logits: torch.Tensor, block: torch.Tensor, narrow: bool) -> tuple[torch.Tensor, ...]:
    """Scaled logits, numbers in their order, k of each row, and where the search for an edge begins."""
    count, width = logits.shape
    wide = logits.float()
    scaled = wide / block[6].view(torch.float64).float()[:, None]
    order = _sortable(wide if narrow else scaled)  # narrow ones stay distinct when they are divided
    top_k = torch.where((block[5] > 0) & (block[5] < width), block[5], width)
    edge = torch.full((count,), _LOWEST, dtype=torch.int64, device=logits.device)
    return scaled, order, top_k, edge, torch.full_like(edge, 1 << 30)


def _above(edge: torch.Tensor, step: torch.Tensor) -> list[torch.Tensor]:
    """One, two and three steps above each row's edge: [N, 1] int32 each."""
    return [(edge + index * step).to(torch.int32)[:, None] for index in (1, 2, 3)]


def _by_count(
    order: torch.Tensor, edge: torch.Tensor, step: torch.Tensor, top_k: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Raise each row's edge to the highest of three steps above it that at least `top_k` logits reach."""
    enough = [(order >= high).sum(-1) >= top_k for high in _above(edge, step)]
    return edge + torch.stack(enough).sum(0) * step, step // 4


def _by_mass(
    order: torch.Tensor, weights: torch.Tensor, edge: torch.Tensor, step: torch.Tensor, bound: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Raise each row's edge to the highest of three steps above it that a mass of at least `bound` reaches."""
    wider = bound * (1.0 + TOP_P_MARGIN)
    masses = [torch.where(order >= high, weights, 0.0).sum(-1, dtype=torch.float64) for high in _above(edge, step)]
    return edge + torch.stack([mass >= wider for mass in masses]).sum(0) * step, step // 4


def _weigh(
    scaled: torch.Tensor, order: torch.Tensor, edge: torch.Tensor, block: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of all tokens from the edge of top-k on (ties there are all kept), and the mass that top-p asks for."""
    weights = torch.where(order >= edge[:, None], (scaled - scaled.amax(-1, keepdim=True)).exp(), 0.0)
    top_p = block[7].view(torch.float64)
    return weights, torch.where(top_p < 1.0, top_p * weights.sum(-1, dtype=torch.float64), torch.inf)


def _pick(
    scaled: torch.Tensor,
    order: torch.Tensor,
    weights: torch.Tensor,
    inside: torch.Tensor,
    edge: torch.Tensor,
    rank: torch.Tensor,
    bound: torch.Tensor,
    block: torch.Tensor,
) -> torch.Tensor:
    """Draw among what is kept: tokens above the edge of top-p, and this many at it, the lowest ids first."""
    level, above = order == edge[:, None], order > edge[:, None]
    before = torch.where(above, weights, 0.0).sum(-1, dtype=torch.float64)
    weight = torch.where(level, weights, 0.0).amax(-1).double()
    fits = before[:, None] + (rank - 1) * weight[:, None] < (bound * (1.0 + TOP_P_MARGIN))[:, None]
    kept = (order >= inside[:, None]) & (above | (level & fits))
    token, near = _best(torch.where(kept, scaled, -torch.inf), block)
    # Is the token inside the edge of top-p wherever it lies, or only for the wider one?
    found = order.gather(-1, token[:, None])
    ids = torch.arange(order.shape[-1], device=order.device)
    earlier = (order > found) | ((order == found) & (ids < token[:, None]))
    mass = torch.where(earlier, weights, 0.0).sum(-1, dtype=torch.float64)
    return torch.stack((token, (near | ((mass > 0.0) & (mass >= bound * (1.0 - TOP_P_MARGIN)))).long()))


@dataclass
class Steps:
    """The parts of a draw, as they are or compiled: each is a few kernels on a GPU."""

    plain: Callable[..., Any] = draw_rows
    begin: Callable[..., Any] = _begin
    by_count: Callable[..., Any] = _by_count
    weigh: Callable[..., Any] = _weigh
    by_mass: Callable[..., Any] = _by_mass
    pick: Callable[..., Any] = _pick

    def compiled(self) -> "Steps":
        """The same, each compiled when it is first called, for any number of rows."""
        return Steps(**{field.name: _compiled(getattr(self, field.name)) for field in fields(self)})


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    quick = torch.compile(function)

    def call(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, torch.Tensor):  # the block of parameters has a column per row, all else rows
                block = argument.ndim == 2 and argument.dtype == torch.int64
                torch._dynamo.maybe_mark_dynamic(argument, int(block))
        return quick(*arguments)

    return call


def _sortable(numbers: torch.Tensor) -> torch.Tensor:
    """Int32 in the order of float32 numbers; −0 and 0 are the same."""
    bits = torch.where(numbers == 0.0, 0.0, numbers).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _best(scaled: torch.Tensor, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of the largest scores of each row, [N], and whether another one is as near as `TIE_MARGIN`."""
    keys, greedy = block[:4].to(torch.int32)[:, :, None], block[4] > 0
    ids = torch.arange(scaled.shape[-1], dtype=torch.int32, device=scaled.device)
    high = _mixed(_mixed(ids, keys[0]), keys[1])
    low = _shifted(_mixed(_mixed(ids, keys[2]), keys[3]), 12)
    unsigned = high.double() + torch.where(high < 0, 2.0**32, 0.0)
    uniform = (unsigned * 2.0**20 + low.double() + 0.5) * 2.0**-52
    noise = torch.where(greedy[:, None], 0.0, -(-uniform.log()).log())
    scores = torch.where(scaled > -torch.inf, scaled.double() + noise, -torch.inf)
    best = scores.amax(-1, keepdim=True)
    near = (scores >= best - TIE_MARGIN - 4e-15 * best.abs()).sum(-1) > 1
    return scores.argmax(-1), near & ~greedy


def _mixed(words: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The keyed finaliser of `speculation.noise` on int32, whose products wrap around."""
    words = words ^ key
    words = (words ^ _shifted(words, 16)) * 0x7FEB352D
    words = (words ^ _shifted(words, 15)) * (0x846CA68B - 2**32)
    return words ^ _shifted(words, 16)


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift to the right, zeros coming in."""
    return (words >> bits) & ((1 << (32 - bits)) - 1)


def read_back(parts: Sequence[torch.Tensor]) -> list[list[int]]:
    """Lists of [N] integers from the device, in one copy."""
    found: Any = torch.stack([part.to(torch.int64) for part in parts]).tolist()
    return found  # type: ignore[no-any-return]
