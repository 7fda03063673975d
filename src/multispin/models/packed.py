"""Packed attention: many sessions' new tokens as one row, `[1, Σ n_i]`, in one forward pass.

The linear layers see no padding at all. Attention writes each new key and value to (slot, absolute position) and
lets every token see its own slot's positions up to its own. Sessions in neighbouring slots share one attention call,
padded to the longest of them, where that is cheaper than a call each: a call costs as much as some
`CALL_COST` multiplications, so short drafts are grouped and a long prompt stands alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface

from multispin.errors import InputError
from multispin.models.attention import PassBatch, Scoring, attend_slots, hidden_keys
from multispin.models.layout import Run, grouped
from multispin.models.recurrent import RecurrentPass
from multispin.models.slots import SlotCache

PACKED_ATTENTION = "multispin_packed"


class PackedBatch(PassBatch):
    """The place of each token in a packed row. It is made once per forward pass and shared by all layers.

    Args:
        cache: keys and values of all slots.
        runs: per session (slot, absolute position of its first token, number of tokens), in the order of the row.
        heads: number of query heads.
        call_cost: see `grouped`.
    """

    def __init__(self, cache: SlotCache, runs: Sequence[tuple[int, int, int]], heads: int, call_cost: int) -> None:
        self.cache = cache
        self.runs: list[Run] = []
        positions: list[int] = []
        lines: list[int] = []  # per token, its line in the cache seen as [slots · kv_heads · max_length, head_dim]
        _, kv_heads, _, head_dim = cache.shape
        device = cache.device
        for slot, start, count in runs:
            self.runs.append(Run(slot, start, count, len(positions)))
            positions.extend(range(start, start + count))
            first = slot * kv_heads * cache.max_length + start
            lines.extend(range(first, first + count))
        self.groups = grouped(self.runs, heads * head_dim, call_cost)
        self.positions = torch.tensor(positions, device=device)
        offsets = torch.arange(kv_heads, device=device)[:, None] * cache.max_length
        self._lines = (offsets + torch.tensor(lines, device=device)).reshape(-1)
        self._columns: list[torch.Tensor] = []  # per group, the row's column of each of its (slot, row) places
        places = [0] * len(positions)  # per column, its place in the groups' outputs laid end to end
        offset = 0
        for group in self.groups:
            # A place that no token takes repeats the first token, so that no row of the mask is empty.
            columns = [group.runs[0].column] * ((group.last - group.first) * group.rows)
            for run in group.runs:
                base = (run.slot - group.first) * group.rows
                columns[base : base + run.count] = range(run.column, run.column + run.count)
                places[run.column : run.column + run.count] = range(offset + base, offset + base + run.count)
            offset += len(columns)
            self._columns.append(torch.tensor(columns, device=device))
        self._places = torch.tensor(places, device=device)
        self.recurrent = RecurrentPass(cache.recurrent, self.runs) if cache.recurrent else None
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        """Attention, a call for each group of neighbouring slots."""
        shared = len(query) // keys.shape[1]
        parts = []
        for index, (group, columns) in enumerate(zip(self.groups, self._columns, strict=True)):
            mask = self._mask(index, shared, scoring.window, query.dtype)
            seen_keys, seen_values = (part[group.first : group.last, :, : group.end] for part in (keys, values))
            parts.append(attend_slots(query, columns, seen_keys, seen_values, mask, scoring))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).index_select(0, self._places)

    def _mask(self, index: int, shared: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """The mask of group `index`, or None where every key may be seen; made once per pass and window."""
        if (index, window) not in self._masks:
            group = self.groups[index]
            alone = len(group.runs) == 1 and group.rows == 1 and group.last - group.first == 1
            if alone and (window is None or group.end <= window):
                self._masks[index, window] = None
            else:
                positions = self.positions[self._columns[index]].view(group.last - group.first, group.rows)
                self._masks[index, window] = hidden_keys(positions, group.end, window, shared, dtype)
        return self._masks[index, window]


PLAIN_ARGUMENTS = frozenset({"dropout", "position_ids", "recurrent", "output_router_logits", "use_cache"})
"""transformers' arguments without effect. Any other argument that a family passes is refused by name."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packed: PassBatch | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed row, called by transformers in every layer.

    Args:
        module: the attention module; its `layer_idx` names the cache layer.
        query: [1, heads, Σ n_i, head_dim], positions already encoded.
        key: [1, kv_heads, Σ n_i, head_dim].
        value: [1, kv_heads, Σ n_i, head_dim].
        attention_mask: None, since transformers makes no mask for an unknown attention.
        scaling: factor on query · key; default None.
        packed: layout of the row, passed through the model's forward; default None.
        sliding_window: keys that a token may look back on, itself included; default None: all.
        softcap: c, by which scores s become c·tanh(s/c); default None: plain scores.
        s_aux: [heads], sinks of gpt-oss; default None.
        others: further arguments, which must have no effect (`PLAIN_ARGUMENTS`).

    Returns:
        [1, Σ n_i, heads, head_dim], and no weights.

    """
    if packed is None or attention_mask is not None:
        raise InputError("this model's layers are made for packed rows: load the model again for other uses")
    if asked := [name for name, value in others.items() if value is not None and name not in PLAIN_ARGUMENTS]:
        raise InputError(f"this model's attention asks for {', '.join(asked)}, which is not known here")
    keys, values = packed.cache.keys[module.layer_idx], packed.cache.values[module.layer_idx]  # type: ignore[index]
    packed.write(keys, key[0])
    packed.write(values, value[0])
    scoring = Scoring(scaling, sliding_window, softcap, s_aux)
    return packed.attend(query[0], keys, values, scoring).unsqueeze(0), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
