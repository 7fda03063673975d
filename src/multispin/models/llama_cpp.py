"""A drafter that runs llama.cpp's library on a GGUF file: no PyTorch, no transformers.

The library comes as a binary wheel, `ik-llama-cpp-python`, whose ctypes declarations this file calls. They pass
structures by value, so the version is pinned and `self_test` runs at every start: a short text is read at once, one by
one, and again after a rollback, and the logits must agree.

On aarch64 the library's product of one row with a matrix in blocks of 32 leaves out what is beyond the last multiple of
128 (SmolLM2-135M's rows have 576). Products of two rows are right. So where the self-test fails, each token whose
logits are asked for gets a twin: the same token at the next position, which is forgotten at once.
"""

import ctypes
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multispin.checks import thread_count
from multispin.errors import InputError, how_to_install
from multispin.models import llama_log
from multispin.models.gguf_header import SPLIT, check_header
from multispin.speculation import (
    DistributionFormat,
    Follower,
    Grammars,
    SamplingParams,
    TruncatedDistribution,
    draft_token,
)
from multispin.speculation.drafter import kept_prefix
from multispin.speculation.grammar import allowed
from multispin.speculation.row_sampling import Row, draw_row, fitted_row, truncate_row

LIBRARY_VERSION = "0.1.5"
"""The version of `ik-llama-cpp-python` whose structures this file was tested with."""
MAX_CONTEXT_TOKENS = 2**17
MIN_CONTEXT_TOKENS = 16
"""Shortest context: the self-test needs a few positions."""
MAX_METADATA_BYTES = 2**20
"""Longest text that is read from a file's metadata, such as its chat template."""
_PROMPT_TOKENS_AT_ONCE = 16
"""Tokens in one call of the library. From 32 on its products for Q4_1 files were seen to be wrong on a processor with
AVX-512; shorter batches equal single steps there bit by bit."""
_TOLERANCE = 0.02
"""Largest difference between a batch and single steps that passes the self-test, as a share of the logits' range."""
_PIECE_BYTES = 1024
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 8, 16, 32  # bits of a token's attributes in the library


class LlamaCppError(InputError):
    """llama.cpp cannot draft with this file, on this processor, or with this version of its library."""


def load_llama_cpp() -> Any:
    """The ctypes declarations of llama.cpp's library; InputError if it is not installed or has another version."""
    try:
        found = importlib.metadata.version("ik-llama-cpp-python")
        library = importlib.import_module("ik_llama_cpp._ctypes_api")
    except (ImportError, OSError) as error:
        raise InputError(
            f"a .gguf drafter needs llama.cpp's library, which cannot be loaded here ({error}): "
            f"{how_to_install('llama')}"
        ) from None
    if found.partition("+")[0] != LIBRARY_VERSION:  # behind a + stands how it was packed
        raise LlamaCppError(
            f"ik-llama-cpp-python {found} is installed, but this program was tested with {LIBRARY_VERSION}: "
            f"pip install ik-llama-cpp-python=={LIBRARY_VERSION}"
        )
    _declare(library)
    return library


def _declare(library: Any) -> None:
    """Give types to the functions of the library that its own declarations leave out."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    for name, arguments, result in (
        ("llama_log_set", [llama_log.Log, pointer], None),
        ("llama_kv_cache_seq_rm", [pointer, integer, integer, integer], ctypes.c_bool),
        ("llama_kv_cache_seq_cp", [pointer, integer, integer, integer, integer], None),
        ("llama_model_meta_val_str", [pointer, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t], integer),
        ("llama_n_ctx_train", [pointer], integer),
        ("llama_token_get_attr", [pointer, integer], integer),
        ("llama_token_get_text", [pointer, integer], ctypes.c_char_p),
        ("llama_model_is_recurrent", [pointer], ctypes.c_bool),
        ("llama_supports_gpu_offload", [], ctypes.c_bool),
    ):
        function = getattr(library._lib, name)
        function.argtypes, function.restype = arguments, result
    llama_log.listen(library)


def has_gpu_backend() -> bool:
    """Whether llama.cpp's library can compute layers on a graphics processor."""
    return bool(load_llama_cpp()._lib.llama_supports_gpu_offload())


