"""Recurrent layers (gated delta nets, Qwen3.5) in the slot cache: rolled back by replaying a few inputs.

Such a layer has no keys, but one state that every token changes, and no token's change can be undone. So each slot has
a checkpoint some positions before its newest token, and the layer's inputs since then. A round that starts where the
last one ended goes on from the newest state. A round that starts earlier (a rejected draft, a retry) first replays the
inputs from the checkpoint up to its start. This is exact and does not need the rest of the model. It works for the last
`HISTORY` positions before the furthest one reached, and for the very start.

The recurrence is S ← e^g S + β k (v − kᵀ e^g S), out = qᵀS (Yang et al., "Gated Delta Networks", 2412.06464), computed
by transformers' own functions; this file does the bookkeeping.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import softplus
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.qwen3_5 import modeling_qwen3_5 as reference

from multispin.models.layout import Run, WindowRun

RECURRENT_LAYER = "linear_attention"
RECURRENT_MODELS = {"qwen3_5_text"}
HISTORY = 64
"""Positions that a slot can always go back from the furthest one reached; drafts are shorter."""
_CAPACITY = 4 * HISTORY  # inputs kept per slot; the checkpoint moves when they do not fit
_KERNELS = (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "torch_chunk_gated_delta_rule",
    "torch_recurrent_gated_delta_rule",
)
"""Functions that transformers replaces by those of flash-linear-attention and causal-conv1d if they are installed."""

if not torch.cuda.is_available():  # it asks for no card, but those kernels compute on nothing else
    for _name in _KERNELS:
        setattr(reference, _name, inspect.unwrap(getattr(reference, _name)))


class RecurrentLayer:
    """States and recent inputs of one layer, all slots, allocated once.

    Args:
        config: the model's configuration, with the linear_… sizes.
        slots: number of sessions.
        dtype: number type of the inputs; states are float32.
        device: device that holds them.
    """

    def __init__(self, config: PretrainedConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim
        self.kernel = int(config.linear_conv_kernel_dim)
        state = (slots, config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
        self.checkpoint = torch.zeros(state, device=device)
        self.newest = torch.zeros_like(self.checkpoint)
        # Before the inputs since the checkpoint stand the kernel−1 that the convolution looks back on.
        context = self.kernel - 1
        self.mixed = torch.zeros(slots, context + _CAPACITY, 2 * keys + values, dtype=dtype, device=device)
        self.decay = torch.zeros(slots, _CAPACITY, config.linear_num_value_heads, device=device)
        self.beta = torch.zeros(slots, _CAPACITY, config.linear_num_value_heads, dtype=dtype, device=device)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors of the layer."""
        return self.checkpoint, self.newest, self.mixed, self.decay, self.beta

    def reset(self, slot: int) -> None:
        """Forget a slot's text."""
        for tensor in self.tensors:
            tensor[slot] = 0


