"""argmax_i(l_i + G_i), the Gumbel-max draw, without evaluating all V Gumbels: the same token, a fraction of the work.

Plain definition: scores l_i − ln(−ln u_i) in float64 over the support, the first of equal maxima wins. With
E_i = −ln u_i it is the token with the least E_i·e^(m − l_i), m = max l. Let h be the high 32 bits of u and
x = (2^32 − 1 − h)/2^32. As h/2^32 < u < 1 − x, x + x²/2 ≤ −ln(1 − x) < E < −ln(h/2^32). Two prunings follow:

* Near tokens, m − l_i < `_NEAR`: r_i = (x_i + x_i²/2)·e^(m − l_i) bounds E_i·e^(m − l_i) from below. The token with the
  least r has some E·e^(m − l) ≤ M, by the upper bound of E. Only tokens with r_i ≤ M can beat it: one or a few.
* All others can win only if x_i ≤ M·e^(−`_NEAR`), a few thousand values of the 2^32. The high bits are a bijection of
  the token ids, so these values are turned back into ids: nearly all of them lie beyond the vocabulary.

What is left is scored exactly. r is float32. For a token that can win, m − l_i < 41 (2^−53 ≤ u ≤ 1 − 2^−53), so its r
carries a relative error below 1e-5; `_SLACK` allows 1e-4, which also covers the rounding of scores while |m| ≤ 1e6.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.noise import gumbel_numpy, gumbel_torch, high_words, tokens_of_high_words

if TYPE_CHECKING:
    import torch

_SLACK = 1.0 + 1e-4
_LARGEST = 1e6
_NEAR = 14.0  # nats: more of them are more near tokens, fewer are more values to turn back into ids
_LEAST_WORD = 2.0**-21  # stands for h = 0: u is at least 2^-53
_ROWS_AT_ONCE = 64  # on an accelerator: a few hundred bytes per logit, for a moment


def gumbel_argmax(logits: torch.Tensor, seed: int, position: int) -> int:
    """The token id that Gumbel-max draws from one row.

    Args:
        logits: [V], float32 or float64, unnormalised; −inf outside the support, which must not be empty.
        seed: seed of the noise.
        position: absolute position of the token.
    """
    if logits.device.type != "cpu":
        return argmax_rows(logits[None], seed, [position])[0]
    return gumbel_argmax_row(logits.detach().numpy(), seed, position)


def gumbel_argmax_row(row: NDArray[np.floating], seed: int, position: int, far: bool = True) -> int:
    """`gumbel_argmax` of a row of numpy logits, for callers without torch.

    Args:
        row: [V] logits, as `gumbel_argmax` takes them.
        seed: seed of the noise.
        position: absolute position of the token.
        far: whether a token that is 14 nats or more below the largest logit may be drawn; default yes. All of them
            together are drawn in about one of 3,000 draws, and looking for them takes a quarter of the time: a drafter
            leaves them out.

    """
    top = float(row[row.argmax()])
    if not math.isfinite(top):
        raise InputError("a row of logits has no token to draw: all are −inf or not numbers")
    if abs(top) > _LARGEST:
        scores = row.astype(np.float64) + gumbel_numpy(seed, position, np.arange(len(row)))
        return int(scores.argmax())
    floor = row.dtype.type(top - _NEAR)
    near = np.flatnonzero(row > floor)
    tokens, most = _contenders(row[near], near, top, seed, position, len(row))
    lucky = int(2.0**32 * most * math.exp(float(floor) - top)) + 1 if far else 0
    if 2 * lucky > len(row):  # a flat row, or unlucky noise for all near tokens
        tokens, _ = _contenders(row, np.arange(len(row)), top, seed, position, len(row))
    elif lucky:
        found = tokens_of_high_words(seed, position, np.arange(2**32 - lucky, 2**32, dtype=np.uint32))
        if found.min() < len(row):
            tokens = np.union1d(tokens, found[found < len(row)])
    if len(tokens) == 1:
        return int(tokens[0])
    scores = row[tokens].astype(np.float64) + gumbel_numpy(seed, position, tokens)
    return int(tokens[scores.argmax()])


class _Room:
    """Arrays for rows of one length. Fresh ones would cost more than the arithmetic: a page fault every 4 kB."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.words = (np.empty(size, np.uint32), np.empty(size, np.uint32))
        self.floats = (np.empty(size, np.float32), np.empty(size, np.float32))