class LlamaCppModel:
    """A GGUF file in llama.cpp: weights and vocabulary, shared by any number of texts. `load` reads a file.

    Args:
        path: GGUF file of the model.
        library: llama.cpp's library, as `load_llama_cpp` gives it.
        handle: the library's pointer to the model, which is freed with this object.

    """

    def __init__(self, path: Path, library: Any, handle: Any) -> None:
        self.path, self.library, self._handle = path, library, handle
        self.known_positions = int(self._native.llama_n_ctx_train(handle))
        self.vocabulary_size = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(handle)))

    @classmethod
    def load(cls, path: Path, gpu_layers: int = 0, only_vocabulary: bool = False) -> "LlamaCppModel":
        """Read a file; InputError if llama.cpp cannot draft with it.

        Args:
            path: GGUF file of the model.
            gpu_layers: layers that a graphics processor computes; default 0. InputError where the library has no
                backend for one.
            only_vocabulary: read no weights; for a tokenizer. Default no.
        """
        check_header(path)  # the library would write bytes that are not its magic to the terminal
        library = load_llama_cpp()
        if gpu_layers and not has_gpu_backend():
            raise InputError(
                f"gpu_layers = {gpu_layers}: llama.cpp's library was built without a graphics processor: leave it out"
            )
        options = library.llama_model_default_params()
        options.n_gpu_layers, options.vocab_only = gpu_layers, only_vocabulary
        llama_log.forget()
        handle = library.llama_model_load_from_file(str(path).encode(), options)
        if not handle:
            reason = llama_log.reason()
            if "split" in reason.replace(str(path), ""):
                raise LlamaCppError(f"{path} {SPLIT}")
            raise LlamaCppError(
                f"llama.cpp cannot read {path}: it is damaged, or of a family that the library lacks ({reason})"
            )
        model = cls(path, library, handle)
        if library._lib.llama_model_is_recurrent(handle):
            raise LlamaCppError(f"{path} has a recurrent state, which cannot be rolled back: choose another drafter")
        return model

    @property
    def handle(self) -> Any:
        """The library's pointer to the model."""
        return self._handle

    @property
    def _native(self) -> Any:
        return self.library._lib

    def __del__(self) -> None:
        self.library.llama_free_model(self._handle)

    def tokenize(self, text: str, special_tokens: bool = False) -> list[int]:
        """Ids of a text, special tokens recognised; `special_tokens` adds those that the file puts around a text."""
        raw = text.encode()
        buffer = (ctypes.c_int32 * (len(raw) + 8))()
        count = self.library.llama_tokenize(self._handle, raw, len(raw), buffer, len(buffer), special_tokens, True)
        if count < 0:
            raise InputError(f"the drafter's tokenizer cannot split a text of {len(raw)} bytes")
        return list(buffer[:count])

    def pieces(self) -> list[bytes]:
        """The bytes that each token stands for, by id; for a special token its name."""
        buffer, convert = ctypes.create_string_buffer(_PIECE_BYTES), self.library.llama_token_to_piece
        return [
            ctypes.string_at(buffer, max(0, convert(self._handle, token, buffer, _PIECE_BYTES, 0, True)))
            for token in range(self.vocabulary_size)
        ]

    def token_text(self, token: int) -> str:
        """A token as the file's vocabulary writes it."""
        text: bytes = self._native.llama_token_get_text(self._handle, token)
        return text.decode(errors="replace")

    def is_special(self, token: int) -> bool:
        """Whether a token stands for no text."""
        return bool(self._attributes(token) & (_UNKNOWN | _CONTROL))

    def is_found_first(self, token: int) -> bool:
        """Whether a text is searched for a token before it is cut: one that is special, or added by a user."""
        return bool(self._attributes(token) & (_UNKNOWN | _CONTROL | _USER_DEFINED))

    def is_byte(self, token: int) -> bool:
        """Whether a token of a SentencePiece vocabulary stands for one byte."""
        return bool(self._attributes(token) & _BYTE)

    def _attributes(self, token: int) -> int:
        return int(self._native.llama_token_get_attr(self._handle, token))

    def metadata(self, key: str) -> str | None:
        """A text from the file's metadata, such as `tokenizer.chat_template`; None if the file has none."""
        buffer = ctypes.create_string_buffer(MAX_METADATA_BYTES)
        read = self._native.llama_model_meta_val_str
        count = read(self._handle, key.encode(), buffer, MAX_METADATA_BYTES)
        return None if count < 0 else buffer.value.decode(errors="replace")


