"""Packed attention: many sessions' new tokens as one row, `[1, Σ n_i]`, in one forward pass.

The linear layers see no padding at all. Attention writes each new key and value to (slot, absolute position) and
lets every token see its own slot's positions up to its own. Sessions in neighbouring slots share one attention call,
padded to the longest of them, where that is cheaper than a call each: a call costs as much as some
`CALL_COST` multiplications, so short drafts are grouped and a long prompt stands alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from multispin.errors import InputError
from multispin.models.layout import Run, grouped
from multispin.models.recurrent import RecurrentPass
from multispin.models.slots import SlotCache

PACKED_ATTENTION = "multispin_packed"


class PackedBatch:
    """Where each token of a packed row belongs; made once per forward pass, shared by all layers.

    Args:
        cache: keys and values of all slots.
        runs: per session (slot, absolute position of its first token, number of tokens), in the order of the row.
        heads: number of query heads.
    """

    def __init__(self, cache: SlotCache, runs: Sequence[tuple[int, int, int]], heads: int) -> None:
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
        self.groups = grouped(self.runs, heads * head_dim)
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

    def write(self, cached: torch.Tensor, new: torch.Tensor) -> None:
        """Put `new`, [kv_heads, Σ n_i, head_dim], in its places of one layer's `cached` keys or values."""
        size = new.shape[-1]
        cached.view(-1, size).index_copy_(0, self._lines, new.reshape(-1, size))

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float | None,
        window: int | None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of all runs to their own slots.

        Args:
            query: [heads, Σ n_i, head_dim].
            keys: keys of one layer, the new ones included.
            values: [slots, kv_heads, end, head_dim].
            scale: factor on query · key; None for 1/√head_dim.
            window: positions that a token may look back on, itself included; None for all.
            softcap: c, by which scores s become c·tanh(s/c); None for plain scores.
            sinks: [heads], the score of nothing at all, which takes part in the softmax; None for none.

        Returns:
            [Σ n_i, heads, head_dim].

        """
        heads, _, size = query.shape
        kv_heads = keys.shape[1]
        shared = heads // kv_heads
        parts = []
        for index, (group, columns) in enumerate(zip(self.groups, self._columns, strict=True)):
            slots = group.last - group.first
            # Heads that share a key head become further query rows: no key is repeated in memory.
            rows = query.index_select(1, columns).view(kv_heads, shared, slots, group.rows, size)
            rows = rows.permute(2, 0, 1, 3, 4).reshape(slots, kv_heads, shared * group.rows, size)
            mask = self._mask(index, shared, window, query.dtype)
            seen_keys, seen_values = (part[group.first : group.last, :, : group.end] for part in (keys, values))
            if softcap is None and sinks is None:
                seen = scaled_dot_product_attention(rows, seen_keys, seen_values, attn_mask=mask, scale=scale)
            else:
                per_row = None if sinks is None else sinks.view(1, kv_heads, shared, 1).expand(-1, -1, -1, group.rows)
                seen = attend_plainly(rows, seen_keys, seen_values, mask, scale, softcap, per_row)
            seen = seen.reshape(slots, heads, group.rows, -1).transpose(1, 2)
            parts.append(seen.reshape(slots * group.rows, heads, -1))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).index_select(0, self._places)

    def _mask(self, index: int, shared: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive mask [slots, 1, shared · rows, end] of group `index`, or None where every key may be seen."""
        if (index, window) not in self._masks:
            group = self.groups[index]
            alone = len(group.runs) == 1 and group.rows == 1 and group.last - group.first == 1
            if alone and (window is None or group.end <= window):
                self._masks[index, window] = None
            else:
                slots = group.last - group.first
                query = self.positions[self._columns[index]].view(slots, 1, 1, group.rows, 1)
                key = torch.arange(group.end, device=query.device)
                hidden = key > query
                if window is not None:
                    hidden = hidden | (key <= query - window)
                mask = torch.zeros(hidden.shape, dtype=dtype, device=query.device)
                mask = mask.masked_fill_(hidden, -torch.inf).expand(-1, -1, shared, -1, -1)
                self._masks[index, window] = mask.reshape(slots, 1, shared * group.rows, group.end)
        return self._masks[index, window]


def attend_plainly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with capped scores (Gemma 2) or sinks (gpt-oss), which PyTorch's own call does not offer.

    Args:
        query: [slots, kv_heads, rows, head_dim].
        keys: [slots, kv_heads, end, head_dim].
        values: [slots, kv_heads, end, head_dim].
        mask: additive, [slots, 1, rows, end]; None where every key may be seen.
        scale: factor on query · key; None for 1/√head_dim.
        softcap: c of c·tanh(s/c), or None.
        sinks: [1, kv_heads, heads per kv_head, rows per head], the score of the sink, or None.

    Returns:
        [slots, kv_heads, rows, head_dim].

    """
    scores = (query @ keys.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        sink = sinks.reshape(1, query.shape[1], query.shape[2], 1).expand(len(query), -1, -1, -1)
        scores = torch.cat((scores, sink.to(scores.dtype)), -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return weights[..., : keys.shape[2]] @ values


PLAIN_ARGUMENTS = frozenset({"dropout", "position_ids", "recurrent", "output_router_logits", "use_cache"})
"""Arguments of transformers' that ask for nothing: whatever else a family hands to its attention is refused by name."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packed: PackedBatch | None = None,
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
        attention_mask: None (transformers makes no mask for an attention that it does not know).
        scaling: factor on query · key.
        packed: layout of the row, handed through the model's forward.
        sliding_window: keys that a token may look back on, itself included; None for all.
        softcap: c, by which scores s become c·tanh(s/c); None for plain scores.
        s_aux: [heads], sinks of gpt-oss, or None.
        others: what asks for nothing (`PLAIN_ARGUMENTS`).

    Returns:
        [1, Σ n_i, heads, head_dim], and no weights.

    """
    if packed is None or attention_mask is not None:
        raise InputError("this model's layers were made for packed rows: load it anew for anything else")
    if asked := [name for name, value in others.items() if value is not None and name not in PLAIN_ARGUMENTS]:
        raise InputError(f"this model's attention asks for {', '.join(asked)}, which is not known here")
    keys, values = packed.cache.keys[module.layer_idx], packed.cache.values[module.layer_idx]  # type: ignore[index]
    packed.write(keys, key[0])
    packed.write(values, value[0])
    return packed.attend(query[0], keys, values, scaling, sliding_window, softcap, s_aux).unsqueeze(0), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
