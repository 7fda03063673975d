"""Recurrent layers (Qwen3.5) in a pass of static shape: all slots in one padded batch, replay included.

Each slot takes part with a window of its inputs: those since its newest state that were accepted, and the new ones. All
windows are scanned at once from the slots' newest states. The state that is kept is that of the position where the
slot's new tokens began, or where they end if no token of them can be rejected (a prompt). So the next pass replays only
what this one's verdict accepted, and no state is ever taken back. `recurrent` does the same session by session.

On a GPU one kernel does all of a layer's windows (`gated_delta`), if Triton is installed; PyTorch for CUDA brings it on
Linux. What is here runs elsewhere, and says what the kernel is to give.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.activations import ACT2FN

from multispin.models.buckets import Shape
from multispin.models.layout import WindowRun

_CHUNK = 64
"""Inputs that are solved for at once."""


class StaticRecurrent:
    """A row of static shape as recurrent layers see it.

    Args:
        slots: `RecurrentSlots`, with a spare slot.
        shape: shape of the pass.
        parts: integers of the layout by name, see `sizes`.

    """

    def __init__(self, slots: Any, shape: Shape, parts: dict[str, torch.Tensor]) -> None:
        self.slots, self.shape, self._parts = slots, shape, parts
        self._kernel = kernel(parts["windows"].device)

    @staticmethod
    def sizes(shape: Shape) -> dict[str, int]:
        """Integers per name, in the order of `layout`."""
        tokens, slots = shape.tokens, shape.slots
        return {
            "input_lines": tokens,  # of each token, in a layer's inputs seen as [slots · (context + capacity), …]
            "gate_lines": tokens,  # of each token, in its gates seen as [slots · capacity, …]
            "outputs": tokens,  # of each token, its place in the windows' outputs laid end to end
            "windows": slots,  # line of each window's first context input
            "window_gates": slots,  # line of each window's first gate
            "counts": slots,  # inputs of each window
            "kept": slots,  # inputs of each window that the kept state has taken
        }

    def layout(self, runs: Sequence[WindowRun]) -> list[int]:
        """The integers of a batch."""
        context, capacity = self.slots.context, self.slots.capacity
        tokens, slots = self.shape.tokens, self.shape.slots
        inputs: list[int] = []
        gates: list[int] = []
        outputs: list[int] = []
        windows = [slot * (context + capacity) for slot in range(slots)]
        window_gates = [slot * capacity for slot in range(slots)]
        counts, kept = [0] * slots, [0] * slots
        for run in runs:
            new = run.count - run.replayed
            first = run.slot * (context + capacity) + context + run.past + run.replayed
            inputs.extend(range(first, first + new))
            first = run.slot * capacity + run.past + run.replayed
            gates.extend(range(first, first + new))
            first = run.slot * self.shape.window + run.replayed
            outputs.extend(range(first, first + new))
            windows[run.slot] += run.past
            window_gates[run.slot] += run.past
            counts[run.slot], kept[run.slot] = run.count, run.kept
        rest, spare = tokens - len(inputs), len(self.slots.newest) - 1
        inputs += [spare * (context + capacity) + context] * rest
        gates += [spare * capacity] * rest
        return [*inputs, *gates, *outputs, *[0] * rest, *windows, *window_gates, *counts, *kept]

    def begin(self) -> None:
        """Compute on the device what all layers need of the layout."""
        parts, window = self._parts, self.shape.window
        context, capacity = self.slots.context, self.slots.capacity
        device = parts["windows"].device
        slot, step = torch.arange(self.shape.slots, device=device)[:, None], torch.arange(window, device=device)
        last = (slot + 1) * (context + capacity) - 1  # beyond a slot's own lines nothing counts
        reach = torch.arange(context + window, device=device)
        self._inputs = (parts["windows"][:, None] + reach).minimum(last).reshape(-1)
        self._gates = (parts["window_gates"][:, None] + step).minimum((slot + 1) * capacity - 1).reshape(-1)
        self._counted = step < parts["counts"][:, None]  # [slots, window]

    def advance(
        self, module: Any, index: int, mixed: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        """Take a row's inputs in one layer; its slots then stand where their new tokens began.

        Args:
            module: the layer, with the convolution's weights.
            index: index of the layer.
            mixed: [tokens, queries + keys + values], before the convolution.
            decay: g, [tokens, value heads].
            beta: [tokens, value heads].

        Returns:
            [tokens, value heads, value head size].

        """
        layer, slots, window = self.slots.layers[index], self.shape.slots, self.shape.window
        all_inputs, all_decay, all_beta = (part.flatten(0, 1) for part in (layer.mixed, layer.decay, layer.beta))
        all_inputs.index_copy_(0, self._parts["input_lines"], mixed)
        all_decay.index_copy_(0, self._parts["gate_lines"], decay)
        all_beta.index_copy_(0, self._parts["gate_lines"], beta.to(all_beta.dtype))
        if self._kernel is not None and module.activation == "silu":
            out = self._kernel(
                *(
                    all_inputs,
                    all_decay,
                    all_beta,
                    module.conv1d.weight[:, 0],
                    module.conv1d.bias,
                    layer.newest[:slots],
                ),
                tuple(self._parts[name] for name in ("windows", "window_gates", "counts", "kept")),
                window,
                module.key_dim // module.head_k_dim,
            )
        else:
            out = self._scanned(module, layer, all_inputs, all_decay, all_beta)
        return out.index_select(0, self._parts["outputs"])

    def _scanned(
        self, module: Any, layer: Any, all_inputs: torch.Tensor, all_decay: torch.Tensor, all_beta: torch.Tensor
    ) -> torch.Tensor:
        """The kernel's result, computed in steps of PyTorch: [slots · window, value heads, value head size]."""
        slots, window, heads = self.shape.slots, self.shape.window, all_decay.shape[-1]
        inputs = all_inputs.index_select(0, self._inputs).view(slots, layer.kernel - 1 + window, -1)
        counted = self._counted[..., None]
        window_decay = all_decay.index_select(0, self._gates).view(slots, window, heads) * counted
        window_beta = all_beta.index_select(0, self._gates).view(slots, window, heads).float() * counted
        taps = module.conv1d.weight[:, 0].float()
        convolved = sum(inputs[:, tap : tap + window].float() * taps[:, tap] for tap in range(layer.kernel))
        assert isinstance(convolved, torch.Tensor)
        if module.conv1d.bias is not None:
            convolved = convolved + module.conv1d.bias.float()
        convolved = ACT2FN[module.activation](convolved.to(inputs.dtype))
        query, key, value = convolved.split((module.key_dim, module.key_dim, module.value_dim), dim=-1)
        out = scan_windows(
            query.view(slots, window, -1, module.head_k_dim),
            key.view(slots, window, -1, module.head_k_dim),
            value.view(slots, window, -1, module.head_v_dim),
            window_decay,
            window_beta,
            layer.newest[:slots],
            self._parts["kept"],
        )
        return out.reshape(slots * window, heads, -1)


