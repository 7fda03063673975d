"""Drafts for many texts at once, each in a slot of its own, as an edge does for its sessions.

One forward pass drafts one token for every requested text. Each token is drawn by its text's own parameters and noise,
exactly as `ModelDrafter` draws for one text.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from multispin.errors import InputError
from multispin.models.batch_drawing import BatchDrawing
from multispin.models.cached import CachedModel
from multispin.models.packable import PackedModel, with_width
from multispin.speculation import (
    DistributionFormat,
    DraftAsk,
    Feed,
    TruncatedDistribution,
    draft_token,
    draw_after,
    masked,
    shaped,
    shaped_after,
    truncate,
)
from multispin.speculation.drafter import kept_prefix

READ_ALONG = 32
"""Most unread tokens of a text that are read in the pass of its first drafted token; more get a pass of their own."""
Pick = Callable[[DraftAsk, torch.Tensor, list[int]], int]
"""Chooses a token from (ask, [1, V] logits, tokens drafted so far)."""


class ModelBatchDrafter:
    """A small language model that drafts for many sessions at once.

    A text that the model cannot hold (longer than its context, or with ids that it lacks) gets an empty or shorter
    draft, so the drafter never limits what the target may write.

    Args:
        model: the language model that drafts; a transformers model is not changed.
        slots: most texts to draft for at once.
        max_length: length of the longest text [tokens], prompt included; limited to the model's context.
        vocabulary_size: number of ids that the target can emit; default: those of the model's head.
        static: whether passes have static shapes and one draw serves all texts; default: on a GPU only.

    """

    def __init__(
        self,
        model: PreTrainedModel | PackedModel,
        slots: int,
        max_length: int,
        vocabulary_size: int | None = None,
        static: bool | None = None,
    ) -> None:
        packed = model if isinstance(model, PackedModel) else PackedModel.of(model)
        known = packed.longest_text
        longest = max_length if known is None else min(max_length, known)
        self.model = CachedModel(packed, slots, longest, vocabulary_size=vocabulary_size, static=static)
        at_once = packed.device.type == "cuda" if static is None else static
        self._drawing = BatchDrawing(packed.device) if at_once else None
        self._texts: dict[int, list[int]] = {}  # per slot, the ids whose positions are cached

    def warm_up(self) -> None:
        """On a GPU, compile the drawing of tokens, so that no draft waits for it; elsewhere do nothing."""
        if self._drawing is not None and self.model.packed.device.type == "cuda":
            self._drawing.compile(self.model.vocabulary_size, self.model.vocabulary_size, self.model.packed.dtype)

    def open(self) -> int:
        """Take a slot for one session's text; raises SlotsTakenError when none is free."""
        slot = self.model.open()
        self._texts[slot] = []
        return slot

    def close(self, slot: int) -> None:
        """Give a slot back."""
        self.model.close(slot)
        del self._texts[slot]

    def unread(self, slot: int, committed: Sequence[int]) -> int:
        """Number of committed tokens but the newest that the drafter must read before it drafts."""
        return max(0, len(committed) - 1 - kept_prefix(self._texts[slot], committed))

    def prepare(self, texts: Sequence[tuple[int, Sequence[int]]], most: int | None = None) -> None:
        """Read texts that will soon need drafts, so that the first draft is not slower.

        Args:
            texts: (slot, ids of the whole text) of each.
            most: most tokens to read in this call, over all texts; default None: all of them.

        """
        feeds = []
        for slot, committed in texts:
            start = kept_prefix(self._texts[slot], committed)
            count = len(committed) - 1 - start
            if most is not None:
                count = min(count, most)
                most -= max(0, count)
            if count > 0 and self._holds(committed):
                feeds.append(Feed(slot, start, committed[start : start + count], None))
        if feeds:
            self.feed(feeds)

    def draft(self, asks: Sequence[DraftAsk]) -> list[list[int]]:
        """Draw a draft for each text, all in the same forward passes; a draft is shorter if its slot is full."""
        return self._draw(asks, _pick, self._drawing)

    def draft_distributions(
        self, asks: Sequence[DraftAsk], form: DistributionFormat
    ) -> list[tuple[list[int], list[TruncatedDistribution]]]:
        """Draw drafts from truncated and quantised distributions, and return these, for the rejection rules."""
        distributions: dict[int, list[TruncatedDistribution]] = {ask.slot: [] for ask in asks}

        def pick(ask: DraftAsk, logits: torch.Tensor, drafted: list[int]) -> int:
            # An id that cannot be fed would end the draft, but the rules need its length before the last draw.
            fitted, params = with_width(logits[:, : self.model.known_ids], form.vocabulary_size), ask.params
            position = len(ask.committed) + len(drafted)
            if ask.matcher is not None:
                fitted = masked(fitted, ask.matcher.mask(drafted)[None])
            if params.remembers:
                fitted, params = shaped_after(fitted, [*ask.committed, *drafted], (), params)
            distribution = truncate(shaped(fitted, [position], params)[0], params, form)
            distributions[ask.slot].append(distribution)
            return draft_token(distribution, ask.params.seed, len(ask.committed), position)

        drafts = self._draw(asks, pick)
        return [(drafted, distributions[ask.slot]) for ask, drafted in zip(asks, drafts, strict=True)]

    def feed(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Run feeds in one forward pass; logits per feed as `CachedModel.forward` gives them."""
        logits = self.model.forward(feeds)
        for feed in feeds:
            self._texts[feed.slot][feed.start :] = feed.tokens
        return logits

    def _draw(self, asks: Sequence[DraftAsk], pick: Pick, drawing: BatchDrawing | None = None) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in asks]
        lengths = [
            min(ask.length, self.model.max_length - len(ask.committed)) if self._holds(ask.committed) else 0
            for ask in asks
        ]
        running = [k for k, length in enumerate(lengths) if length > 0]
        # A prompt, or text that came while a session was away, needs no logits.
        long = [k for k in running if self.unread(asks[k].slot, asks[k].committed) > READ_ALONG]
        self.prepare([(asks[k].slot, asks[k].committed) for k in long])
        feeds = []
        for k in running:
            ask, start = asks[k], kept_prefix(self._texts[asks[k].slot], asks[k].committed)
            # Tokens that a device drafted or that were accepted are read in the same pass, which costs about the same.
            feeds.append(Feed(ask.slot, start, ask.committed[start:], ask.params))
        while running:
            going, feeds_of = [], self.feed(feeds)
            feeds = []
            places = [(asks[k].params, len(asks[k].committed) + len(drafts[k])) for k in running]
            known = drawing.tokens([logits[-1] for logits in feeds_of], places) if drawing else {}
            for at, (k, logits) in enumerate(zip(running, feeds_of, strict=True)):
                ask, drafted = asks[k], drafts[k]
                position = len(ask.committed) + len(drafted)
                try:
                    drafted.append(known[at] if at in known else pick(ask, logits[-1:], drafted))
                except InputError:  # the logits are not numbers: the draft ends here
                    continue
                if len(drafted) < lengths[k] and drafted[-1] < self.model.known_ids:
                    going.append(k)
                    feeds.append(Feed(ask.slot, position, drafted[-1:], ask.params))
            running = going
        return drafts

    def _holds(self, committed: Sequence[int]) -> bool:
        return len(committed) <= self.model.max_length and max(committed) < self.model.known_ids


def _pick(ask: DraftAsk, logits: torch.Tensor, drafted: list[int]) -> int:
    """Draw the next drafted token by the request's parameters."""
    if ask.matcher is not None:
        logits = masked(logits, ask.matcher.mask(drafted)[None])
    return draw_after(logits, ask.committed, drafted, ask.params)
