"""Grammars by llguidance: JSON schemas and Lark grammars over a target's tokens.

A matcher of llguidance can go back by any number of tokens, which drafts need. It makes masks on demand, so a grammar
costs nothing before its first token.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from multispin.errors import InputError, how_to_install
from multispin.models.tokenizer import Tokenizer
from multispin.outside import first_line, one_line
from multispin.speculation.grammar import MAX_GRAMMAR_CHARACTERS, TokenMask

MAX_COMPILED = 64
"""Number of compiled grammars that are kept for later requests."""
LEXER_FUEL = 400_000
"""Work allowed to prepare a grammar's regular expressions, in llguidance's units: about 50,000 per millisecond."""
GRAMMAR_SYMBOLS = 100_000
"""Most symbols of a compiled grammar."""
_NOTHING_FOLLOWS = "NoExtensionBias"  # llguidance's word
_OF_EXPRESSION = re.compile(r"regex parse error:\n *(.*)\n.*\nerror: (.*)")
_REMEDY = ". Enable '"  # text from here on is about the library's options, which clients cannot set


class TextMatcher:
    """A `Matcher` over llguidance's.

    Args:
        matcher: llguidance's matcher, at the beginning of a text.
        size: number of token ids.
        ends: ids that end a text.

    """

    def __init__(self, matcher: Any, size: int, ends: Collection[int]) -> None:
        self._matcher = matcher
        self._ends = frozenset(ends)
        self._everything: TokenMask = np.packbits(np.ones(size, dtype=bool), bitorder="little")
        self._over = self._broken = False

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in committed tokens. If the grammar does not allow them, the next `mask` says so."""
        if self._over:
            return
        taken = self._take(tokens)
        # If only an end can follow, the library accepts no further token, not even the end.
        self._over = self._ended() or (taken < len(tokens) and tokens[taken] in self._ends and self._stopped())
        self._broken = taken < len(tokens) and not self._over

    def mask(self, drafted: Sequence[int]) -> TokenMask:
        """Mask of the tokens that may follow the committed text and drafted tokens; all if these cannot be accepted.

        InputError if the grammar does not allow the committed text, allows nothing after it, or became too complex.
        """
        if self._over:
            return self._everything
        if self._broken:
            self._check_complexity()
            raise InputError("the text does not fit the request's grammar")
        taken = self._take(drafted)
        try:
            if taken < len(drafted) or self._ended():
                return self._everything
            words: TokenMask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._check_complexity()
            return words[: len(self._everything)]
        finally:
            if taken:
                self._matcher.rollback(taken)

    def _check_complexity(self) -> None:
        """InputError if the library has given the grammar up."""
        if not self._matcher.is_error():
            return
        reason = first_line(self._matcher.get_error())
        if _NOTHING_FOLLOWS in reason:
            raise InputError(
                "the grammar allows nothing here, not even an end: does a rule or $ref lead only to itself?"
            )
        raise InputError(f"the grammar became too complex: {reason}")

    def _take(self, tokens: Sequence[int]) -> int:
        return int(self._matcher.try_consume_tokens(list(tokens))) if tokens else 0

    def _ended(self) -> bool:
        """Whether an end-of-text token has been taken in."""
        return self._stopped() and self._matcher.stop_reason() == "EndOfSentence"

    def _stopped(self) -> bool:
        """Whether nothing but an end can follow."""
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())


class TextGrammars:
    """`Grammars` over the vocabulary of a tokenizer; InputError if the library is not installed.

    Args:
        tokenizer: tokenizer of the target; it must name tokens that end a text.
        max_compiled: grammars that are kept, those used last; default `MAX_COMPILED`.

    """

    def __init__(self, tokenizer: Tokenizer, max_compiled: int = MAX_COMPILED) -> None:
        self._library = load_llguidance()
        self._max_compiled = max_compiled
        self._tokenizer = tokenizer
        self._limits = self._library.LLParserLimits(
            initial_lexer_fuel=LEXER_FUEL, max_grammar_size=GRAMMAR_SYMBOLS, verbose_errors=False
        )
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def compiled(self) -> int:
        """Grammars that are kept."""
        return len(self._compiled)

    @cached_property
    def _tokens(self) -> Any:
        """The vocabulary as llguidance keeps it; made for the first grammar, which takes a fraction of a second."""
        ends = self._tokenizer.stop_ids
        if not ends:
            raise InputError("this model has no token that ends a text, which a grammar needs: leave the grammar out")
        try:
            backend, size = self._tokenizer.backend, self._tokenizer.size
            if hasattr(backend, "to_str"):
                return self._library.LLTokenizer(backend.to_str(), n_vocab=size, eos_token=list(ends))
            listed = self._library.TokenizerWrapper(_Listed(self._tokenizer))
            return self._library.LLTokenizer(listed, n_vocab=size, eos_token=list(ends))
        except (AttributeError, ValueError, RuntimeError) as error:
            raise InputError(f"llguidance cannot use this model's tokenizer: {first_line(error)}") from None

    def matcher(self, grammar: str) -> TextMatcher:
        """A matcher at the beginning of a text; InputError says why a grammar cannot be compiled."""
        if len(grammar) > MAX_GRAMMAR_CHARACTERS:
            raise InputError(f"a grammar of {len(grammar)} characters is over the limit of {MAX_GRAMMAR_CHARACTERS}")
        with self._lock:
            compiled = self._compiled.pop(grammar, None)
        if compiled is None:
            compiled = self._library.LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
            if compiled.is_error():
                raise InputError(f"the grammar cannot be compiled: {_reason(compiled.get_error())}")
            self._begun(compiled).mask([])  # some, such as a rule that is only itself, fail at their first token
        with self._lock:
            self._compiled[grammar] = compiled
            while len(self._compiled) > self._max_compiled:
                self._compiled.popitem(last=False)
        return self._begun(compiled)

    def _begun(self, compiled: Any) -> TextMatcher:
        return TextMatcher(compiled.deep_copy(), self._tokenizer.size, self._tokenizer.stop_ids)


def _reason(error: str) -> str:
    """The library's reason in one line. Of a regular expression it has several: the expression and what is wrong."""
    found = _OF_EXPRESSION.search(error)
    if found is None:
        return first_line(error).split(_REMEDY)[0]
    return f"the pattern {one_line(found[1])[:200]} cannot be used: {first_line(found[2])}"


class _Listed:
    """A tokenizer as a list of its tokens' bytes, for one that is no file of the library `tokenizers`: llama.cpp's."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.stop_ids[0], None
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
        known = tokenizer.tokens.keys() - set(tokenizer.stop_ids)
        self.special_token_ids = [token for token in range(tokenizer.size) if token not in known]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text, special_tokens=False)


def load_grammars(tokenizer: Tokenizer) -> TextGrammars | None:
    """The grammars of a target; None where llguidance is not installed, so that requests with one are refused."""
    return TextGrammars(tokenizer) if find_spec("llguidance") is not None else None


def load_llguidance() -> Any:
    """The library llguidance; InputError if it is not installed."""
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise InputError(f"grammars need llguidance ({error}): {how_to_install('device')}") from None
