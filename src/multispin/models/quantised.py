"""Weights rounded to whole numbers on a CPU: half the bytes of bfloat16 for every drafted token.

Symmetric, one scale per output row, activations in bfloat16: w ≈ scale · round(w / scale) with
scale = max|w| / (2^(bits−1) − 1). Drafting for one user is reading weights, so a token costs what its bytes cost;
prompts are read many rows at a time, for which the weights are turned back into bfloat16. Fewer than 8 bits are stored
in 8 all the same: that makes a drafter that guesses worse, not one that reads less.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from multispin.errors import InputError
from multispin.models.prepacked import PrepackedLinear

FEW_ROWS = 4
"""Up to so many rows are multiplied by the whole numbers themselves; for more, PyTorch's product is slow."""


class RoundedLinear(nn.Module):
    """A linear layer whose weight is int8 with one scale per output row."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8), persistent=False)
        self.register_buffer("scale", scale.to(torch.bfloat16), persistent=False)
        self._bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out] in bfloat16."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        if len(rows) > FEW_ROWS:
            return functional.linear(inputs, self.weight * self.scale[:, None], self._bias)
        out = torch._weight_int8pack_mm(rows, self.weight, self.scale).reshape(*inputs.shape[:-1], -1)
        return out if self._bias is None else out + self._bias


def round_weights(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Round every linear layer of a CPU model to `bits` (3 … 8), its head included; the rest is bfloat16."""
    if not 3 <= bits <= 8:
        raise InputError(f"bits = {bits} is outside 3 … 8")
    if any(isinstance(module, PrepackedLinear) for module in model.modules()):
        raise InputError("this model's weights are in a verifier's order already: load it anew to round it")
    model = model.to(torch.bfloat16)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, RoundedLinear(child, bits))
    return model
