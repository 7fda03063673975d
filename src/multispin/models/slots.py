"""Slot cache: keys and values of many sessions, rollback by an integer.

One pair of tensors per attention layer, `[slots, kv_heads, max_length, head_dim]`. A session is a slot and a length.
Everything beyond a session's length is overwritten later. So rolling back a rejected draft, resuming after a disconnect
and retrying a round change one integer and copy nothing.
"""

import math
from collections.abc import Iterator

import torch
from transformers import PretrainedConfig

from multispin.errors import InputError
from multispin.models.recurrent import RECURRENT_LAYER, RECURRENT_MODELS, RecurrentSlots

ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


class SlotCache:
    """Keys and values of all slots, allocated once.

    Args:
        config: configuration of a decoder whose layers attend to their own past (full or sliding window) or, as in
            Qwen3.5, keep a state instead.
        slots: number of sessions that fit.
        max_length: number of positions per slot.
        dtype: number type of keys and values.
        device: torch device of the tensors.
        spare: additional slots for padding, which no session gets; default 0.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        slots: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        spare: int = 0,
    ) -> None:
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        known = ATTENTION_LAYERS | ({RECURRENT_LAYER} if config.model_type in RECURRENT_MODELS else set())
        if not set(kinds) <= known:
            raise InputError(
                f"{config.model_type} has layers of kind {', '.join(sorted(set(kinds) - known))}, "
                "whose state cannot be rolled back here; choose a model with attention layers only, or Qwen3.5"
            )
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots + spare, heads, max_length, head_dim)
        attending = [index for index, kind in enumerate(kinds) if kind in ATTENTION_LAYERS]
        self.keys = {index: torch.zeros(shape, dtype=dtype, device=device) for index in attending}
        self.values = {index: torch.zeros_like(keys) for index, keys in self.keys.items()}
        self.recurrent = RecurrentSlots(config, slots + spare, dtype, device) if len(attending) < len(kinds) else None
        self.shape = shape
        self.device = device
        self.slots = slots
        self.max_length = max_length

    @property
    def size_bytes(self) -> int:
        """Memory taken by all slots, fixed at start."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def is_finite(self, slot: int, start: int, end: int) -> bool:
        """Whether the last attention layer's cache is finite at these positions."""
        if not self.keys:
            return True
        last = max(self.keys)
        kept = self.keys[last][slot, :, start:end], self.values[last][slot, :, start:end]
        return math.isfinite(sum(part.sum(dtype=torch.float32) for part in kept))  # as is no sum of anything else

    def clear(self, slot: int, start: int) -> None:
        """Zero the positions of `slot` from `start` on, since a NaN there would reach others' sums."""
        for tensor in (*self.keys.values(), *self.values.values()):
            tensor[slot, :, start:] = 0
        if self.recurrent is not None:
            self.recurrent.newest[slot] = None

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from self.keys.values()
        yield from self.values.values()
        if self.recurrent is not None:
            for layer in self.recurrent.layers.values():
                yield from layer.tensors
