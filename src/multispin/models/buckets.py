"""Shapes of static passes: the available sizes, and the smallest that fits a batch. Integers only.

A CUDA graph runs one fixed shape. So a batch is padded up to one of a few shapes, and each shape is captured once, when
it is first needed. A batch larger than the largest shape runs without a graph.
"""

from collections.abc import Sequence
from typing import NamedTuple

PASS_MEMORY_BYTES = 2**31
"""Most memory of a static pass beside weights and cache [bytes]."""
TOKENS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Tokens of a pass."""
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Tokens of one slot, where attention is padded."""
KEYS = 128
"""Keys per slot are padded to a multiple of this, where attention is padded."""
WINDOWS = (16, 32, 64, 128)
"""Inputs that a recurrent layer scans per slot: those replayed and the new ones."""

UNIFORM_TOKENS_PER_SLOT = 4
"""Tokens per slot if all passes have one shape. Longer drafts of everybody take more passes."""
UNIFORM_ROWS = 8
"""Tokens of one slot in a pass, if all passes have one shape and attention is padded."""


class Segment(NamedTuple):
    """Tokens of a run that one pass takes: `size` of them, from its `first` on.

    Attributes:
        run: index of the run.
        first: index of the first token in the run.
        size: number of tokens.

    """

    run: int
    first: int
    size: int


class Shape(NamedTuple):
    """The shape of a static pass.

    Attributes:
        tokens: tokens of the packed row, padding included.
        slots: slots 0 … slots−1 take part.
        rows: query rows per slot of padded attention; 0 if attention takes ragged rows.
        keys: keys per slot of padded attention; 0 if attention takes ragged rows.
        window: inputs that recurrent layers scan per slot; 0 if there are no such layers.

    """

    tokens: int
    slots: int
    rows: int = 0
    keys: int = 0
    window: int = 0


def at_least(count: int, sizes: Sequence[int]) -> int | None:
    """The smallest of ascending `sizes` that holds `count`; None if none does."""
    return next((size for size in sizes if size >= count), None)


def token_sizes(bytes_per_token: int, memory_bytes: int = PASS_MEMORY_BYTES) -> tuple[int, ...]:
    """Those of `TOKENS` whose pass fits the memory; the smallest always does.

    Args:
        bytes_per_token: memory of one row of a pass: activations, logits, and what drawing a token takes.
        memory_bytes: memory of the largest pass [byte]; default `PASS_MEMORY_BYTES`.

    """
    return tuple(size for size in TOKENS if size == TOKENS[0] or size * bytes_per_token <= memory_bytes)


def uniform_shape(tokens: Sequence[int], slots: int, max_length: int, ragged: bool) -> Shape:
    """The one shape of all passes, where no pass may have another.

    Args:
        tokens: sizes that there are, ascending.
        slots: slots of the cache.
        max_length: positions of a slot.
        ragged: attention takes ragged rows.

    """
    size = at_least(UNIFORM_TOKENS_PER_SLOT * slots, tokens) or tokens[-1]
    return Shape(size, slots) if ragged else Shape(size, slots, min(UNIFORM_ROWS, size), max_length)


def split(counts: Sequence[int], shape: Shape) -> list[list[Segment]]:
    """Runs of this many tokens as passes of one shape, each with at most one piece of a run, in the runs' order."""
    passes: list[list[Segment]] = []
    done = [0] * len(counts)
    while any(taken < count for taken, count in zip(done, counts, strict=True)):
        room, pieces = shape.tokens, list[Segment]()
        for run, count in enumerate(counts):
            taken = min(count - done[run], room, shape.rows or room)
            if taken:
                pieces.append(Segment(run, done[run], taken))
                done[run] += taken
                room -= taken
        passes.append(pieces)
    return passes


def slot_size(needed: int, slots: int) -> int:
    """The smallest power of two that is at least `needed`, or all `slots` if that is fewer."""
    return min(slots, 1 << max(0, needed - 1).bit_length())


def key_size(needed: int, max_length: int) -> int:
    """`needed` keys, padded to a multiple of `KEYS`, within a slot."""
    return min(max_length, -(-needed // KEYS) * KEYS)
