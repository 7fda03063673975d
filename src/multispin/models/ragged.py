"""Attention of ragged rows: sequences with different numbers of tokens and keys, in one call.

On CUDA this is FlashAttention, in bfloat16 and float16. Elsewhere it is a loop, which defines the result.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention


def ragged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bounds: torch.Tensor,
    first_keys: torch.Tensor,
    key_counts: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention of ragged rows to keys in the slot cache, by FlashAttention on CUDA.

    Args:
        query: [tokens, heads, head_dim]; the last row of a sequence sees all of its keys.
        keys: [slots, kv_heads, max_length, head_dim].
        values: the values, of the same shape.
        bounds: [n + 1] int32, where each sequence's rows begin and the last one's end.
        first_keys: [n + 1] int32, line of each sequence's first key, with the cache seen as [slots · kv_heads ·
            max_length, head_dim].
        key_counts: [n] int32, keys of each sequence.
        scale: factor on query · key; None for 1/√head_dim.
        window: positions that a token may look back on, itself included; None for all.

    Returns:
        [tokens, heads, head_dim].

    """
    if query.device.type != "cuda":
        return _ragged_reference(query, keys, values, bounds, first_keys, key_counts, scale, window)
    slots, kv_heads, max_length, size = keys.shape
    # Lines of one head lie behind each other, heads max_length lines apart: as FlashAttention's ragged keys may.
    lines = (slots * kv_heads - kv_heads + 1) * max_length
    flat = [part.as_strided((lines, kv_heads, size), (size, max_length * size, 1)) for part in (keys, values)]
    seen: torch.Tensor = torch.ops.aten._flash_attention_forward(
        *(query, *flat, bounds, first_keys, len(query), max_length, 0.0, True, False),
        scale=scale,
        window_size_left=-1 if window is None else window - 1,
        window_size_right=0,
        seqused_k=key_counts,
    )[0]
    return seen


def _ragged_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bounds: torch.Tensor,
    first_keys: torch.Tensor,
    key_counts: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Compute `ragged_attention` sequence by sequence, without a kernel."""
    _, kv_heads, max_length, _ = keys.shape
    seen = torch.zeros_like(query)
    edges, firsts = bounds.tolist(), first_keys.tolist()
    for index, count in enumerate(key_counts.tolist()):
        rows = slice(edges[index], edges[index + 1])
        slot, end = firsts[index] // (kv_heads * max_length), edges[index + 1] - edges[index]
        if not end:
            continue
        position = torch.arange(count - end, count)[:, None]
        key = torch.arange(count)
        allowed = (key <= position) & (key > position - (window or max_length))
        part = scaled_dot_product_attention(
            query[rows].transpose(0, 1),
            keys[slot, :, :count],
            values[slot, :, :count],
            attn_mask=allowed,
            scale=scale,
            enable_gqa=True,
        )
        seen[rows] = part.transpose(0, 1)
    return seen
