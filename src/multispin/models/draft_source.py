"""Loading drafters by name. A drafter without a model (`lookup`, `none`) loads neither torch nor transformers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from multispin.checks import whole
from multispin.errors import InputError, require
from multispin.models.drafter_name import DrafterKind, DrafterName
from multispin.models.gguf_drafter import LIBRARY, file_for_llama_cpp, is_for_llama_cpp
from multispin.models.grammar import TextGrammars, load_grammars
from multispin.models.llama_cpp import LlamaCppError
from multispin.models.references import EMBEDDED, converted_folder, is_whole, locate
from multispin.models.tokenizer import Tokenizer, load_tokenizer
from multispin.speculation import Drafter, Grammars, NoDrafter, PromptLookupDrafter

if TYPE_CHECKING:
    from multispin.models.batch_drafter import ModelBatchDrafter
    from multispin.models.llama_cpp import LlamaCppDrafter, LlamaCppModel
    from multispin.models.packable import PackedModel


log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GgufDrafting:
    """A GGUF file that llama.cpp drafts with.

    Attributes:
        model: the file, loaded; shared by all texts.
        threads: processor threads; default 1.

    """

    model: LlamaCppModel
    threads: int = 1

    def drafter(
        self, max_length: int, grammars: Grammars | None = None, vocabulary_size: int | None = None
    ) -> LlamaCppDrafter:
        """A drafter for one text of at most `max_length` tokens, which follows grammars where it can compile them."""
        from multispin.models.llama_cpp import LlamaCppContext, LlamaCppDrafter

        context = LlamaCppContext.open(self.model, max_length, self.threads)
        return LlamaCppDrafter(context, grammars, vocabulary_size=vocabulary_size)


@dataclass(frozen=True, eq=False)
class DraftSource:
    """The model behind drafters of one name: loaded once, for any number of texts at once.

    Attributes:
        name: the drafter's name, parsed.
        tokenizer: the target's tokenizer, whose ids are drafted.
        model: the model that drafts; None for `lookup` and `none`, which need none.
        gguf: a model that llama.cpp drafts with, in place of `model`; default None.

    """

    name: DrafterName
    tokenizer: Tokenizer
    model: PackedModel | None
    gguf: GgufDrafting | None = None

    @property
    def target_name(self) -> str:
        """The target's name if none is given: that of a GGUF drafter's own file, whose ids count, or embedded."""
        own = self.gguf is not None and self.name.reference
        return Path(own).stem if own else EMBEDDED

    @cached_property
    def grammars(self) -> TextGrammars | None:
        """The compiler of requests' grammars, which drafts follow; None if the library is not installed."""
        return load_grammars(self.tokenizer)

    def drafter(self, max_length: int) -> Drafter:
        """A drafter for one text of at most `max_length` tokens; a model's positions may cut its drafts earlier."""
        if self.gguf is not None:
            return self.gguf.drafter(max_length, self.grammars, self.tokenizer.size)
        if self.model is not None:
            from multispin.models.drafter import ModelDrafter

            return ModelDrafter(self.model, max_length, self.tokenizer.size, self.grammars)
        return PromptLookupDrafter() if self.name.kind is DrafterKind.LOOKUP else NoDrafter()

    def edge_drafter(self, slots: int, max_length: int) -> ModelBatchDrafter:
        """A drafter for `slots` texts at once; InputError for a drafter without a model."""
        if self.model is None:
            raise InputError(f"the drafter {self.name.text!r} runs no model in torch: the edge needs one that does")
        from multispin.models.batch_drafter import ModelBatchDrafter

        drafter = ModelBatchDrafter(self.model, slots, max_length, self.tokenizer.size)
        drafter.warm_up()
        return drafter


def load_draft_source(
    spec: str,
    target: str | None,
    place: str = "cpu",
    threads: int = 1,
    gpu_layers: int = 0,
    batched: bool = False,
) -> DraftSource:
    """Load what `spec` names; InputError if it is not there or its ids are not the target's.

    Args:
        spec: name of the drafter, see `DrafterName`. Where llama.cpp is installed it runs GGUF files, and distilled
            drafters and q8 of a target that is one; torch runs all others.
        target: reference of the target, whose tokenizer counts; None for the tokenizer of a GGUF drafter's own file,
            and for the embedded target with other drafters.
        place: device of torch's that it computes on, default "cpu"; or a graphics processor such as "cuda:0" or
            "mps", which has no rounded weights and no llama.cpp.
        threads: processor threads of llama.cpp; default 1.
        gpu_layers: layers that llama.cpp computes on a graphics processor; default 0.
        batched: whether it is to draft for many texts at once, for which torch is needed; default no.

    """
    if target == "":  # for example an unset variable in a script; the default target would be wrong
        raise InputError("the target's name is empty: leave it out, or name a model")
    name, refusal = DrafterName.parse(spec), None
    if place == "cpu" and not batched and is_for_llama_cpp(name, target):
        try:
            return _gguf_source(name, target, threads, gpu_layers)
        except LlamaCppError as error:
            if find_spec("torch") is None:
                raise
            refusal = error
    source = _torch_source(name, target or EMBEDDED, place)
    if refusal is not None:  # logged late: if torch cannot read it either, torch's reason is reported instead
        log.warning("%s; torch drafts instead", refusal)
    return source


