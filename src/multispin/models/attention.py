"""Attention of tokens to the keys and values of their slots, shared by passes of every layout."""

from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from multispin.models.slots import SlotCache


class Scoring(NamedTuple):
    """How a layer weights the keys that a token sees.

    Attributes:
        scale: factor on query · key; None for 1/√head_dim.
        window: positions that a token may look back on, itself included; None for all.
        softcap: c, by which scores s become c·tanh(s/c); None for plain scores.
        sinks: [heads], scores of attention sinks, which take part in the softmax without a value; None for none.

    """

    scale: float | None
    window: int | None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether PyTorch's own attention supports it."""
        return self.softcap is None and self.sinks is None


class PassBatch:
    """The position of each token of a pass in a slot cache, for the layers of a model in any layout.

    Attributes:
        cache: keys and values of all slots.

    """

    cache: SlotCache
    _lines: torch.Tensor
    """[kv_heads · tokens], places in the cache seen as [slots · kv_heads · max_length, head_dim]."""

    def write(self, cached: torch.Tensor, new: torch.Tensor) -> None:
        """Put new keys or values in their places.

        Args:
            cached: keys or values of one layer, [slots, kv_heads, max_length, head_dim]; changed in place.
            new: [kv_heads, tokens, head_dim].

        """
        size = new.shape[-1]
        cached.view(-1, size).index_copy_(0, self._lines, new.reshape(-1, size))

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        """Attention of all tokens to their own slots.

        Args:
            query: [heads, tokens, head_dim].
            keys: keys of one layer, the new ones included, [slots, kv_heads, max_length, head_dim].
            values: the values, of the same shape.
            scoring: how the layer weights keys.

        Returns:
            [tokens, heads, head_dim].

        """
        raise NotImplementedError


def hidden_keys(
    positions: torch.Tensor, keys: int, window: int | None, shared: int, dtype: torch.dtype
) -> torch.Tensor:
    """Additive mask of the keys that tokens may not see: those after them, and those beyond the window.

    Args:
        positions: [slots, rows], position of the token in each row.
        keys: number of keys per slot.
        window: positions of a sliding window, as in `Scoring`.
        shared: query heads per key head.
        dtype: number type of the mask.

    Returns:
        [slots, 1, shared · rows, keys], 0 or −∞.

    """
    slots, rows = positions.shape
    query = positions.view(slots, 1, 1, rows, 1)
    key = torch.arange(keys, device=positions.device)
    hidden = key > query
    if window is not None:
        hidden = hidden | (key <= query - window)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(hidden, -torch.inf)
    return mask.expand(-1, -1, shared, -1, -1).reshape(slots, 1, shared * rows, keys)


def attend_slots(
    query: torch.Tensor,
    columns: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
) -> torch.Tensor:
    """Attention of neighbouring slots in one call, each with the same number of rows.

    Args:
        query: [heads, tokens, head_dim].
        columns: [slots · rows], the token of each (slot, row) place.
        keys: [slots, kv_heads, end, head_dim].
        values: [slots, kv_heads, end, head_dim].
        mask: mask from `hidden_keys`; None if every key may be seen.
        scoring: how keys are weighted; its window is in the mask.

    Returns:
        [slots · rows, heads, head_dim].

    """
    heads, _, size = query.shape
    slots, kv_heads = keys.shape[:2]
    shared, rows = heads // kv_heads, len(columns) // slots
    # Heads that share a key head become further query rows: no key is repeated in memory.
    queries = query.index_select(1, columns).view(kv_heads, shared, slots, rows, size)
    queries = queries.permute(2, 0, 1, 3, 4).reshape(slots, kv_heads, shared * rows, size)
    if scoring.plain:
        seen = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scoring.scale)
    else:
        seen = _attend_plainly(queries, keys, values, mask, scoring, rows)
    return seen.reshape(slots, heads, rows, -1).transpose(1, 2).reshape(slots * rows, heads, -1)


def _attend_plainly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    rows: int,
) -> torch.Tensor:
    """Attention with capped scores (Gemma 2) or sinks (gpt-oss), which PyTorch's own call does not offer.

    Shapes are those of `scaled_dot_product_attention`: queries [slots, kv_heads, shared · rows, head_dim].
    """
    scale, _, softcap, sinks = scoring
    scores = (query @ keys.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        sink = sinks.view(1, query.shape[1], -1, 1).expand(-1, -1, -1, rows)
        sink = sink.reshape(1, query.shape[1], query.shape[2], 1).expand(len(query), -1, -1, -1)
        scores = torch.cat((scores, sink.to(scores.dtype)), -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return weights[..., : keys.shape[2]] @ values
