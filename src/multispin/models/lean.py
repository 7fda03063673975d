"""Decoder layers of the Llama and Qwen 2 and 3 families, written for a packed row.

They compute the same as transformers' layers in fewer and larger steps: query, key and value in one product, gate and
up in another, both rotations in one, half the small operations. A decoding step reads its weights in the time of some
hundred operations, so each operation counts: 2 to 12 % of a verification, 10 % of a drafted token
(docs/measurements/verifier.md). Layers of any other kind are left unchanged.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm, silu
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from multispin.models.attention import PassBatch, Scoring
from multispin.models.quantised import RoundedLinear

LEAN_LAYERS = (LlamaDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)


class LeanLayer(nn.Module):
    """One decoder layer: attention and a gated feed-forward part, each after a norm and beside a residual.

    Args:
        layer: decoder layer of one of `LEAN_LAYERS`, with silu in it.
        together: query, key and value; then gate and up: each as one linear layer.

    """

    def __init__(self, layer: Any, together: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        attention = layer.self_attn
        self.qkv, self.gate_up = together
        self.out, self.down = attention.o_proj, layer.mlp.down_proj
        self.norms = nn.ModuleList([layer.input_layernorm, layer.post_attention_layernorm])
        self.head_norms = nn.ModuleList([attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else [])
        self.index = attention.layer_idx
        self.heads = attention.config.num_attention_heads
        self.kv_heads = attention.config.num_key_value_heads
        self.head_dim = attention.head_dim
        self.scoring = Scoring(attention.scaling, getattr(attention, "sliding_window", None))

    def forward(
        self,
        hidden: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        packed: PassBatch,
        **_: Any,
    ) -> torch.Tensor:
        """[1, Σ n_i, H] to the same, called by transformers' model in place of its own layer.

        Args:
            hidden: states of the packed row.
            position_embeddings: cosines and sines, [1, Σ n_i, head_dim] each.
            packed: layout of the row.

        """
        hidden = hidden + self.out(self._attend(_normed(hidden, self.norms[0]), position_embeddings, packed))
        gate, up = self.gate_up(_normed(hidden, self.norms[1])).chunk(2, -1)
        fed: torch.Tensor = hidden + self.down(silu(gate) * up)
        return fed

    def _attend(self, inputs: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], packed: PassBatch) -> torch.Tensor:
        """[1, Σ n_i, H] normed states to [1, Σ n_i, heads · head_dim] attended values."""
        parts = self.qkv(inputs)[0].view(-1, self.heads + 2 * self.kv_heads, self.head_dim)
        turned, values = parts.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if self.head_norms:
            both = turned.split([self.heads, self.kv_heads], dim=1)
            turned = torch.cat([_normed(part, norm) for part, norm in zip(both, self.head_norms, strict=True)], dim=1)
        cosines, sines = (table[0].unsqueeze(1) for table in turn)
        first, second = turned.chunk(2, -1)
        turned = torch.addcmul(turned * cosines, torch.cat((-second, first), -1), sines).transpose(0, 1)
        cached_keys, cached_values = packed.cache.keys[self.index], packed.cache.values[self.index]
        packed.write(cached_keys, turned[self.heads :])
        packed.write(cached_values, values.transpose(0, 1))
        seen = packed.attend(turned[: self.heads], cached_keys, cached_values, self.scoring)
        return seen.reshape(1, len(parts), -1)


def lean(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the layers of a model that can be, in place; it then runs in a `Verifier` only."""
    layers: Any = getattr(model.base_model, "layers", ())
    for index, layer in enumerate(layers):
        if type(layer) not in LEAN_LAYERS or layer.mlp.config.hidden_act != "silu":
            continue
        attention, mlp = layer.self_attn, layer.mlp
        qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
        gate_up = _joined([mlp.gate_proj, mlp.up_proj])
        if qkv is not None and gate_up is not None:
            layers[index] = LeanLayer(layer, (qkv, gate_up))
    return model


def _normed(states: torch.Tensor, norm: Any) -> torch.Tensor:
    return rms_norm(states, (states.shape[-1],), norm.weight, norm.variance_epsilon)


def _joined(parts: Sequence[Any]) -> nn.Module | None:
    """One linear layer whose output is that of `parts`, one after the other; None if they are of another kind."""
    kind = type(parts[0])
    if kind not in (nn.Linear, RoundedLinear) or any(type(part) is not kind for part in parts):
        return None
    biases = [part.bias for part in parts]
    if any((bias is None) is not (biases[0] is None) for bias in biases):
        return None
    weight, bias = torch.cat([part.weight for part in parts]), None if biases[0] is None else torch.cat(biases)
    if kind is RoundedLinear:
        return RoundedLinear(weight, torch.cat([part.scale for part in parts]), bias)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    joined.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return joined
