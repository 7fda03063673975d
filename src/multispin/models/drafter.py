"""Drafters that run a language model with PyTorch, and loading them by name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from multispin.errors import InputError
from multispin.models.distilled import load_for_drafting
from multispin.models.drafter_name import DrafterKind, DrafterName
from multispin.models.edge_drafter import DraftAsk, EdgeDrafter
from multispin.models.loading import Tokenizer, load_model, load_tokenizer
from multispin.models.packable import PackedModel
from multispin.models.quantised import round_weights
from multispin.speculation import (
    Drafter,
    Feed,
    LawFormat,
    NoDrafter,
    PromptLookupDrafter,
    SamplingParams,
    TruncatedLaw,
)


class ModelDrafter:
    """A small language model that drafts for one text.

    Under `coupled` it draws with the request's shared noise, so that its token meets the target's whenever their
    distributions are close (see `speculation.rules`); under the rejection rules from exactly the distribution that it
    sends.

    Args:
        model: drafts; a model of transformers' is left as it is.
        max_length: prompt and generated tokens of the longest text; cut to the positions that the model knows.
        vocabulary_size: number of ids that the target can emit; by default what the model's head has.

    """

    def __init__(
        self, model: PreTrainedModel | PackedModel, max_length: int, vocabulary_size: int | None = None
    ) -> None:
        self._drafter = EdgeDrafter(model, 1, max_length, vocabulary_size)
        self._slot = self._drafter.open()

    def prepare(self, committed: Sequence[int]) -> None:
        """Feed all but the newest committed token."""
        self._drafter.prepare([(self._slot, committed)])

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Draw `length` tokens one after the other; fewer where the slot is full."""
        return self._drafter.draft([DraftAsk(self._slot, committed, length, params)])[0]

    def draft_laws(
        self, committed: Sequence[int], length: int, params: SamplingParams, form: LawFormat
    ) -> tuple[list[int], list[TruncatedLaw]]:
        """Draw up to `length` tokens, each from its truncated and quantised distribution."""
        return self._drafter.draft_laws([DraftAsk(self._slot, committed, length, params)], form)[0]

    def logits_along(self, text: Sequence[int], begin: int, params: SamplingParams) -> torch.Tensor:
        """What it would draw from at each position of a known text, all at once.

        Args:
            text: at most as long as the cache.
            begin: first position of interest, at least 1.
            params: of the request.

        Returns:
            [len(text) − begin, V] logits, each given the text before it.

        """
        self.prepare(text[:begin])
        return self._drafter.feed([Feed(self._slot, begin - 1, text[begin - 1 : -1], params)])[0]


@dataclass(frozen=True, eq=False)
class DraftSource:
    """What drafters of one name are made from: loaded once, for any number of texts at once.

    Attributes:
        name: of the drafter.
        tokenizer: of the target; its ids are what is drafted.
        model: the model that drafts; None for `lookup` and `none`, which need none.

    """

    name: DrafterName
    tokenizer: Tokenizer
    model: PackedModel | None

    def drafter(self, max_length: int) -> Drafter:
        """A drafter for one text of at most `max_length` tokens; a model's positions may cut its drafts earlier."""
        if self.model is not None:
            return ModelDrafter(self.model, max_length, self.tokenizer.size)
        return PromptLookupDrafter() if self.name.kind is DrafterKind.LOOKUP else NoDrafter()

    def edge_drafter(self, slots: int, max_length: int) -> EdgeDrafter:
        """A drafter for `slots` texts at once; InputError for a drafter without a model."""
        if self.model is None:
            raise InputError(f"the drafter {self.name.text!r} runs no model, so that there is nothing to batch")
        return EdgeDrafter(self.model, slots, max_length, self.tokenizer.size)


def load_draft_source(spec: str, target: str, place: str = "cpu") -> DraftSource:
    """Load what `spec` names; InputError if it is not there or its ids are not the target's.

    Args:
        spec: name of the drafter, see `drafter_name`.
        target: reference of the target.
        place: device of torch's that it computes on; rounded weights are for "cpu" only.

    """
    name = DrafterName.parse(spec)
    tokenizer = load_tokenizer(target)
    if name.kind in (DrafterKind.LOOKUP, DrafterKind.NONE):
        return DraftSource(name, tokenizer, None)
    if name.kind is DrafterKind.DISTILLED:
        assert name.folder is not None
        model = load_for_drafting(name.folder, load_model(target, "bfloat16"))
        return DraftSource(name, tokenizer, PackedModel.of(model, own=True))
    reference = name.reference or target
    _check_tokenizer(reference, tokenizer, target)
    if name.kind is DrafterKind.ROUNDED:
        model = round_weights(load_model(reference), name.bits)
    else:
        model = load_model(reference, "bfloat16", place)
    return DraftSource(name, tokenizer, PackedModel.of(model, own=True))


def load_drafter(spec: str, target: str, max_length: int) -> tuple[Drafter, Tokenizer]:
    """Make the drafter that `spec` names for one text, and the target's tokenizer.

    Args:
        spec: name of the drafter, see `drafter_name`.
        target: reference of the target.
        max_length: prompt and generated tokens of the longest text to draft for.

    """
    source = load_draft_source(spec, target)
    return source.drafter(max_length), source.tokenizer


def _check_tokenizer(reference: str, theirs: Tokenizer, target: str) -> None:
    """InputError, before any weights are read, if a drafter's ids are not the target's."""
    own = load_tokenizer(reference) if reference != target else theirs
    if own.fingerprint != theirs.fingerprint:
        raise InputError(
            f"the tokenizer of {reference} ({own.fingerprint}) is not the target's ({theirs.fingerprint}): "
            "draft with a model of the target's family"
        )
