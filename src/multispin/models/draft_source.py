"""Loading drafters by name. A drafter without a model (`lookup`, `none`) loads neither torch nor transformers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from multispin.errors import InputError
from multispin.models.drafter_name import DrafterKind, DrafterName
from multispin.models.llama_cpp import LlamaCppError
from multispin.models.references import EMBEDDED
from multispin.models.tokenizer import Tokenizer, load_tokenizer
from multispin.speculation import Drafter, NoDrafter, PromptLookupDrafter

if TYPE_CHECKING:
    from multispin.models.edge_drafter import EdgeDrafter
    from multispin.models.llama_cpp import LlamaCppModel
    from multispin.models.packable import PackedModel


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GgufDrafting:
    """How llama.cpp runs a drafter.

    Attributes:
        path: GGUF file.
        threads: processor threads; default 1.
        gpu_layers: layers that a graphics processor computes, where the library has a backend for one; default 0.

    """

    path: Path
    threads: int = 1
    gpu_layers: int = 0

    def model(self, max_length: int) -> LlamaCppModel:
        """The file, loaded for a text of at most `max_length` tokens; its memory is shared with other loads."""
        from multispin.models.llama_cpp import LlamaCppModel

        return LlamaCppModel(self.path, max_length, self.threads, self.gpu_layers)


@dataclass(frozen=True, eq=False)
class DraftSource:
    """What drafters of one name are made from: loaded once, for any number of texts at once.

    Attributes:
        name: the drafter's name, parsed.
        tokenizer: the target's tokenizer, whose ids are drafted.
        model: the model that drafts; None for `lookup` and `none`, which need none.
        gguf: a model that llama.cpp drafts with, in place of `model`.

    """

    name: DrafterName
    tokenizer: Tokenizer
    model: PackedModel | None
    gguf: GgufDrafting | None = None

    def drafter(self, max_length: int) -> Drafter:
        """A drafter for one text of at most `max_length` tokens; a model's positions may cut its drafts earlier."""
        if self.gguf is not None:
            from multispin.models.llama_cpp import LlamaCppDrafter

            return LlamaCppDrafter(self.gguf.model(max_length))
        if self.model is not None:
            from multispin.models.drafter import ModelDrafter

            return ModelDrafter(self.model, max_length, self.tokenizer.size)
        return PromptLookupDrafter() if self.name.kind is DrafterKind.LOOKUP else NoDrafter()

    def edge_drafter(self, slots: int, max_length: int) -> EdgeDrafter:
        """A drafter for `slots` texts at once; InputError for a drafter without a model."""
        if self.model is None:
            raise InputError(f"the drafter {self.name.text!r} has no model of torch's: there is nothing to batch")
        from multispin.models.edge_drafter import EdgeDrafter

        return EdgeDrafter(self.model, slots, max_length, self.tokenizer.size)


def load_draft_source(
    spec: str, target: str | None, place: str = "cpu", threads: int = 1, gpu_layers: int = 0
) -> DraftSource:
    """Load what `spec` names; InputError if it is not there or its ids are not the target's.

    Args:
        spec: name of the drafter, see `drafter_name`. llama.cpp runs a GGUF file where it is installed, else torch.
        target: reference of the target, whose tokenizer counts; None for the tokenizer of a GGUF drafter's own file,
            and for the embedded target with other drafters.
        place: device of torch's that it computes on; rounded weights are for "cpu" only.
        threads: processor threads of llama.cpp.
        gpu_layers: layers that llama.cpp computes on a graphics processor.

    """
    name = DrafterName.parse(spec)
    if (path := name.gguf_file) is not None:
        try:
            return _gguf_source(name, GgufDrafting(path, threads, gpu_layers), target)
        except LlamaCppError as error:
            if find_spec("torch") is None:
                raise
            log.warning("%s; torch drafts instead", error)
    target = target or EMBEDDED
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


def _gguf_source(name: DrafterName, gguf: GgufDrafting, target: str | None) -> DraftSource:
    from multispin.models.llama_cpp import MIN_CONTEXT_TOKENS, tokenizer_of

    own = tokenizer_of(gguf.model(MIN_CONTEXT_TOKENS))
    if target is not None and target != name.reference:
        theirs = load_tokenizer(target)
        _compare(own, name.reference, theirs)
    return DraftSource(name, own, None, gguf)


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
    if reference != target:
        _compare(load_tokenizer(reference), reference, theirs)


def _compare(own: Tokenizer, reference: str, theirs: Tokenizer) -> None:
    difference = own.difference(theirs)
    if difference is not None:
        raise InputError(
            f"the tokenizer of {reference} is not the target's ({difference}): draft with a model of its family"
        )
