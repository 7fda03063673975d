"""Slot cache: keys and values of many sessions, rollback by an integer.

One pair of tensors per attention layer, `[slots, kv_heads, max_length, head_dim]`. A session is a slot and a length.
What lies beyond a session's length is simply overwritten later, so rolling back a rejected draft, resuming after a
disconnect and retrying a round move an integer and copy nothing.
"""

import torch
from transformers import PretrainedConfig

from multispin.errors import InputError

ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


class SlotCache:
    """Keys and values of all slots, allocated once.

    Args:
        config: of a decoder whose layers attend to their own past (full or sliding window).
        slots: number of sessions that fit.
        max_length: positions per slot.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self, config: PretrainedConfig, slots: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        if not set(kinds) <= ATTENTION_LAYERS:
            raise InputError(
                f"{config.model_type} has layers of kind {', '.join(sorted(set(kinds) - ATTENTION_LAYERS))}, "
                "whose state cannot be rolled back by position; choose a model with attention layers only"
            )
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, heads, max_length, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in kinds]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.slots = slots
        self.max_length = max_length

    @property
    def size_bytes(self) -> int:
        """Memory taken by all slots, fixed at start."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def clear(self, slot: int, start: int) -> None:
        """Zero the positions of `slot` from `start` on: what is not a number there would reach others' sums."""
        for tensor in (*self.keys, *self.values):
            tensor[slot, :, start:] = 0
