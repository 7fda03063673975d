"""Linear layers in oneDNN's memory order: the same weights, up to twice as fast for a few rows on a CPU.

PyTorch passes float32 products to a library that is slow for few rows on many CPUs, and lets oneDNN reorder a bfloat16
weight in every call. Reordered once, a weight is read sequentially. This needs a private copy of every linear weight
(the mapped file is no longer read), and the model can no longer be saved or trained. benchmarks/bench_verifier.py
measures the gain.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

_ROWS = 8  # row count for which the order is chosen; any other works, too


class PrepackedLinear(nn.Module):
    """A linear layer whose weight is kept in oneDNN's own order."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out]."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return out


def multiplies_bfloat16() -> bool:
    """Whether this processor has products of bfloat16 (AVX-512 or AMX), which oneDNN uses."""
    known = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def quick_dtype(device: torch.device | str) -> torch.dtype:
    """Number type in which a device multiplies many rows fastest.

    That is bfloat16, but float32 on a CPU without products of bfloat16: there, oneDNN emulates them, and 128 rows take
    4 to 5 times as long as in float32.
    """
    narrow = torch.device(device).type != "cpu" or multiplies_bfloat16()
    return torch.bfloat16 if narrow else torch.float32


def can_prepack(model: PreTrainedModel) -> bool:
    """Whether this PyTorch and this CPU have the operations for the model's numbers."""
    if model.device.type != "cpu":
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return bool(model.dtype == torch.float32) or (model.dtype == torch.bfloat16 and multiplies_bfloat16())


@torch.inference_mode()
def prepack(model: PreTrainedModel) -> PreTrainedModel:
    """Reorder every plain linear layer of `model`, its head included, in place, where that can be done."""
    if can_prepack(model):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and child.weight.dtype == model.dtype:
                    setattr(parent, name, PrepackedLinear(child))
    return model
