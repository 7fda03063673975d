"""Weights rounded to int8 on a CPU, which halves the bytes to read per token compared with bfloat16.

Drafters (`RoundedLinear`).
Symmetric, one scale per output row, activations in bfloat16: w ≈ scale · round(w / scale) with
scale = max|w| / (2^(bits−1) − 1). Drafting for one user is memory-bound, so a token's cost is that of its bytes.
Prompts are read many rows at a time; for these the weights are converted to bfloat16, or to float32 if the processor
has no products of bfloat16 (then a prompt of 64 tokens is read six times as fast). Fewer than 8 bits are also stored in
8: this makes a worse drafter, not a smaller one.

Targets (`WholeLinear`). Batches have many rows, so the sums use whole numbers, too: activations of 14 bits, a scale per
row, in two parts of 7 bits that share one reading of the weights. Such sums are exact in any order, so a linear
layer's result for one row cannot depend on the other rows of the batch, as it does in floating point. The rest stays
float32. Parts have 7 bits, not 8, because processors without VNNI add products in pairs of 16 bits: 2 · 127 · 127 fits,
2 · 255 · 127 would be cut off silently.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from multispin.errors import InputError
from multispin.models.prepacked import PrepackedLinear, multiplies_bfloat16

_PART = 128.0  # the coarse part of an activation counts in these
_MIDDLE = 64  # is stored for a part of zero: parts −64 … 63 as 0 … 127
_LARGEST = 63.0 * _PART + 63.0  # in both parts at once
_LEAST = 1e-12  # a row of zeros has a scale, too
_MANY_ROWS_DTYPE = torch.bfloat16 if multiplies_bfloat16() else torch.float32
FEW_ROWS = 4 if multiplies_bfloat16() else 16
"""Most rows that are multiplied by the int8 weights directly; for more, PyTorch's product is slow."""


class RoundedLinear(nn.Module):
    """A linear layer whose weight is int8 with one scale per output row.

    Args:
        weight: [out, in], int8.
        scale: [out], bfloat16.
        bias: [out], bfloat16, or None.

    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    @classmethod
    def of(cls, linear: nn.Linear, bits: int) -> "RoundedLinear":
        """Round the weights of `linear`."""
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(_LEAST) / (2 ** (bits - 1) - 1)
        bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)
        return cls((weight / scale[:, None]).round().to(torch.int8), scale.to(torch.bfloat16), bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out], both bfloat16."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        if len(rows) > FEW_ROWS:
            weight = self.weight * self.scale.to(_MANY_ROWS_DTYPE)[:, None]
            bias = None if self.bias is None else self.bias.to(_MANY_ROWS_DTYPE)
            return functional.linear(inputs.to(_MANY_ROWS_DTYPE), weight, bias).to(inputs.dtype)
        out = torch._weight_int8pack_mm(rows, self.weight, self.scale).reshape(*inputs.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def round_weights(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Round every linear layer of a model to `bits` (3 … 8), its head included; the rest is bfloat16."""
    if not 3 <= bits <= 8:
        raise InputError(f"bits = {bits} is outside 3 … 8")
    if any(isinstance(module, PrepackedLinear) for module in model.modules()):
        raise InputError("this model's weights are already in a verifier's order: load the model again to round it")
    model = model.to(torch.bfloat16)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                rounded = RoundedLinear.of(child, bits)
                setattr(parent, name, rounded if model.device.type == "cpu" else _plain(rounded))
    return model


def _plain(rounded: RoundedLinear) -> nn.Linear:
    """The same weights in bfloat16, for a GPU, where reading fewer bytes gains nothing."""
    linear = nn.Linear(rounded.weight.shape[1], rounded.weight.shape[0], rounded.bias is not None, device="meta")
    linear.weight = nn.Parameter(rounded.weight * rounded.scale[:, None], requires_grad=False)
    linear.bias = None if rounded.bias is None else nn.Parameter(rounded.bias, requires_grad=False)  # type: ignore[assignment]
    return linear


class WholeLinear(nn.Module):
    """A linear layer of whole numbers: int8 weights with a scale per output row, activations of 14 bits.

    y = s_x · (128 · W₈ h + W₈ l) · s_w + b with 128 h + l = round(x / s_x), s_x = max|x| / 8127, per row, and both
    parts within −64 … 63.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self._scale = weight.abs().amax(dim=1).clamp_min(_LEAST) / 127.0
        whole = (weight / self._scale[:, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self._zeros = torch.zeros(len(whole), dtype=torch.int32)
        self._bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out], both float32."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        scale = rows.abs().amax(-1, keepdim=True).clamp_min_(_LEAST).div_(_LARGEST)
        fine = (rows / scale).round_()
        coarse = ((fine + _MIDDLE) / _PART).floor_()
        parts = torch.cat((coarse, fine.sub_(coarse, alpha=_PART))).add_(_MIDDLE).to(torch.uint8)
        sums = torch.ops.onednn.qlinear_pointwise(
            *(parts, 1.0, _MIDDLE, self._weight, self._scale, self._zeros),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        out: torch.Tensor = sums[len(rows) :].add_(sums[: len(rows)], alpha=_PART).mul_(scale)
        out = out.reshape(*inputs.shape[:-1], -1)
        return out if self._bias is None else out.add_(self._bias)


def _sums_are_whole() -> bool:
    """Whether this PyTorch adds int8 products exactly on this processor, even the largest ones."""
    if not all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise")):
        return False
    linear = nn.Linear(256, 1, bias=False)
    with torch.no_grad():
        linear.weight.fill_(-127.0)
        found = WholeLinear(linear)(torch.full((1, 256), _LARGEST))
    return float(found) == -127.0 * _LARGEST * 256


def whole_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Turn every linear layer of a float32 model into a `WholeLinear`, its head included.

    Raises:
        InputError: the model is not on a CPU, or this PyTorch has no such products.

    """
    if model.device.type != "cpu":
        raise InputError("int8 is computed on the CPU only: choose bfloat16 for a GPU")
    if not _sums_are_whole():
        raise InputError("this PyTorch has no exact int8 sums for this processor: choose float32 or bfloat16")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, WholeLinear(child))
    return model
