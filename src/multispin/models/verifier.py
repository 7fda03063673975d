"""The verifier: all sessions' tokens through one model in one forward pass.

What it knows: slots, lengths, logits. What it does not know: rounds, devices, text. The cache of a session
holds all of its committed tokens but the newest one; a round feeds [newest] + draft and reads one row of logits per
fed token. A prompt is fed in chunks that ask for no logits, in the same forward pass as everybody else's drafts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from multispin.errors import InputError
from multispin.models.lean import lean
from multispin.models.packed import PACKED_ATTENTION, PackedBatch
from multispin.models.prepacked import prepack
from multispin.models.recurrent import HISTORY, make_packable
from multispin.models.slots import SlotCache
from multispin.speculation import Finding, Rule, judge
from multispin.speculation.engine import Feed, SlotsTakenError


class Verifier:
    """A language model with a slot cache: the embedded `Engine`.

    Args:
        model: a decoder with attention layers; its attention is replaced by the packed one.
        slots: sessions that fit at once.
        max_length: prompt and generated tokens per session.
        reorder: on a CPU, keep the linear weights in the order that is fastest to read (see `prepacked`) and run leaner
            layers (see `lean`); the model's own are replaced.
    """

    def __init__(self, model: PreTrainedModel, slots: int, max_length: int, reorder: bool = True) -> None:
        config = model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", max_length)
        if not 1 <= max_length <= limit:
            raise InputError(f"max_length = {max_length} is outside 1 … {limit}, the positions that this model knows")
        if slots < 1:
            raise InputError(f"slots = {slots} is below 1")
        self._model = prepack(lean(model.eval())) if reorder else model.eval()
        self._model.set_attn_implementation(PACKED_ATTENTION)
        make_packable(self._model)
        self._cache = SlotCache(config, slots, max_length, model.dtype, model.device)
        self._heads = config.num_attention_heads
        self._vocabulary_size = int(config.vocab_size)
        self._cached = [0] * slots
        self._free = list(range(slots - 1, -1, -1))

    @property
    def slots(self) -> int:
        """Sessions that fit at once."""
        return self._cache.slots

    @property
    def free_slots(self) -> int:
        """Sessions that still fit."""
        return len(self._free)

    @property
    def max_length(self) -> int:
        """Prompt and generated tokens that a session may have."""
        return self._cache.max_length

    @property
    def vocabulary_size(self) -> int:
        """Number of logits per row."""
        return self._vocabulary_size

    @property
    def rules(self) -> frozenset[Rule]:
        """All of them."""
        return frozenset(Rule)

    @property
    def hidden_size(self) -> int:
        """Width of the model's hidden states."""
        return int(self._model.config.get_text_config().hidden_size)

    @property
    def cache_bytes(self) -> int:
        """Memory of the slot cache, fixed at start."""
        return self._cache.size_bytes

    def open(self) -> int:
        """Take a slot; raises SlotsTakenError when none is free."""
        if not self._free:
            raise SlotsTakenError(f"all {self.slots} slots are taken")
        slot = self._free.pop()
        self._cached[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        """Give a slot back."""
        if slot in self._free:
            raise ValueError(f"slot {slot} is not open")
        self._free.append(slot)

    def cached(self, slot: int) -> int:
        """Positions of `slot` whose keys and values are valid."""
        return self._cached[slot]

    def commit(self, slot: int, length: int) -> None:
        """Keep the first `length` cached positions of `slot` and forget the rest."""
        if not 0 <= length <= self._cached[slot]:
            raise ValueError(f"slot {slot} has {self._cached[slot]} positions cached, cannot keep {length}")
        if self._cache.recurrent is not None and length < self._cached[slot]:
            self._cache.recurrent.check(slot, length)
        self._cached[slot] = length

    @torch.inference_mode()
    def verify(self, feeds: Sequence[Feed]) -> list[Finding | None]:
        """Run all feeds in one forward pass and apply each request's acceptance rule.

        InputError if a logit that is asked for is not a finite number; the feeds are then forgotten.
        """
        before = [self._cached[feed.slot] for feed in feeds]
        flat = self._run(feeds)
        # Any NaN makes the largest of its row NaN.
        if not bool(flat.amax(-1).isfinite().all()):
            for feed, cached in zip(feeds, before, strict=True):
                self._cache.clear(feed.slot, feed.start)
                self._cached[feed.slot] = min(cached, feed.start)
            raise InputError(
                f"the model's logits are not finite numbers: its weights are damaged, or {self._model.dtype} is too "
                "narrow for it (try float32)"
            )
        findings: list[Finding | None] = []
        row = 0
        for feed in feeds:
            if feed.params is None:
                findings.append(None)
                continue
            last = row + len(feed.tokens)
            findings.append(judge(feed.tokens[1:], feed.evidence, flat[row:last], feed.start + 1, feed.params))
            row = last
        return findings

    @torch.inference_mode()
    def forward(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Run all feeds in one forward pass.

        Returns:
            Per feed its logits, [len(tokens), V]: row i is for the position after tokens[i]; [0, V] for a
            chunk of a prompt. The slot then has start + len(tokens) positions cached.

        """
        sizes = [len(f.tokens) if f.params is not None else 0 for f in feeds]
        return list(torch.split(self._run(feeds), sizes)) if feeds else []

    def _run(self, feeds: Sequence[Feed]) -> torch.Tensor:
        """Logits of all feeds that ask for some, one below the other: [rows, V]."""
        device = self._model.device
        if not feeds:
            return torch.empty(0, self.vocabulary_size, device=device)
        self._check(feeds)
        packed = PackedBatch(self._cache, [(f.slot, f.start, len(f.tokens)) for f in feeds], self._heads)
        tokens = torch.tensor([[t for f in feeds for t in f.tokens]], device=device)
        inputs: dict[str, Any] = {
            "input_ids": tokens,
            "position_ids": packed.positions[None],
            "use_cache": False,
            "packed": packed,
        }
        wanted = [
            column
            for run, f in zip(packed.runs, feeds, strict=True)
            if f.params is not None
            for column in range(run.column, run.column + run.count)
        ]
        if wanted:
            # 0 keeps all rows, without a copy of them.
            rows = 0 if len(wanted) == tokens.shape[1] else torch.tensor(wanted, device=device)
            logits: torch.Tensor = self._model(**inputs, logits_to_keep=rows).logits[0]
        else:
            self._model.base_model(**inputs)
            logits = torch.empty(0, self.vocabulary_size, device=device)
        if self._cache.recurrent is not None:
            self._cache.recurrent.end(packed.runs)
        for feed in feeds:
            self._cached[feed.slot] = feed.start + len(feed.tokens)
        return logits

    def _check(self, feeds: Sequence[Feed]) -> None:
        if len({feed.slot for feed in feeds}) < len(feeds):
            raise ValueError("a slot stands twice in one batch")
        for feed in feeds:
            if self._cache.recurrent is not None and feed.params is not None and len(feed.tokens) > HISTORY:
                raise ValueError(
                    f"a draft of {len(feed.tokens) - 1} is longer than {HISTORY - 1}, what this model can undo"
                )
            if feed.slot in self._free or not 0 <= feed.slot < self.slots:
                raise ValueError(f"slot {feed.slot} is not open")
            if not 0 <= feed.start <= self._cached[feed.slot]:
                raise ValueError(
                    f"slot {feed.slot} has {self._cached[feed.slot]} positions cached, cannot start at {feed.start}"
                )
            if not feed.tokens or feed.start + len(feed.tokens) > self.max_length:
                raise ValueError(
                    f"{len(feed.tokens)} tokens at {feed.start} do not fit a slot of {self.max_length} positions"
                )
            if min(feed.tokens) < 0 or max(feed.tokens) >= self.vocabulary_size:
                raise ValueError(f"a token id is outside 0 … {self.vocabulary_size - 1}")
            if self._cache.recurrent is not None:
                self._cache.recurrent.check(feed.slot, feed.start)