class LlamaCppContext:
    """The cache of one text, or of several branches of one, with the model that fills it. `open` makes and tests one.

    Args:
        model: loaded GGUF file.
        context: the library's pointer to the cache, which is freed with this object.
        max_length: positions of the cache [tokens].
        branches: texts that are cached at once. They share what they have in common.

    """

    def __init__(self, model: LlamaCppModel, context: Any, max_length: int, branches: int) -> None:
        self.model = model  # is freed after this
        self._library, self._context = model.library, context
        self.vocabulary_size, self.max_length = model.vocabulary_size, max_length
        self._batch = self._library.llama_batch_init(_PROMPT_TOKENS_AT_ONCE, 0, 1)
        for place in range(_PROMPT_TOKENS_AT_ONCE):
            self._batch.n_seq_id[place] = 1
        self.cached: tuple[list[int], ...] = tuple([] for _ in range(branches))
        """The tokens that each branch holds."""
        self.twins = False
        """Whether tokens are read in pairs, because this processor's products of single rows are wrong."""

    @classmethod
    def open(cls, model: LlamaCppModel, max_length: int, threads: int = 1, branches: int = 1) -> "LlamaCppContext":
        """Make a cache, and test the library on it; InputError if it has no room, or the test fails.

        Args:
            model: loaded GGUF file.
            max_length: positions of the cache [tokens]; at most what the model was trained for is used.
            threads: processor threads for drafting, at most 16 for each core; default 1.
            branches: texts that are cached at once; default 1.
        """
        thread_count(threads)
        if branches < 1:
            raise InputError(f"branches = {branches} is below 1")
        library = model.library
        length = min(max(max_length, MIN_CONTEXT_TOKENS), MAX_CONTEXT_TOKENS, model.known_positions)
        wanted = library.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = length * branches + 1, branches  # and a place for the twin
        # Its flash attention aborts the process where a token sees none of the first places, as in a branch of its own.
        wanted.flash_attn = branches == 1
        wanted.n_batch = wanted.n_ubatch = _PROMPT_TOKENS_AT_ONCE
        wanted.n_threads = wanted.n_threads_batch = threads
        context = library.llama_init_from_model(model.handle, wanted)
        if not context:
            raise LlamaCppError(f"llama.cpp cannot hold {length} tokens of {model.path}: too little memory")
        made = cls(model, context, length, branches)
        made.self_test()
        return made

    def __del__(self) -> None:
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)

    def decode(self, start: int, tokens: Sequence[int], branch: int = 0) -> Row:
        """Read tokens at a place; what was cached of the branch from there on is forgotten.

        Args:
            start: absolute position of the first token.
            tokens: ids, at least one.
            branch: the text that they belong to, 0 … `branches` − 1; default 0.

        Returns:
            [V] float32 logits after the last token, valid until the next call.
        """
        cached = self.cached[branch]
        if not tokens or start + len(tokens) > self.max_length or start > len(cached):
            raise ValueError(f"{len(tokens)} tokens at {start} do not fit {self.max_length} positions")
        if min(tokens) < 0 or max(tokens) >= self.vocabulary_size:
            raise InputError(f"a token id is outside 0 … {self.vocabulary_size - 1}, the drafter's vocabulary")
        self._library._lib.llama_kv_cache_seq_rm(self._context, branch, start, -1)
        del cached[start:]
        at_once, last = _PROMPT_TOKENS_AT_ONCE - self.twins, 0
        for first in range(0, len(tokens), at_once):
            part = tokens[first : first + at_once]
            last = len(part) - 1
            self._read(part, start + first, branch)
        cached += tokens
        logits = self._library.llama_get_logits_ith(self._context, last)
        return np.ctypeslib.as_array(logits, (self.vocabulary_size,))

    def _read(self, tokens: Sequence[int], start: int, branch: int) -> None:
        """Read as many tokens as fit one call of the library."""
        batch, end = self._batch, start + len(tokens)
        batch.n_tokens = len(tokens) + self.twins
        for place, token in enumerate([*tokens, tokens[-1]] if self.twins else tokens):
            batch.token[place], batch.pos[place], batch.seq_id[place][0] = token, start + place, branch
            batch.logits[place] = start + place >= end - 1
        failed = self._library.llama_decode(self._context, batch)
        if self.twins:
            self._library._lib.llama_kv_cache_seq_rm(self._context, branch, end, -1)
        if failed:
            raise RuntimeError(f"llama.cpp cannot decode {len(tokens)} tokens (its code is {failed})")

    def copy(self, source: int, branch: int) -> None:
        """Let a branch begin with all that another one has cached. Nothing is read again, and no memory is copied."""
        self._library._lib.llama_kv_cache_seq_rm(self._context, branch, -1, -1)
        self._library._lib.llama_kv_cache_seq_cp(self._context, source, branch, -1, -1)
        self.cached[branch][:] = self.cached[source]

    def self_test(self) -> None:
        """Read a few tokens at once, one by one, and again after a rollback; InputError if the logits do not agree.

        If a batch gave other results than single steps, the library would silently draft nonsense.
        """
        difference = self._difference()
        if not difference <= _TOLERANCE:
            self.twins = True
            difference = self._difference()
        if not difference <= _TOLERANCE:
            raise LlamaCppError(
                f"llama.cpp failed its self-test on this file and processor: the same tokens, read at once and one by "
                f"one, have logits that differ by {difference:.1%} of their range; use another file or draft with torch"
            )

    def _difference(self) -> float:
        """Largest difference of logits between tokens read at once and one by one, as a share of their range."""
        count = min(_PROMPT_TOKENS_AT_ONCE - self.twins, self.max_length)  # one call of the library
        tokens = [(7 * index + 1) % self.vocabulary_size for index in range(count)]
        at_once = self.decode(0, tokens).copy()
        for start, token in enumerate(tokens):
            one_by_one = self.decode(start, [token])
        if not np.isfinite(one_by_one).all():
            return float("inf")
        again = self.decode(count - 1, tokens[-1:])
        return float(np.abs(at_once - again).max()) / max(float(at_once.max() - at_once.min()), 1e-30)


