"""Passes of static shape: on a GPU each shape is captured once as a CUDA graph and replayed from then on.

A pass of a 7B model launches some 1,500 kernels, which takes a processor longer than the GPU needs to run them. A graph
launches them all at once, but only for one fixed shape and fixed addresses. So the layout of a batch (ids, positions,
slots) is data here: one small block of integers, copied to the GPU before each pass. The row is padded with tokens of a
spare slot, which nobody reads.

Attention of all slots is one call for any batch. In bfloat16 and float16 it is a FlashAttention call that takes
ragged rows and reads each slot's own keys only; elsewhere slots are padded to the same number of rows and keys. Without
a GPU the same passes run without a graph: so everything but the capture is tested on a CPU.

If all passes have one shape, they are batch-invariant: a product of one shape always adds in the same order, and
attention of a row reads only its own slot. Larger batches are split, smaller ones padded.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from multispin.errors import InputError
from multispin.models.buckets import (
    ROWS,
    WINDOWS,
    Shape,
    at_least,
    key_size,
    slot_size,
    split,
    token_sizes,
    uniform_shape,
)
from multispin.models.layout import Run, WindowRun
from multispin.models.packable import PackedModel, PackedRun, with_width
from multispin.models.recurrent import recurrent_layers
from multispin.models.slots import SlotCache
from multispin.models.static_batch import StaticBatch

log = logging.getLogger(__name__)

_MAX_FLASH_HEAD = 256
_CAPTURED_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
_EXPERTS = ("num_experts", "num_local_experts")
_SAMPLER_BYTES = 24
"""Temporary memory for drawing a token [bytes per logit]."""


class PassResult(NamedTuple):
    """Results of a pass of static shape, row by row, padding behind, all of it valid until the next pass.

    Attributes:
        rows: Σ n_i, of the tokens fed.
        logits: rows of logits, [T, V].
        states: [T, H], final hidden states.
        best: [T], index of the first largest logit.
        finite: [T], whether a row's largest logit is a finite number.

    """

    rows: int
    logits: torch.Tensor
    states: torch.Tensor
    best: torch.Tensor
    finite: torch.Tensor


class _Pass:
    """One shape: its layout, and the graph that runs it, if there is one."""

    def __init__(self, batch: StaticBatch) -> None:
        self.batch = batch
        self.logits = self.states = self.best = self.finite = torch.empty(0)
        self.graph: Any = None


@dataclass(frozen=True)
class StaticLayout:
    """Which static shapes passes may have.

    Attributes:
        uniform: all passes have one shape, so that no sum of a row depends on who shares its pass; default no.
        ragged: attention takes ragged rows; by default where there is a kernel for them.
        tokens: sizes of a row [tokens], ascending; by default powers of two as far as the memory goes.

    """

    uniform: bool = False
    ragged: bool | None = None
    tokens: tuple[int, ...] | None = None


class StaticPasses:
    """Runs a packed model over one slot cache in passes of static shape.

    Args:
        model: model to run.
        cache: made for it, with a spare slot.
        vocabulary_size: width of the logits.
        layout: which shapes passes may have.

    """

    def __init__(self, model: PackedModel, cache: SlotCache, vocabulary_size: int, layout: StaticLayout) -> None:
        self._model, self._cache, self._vocabulary_size = model, cache, vocabulary_size
        self._ragged = _has_kernel(model) if layout.ragged is None else layout.ragged
        self._graphs = cache.device.type == "cuda" and _capturable(model.config)
        self._passes: dict[Shape, _Pass] = {}
        self._pool: Any = None
        config = model.config
        per_token = model.width * (model.dtype.itemsize + _SAMPLER_BYTES)
        per_token += 8 * (int(getattr(config, "intermediate_size", 0) or 0) + int(config.hidden_size)) * 4
        self._tokens = layout.tokens or token_sizes(per_token)
        if layout.uniform and not _is_uniform(model.config, cache):
            raise InputError(
                "batch-invariant passes are for models without recurrent layers and without experts: "
                f"a {config.model_type} model's order of sums depends on the batch"
            )
        shape = (self._tokens, cache.slots, cache.max_length, self._ragged)
        self._uniform = uniform_shape(*shape) if layout.uniform else None
        self._modules = recurrent_layers(model.model) if cache.recurrent else {}

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes that passes have had so far."""
        return tuple(self._passes)

    @property
    def longest_chunk(self) -> int:
        """Most prompt tokens for which there is a shape beside full drafts: half of the largest one, or a window."""
        half = self._tokens[-1] // 2
        return half if self._cache.recurrent is None else min(half, WINDOWS[-1])

    def shape(self, runs: Sequence[PackedRun], windows: Sequence[WindowRun]) -> Shape | None:
        """The shape that holds these runs; None if there is none."""
        tokens = at_least(sum(len(ids) for _, _, ids, _ in runs), self._tokens)
        slots = slot_size(1 + max(slot for slot, *_ in runs), self._cache.slots)
        window = at_least(max((run.count for run in windows), default=1), WINDOWS)
        if tokens is None or window is None:
            return None
        window = window if self._cache.recurrent else 0
        if self._ragged:
            return Shape(tokens, slots, window=window)
        rows = at_least(max(len(ids) for _, _, ids, _ in runs), ROWS)
        keys = key_size(max(start + len(ids) for _, start, ids, _ in runs), self._cache.max_length)
        return None if rows is None else Shape(tokens, slots, rows, keys, window)

    @torch.inference_mode()
    def forward(self, runs: Sequence[PackedRun]) -> "PassResult | None":
        """Run tokens of several slots, as `PackedModel.forward`; None if no shape holds them.

        That is one pass, or as many as it takes where all have one shape.
        """
        if self._uniform is not None:
            return self._in_uniform_passes(runs, self._uniform)
        shape = self.shape(runs, self._windows(runs))
        return None if shape is None else self._forward(runs, shape)

    def _in_uniform_passes(self, runs: Sequence[PackedRun], shape: Shape) -> "PassResult":
        """Run tokens in passes of this shape, and put what they found together, in the order of the runs."""
        counts = [len(ids) for _, _, ids, _ in runs]
        passes = split(counts, shape)
        first_rows = [0, *accumulate(counts)]
        whole: PassResult | None = None
        for pieces in passes:
            part = [
                (slot, start + piece.first, ids[piece.first : piece.first + piece.size], last)
                for piece in pieces
                for slot, start, ids, last in (runs[piece.run],)
            ]
            found = self._forward(part, shape)
            if len(passes) == 1:
                return found
            if whole is None:
                rows = shape.tokens * len(passes)
                whole = PassResult(sum(counts), *(each.new_zeros((rows, *each.shape[1:])) for each in found[1:]))
            row = 0
            for piece in pieces:
                place = first_rows[piece.run] + piece.first
                for target, source in zip(whole[1:], found[1:], strict=True):
                    target[place : place + piece.size] = source[row : row + piece.size]
                row += piece.size
        assert whole is not None
        return whole

    def _forward(self, runs: Sequence[PackedRun], shape: Shape) -> "PassResult":
        recurrent = self._cache.recurrent
        laid_out = [Run(slot, start, len(ids), 0) for slot, start, ids, _ in runs]
        if recurrent is not None:
            recurrent.prepare(self._modules, laid_out)
        windows = self._windows(runs)
        found = self._passes.get(shape) or self._made(shape)
        if recurrent is not None:
            recurrent.begin(laid_out)
        found.batch.load([(slot, start, ids) for slot, start, ids, _ in runs], windows)
        if found.graph is None:
            self._run(found)
        else:
            found.graph.replay()
        if recurrent is not None:
            recurrent.end_static(windows)
        rows = sum(len(ids) for _, _, ids, _ in runs)
        return PassResult(rows, found.logits, found.states, found.best, found.finite)

    def _windows(self, runs: Sequence[PackedRun]) -> list[WindowRun]:
        """Inputs of the recurrent layers' scans for these runs; nothing without such layers."""
        recurrent = self._cache.recurrent
        if recurrent is None:
            return []
        return [recurrent.window(slot, start, len(ids), last) for slot, start, ids, last in runs]

    def _made(self, shape: Shape) -> _Pass:
        """A pass of this shape, captured if that is possible."""
        made = self._passes[shape] = _Pass(StaticBatch(self._cache, shape, self._ragged))
        if not self._graphs:
            return made
        try:
            self._capture(made)
        except RuntimeError as error:
            log.warning("this model runs without CUDA graphs, thus more slowly: %s", str(error).splitlines()[0])
            self._graphs, made.graph = False, None
        return made

    def _capture(self, made: _Pass) -> None:
        # An empty batch: every token is padding, so nothing that anybody reads is changed.
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._run(made)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._run(made)
        made.graph = graph

    def _run(self, made: _Pass) -> None:
        batch = made.batch
        batch.begin()
        kept: list[torch.Tensor] = []
        hook = self._model.model.base_model.register_forward_hook(lambda _module, _inputs, out: kept.append(out[0][0]))
        try:
            made.logits = self._model.model(
                input_ids=batch.ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                packed=batch,
                recurrent=batch.recurrent,
            ).logits[0]
        finally:
            hook.remove()
        made.states = kept[0]
        made.logits = with_width(made.logits, self._vocabulary_size)
        made.best, largest = made.logits.argmax(-1), made.logits.amax(-1)
        made.finite = largest.isfinite()  # any NaN makes the largest of its row NaN


def _has_kernel(model: PackedModel) -> bool:
    """Whether FlashAttention takes this model's attention, as far as its configuration says."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = getattr(config, "attn_logit_softcapping", None) is None and config.model_type != "gpt_oss"
    narrow = model.dtype in (torch.bfloat16, torch.float16)
    return model.device.type == "cuda" and narrow and plain and head % 8 == 0 and head <= _MAX_FLASH_HEAD


def _is_uniform(config: Any, cache: SlotCache) -> bool:
    """Whether a pass of one shape does the same sums for a row wherever it stands."""
    experts = any(getattr(config, name, None) for name in _EXPERTS)
    return cache.recurrent is None and not experts


def _capturable(config: Any) -> bool:
    """Whether a model's steps do not depend on its inputs: no choice of experts, no growing rotary positions."""
    ropes = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in ropes.values() if isinstance(part, dict)] or [ropes]
    if any(part.get("rope_type", "default") not in _CAPTURED_ROPE for part in parts):
        return False
    return not any(getattr(config, name, None) for name in _EXPERTS)