def _torch_source(name: DrafterName, target: str, place: str) -> DraftSource:
    """A drafter that torch runs, or that needs no model."""
    if place != "cpu":
        check_drafter_place(name, place)
    tokenizer = _tokenizer_of(target)
    if name.kind in (DrafterKind.LOOKUP, DrafterKind.NONE):
        return DraftSource(name, tokenizer, None)
    from multispin.models.loading import load_model
    from multispin.models.packable import PackedModel

    if name.kind is DrafterKind.DISTILLED:
        from multispin.models.distilled import load_for_drafting

        assert name.folder is not None
        model = load_for_drafting(name.folder, load_model(target, "bfloat16", place))
        return DraftSource(name, tokenizer, PackedModel.of(model, own=True))
    reference = name.reference or target
    _check_tokenizer(reference, tokenizer, target)
    if name.kind is DrafterKind.ROUNDED:
        from multispin.models.quantised import round_weights

        model = round_weights(load_model(reference), name.bits)
    else:
        model = load_model(reference, "bfloat16", place)
    return DraftSource(name, tokenizer, PackedModel.of(model, own=True))


def check_drafter_place(name: DrafterName, place: str) -> None:
    """InputError if a drafter cannot run on a graphics processor, or there is none of this name."""
    if not name.needs_model:
        raise InputError(f"the drafter {name.text!r} runs no model, so it has no use for {place}: leave the place out")
    if name.kind is DrafterKind.ROUNDED:
        raise InputError(f"the drafter {name.text!r} is rounded for a CPU: on {place}, draft with a model or small")
    from multispin.models.loading import check_place

    check_place(place)


def _gguf_source(name: DrafterName, target: str | None, threads: int, gpu_layers: int) -> DraftSource:
    from multispin.models.gguf_trial import try_file
    from multispin.models.llama_cpp import LlamaCppModel
    from multispin.models.llama_tokenizer import tokenizer_of

    path = file_for_llama_cpp(name, target)
    if name.kind is DrafterKind.MODEL and name.reference != EMBEDDED:  # all other files were made here
        try_file(path)
    model = LlamaCppModel.load(path, gpu_layers)
    tokenizer = tokenizer_of(model)
    if name.reference and target not in (None, name.reference):  # else the file was made from the target's own
        assert target is not None
        own, tokenizer = tokenizer, _tokenizer_of(target)
        _compare(own, name.reference, tokenizer)
    return DraftSource(name, tokenizer, None, GgufDrafting(model, threads))


def _tokenizer_of(target: str) -> Tokenizer:
    """The target's tokenizer; from a GGUF file by llama.cpp, where what unpacks and reads it is not installed."""
    if find_spec(LIBRARY) is None:
        require("tokenizers")
        return load_tokenizer(target)
    found = locate(target)
    if not isinstance(found, Path) or found.is_dir():
        return load_tokenizer(target)
    unpacks = is_whole(converted_folder(target, found)) or find_spec("torch") is not None
    if unpacks and find_spec("tokenizers") is not None:
        return load_tokenizer(target)
    from multispin.models.gguf_trial import try_file
    from multispin.models.llama_cpp import LlamaCppModel
    from multispin.models.llama_tokenizer import tokenizer_of

    if target != EMBEDDED:
        try_file(found)
    return tokenizer_of(LlamaCppModel.load(found, only_vocabulary=True))


def load_drafter(spec: str, target: str, max_length: int, place: str = "cpu") -> tuple[Drafter, Tokenizer]:
    """Make the drafter that `spec` names for one text, and the target's tokenizer.

    Args:
        spec: name of the drafter, see `DrafterName`.
        target: reference of the target.
        max_length: prompt and generated tokens of the longest text to draft for.
        place: device of torch's that it computes on; default "cpu".

    """
    whole("max_length", max_length, 1, 2**31 - 1)
    source = load_draft_source(spec, target, place)
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
