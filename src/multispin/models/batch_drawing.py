"""One draw for every row of a pass, each by its own request's parameters, on the device that holds the logits.

`speculation.draw` is the definition, for a row on a CPU: bias and withheld ids, temperature, top-k, top-p, the shared
noise, argmax in double precision. Here the same steps run for all rows at once, without a sort and without a loop over
requests: the edges of top-k and top-p are found by bisection over the bits of a logit. A device rounds exponentials and
logarithms otherwise than a CPU in the last places. So a row whose token depends on that, because two scores are closer
than `MARGIN` or the token lies within `EDGE` of the edge of top-p, is marked, and drawn by the definition on the CPU.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from multispin.speculation import SamplingParams, draw
from multispin.speculation.noise import noise_keys

log = logging.getLogger(__name__)

MARGIN = 1e-9
"""Scores that are closer than this may be in another order on a CPU."""
EDGE = 4e-6
"""Share of the probability within which the edge of top-p may lie elsewhere on a CPU."""
_KNOWN = frozenset(
    "temperature top_k top_p seed logit_bias withheld withheld_until".split()
)  # whatever else a request may ask for is drawn row by row
_PARTS = 8
_LOWEST = -(2**31)
_ZERO_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Lowest bits of a float32 that are 0 if it came from a narrower type."""

Row = tuple[SamplingParams, int]
"""A request's parameters, and the absolute position that a row of logits is for."""


