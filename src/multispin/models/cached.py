"""A language model with a slot cache: the tokens of many sessions through one model in one forward pass.

It knows slots, lengths and logits, and nothing of rules, devices and text. The cache of a session holds all committed
tokens but the newest one. A pass feeds [newest] + draft and gives one row of logits per fed token. A prompt is fed in
chunks without logits, in the same forward pass as everybody else's drafts.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from multispin.checks import shown
from multispin.errors import InputError
from multispin.models.buckets import Shape
from multispin.models.packable import PackedModel, with_width
from multispin.models.recurrent import HISTORY
from multispin.models.slots import SlotCache
from multispin.models.static import PassResult, StaticLayout, StaticPasses
from multispin.speculation import Feed, SlotTable


class CachedModel(SlotTable):
    """A language model with a slot cache of fixed size.

    Args:
        model: a decoder. A transformers model is not changed, and weights are shared if possible.
        slots: most sessions at once.
        max_length: most tokens of a session, prompt included.
        reorder: see `PackedModel.of`, for a transformers model; default True.
        vocabulary_size: width of the logits, the number of ids that the tokenizer has; the model's own width by
            default. A model with more rows (padding) loses them, one with fewer gets −∞ for the ids that it lacks.
        static: whether passes have static shapes, run as CUDA graphs on a GPU; default: on a GPU only. A layout gives
            the shapes.
        batch_invariant: run passes of one static shape only, so that no text depends on who shares its passes, whatever
            the number type; default no.

    """

    joins = True

    def __init__(
        self,
        model: PreTrainedModel | PackedModel,
        slots: int,
        max_length: int,
        reorder: bool = True,
        vocabulary_size: int | None = None,
        static: bool | StaticLayout | None = None,
        batch_invariant: bool = False,
    ) -> None:
        super().__init__(slots)
        if not isinstance(model, PackedModel) and not hasattr(model, "config"):
            raise InputError(f"model is {shown(model)}; it must be a model of transformers, as load_model loads one")
        packed = model if isinstance(model, PackedModel) else PackedModel.of(model, reorder)
        config = packed.config
        limit = packed.longest_text or max_length
        if not isinstance(max_length, int) or not 1 <= max_length <= limit:
            raise InputError(
                f"max_length = {shown(max_length)} is outside 1 … {limit}, the positions that this model knows"
            )
        self.packed = packed
        self._width = packed.width
        self.vocabulary_size = self._width if vocabulary_size is None else vocabulary_size
        if batch_invariant or static is None:
            static = batch_invariant or packed.device.type == "cuda"
        layout = static if isinstance(static, StaticLayout) else StaticLayout(uniform=batch_invariant)
        self._cache = SlotCache(config, slots, max_length, packed.dtype, packed.device, spare=int(bool(static)))
        self._static = StaticPasses(packed, self._cache, self.vocabulary_size, layout) if static else None
        if self._static is not None:
            self.longest_chunk = self._static.longest_chunk

    @property
    def max_length(self) -> int:
        """Most tokens of a session, prompt included."""
        return self._cache.max_length

    @property
    def static_shapes(self) -> tuple[Shape, ...]:
        """The static shapes used so far; empty if passes have any shape."""
        return () if self._static is None else self._static.shapes

    @property
    def known_ids(self) -> int:
        """Ids below this one can be fed."""
        return min(self.vocabulary_size, self._width)

    @property
    def body(self) -> nn.Module:
        """The model without its head; its output's first part are the final hidden states, [1, Σ n_i, H]."""
        body: nn.Module = self.packed.model.base_model
        return body

    @property
    def hidden_size(self) -> int:
        """Width of the model's hidden states."""
        return int(self.packed.config.hidden_size)

    @property
    def cache_bytes(self) -> int:
        """Memory of the slot cache, fixed at start."""
        return self._cache.size_bytes

    def commit(self, slot: int, length: int) -> None:
        """Keep the first `length` cached positions of `slot` and forget the rest."""
        if self._cache.recurrent is not None and 0 <= length < self.cached(slot):
            self._cache.recurrent.check(slot, length)
        super().commit(slot, length)

    @torch.inference_mode()
    def forward(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Run all feeds in one forward pass.

        Returns:
            Per feed its logits, [len(tokens) − context, V]: row i is for the position after the i-th of these tokens;
            [0, V] for a chunk of a prompt. The slot then has start + len(tokens) positions cached.

        """
        if not feeds:
            return []
        found = self._pass(feeds)
        if isinstance(found, PassResult):
            fed = [len(feed.tokens) if feed.params is not None else 0 for feed in feeds]
            parts = torch.split(found.logits[: sum(fed)].clone(), fed)  # the next pass overwrites it
            return [rows[feed.context :] for rows, feed in zip(parts, feeds, strict=True)]
        return list(torch.split(found, [wanted(feed) for feed in feeds]))

    @torch.inference_mode()
    def forward_states(self, feeds: Sequence[Feed]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run at least one feed; all of them ask for logits, or none does.

        Returns:
            Logits [rows, V] of the feeds that ask, one below the other, and the final hidden states [Σ n_i, H] of all;
            valid until the next pass.

        """
        kept: list[torch.Tensor] = []
        hook = self.body.register_forward_hook(lambda _module, _inputs, out: kept.append(out[0][0]))
        try:
            found = self._pass(feeds)
        finally:
            hook.remove()
        if isinstance(found, PassResult):
            return found.logits[: found.rows if feeds[0].params is not None else 0], found.states[: found.rows]
        return found, kept[-1]

    def _pass(self, feeds: Sequence[Feed]) -> torch.Tensor | PassResult:
        """Run at least one feed; what a pass of static shape found, those that ask for logits first, or else logits."""
        self._check(feeds)
        runs = [(feed.slot, feed.start, feed.tokens, wanted(feed)) for feed in feeds]
        found = None if self._static is None else self._static.forward(sorted(runs, key=lambda run: run[3] == 0))
        if found is None:
            logits = self.packed.forward(self._cache, runs)
        self.take(feeds)
        return with_width(logits, self.vocabulary_size) if found is None else found

    def _check(self, feeds: Sequence[Feed]) -> None:
        self.check(feeds, self.max_length, self.known_ids)
        if self._cache.recurrent is None:
            return
        for feed in feeds:
            if wanted(feed) > HISTORY:
                raise ValueError(f"a draft of {len(feed.draft)} is longer than {HISTORY - 1}, what this model can undo")
            self._cache.recurrent.check(feed.slot, feed.start)


def wanted(feed: Feed) -> int:
    """Number of the feed's last tokens whose logits are wanted: the newest and the draft; 0 for a chunk of a prompt."""
    return 0 if feed.params is None else len(feed.tokens) - feed.context
