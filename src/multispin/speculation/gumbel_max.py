"""argmax_i(l_i + G_i), the Gumbel-max draw, without evaluating all V Gumbels: the same token, a fraction of the work.

Plain definition: scores l_i − ln(−ln u_i) in float64 over the support, the first of equal maxima wins. With
E_i = −ln u_i it is the token with the least E_i·e^(m − l_i), m = max l. E ≥ 1 − u ≥ c/2^32 for c = 2^32 − 1 − h, h
the high 32 bits of u, so r_i = c_i·e^(m − l_i) bounds 2^32·E_i·e^(m − l_i) from below. Take the token with the least
r, compute its score S exactly: only tokens with r_i ≤ 2^32·e^(m − S) can beat it. These few are scored exactly.

r is float32. For a token that can win, m − l_i < 41 (2^−53 ≤ u ≤ 1 − 2^−53), so its r carries a
relative error below 1e-5; `_SLACK` allows 1e-4, which also covers the rounding of scores while |m| ≤ 1e6.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.noise import gumbel_numpy, gumbel_torch, high_words

if TYPE_CHECKING:
    import torch

_SLACK = 1.0 + 1e-4
_LARGEST = 1e6
_SMALL_SUPPORT = 64
_ROWS_AT_ONCE = 64  # on an accelerator: a few hundred bytes per logit, for a moment


def gumbel_argmax(logits: torch.Tensor, seed: int, position: int) -> int:
    """The token id that Gumbel-max draws from one row.

    Args:
        logits: [V], float32 or float64, unnormalised; −inf outside the support, which must not be empty.
        seed: seed of the noise.
        position: absolute position of the token.
    """
    if logits.device.type != "cpu":
        return _everywhere(logits[None], seed, [position])[0]
    return gumbel_argmax_row(logits.detach().numpy(), seed, position)


def gumbel_argmax_row(row: NDArray[np.floating], seed: int, position: int) -> int:
    """`gumbel_argmax` of a row of numpy logits, for those who have no tensors."""
    top = float(row.max())
    if not np.isfinite(top):
        raise InputError("a row of logits has no token to draw: all are −inf or not numbers")
    if abs(top) > _LARGEST:
        scores = row.astype(np.float64) + gumbel_numpy(seed, position, np.arange(len(row)))
        return int(scores.argmax())
    room = _rooms.of(len(row))
    if row.min() > -np.inf:
        support: NDArray[np.integer] = room.tokens
    else:
        support = np.flatnonzero(row > -np.inf)
        row = row[support]
    candidates = support
    if len(support) > _SMALL_SUPPORT:
        bound = _lower_bounds(row, top, seed, position, support, room)
        first = int(bound.argmin())
        best = float(row[first]) + float(gumbel_numpy(seed, position, support[first : first + 1])[0])
        near = np.flatnonzero(bound <= np.float32(2.0**32 * _SLACK * np.exp(top - best)))
        candidates, row = support[near], row[near]
    scores = row.astype(np.float64) + gumbel_numpy(seed, position, candidates)
    return int(candidates[scores.argmax()])


class _Room:
    """Arrays for rows of one length. Fresh ones would cost more than the arithmetic: a page fault every 4 kB."""

    def __init__(self, size: int) -> None:
        self.tokens = np.arange(size, dtype=np.uint32)
        self.words = (np.empty(size, np.uint32), np.empty(size, np.uint32))
        self.floats = (np.empty(size, np.float32), np.empty(size, np.float32))


class _Rooms(threading.local):
    """The room of the last row in each thread."""

    def __init__(self) -> None:
        self._last = _Room(0)

    def of(self, size: int) -> _Room:
        if len(self._last.tokens) != size:
            self._last = _Room(size)
        return self._last


_rooms = _Rooms()


def _lower_bounds(
    row: NDArray[np.floating], top: float, seed: int, position: int, support: NDArray[np.integer], room: _Room
) -> NDArray[np.float32]:
    """r_i of the module's text, float32, for the tokens of the support; it lies in `room`."""
    bound, whole = (each[: len(row)] for each in room.floats)
    words = tuple(each[: len(row)] for each in room.words)
    high = high_words(seed, position, support, words)
    np.subtract(row.dtype.type(top), row, out=bound, casting="same_kind")
    np.minimum(bound, np.float32(60.0), out=bound)  # beyond 41 it cannot win; so r stays finite
    np.exp(bound, out=bound)
    np.copyto(whole, np.invert(high, out=high), casting="unsafe")
    bound *= whole
    return bound


def gumbel_argmax_rows(logits: torch.Tensor, seed: int, positions: Sequence[int]) -> list[int]:
    """`gumbel_argmax` of each row of [R, V] at its own position; on an accelerator all rows at once."""
    if logits.device.type == "cpu":
        return [gumbel_argmax(row, seed, position) for row, position in zip(logits, positions, strict=True)]
    return _everywhere(logits, seed, positions)


def _everywhere(logits: torch.Tensor, seed: int, positions: Sequence[int]) -> list[int]:
    """The plain definition for [R, V], on the logits' own device; one wait for it per `_ROWS_AT_ONCE` rows."""
    import torch

    tokens = torch.arange(logits.shape[-1], device=logits.device)
    drawn: list[int] = []
    for first in range(0, len(positions), _ROWS_AT_ONCE):
        rows = logits[first : first + _ROWS_AT_ONCE].double()
        noise = gumbel_torch(seed, positions[first : first + _ROWS_AT_ONCE], tokens)
        scores = torch.where(rows > -math.inf, rows + noise, -math.inf)
        best = scores.argmax(-1)
        best[scores.amax(-1) == -math.inf] = -1
        drawn += best.tolist()
    if -1 in drawn:
        raise InputError("a row of logits has no token to draw: all are −inf or not numbers")
    return drawn