class LlamaCppDrafter:
    """A `Drafter` over llama.cpp.

    A text that the model cannot hold (longer than its context, or with ids that it lacks) gets an empty or shorter
    draft, so the drafter never limits what the target may write.

    Args:
        context: cache of the text, and the model.
        grammars: compiles the grammars of requests; by default drafts follow none.
        branch: which of the context's branches it fills; default 0.
        vocabulary_size: number of ids that the target can emit; by default what the file has, its padding included.

    """

    def __init__(
        self,
        context: LlamaCppContext,
        grammars: Grammars | None = None,
        branch: int = 0,
        vocabulary_size: int | None = None,
    ) -> None:
        self._context, self._grammars, self._branch = context, grammars, branch
        self._size = context.vocabulary_size if vocabulary_size is None else vocabulary_size
        self._follower = Follower(grammars)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that it drafts for."""
        return self._context.max_length

    def fork(self, branch: int) -> "LlamaCppDrafter":
        """A drafter that goes on from what this one has read, for a text that continues in another way.

        Args:
            branch: of the context, 0 … `branches` − 1, not this drafter's own. What was cached in it is forgotten.
        """
        if branch == self._branch or not 0 <= branch < len(self._context.cached):
            raise ValueError(f"branch {branch} is none of the {len(self._context.cached)} of this context, or its own")
        self._context.copy(self._branch, branch)
        return LlamaCppDrafter(self._context, self._grammars, branch, self._size)

    def prepare(self, committed: Sequence[int]) -> None:
        """Read all but the newest committed token, so that the first draft is not slower than the others."""
        start = kept_prefix(self._context.cached[self._branch], committed)
        if start < len(committed) - 1 and self._holds(committed):
            self._feed(start, committed[start:-1])

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Draw up to `length` tokens one after the other; fewer where the drafter's context ends."""
        mask, size = self._masking(committed, params), self._size
        return self._draw(
            committed, length, lambda row, text: draw_row(mask(fitted_row(row, size), text), text, params)
        )

    def draft_distributions(
        self, committed: Sequence[int], length: int, params: SamplingParams, form: DistributionFormat
    ) -> tuple[list[int], list[TruncatedDistribution]]:
        """Draw up to `length` tokens, each from the truncated distribution that is sent for it."""
        distributions: list[TruncatedDistribution] = []
        mask = self._masking(committed, params)

        def pick(row: Row, text: Sequence[int]) -> int:
            fitted = fitted_row(row, form.vocabulary_size)
            distributions.append(truncate_row(mask(fitted, text), text, params, form))
            return draft_token(distributions[-1], params.seed, len(committed), len(text))

        return self._draw(committed, length, pick), distributions

    def _masking(self, committed: Sequence[int], params: SamplingParams) -> Callable[[Row, Sequence[int]], Row]:
        """A function that leaves a row only the ids that the request's grammar allows after a text."""
        matcher = self._follower.follow(params.grammar, committed[params.prompt_tokens :])
        if matcher is None:
            return lambda row, _: row

        def mask(row: Row, text: Sequence[int]) -> Row:
            try:
                may = allowed(matcher.mask(text[len(committed) :]), len(row))
            except InputError:  # the edge reports it
                return row
            return np.where(may, row, np.float32(-np.inf)) if may.any() else row

        return mask

    def _draw(self, committed: Sequence[int], length: int, pick: Callable[[Row, Sequence[int]], int]) -> list[int]:
        length = min(length, self._context.max_length - len(committed) + 1)
        if length <= 0 or not self._holds(committed):
            return []
        start = kept_prefix(self._context.cached[self._branch], committed)
        text = [*committed]
        text.append(pick(self._feed(start, committed[start:]), text))
        while len(text) < len(committed) + length:
            text.append(pick(self._feed(len(text) - 1, text[-1:]), text))
        return text[len(committed) :]

    def _holds(self, committed: Sequence[int]) -> bool:
        return len(committed) <= self._context.max_length and max(committed) < self._context.vocabulary_size

    def _feed(self, start: int, tokens: Sequence[int]) -> Row:
        return self._context.decode(start, tokens, self._branch)
