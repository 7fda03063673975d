"""Grammars: which tokens may follow, so that a text has a given form. The interface; `models.grammar` implements it.

A grammar belongs to the target's distribution: ids that cannot continue the text have probability 0 before anything
else is applied. At a drafted position the text is the committed one and the drafted tokens before it. So a drafted
token stands by the same rule as everywhere else, and the text is the one that plain decoding under the grammar writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError

if TYPE_CHECKING:
    import torch

MAX_GRAMMAR_CHARACTERS = 2**16
"""Longest grammar that a request may name, as the library writes it."""

TokenMask = NDArray[np.uint8]
"""[⌈V/8⌉] bits, the lowest bit of the first byte for id 0: whether an id may follow."""


class Matcher(Protocol):
    """Follows one text under one grammar."""

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in committed tokens. If the grammar does not allow them, the next `mask` says so.

        Args:
            tokens: ids that follow those taken in before.
        """

    def mask(self, drafted: Sequence[int]) -> TokenMask:
        """Mask of the tokens that may follow the committed text and some drafted tokens; all, where those cannot stand.

        InputError if the grammar does not allow the committed text, or if it became too complex.

        Args:
            drafted: ids drafted after the committed text; may be empty.
        """


class AheadMatcher:
    """A matcher for what follows tokens that were drafted but are not committed.

    Args:
        matcher: matcher that has read the committed text.
        ahead: drafted tokens behind the committed text.

    """

    def __init__(self, matcher: Matcher, ahead: Sequence[int]) -> None:
        self._matcher, self._ahead = matcher, list(ahead)

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in further drafted tokens."""
        self._ahead += tokens

    def mask(self, drafted: Sequence[int]) -> TokenMask:
        """Mask of the tokens that may follow the drafted tokens and some more."""
        return self._matcher.mask([*self._ahead, *drafted])


class Grammars(Protocol):
    """Compiles grammars for one vocabulary."""

    def matcher(self, grammar: str) -> Matcher:
        """A matcher at the beginning of a text; InputError says why a grammar cannot be compiled.

        Args:
            grammar: the grammar, as the library writes it; at most `MAX_GRAMMAR_CHARACTERS`.
        """


def masks_along(matcher: Matcher, drafted: Sequence[int]) -> NDArray[np.uint8]:
    """[L + 1, ⌈V/8⌉]: what may stand at each of L drafted positions and after the last one.

    Args:
        matcher: matcher that has read the committed text.
        drafted: the L drafted ids.
    """
    return np.stack([matcher.mask(drafted[:index]) for index in range(len(drafted) + 1)])


def allowed(masks: NDArray[np.uint8], size: int) -> NDArray[np.bool_]:
    """Bits as [..., size] truth values; ids beyond the mask are not allowed.

    Args:
        masks: [..., ⌈V/8⌉] bytes, as `TokenMask`.
        size: number of ids of the result.
    """
    bits = np.unpackbits(masks, axis=-1, bitorder="little")[..., :size].astype(bool)
    missing = size - bits.shape[-1]
    return np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, missing)]) if missing else bits


def masked(logits: torch.Tensor, masks: NDArray[np.uint8]) -> torch.Tensor:
    """Logits with −inf for every id that may not follow.

    Args:
        logits: rows of logits, [R, V].
        masks: one bit per id, [R, ⌈V/8⌉] bytes.

    Returns:
        [R, V] float32, a copy. InputError if the grammar leaves a row nothing that the model can emit.
    """
    import torch

    may = torch.from_numpy(allowed(masks, logits.shape[-1])).to(logits.device)
    changed = logits.float().masked_fill(~may, -math.inf)
    if bool((changed.amax(-1) == -math.inf).any()):
        raise InputError("the grammar allows no token that the model has: the text cannot go on")
    return changed


class Follower:
    """Keeps a drafter's matcher in step with the texts that it is asked to go on with.

    Args:
        grammars: compiles grammars; None for a drafter that follows none.

    """

    def __init__(self, grammars: Grammars | None) -> None:
        self._grammars = grammars
        self._matcher: Matcher | None = None
        self._grammar, self._taken = "", list[int]()

    def follow(self, grammar: str, written: Sequence[int]) -> Matcher | None:
        """A matcher that has taken in the generated part of a text; None without a grammar, or where it cannot be.

        A drafter without one drafts all the same: its drafts are accepted less often.

        Args:
            grammar: the request's grammar; empty for none.
            written: ids of the text without its prompt.
        """
        if not grammar or self._grammars is None:
            return None
        known = len(self._taken)
        try:
            if self._matcher is None or grammar != self._grammar or list(written[:known]) != self._taken:
                self._matcher, self._grammar, self._taken, known = self._grammars.matcher(grammar), grammar, [], 0
        except InputError:
            self._matcher = None
            return None
        self._matcher.advance(written[known:])
        self._taken = list(written)
        return self._matcher