class _Rooms(threading.local):
    """The room of the last row in each thread."""

    def __init__(self) -> None:
        self._last = _Room(0)

    def of(self, size: int) -> _Room:
        if self._last.size != size:
            self._last = _Room(size)
        return self._last


_rooms = _Rooms()


def _contenders(
    row: NDArray[np.floating], tokens: NDArray[np.integer], top: float, seed: int, position: int, vocabulary_size: int
) -> tuple[NDArray[np.integer], float]:
    """The tokens of a part of a row that can beat all others of it, and M of the module's text, slack included."""
    room = _rooms.of(vocabulary_size)
    bound, share = (each[: len(row)] for each in room.floats)
    words = tuple(each[: len(row)] for each in room.words)
    high = high_words(seed, position, tokens, words)
    np.subtract(row.dtype.type(top), row, out=bound, casting="same_kind")
    np.minimum(bound, np.float32(60.0), out=bound)  # beyond 41 it cannot win; so r stays finite
    np.exp(bound, out=bound)
    np.copyto(share, np.invert(high, out=words[1]), casting="unsafe")
    share *= np.float32(2.0**-32)
    bound *= share
    share *= np.float32(0.5)
    share += np.float32(1.0)
    bound *= share
    first = int(bound.argmin())
    most = -math.log(max(float(high[first]), _LEAST_WORD) / 2.0**32) * math.exp(min(top - float(row[first]), 60.0))
    most *= _SLACK
    return tokens[bound <= np.float32(most)], most


def gumbel_argmax_rows(logits: torch.Tensor, seed: int, positions: Sequence[int]) -> list[int]:
    """`gumbel_argmax` of each row of [R, V] at its own position; on an accelerator all rows at once.

    Args:
        logits: [R, V], each row as `gumbel_argmax` takes it.
        seed: seed of the noise.
        positions: R absolute positions, one per row.

    Returns:
        R token ids.

    Raises:
        InputError: a row has no token to draw.
    """
    if logits.device.type == "cpu":
        return [gumbel_argmax(row, seed, position) for row, position in zip(logits, positions, strict=True)]
    return argmax_rows(logits, seed, positions)


def gumbel_argmax_each(logits: torch.Tensor, seeds: Sequence[int], positions: Sequence[int]) -> list[int | None]:
    """`gumbel_argmax` of each row of [R, V], with a seed and a position of its own; None where no token is left.

    Args:
        logits: [R, V], each row as `gumbel_argmax` takes it.
        seeds: R seeds, one per row.
        positions: R absolute positions, one per row.

    Returns:
        R token ids or None.
    """
    if logits.device.type != "cpu":
        return [None if token < 0 else token for token in _best_everywhere(logits, seeds, positions)]
    found: list[int | None] = []
    for row, seed, position in zip(logits, seeds, positions, strict=True):
        try:
            found.append(gumbel_argmax(row, seed, position))
        except InputError:
            found.append(None)
    return found


def argmax_rows(logits: torch.Tensor, seed: int, positions: Sequence[int]) -> list[int]:
    """The plain definition for [R, V], on the logits' own device.

    Args:
        logits: float32 or float64, unnormalised; −inf outside the support.
        seed: seed of the noise.
        positions: R absolute positions, one per row.

    Returns:
        R token ids.

    Raises:
        InputError: a row has no token to draw.
    """
    drawn = _best_everywhere(logits, [seed] * len(positions), positions)
    if -1 in drawn:
        raise InputError("a row of logits has no token to draw: all are −inf or not numbers")
    return drawn


def _best_everywhere(logits: torch.Tensor, seeds: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Each row's token, −1 where there is none; one wait for the device per `_ROWS_AT_ONCE` rows."""
    import torch

    tokens = torch.arange(logits.shape[-1], device=logits.device)
    drawn: list[int] = []
    for first in range(0, len(positions), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        rows = logits[part].double()
        noise = gumbel_torch(seeds[part], positions[part], tokens)
        scores = torch.where(rows > -math.inf, rows + noise, -math.inf)
        best = scores.argmax(-1)
        best[scores.amax(-1) == -math.inf] = -1
        drawn += best.tolist()
    return drawn
