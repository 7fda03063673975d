"""Drafters that run a language model with PyTorch, and the names under which they are loaded."""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import torch
from transformers import PreTrainedModel

from multispin.errors import InputError
from multispin.models.distilled import is_drafter, load_for_drafting
from multispin.models.loading import Tokenizer, load_model, load_tokenizer, resolve
from multispin.models.quantised import round_weights
from multispin.models.verifier import Verifier
from multispin.speculation import (
    Drafter,
    LawFormat,
    NoDrafter,
    PromptLookupDrafter,
    SamplingParams,
    TruncatedLaw,
    draft_token,
    draw,
    shaped,
    truncate,
)
from multispin.speculation.engine import Feed


class ModelDrafter:
    """A small language model with a cache of one slot.

    Under `coupled` it draws with the request's shared noise, so that its token meets the target's whenever their
    laws are close (see `speculation.rules`); under the rejection rules from exactly the law that it sends.
    """

    def __init__(self, model: PreTrainedModel, max_length: int) -> None:
        self._verifier = Verifier(model, slots=1, max_length=max_length)
        self._slot = self._verifier.open()
        self._cached: list[int] = []

    def prepare(self, committed: Sequence[int]) -> None:
        """Feed all but the newest committed token."""
        start = self._common(committed)
        if start < len(committed) - 1:
            self._feed(start, committed[start:-1], None)

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Draw `length` tokens one after the other; fewer where the slot is full."""
        return self._draw(committed, length, params, lambda logits, position: draw(logits, [position], params)[0])

    def draft_laws(
        self, committed: Sequence[int], length: int, params: SamplingParams, form: LawFormat
    ) -> tuple[list[int], list[TruncatedLaw]]:
        """Draw up to `length` tokens, each from its truncated and quantised law."""
        laws: list[TruncatedLaw] = []

        def pick(logits: torch.Tensor, position: int) -> int:
            laws.append(truncate(shaped(logits, [position], params)[0], params, form))
            return draft_token(laws[-1], params.seed, len(committed), position)

        return self._draw(committed, length, params, pick), laws

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
        return self._feed(begin - 1, text[begin - 1 : -1], params)

    def _draw(
        self, committed: Sequence[int], length: int, params: SamplingParams, pick: Callable[[torch.Tensor, int], int]
    ) -> list[int]:
        """Feed and pick in turn; `pick` gets [1, V] logits and the position that they are for."""
        length = min(length, self._verifier.max_length - len(committed))
        if length <= 0:
            return []
        start = self._common(committed)
        if len(committed) - start > 2:  # a prompt, or what came while it was away: no logits are wanted of it
            self.prepare(committed)
            start = len(committed) - 1
        # A draft accepted whole leaves two tokens to read: both in one pass, as a pass costs the same for either.
        logits = self._feed(start, committed[start:], params)[-1:]
        drafted = [pick(logits, len(committed))]
        for position in range(len(committed) + 1, len(committed) + length):
            drafted.append(pick(self._feed(position - 1, drafted[-1:], params), position))
        return drafted

    def _common(self, committed: Sequence[int]) -> int:
        """Length of the cached prefix that still holds, at most all but the newest committed token."""
        limit = min(len(self._cached), len(committed) - 1)
        common = 0
        while common < limit and self._cached[common] == committed[common]:
            common += 1
        return common

    def _feed(self, start: int, tokens: Sequence[int], params: SamplingParams | None) -> torch.Tensor:
        (logits,) = self._verifier.forward([Feed(self._slot, start, tokens, params)])
        self._cached[start:] = tokens
        return logits


SHIPPED = ("small", "medium", "large")
"""Distilled drafters of the embedded target, by size: the data of the package `multispin-drafters`."""


def shipped_folder(name: str) -> Path:
    """The folder of a shipped drafter; InputError if the package that holds it is not installed."""
    try:
        return Path(str(resources.files("multispin_drafters"))) / name
    except ModuleNotFoundError:
        raise InputError(
            f"the drafter {name!r} is in a package of its own, which is not installed: "
            "run `pip install multispin-drafters`"
        ) from None


def check_drafter(spec: str) -> None:
    """InputError if `spec` names nothing that `load_drafter` could try to load; cheap, for before long work."""
    kind, _, reference = spec.partition(":")
    quantised = len(kind) == 2 and kind[0] == "q" and kind[1].isdigit()
    if spec in SHIPPED:
        shipped_folder(spec)
        return
    if kind in ("lookup", "none", "") or (quantised and not reference):
        return
    if quantised or not is_drafter(Path(spec).expanduser()):
        resolve(reference if quantised else spec)


def load_drafter(spec: str, target: str, max_length: int) -> tuple[Drafter, Tokenizer]:
    """Make the drafter that `spec` names, and the tokenizer whose ids it speaks: the target's, or InputError.

    Args:
        spec: "lookup" (prompt lookup), "none", "small", "medium" or "large" (distilled from the embedded target), a
            folder that `multispin distill` wrote, "q8" … "q3" (the target with its weights rounded to so many bits),
            "q8:REF" (another model, rounded), or a model reference.
        target: reference of the target, whose tokenizer the model-free drafters use.
        max_length: prompt and generated tokens of the longest text to draft for.

    """
    kind, _, reference = spec.partition(":")
    if kind in ("lookup", "none") and not reference:
        return PromptLookupDrafter() if kind == "lookup" else NoDrafter(), load_tokenizer(target)
    if len(kind) == 2 and kind[0] == "q" and kind[1].isdigit():
        tokenizer = _shared_tokenizer(reference or target, target)
        return ModelDrafter(round_weights(load_model(reference or target), int(kind[1])), max_length), tokenizer
    if not spec:
        raise InputError("an empty drafter: name a model, small, medium, large, lookup, none or q3 … q8")
    folder = shipped_folder(spec) if spec in SHIPPED else Path(spec).expanduser()
    if is_drafter(folder):
        return ModelDrafter(load_for_drafting(folder, load_model(target, "bfloat16")), max_length), load_tokenizer(
            target
        )
    tokenizer = _shared_tokenizer(spec, target)
    return ModelDrafter(load_model(spec, "bfloat16"), max_length), tokenizer


def _shared_tokenizer(reference: str, target: str) -> Tokenizer:
    """The drafter's tokenizer; InputError, before any weights are read, if its ids are not the target's."""
    own, theirs = load_tokenizer(reference), load_tokenizer(target)
    if own.fingerprint != theirs.fingerprint:
        raise InputError(
            f"the tokenizer of {reference} ({own.fingerprint}) is not the target's ({theirs.fingerprint}): "
            "draft with a model of the target's family"
        )
    return own