class RecurrentSlots:
    """The recurrent layers of all slots, and how far back each slot can go.

    Attributes:
        layers: the recurrent layers, by layer index.
        checkpoint: per slot, the position of its checkpoint.
        newest: per slot, the position that its newest state belongs to; None while a forward pass is under way.

    """

    def __init__(self, config: PretrainedConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layers = {
            index: RecurrentLayer(config, slots, dtype, device)
            for index, kind in enumerate(config.layer_types)
            if kind == RECURRENT_LAYER
        }
        self.checkpoint = [0] * slots
        self.newest: list[int | None] = [0] * slots
        self.context, self.capacity = int(config.linear_conv_kernel_dim) - 1, _CAPACITY

    def check(self, slot: int, start: int) -> None:
        """ValueError if `slot` cannot go on from position `start`; 0 is always possible."""
        if start and (self.newest[slot] is None or start < self.checkpoint[slot]):
            raise ValueError(
                f"slot {slot} keeps its recurrent states from position {self.checkpoint[slot]} on, cannot go back to "
                f"{start}: close it and feed the text again"
            )

    def begin(self, runs: Sequence[Run]) -> list[int | None]:
        """Prepare the slots of a batch; returns per run where its newest state is, as `advance` needs it."""
        before: list[int | None] = []
        for run in runs:
            if run.start == 0:
                for layer in self.layers.values():
                    layer.reset(run.slot)
                self.checkpoint[run.slot] = self.newest[run.slot] = 0
            before.append(self.newest[run.slot])
            self.newest[run.slot] = None  # a failed pass leaves invalid states
        return before

    def end(self, runs: Sequence[Run]) -> None:
        """Note that all layers have taken the batch."""
        for run in runs:
            self.checkpoint[run.slot] = checkpoint_after(self.checkpoint[run.slot], run.end)
            self.newest[run.slot] = run.end

    def window(self, slot: int, start: int, count: int, open_count: int) -> WindowRun:
        """A slot's inputs to a scan of static shape, after `prepare`; the last `open_count` may be rejected."""
        newest = self.newest[slot]
        base = min(start, start if newest is None else newest)
        replayed = start - base
        past = 0 if start == 0 else base - self.checkpoint[slot]
        return WindowRun(slot, past, replayed, replayed + count, replayed + count - open_count)

    def prepare(self, modules: Mapping[int, Any], runs: Sequence[Run]) -> None:
        """Make room for a pass of static shape, and go back where a slot begins before its newest state.

        Args:
            modules: the recurrent layers of the model by layer index.
            runs: the runs of the pass.

        """
        for run in runs:
            slot, checkpoint, newest = run.slot, self.checkpoint[run.slot], self.newest[run.slot]
            if run.start == 0:
                continue
            assert newest is not None
            base = min(run.start, newest)
            moved = min(checkpoint_after(checkpoint, run.end), base) - checkpoint
            if newest <= run.start and not moved:
                continue
            self.newest[slot] = None
            for index, layer in self.layers.items():
                _rewind(modules[index], layer, slot, moved, None if newest <= run.start else run.start - checkpoint)
            self.checkpoint[slot], self.newest[slot] = checkpoint + moved, base

    def end_static(self, windows: Sequence[WindowRun]) -> None:
        """Note that all layers have taken a pass of static shape."""
        for run in windows:
            self.newest[run.slot] = self.checkpoint[run.slot] + run.past + run.kept


class RecurrentPass:
    """A packed row as the recurrent layers see it; made once per forward pass, shared by all of them.

    Args:
        slots: the states of all slots; those of the runs are under way from `begin` until `end`.
        runs: tokens to read into each slot, at most one run per slot, in the order of the row.

    """

    def __init__(self, slots: RecurrentSlots, runs: Sequence[Run]) -> None:
        self.slots = slots
        self.runs = runs
        self.newest: list[int | None] = []

    def begin(self) -> None:
        """Prepare the slots, before the first layer takes the row."""
        self.newest = self.slots.begin(self.runs)

    def end(self) -> None:
        """Note that all layers have taken the row."""
        self.slots.end(self.runs)

    def advance(
        self, module: Any, index: int, mixed: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        """Take a row's inputs in one layer, session by session; arguments and result as `StaticRecurrent.advance`."""
        layer, parts = self.slots.layers[index], []
        for run, newest in zip(self.runs, self.newest, strict=True):
            columns = slice(run.column, run.column + run.count)
            checkpoint = self.slots.checkpoint[run.slot]
            parts.append(
                _advance(module, layer, run, checkpoint, newest, mixed[columns], decay[columns], beta[columns])
            )
        return torch.cat(parts)


def checkpoint_after(checkpoint: int, end: int) -> int:
    """Position of the checkpoint after the inputs up to `end` were taken."""
    return checkpoint if end - checkpoint <= _CAPACITY else end - HISTORY


def recurrent_layers(model: PreTrainedModel) -> dict[int, Any]:
    """The recurrent layers of a model by layer index."""
    found = (module for module in model.modules() if isinstance(module, reference.Qwen3_5GatedDeltaNet))
    return {module.layer_idx: module for module in found}


def make_packable(model: PreTrainedModel) -> None:
    """Let the recurrent layers of `model` take packed rows; without one they work as before."""
    for module in model.modules():
        if isinstance(module, reference.Qwen3_5GatedDeltaNet) and not isinstance(module.forward, functools.partial):
            module.forward = functools.partial(_forward, module, module.forward)


def _forward(
    module: Any, plain: Any, hidden_states: torch.Tensor, recurrent: Any = None, **others: Any
) -> torch.Tensor:
    """Do a recurrent layer of transformers for a packed row, [1, Σ n_i, hidden]; the projections see the whole row."""
    if recurrent is None:
        unpacked: torch.Tensor = plain(hidden_states, **others)
        return unpacked
    row = hidden_states[0]
    mixed = module.in_proj_qkv(row)
    beta = module.in_proj_b(row).sigmoid()
    decay = -module.A_log.float().exp() * softplus(module.in_proj_a(row).float() + module.dt_bias)
    parts = recurrent.advance(module, module.layer_idx, mixed, decay, beta)
    gate = module.in_proj_z(row).view(-1, module.head_v_dim)
    normed = module.norm(parts.reshape(-1, module.head_v_dim), gate)
    out: torch.Tensor = module.out_proj(normed.view(1, len(row), -1))
    return out


def _advance(
    module: Any,
    layer: RecurrentLayer,
    run: Run,
    checkpoint: int,
    newest: int | None,
    mixed: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
) -> torch.Tensor:
    """Take one run's inputs: its outputs, [n, value heads, value head size]; the layer's slot then stands behind them.

    Args:
        module: layer that holds the convolution's weights.
        layer: states of the layer.
        run: slot and positions of the tokens.
        checkpoint: position of the slot's checkpoint.
        newest: position of its newest state.
        mixed: [n, queries + keys + values], before the convolution.
        decay: g, [n, value heads].
        beta: [n, value heads].

    """
    slot, context, past = run.slot, layer.kernel - 1, run.start - checkpoint
    # Inputs since the checkpoint, the new ones behind; what was rejected falls away here.
    mixed = torch.cat((layer.mixed[slot, : context + past], mixed))
    decay = torch.cat((layer.decay[slot, :past], decay))
    beta = torch.cat((layer.beta[slot, :past], beta))

    def scan(first: int, last: int, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs and final state of the inputs first … last−1 after the checkpoint, from `state`."""
        if first == last:
            return mixed.new_empty(0, module.num_v_heads, module.head_v_dim), state
        return _scan(module, mixed[first : context + last], decay[first:last], beta[first:last], state)

    known = None if newest is None or newest > run.start else newest - checkpoint
    state = scan(0, past, layer.checkpoint[slot])[1] if known is None else scan(known, past, layer.newest[slot])[1]
    moved = checkpoint_after(checkpoint, run.end) - checkpoint
    if moved > past:  # the new checkpoint lies within the new inputs
        first, middle = scan(past, moved, state)
        second, state = scan(moved, past + run.count, middle)
        out = torch.cat((first, second))
        layer.checkpoint[slot] = middle
    else:
        if moved:
            layer.checkpoint[slot] = scan(0, moved, layer.checkpoint[slot])[1]
        out, state = scan(past, past + run.count, state)
    layer.newest[slot] = state
    kept = len(decay) - moved
    layer.mixed[slot, : context + kept] = mixed[moved:]
    layer.decay[slot, :kept] = decay[moved:]
    layer.beta[slot, :kept] = beta[moved:]
    return out


def _rewind(module: Any, layer: RecurrentLayer, slot: int, moved: int, start: int | None) -> None:
    """Move a slot's checkpoint on by `moved` inputs; its newest state back to `start` inputs after the old one."""
    context = layer.kernel - 1

    def scan(first: int, last: int, state: torch.Tensor) -> torch.Tensor:
        if first == last:
            return state
        inputs = layer.mixed[slot, first : context + last], layer.decay[slot, first:last], layer.beta[slot, first:last]
        return _scan(module, *inputs, state)[1]

    middle = scan(0, moved, layer.checkpoint[slot])
    if start is not None:
        layer.newest[slot] = scan(moved, start, middle)
    if moved:
        layer.checkpoint[slot] = middle
        for tensor in (layer.mixed, layer.decay, layer.beta):
            tensor[slot, : tensor.shape[1] - moved] = tensor[slot, moved:].clone()


def _scan(
    module: Any, mixed: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve and scan inputs, [kernel−1 + n, …], from `state`: outputs [n, value heads, their size], next state."""
    count = len(decay)
    convolved = reference.causal_conv1d_fn(
        mixed.t()[None], module.conv1d.weight.squeeze(1), module.conv1d.bias, activation=module.activation
    )[0, :, -count:].t()
    query, key, value = convolved.split((module.key_dim, module.key_dim, module.value_dim), dim=-1)
    rule = reference.torch_recurrent_gated_delta_rule if count == 1 else reference.torch_chunk_gated_delta_rule
    out, after = rule(
        query.reshape(1, count, -1, module.head_k_dim),
        key.reshape(1, count, -1, module.head_k_dim),
        value.reshape(1, count, -1, module.head_v_dim),
        g=decay[None],
        beta=beta[None],
        initial_state=state[None],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return out[0], after[0]