class BatchDrawing:
    """Draws tokens for many rows at once.

    Args:
        device: that holds the logits.

    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._plain: Callable[..., torch.Tensor] = draw_rows
        self._truncated: Callable[..., torch.Tensor] = draw_truncated_rows

    def compile(self, width: int, dtype: torch.dtype) -> None:
        """Compile the steps of a draw to few kernels, for logits of this width and number type; slower without it.

        It takes some seconds, once per machine. Where there is no compiler, the steps run one by one.
        """
        wide = {"dynamic": True, "fullgraph": True}
        plain, truncated = torch.compile(draw_rows, **wide), torch.compile(draw_truncated_rows, **wide)
        try:
            for count in (24, 40):
                logits = torch.zeros(count, width, dtype=dtype, device=self._device)
                block = self._block([(SamplingParams(0.5, 5, 0.5), 3)] * count)
                plain(logits, block)
                truncated(logits, block, _ZERO_BITS.get(dtype, 0))
        except Exception as error:  # whatever a compiler raises, the steps themselves are the same
            log.warning("the draw of tokens is not compiled, so it takes longer: %s", str(error).splitlines()[0])
        else:
            self._plain, self._truncated = plain, truncated

    @staticmethod
    def takes(params: SamplingParams) -> bool:
        """Whether all that a request asks for is drawn here."""
        others = (field for field in fields(params) if field.name not in _KNOWN)
        return all(getattr(params, field.name) == field.default for field in others)

    def __call__(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Draw one token per row.

        Args:
            logits: [N, V].
            rows: N requests' parameters and positions.

        Returns:
            [2, N] int64 on the device: the tokens, and 1 where a token is to be drawn on the CPU instead. A row that is
            not finite gets any token.

        """
        block = self._block(rows)
        shaped = self._shaped(logits, rows)
        if any((params.top_k or params.top_p < 1.0) and not params.greedy for params, _ in rows):
            return self._truncated(shaped, block, _ZERO_BITS.get(shaped.dtype, 0))
        return self._plain(shaped, block)

    def _block(self, rows: Sequence[Row]) -> torch.Tensor:
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

    def _shaped(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
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


def drawn_on_cpu(logits: torch.Tensor, row: Row) -> int:
    """The token of one row, [V] logits, by the definition."""
    params, position = row
    return draw(logits[None].float().cpu(), [position], params)[0]


def draw_rows(logits: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Draw by temperature, noise and argmax.

    Args:
        logits: [N, V], shaped.
        block: see `BatchDrawing`.

    Returns:
        [2, N]: token, whether it is unsure.

    """
    scaled = logits.float() / block[6].view(torch.float64).float()[:, None]
    token, near = _best(scaled, block)
    return torch.stack((token, near.long()))


def draw_truncated_rows(logits: torch.Tensor, block: torch.Tensor, zero_bits: int) -> torch.Tensor:
    """Draw by temperature, top-k, top-p, noise and argmax; arguments and result as `draw_rows`.

    Args:
        logits: [N, V], shaped.
        block: see `BatchDrawing`.
        zero_bits: lowest bits that are 0 in each logit as a float32.

    """
    count, width = logits.shape
    wide = logits.float()
    scaled = wide / block[6].view(torch.float64).float()[:, None]
    # Numbers in the order of the logits. Narrow ones stay distinct when they are divided.
    order = _sortable(wide if zero_bits else scaled)
    top_k = torch.where((block[5] > 0) & (block[5] < width), block[5], width)
    edge = torch.full((count,), _LOWEST, dtype=torch.int64, device=logits.device)
    for bit in range(31, zero_bits - 1, -1):
        higher = edge + (1 << bit)
        enough = (order >= higher[:, None]).sum(-1) >= top_k
        edge = torch.where(enough, higher, edge)
    inside = order >= edge[:, None]  # ties at the edge of top-k are all kept
    weights = torch.where(inside, (scaled - scaled.amax(-1, keepdim=True)).exp(), 0.0)
    total = weights.sum(-1, dtype=torch.float64)
    top_p = block[7].view(torch.float64)
    bound = torch.where(top_p < 1.0, top_p * total, torch.inf)
    wider = bound * (1.0 + EDGE)
    edge = torch.full_like(edge, _LOWEST)
    for bit in range(31, zero_bits - 1, -1):
        higher = edge + (1 << bit)
        mass = torch.where(order >= higher[:, None], weights, 0.0).sum(-1, dtype=torch.float64)
        edge = torch.where(mass >= wider, higher, edge)
    level = order == edge[:, None]
    before = torch.where(order > edge[:, None], weights, 0.0).sum(-1, dtype=torch.float64)
    rank = level.cumsum(-1, dtype=torch.int32) - 1  # of ties, those with lower ids come first
    heaviest = torch.where(level, weights, 0.0).amax(-1).double()
    first_ties = (before[:, None] + rank * heaviest[:, None]) < wider[:, None]
    kept = inside & ((order > edge[:, None]) | (level & first_ties))
    token, near = _best(torch.where(kept, scaled, -torch.inf), block)
    # Is the token inside the edge of top-p wherever it lies, or only for the wider one?
    found = order.gather(-1, token[:, None])
    ids = torch.arange(width, device=logits.device)
    earlier = (order > found) | ((order == found) & (ids < token[:, None]))
    mass = torch.where(earlier, weights, 0.0).sum(-1, dtype=torch.float64)
    narrower = torch.where(bound.isinf(), bound, bound * (1.0 - EDGE))
    unsure = near | ((mass > 0.0) & (mass >= narrower))
    return torch.stack((token, unsure.long()))


def _sortable(numbers: torch.Tensor) -> torch.Tensor:
    """Int32 in the order of float32 numbers; −0 and 0 are the same."""
    bits = torch.where(numbers == 0.0, 0.0, numbers).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _best(scaled: torch.Tensor, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of the largest scores of each row, [N], and whether another one is as near as `MARGIN`."""
    keys, greedy = block[:4].to(torch.int32)[:, :, None], block[4] > 0
    ids = torch.arange(scaled.shape[-1], dtype=torch.int32, device=scaled.device)
    high = _mixed(_mixed(ids, keys[0]), keys[1])
    low = _shifted(_mixed(_mixed(ids, keys[2]), keys[3]), 12)
    unsigned = high.double() + torch.where(high < 0, 2.0**32, 0.0)
    uniform = (unsigned * 2.0**20 + low.double() + 0.5) * 2.0**-52
    noise = torch.where(greedy[:, None], 0.0, -(-uniform.log()).log())
    scores = torch.where(scaled > -torch.inf, scaled.double() + noise, -torch.inf)
    best = scores.amax(-1, keepdim=True)
    near = (scores >= best - MARGIN - 4e-15 * best.abs()).sum(-1) > 1
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
