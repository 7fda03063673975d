"""The layout of a pass of static shape, as data: where each token of a padded row belongs.

Ids, positions and slots are one small block of integers, copied to the GPU before each pass. The row is padded with
tokens of a spare slot, which nobody reads.
"""

from collections.abc import Sequence

import torch

from multispin.models.attention import PassBatch, Scoring, attend_slots, hidden_keys
from multispin.models.buckets import Shape
from multispin.models.layout import WindowRun
from multispin.models.ragged import ragged_attention
from multispin.models.slots import SlotCache
from multispin.models.static_recurrent import StaticRecurrent


class StaticBatch(PassBatch):
    """The place of each token in a row of static shape. It is filled in again before each pass.

    Args:
        cache: keys and values of all slots, with a spare one.
        shape: shape of the pass.
        ragged: attention takes ragged rows (see `models.ragged`).

    Attributes:
        recurrent: the row as recurrent layers see it; None without such layers.

    """

    def __init__(self, cache: SlotCache, shape: Shape, ragged: bool) -> None:
        self.cache, self.shape, self._ragged = cache, shape, ragged
        tokens, slots = shape.tokens, shape.slots
        sizes = {"ids": tokens, "positions": tokens, "lines": tokens}
        if ragged:  # the padding is one more sequence
            sizes |= {"bounds": slots + 2, "first_keys": slots + 2, "keys": slots + 1}
        else:
            sizes |= {"columns": slots * shape.rows, "row_positions": slots * shape.rows, "places": tokens}
        if shape.window:
            sizes |= StaticRecurrent.sizes(shape)
        on_gpu = cache.device.type == "cuda"
        self._host = torch.zeros(sum(sizes.values()), dtype=torch.int64, pin_memory=on_gpu)
        self._block = torch.zeros_like(self._host, device=cache.device)
        self._parts = dict(zip(sizes, torch.split(self._block, list(sizes.values())), strict=True))
        self.ids, self.positions = self._parts["ids"], self._parts["positions"]
        self.recurrent = StaticRecurrent(cache.recurrent, shape, self._parts) if cache.recurrent else None
        self._masks: dict[int | None, torch.Tensor] = {}
        self.load([], [])

    def load(self, runs: Sequence[tuple[int, int, Sequence[int]]], windows: Sequence[WindowRun]) -> None:
        """Fill in one batch.

        Args:
            runs: (slot, absolute position of the first token, ids) of each session, in the order of the row.
            windows: recurrent windows of the same sessions, if there are recurrent layers.

        """
        tokens, cache = self.shape.tokens, self.cache
        _, kv_heads, max_length, _ = cache.shape
        ids: list[int] = []
        positions: list[int] = []
        lines: list[int] = []
        bounds, first_keys, keys = [0], [], []
        for slot, start, run_ids in runs:
            end = start + len(run_ids)
            ids.extend(run_ids)
            positions.extend(range(start, end))
            first = slot * kv_heads * max_length
            lines.extend(range(first + start, first + end))
            bounds.append(len(ids))
            first_keys.append(first)
            keys.append(end)
        rest, spare = tokens - len(ids), cache.slots * kv_heads * max_length
        padding = [min(place, max_length - 1) for place in range(rest)]
        values = [*ids, *[0] * rest, *positions, *padding, *lines, *(spare + place for place in padding)]
        if self._ragged:
            absent = self.shape.slots - len(runs)
            values += [*bounds, *[bounds[-1]] * absent, tokens]
            values += [*first_keys, *[spare] * (absent + 2)]
            values += [*keys, *[1] * absent, max(1, min(rest, max_length))]
        else:
            values += self._padded(runs)
        if self.recurrent is not None:
            values += self.recurrent.layout(windows)
        self._host.copy_(torch.tensor(values))
        self._block.copy_(self._host, non_blocking=True)

    def _padded(self, runs: Sequence[tuple[int, int, Sequence[int]]]) -> list[int]:
        """Columns and positions of all (slot, row) places, and the place of each column."""
        rows = self.shape.rows
        columns, row_positions = [0] * (self.shape.slots * rows), [0] * (self.shape.slots * rows)
        places, column = [0] * self.shape.tokens, 0
        for slot, start, ids in runs:
            for row in range(len(ids)):
                place = slot * rows + row
                columns[place], row_positions[place], places[column] = column, start + row, place
                column += 1
        return [*columns, *row_positions, *places]

    def begin(self) -> None:
        """Compute on the device what all layers need of the layout; the first step of every pass."""
        _, kv_heads, max_length, _ = self.cache.shape
        offsets = torch.arange(kv_heads, device=self.cache.device)[:, None] * max_length
        self._lines = (offsets + self._parts["lines"]).reshape(-1)
        self._masks = {}
        if self._ragged:
            self._bounds, self._first_keys, self._keys = (
                self._parts[name].int() for name in ("bounds", "first_keys", "keys")
            )
        if self.recurrent is not None:
            self.recurrent.begin()

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        """Attention of all slots in one call."""
        if self._ragged and scoring.plain:
            layout = (self._bounds, self._first_keys, self._keys)
            return ragged_attention(query.transpose(0, 1), keys, values, *layout, scoring.scale, scoring.window)
        mask = self._mask(scoring.window, len(query) // keys.shape[1], query.dtype)
        seen_keys, seen_values = (part[: self.shape.slots, :, : self.shape.keys] for part in (keys, values))
        seen = attend_slots(query, self._parts["columns"], seen_keys, seen_values, mask, scoring)
        return seen.index_select(0, self._parts["places"])

    def _mask(self, window: int | None, shared: int, dtype: torch.dtype) -> torch.Tensor:
        """The mask of all slots; made once per pass and window."""
        if window not in self._masks:
            positions = self._parts["row_positions"].view(self.shape.slots, self.shape.rows)
            self._masks[window] = hidden_keys(positions, self.shape.keys, window, shared, dtype)
        return self._masks[window]
