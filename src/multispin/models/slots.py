"""Slot cache and packed attention: many sessions in one forward pass, rollback by an integer.

One pair of tensors per layer, `[slots, kv_heads, max_length, head_dim]`. A session is a slot and a length. A packed
batch is one row of all sessions' new tokens, `[1, Σ n_i]`: the linear layers see no padding at all, and attention
writes each new key and value to (slot, absolute position) and lets every token see its own slot's positions up to
its own. What lies beyond a session's length is simply overwritten later, so rolling back a rejected draft, resuming
after a disconnect and retrying a round move an integer and copy nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

from multispin.errors import InputError

PACKED_ATTENTION = "multispin_packed"
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}


class SlotCache:
    """Keys and values of all slots, allocated once.

    Args:
        config: of a decoder whose layers all attend to their own past (full or sliding window).
        slots: number of sessions that fit.
        max_length: positions per slot.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self, config: PretrainedConfig, slots: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if not kinds <= _SUPPORTED_LAYERS:
            raise InputError(
                f"{config.model_type} has layers of kind {', '.join(sorted(kinds - _SUPPORTED_LAYERS))}, "
                "whose state cannot be rolled back by position; choose a model with attention layers only"
            )
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, heads, max_length, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.slots = slots
        self.max_length = max_length

    @property
    def size_bytes(self) -> int:
        """Memory taken by all slots, fixed at start."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))


@dataclass(frozen=True)
class _Segment:
    """One session's run of tokens in the packed row: columns first … last−1, in `slot`, seen keys 0 … end−1."""

    slot: int
    first: int
    last: int
    end: int


class PackedBatch:
    """Where each token of a packed row belongs; made once per forward pass, shared by all layers."""

    def __init__(self, cache: SlotCache, runs: Sequence[tuple[int, int, int]]) -> None:
        """Lay out `runs`, each (slot, absolute position of the first token, number of tokens)."""
        device = cache.keys[0].device
        self.cache = cache
        self.segments: list[_Segment] = []
        slots: list[int] = []
        positions: list[int] = []
        column = 0
        for slot, start, count in runs:
            self.segments.append(_Segment(slot, column, column + count, start + count))
            slots.extend([slot] * count)
            positions.extend(range(start, start + count))
            column += count
        self.slots = torch.tensor(slots, device=device)
        self.positions = torch.tensor(positions, device=device)
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def mask(self, index: int, groups: int, window: int | None) -> torch.Tensor | None:
        """Boolean mask [groups · n, end] of segment `index`, or None where every key may be seen."""
        if (index, window) not in self._masks:
            segment = self.segments[index]
            query = self.positions[segment.first : segment.last, None]
            key = torch.arange(segment.end, device=query.device)[None, :]
            mask = key <= query
            if window is not None:
                mask &= key > query - window
            free = segment.last - segment.first == 1 and (window is None or segment.end <= window)
            self._masks[index, window] = None if free else mask.repeat(groups, 1)
        return self._masks[index, window]


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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed row, called by transformers in every layer.

    Args:
        module: the attention module; its `layer_idx` names the cache layer.
        query: [1, heads, Σ n_i, head_dim], positions already encoded.
        key: [1, kv_heads, Σ n_i, head_dim].
        value: likewise.
        attention_mask: None (transformers makes no mask for an attention that it does not know).
        scaling: factor on query · key.
        packed: layout of the row, handed through the model's forward.
        sliding_window: keys that a token may look back on, itself included; None for all.
        softcap: refused.

    Returns:
        [1, Σ n_i, heads, head_dim], and no weights.

    """
    if packed is None or softcap is not None or attention_mask is not None:
        raise InputError("this model needs an attention (soft-capped or masked) that the slot cache does not offer")
    keys, values = packed.cache.keys[module.layer_idx], packed.cache.values[module.layer_idx]  # type: ignore[index]
    keys[packed.slots, :, packed.positions] = key[0].transpose(0, 1)
    values[packed.slots, :, packed.positions] = value[0].transpose(0, 1)
    heads, kv_heads = query.shape[1], key.shape[1]
    groups = heads // kv_heads
    out = query.new_empty(query.shape[2], heads, value.shape[-1])
    for index, segment in enumerate(packed.segments):
        count = segment.last - segment.first
        # Heads that share a key head become further query rows: no key is repeated in memory.
        rows = query[:, :, segment.first : segment.last].reshape(1, kv_heads, groups * count, -1)
        seen = scaled_dot_product_attention(
            rows,
            keys[segment.slot : segment.slot + 1, :, : segment.end],
            values[segment.slot : segment.slot + 1, :, : segment.end],
            attn_mask=packed.mask(index, groups, sliding_window),
            scale=scaling,
        )
        out[segment.first : segment.last] = seen.reshape(heads, count, -1).transpose(0, 1)
    return out.unsqueeze(0), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