def kernel(device: torch.device) -> Callable[..., torch.Tensor] | None:
    """`gated_delta.scan_slots` if it runs on this device, else None."""
    if device.type != "cuda":
        return None
    try:
        from multispin.models.gated_delta import scan_slots
    except ImportError:
        return None
    return scan_slots


def scan_windows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    kept: torch.Tensor,
) -> torch.Tensor:
    """Gated delta rule over a window per slot: S ← e^g S + β k (v − kᵀ e^g S), out = qᵀS, q and k normalised.

    All inputs of a chunk are solved for at once (Yang et al., "Gated Delta Networks", 2412.06464), as in transformers'
    `torch_chunk_gated_delta_rule`; but the state is taken out within the window, at a place of each slot's own.

    Args:
        query: [slots, window, key heads, key size].
        key: the keys, of the same shape.
        value: [slots, window, value heads, value size].
        decay: g ≤ 0, [slots, window, value heads], float32; 0 where there is no input.
        beta: [slots, window, value heads], float32; 0 where there is no input.
        state: [slots, value heads, key size, value size], float32, contiguous: before the window, and then after the
            first `kept` inputs of it, in place.
        kept: [slots], number of inputs after which the state is kept.

    Returns:
        [slots, window, value heads, value size], in the number type of `value`.

    """
    _, window, heads, size = value.shape
    shared = heads // key.shape[2]
    query, key = (_normalised(part.float().transpose(1, 2)) for part in (query, key))
    query = query * query.shape[-1] ** -0.5
    query, key = (part.repeat_interleave(shared, dim=1) if shared > 1 else part for part in (query, key))
    values, gates = value.float().transpose(1, 2), beta.transpose(1, 2)[..., None]
    chunk = min(window, _CHUNK)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=value.device).triu(1)
    step = torch.arange(chunk, device=value.device)
    outputs, before = [], state if chunk == window else state.clone()
    for first in range(0, window, chunk):
        part = slice(first, first + chunk)
        q, k, v, gate = query[:, :, part], key[:, :, part], values[:, :, part], gates[:, :, part]
        sums = decay[:, part].transpose(1, 2).cumsum(-1)  # [slots, heads, chunk]
        between = (sums[..., :, None] - sums[..., None, :]).masked_fill(later, -torch.inf).exp()
        decayed, turned = sums.exp()[..., None], k.transpose(-1, -2)
        products = torch.cat((k * gate, q), 2) @ turned * torch.cat((between, between), 2)
        solved = torch.linalg.solve_triangular(
            products[:, :, :chunk],
            torch.cat((v * gate, k * (gate * decayed)), -1),
            upper=False,
            unitriangular=True,
        )
        read = torch.cat((solved[..., size:], q * decayed), 2) @ before
        change = solved[..., :size] - read[:, :, :chunk]
        outputs.append(read[:, :, chunk:] + products[:, :, chunk:] @ change)
        # The state after some inputs of this chunk: their changes, each decayed up to there.
        taken = (kept - first).clamp(0, chunk)[:, None]  # [slots, 1]
        reached = sums.gather(-1, (taken - 1).clamp(min=0)[:, None].expand(-1, heads, -1))
        reached = reached * (taken > 0)[:, None]
        if chunk < window:
            weight = (sums[..., -1:] - sums).exp()[..., None]
            before = before * sums[..., -1, None, None].exp() + (k * weight).transpose(-1, -2) @ change
        weight = (reached - sums).masked_fill((step >= taken)[:, None], -torch.inf).exp()[..., None]
        state.mul_(reached[..., None].exp())
        state.flatten(0, 1).baddbmm_((k * weight).transpose(-1, -2).flatten(0, 1), change.flatten(0, 1))
    return torch.cat(outputs, 2).transpose(1, 2).to(value.dtype)


def _normalised(vectors: torch.Tensor) -> torch.Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + 1e-6)
