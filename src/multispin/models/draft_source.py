"""Loading drafters by name. A drafter without a model (`lookup`, `none`) loads neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from multispin.errors import InputError
from multispin.models.drafter_name import DrafterKind, DrafterName
from multispin.models.tokenizer import Tokenizer, load_tokenizer
from multispin.speculation import Drafter, NoDrafter, PromptLookupDrafter

if TYPE_CHECKING:
    from multispin.models.edge_drafter import EdgeDrafter
    from multispin.models.packable import PackedModel


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
            from multispin.models.drafter import ModelDrafter

            return ModelDrafter(self.model, max_length, self.tokenizer.size)
        return PromptLookupDrafter() if self.name.kind is DrafterKind.LOOKUP else NoDrafter()

    def edge_drafter(self, slots: int, max_length: int) -> EdgeDrafter:
        """A drafter for `slots` texts at once; InputError for a drafter without a model."""
        if self.model is None:
            raise InputError(f"the drafter {self.name.text!r} runs no model, so that there is nothing to batch")
        from multispin.models.edge_drafter import EdgeDrafter

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
    from multispin.models.loading import load_model
    from multispin.models.packable import PackedModel

    if name.kind is DrafterKind.DISTILLED:
        from multispin.models.distilled import load_for_drafting

        assert name.folder is not None
        model = load_for_drafting(name.folder, load_model(target, "bfloat16"))
        return DraftSource(name, tokenizer, PackedModel.of(model, own=True))
    reference = name.reference or target
    _check_tokenizer(reference, tokenizer, target)
    if name.kind is DrafterKind.ROUNDED:
        from multispin.models.quantised import round_weights

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
    if reference == target:
        return
    difference = load_tokenizer(reference).difference(theirs)
    if difference is not None:
        raise InputError(
            f"the tokenizer of {reference} is not the target's ({difference}): draft with a model of its family"
        )
