"""A drafter that runs llama.cpp's library on a GGUF file: no PyTorch, no transformers.

The library comes as a binary wheel, `ik-llama-cpp-python`, whose ctypes declarations this file calls. They pass
structures by value, so the version is pinned and `self_test` runs at every start: a short text is decoded, rolled back
and decoded once more, and the logits must be the same bits.
"""

import ctypes
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multispin.errors import InputError
from multispin.speculation import LawFormat, SamplingParams, TruncatedLaw, draft_token
from multispin.speculation.row_sampling import Row, draw_row, truncate_row

LIBRARY_VERSION = "0.1.5"
"""The version of `ik-llama-cpp-python` whose structures this file was tested with."""
MAX_CONTEXT_TOKENS = 2**17
MAX_METADATA_BYTES = 2**20
"""Longest text that is read from a file's metadata, such as its chat template."""
_PROMPT_TOKENS_AT_ONCE = 512
_PIECE_BYTES = 1024


def load_library() -> Any:
    """The ctypes declarations of llama.cpp's library; InputError if it is not installed or has another version."""
    try:
        found = importlib.metadata.version("ik-llama-cpp-python")
        library = importlib.import_module("ik_llama_cpp._ctypes_api")
    except (ImportError, OSError) as error:
        raise InputError(
            f"a .gguf drafter needs llama.cpp's library, which cannot be loaded here ({error}): "
            "pip install 'multispin[llama]'"
        ) from None
    if found != LIBRARY_VERSION:
        raise InputError(
            f"ik-llama-cpp-python {found} is installed, but this program was tested with {LIBRARY_VERSION}: "
            f"pip install ik-llama-cpp-python=={LIBRARY_VERSION}"
        )
    _declare(library)
    return library


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SILENT = _Log(lambda _level, _text, _data: None)  # the library keeps the pointer, so it lives as long as this module


def _declare(library: Any) -> None:
    """Give types to the functions of the library that its own declarations leave out."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    for name, arguments, result in (
        ("llama_log_set", [_Log, pointer], None),
        ("llama_kv_cache_seq_rm", [pointer, integer, integer, integer], ctypes.c_bool),
        ("llama_model_meta_val_str", [pointer, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t], integer),
        ("llama_n_ctx_train", [pointer], integer),
        ("llama_token_eos", [pointer], integer),
        ("llama_model_is_recurrent", [pointer], ctypes.c_bool),
    ):
        function = getattr(library._lib, name)
        function.argtypes, function.restype = arguments, result
    library._lib.llama_log_set(_SILENT, None)


class LlamaCppModel:
    """A GGUF file in llama.cpp, with the cache of one text.

    Args:
        path: the GGUF file.
        max_length: positions of the cache [tokens]; at most what the model was trained for is used.
        threads: processor threads for drafting.
        gpu_layers: layers that a graphics processor computes, where the library has a backend for one; 0 for none.

    """

    def __init__(self, path: Path, max_length: int, threads: int = 1, gpu_layers: int = 0) -> None:
        if not path.is_file():
            raise InputError(f"there is no GGUF file {path}")
        if threads < 1:
            raise InputError(f"threads = {threads} is below 1")
        self._library = load_library()
        self._model, self._context = None, None
        options = self._library.llama_model_default_params()
        options.n_gpu_layers = gpu_layers
        self._model = self._library.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise InputError(f"llama.cpp cannot read {path}: it is damaged, or of a family that the library lacks")
        native = self._library._lib
        if native.llama_model_is_recurrent(self._model):
            raise InputError(f"{path} keeps a recurrent state, which cannot be rolled back: choose another drafter")
        self.max_length = min(max_length, MAX_CONTEXT_TOKENS, int(native.llama_n_ctx_train(self._model)))
        self.vocabulary_size = int(self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(self._model)))
        wanted = self._library.llama_context_default_params()
        wanted.n_ctx = self.max_length
        wanted.n_batch = _PROMPT_TOKENS_AT_ONCE
        wanted.n_threads = wanted.n_threads_batch = threads
        self._context = self._library.llama_init_from_model(self._model, wanted)
        if not self._context:
            raise InputError(f"llama.cpp cannot hold {self.max_length} tokens of {path}: too little memory")
        self._batch = self._library.llama_batch_init(_PROMPT_TOKENS_AT_ONCE, 0, 1)
        for place in range(_PROMPT_TOKENS_AT_ONCE):
            self._batch.n_seq_id[place] = 1
            self._batch.seq_id[place][0] = 0
        self.self_test()

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        if self._context:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._context)
            self._context = None
        if self._model:
            self._library.llama_free_model(self._model)
            self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def decode(self, start: int, tokens: Sequence[int]) -> Row:
        """Read tokens at a place; what was cached from there on is forgotten.

        Args:
            start: absolute position of the first token.
            tokens: ids, at least one.

        Returns:
            [V] float32 logits after the last token, valid until the next call.
        """
        if not tokens or start + len(tokens) > self.max_length:
            raise ValueError(f"{len(tokens)} tokens at {start} do not fit {self.max_length} positions")
        if min(tokens) < 0 or max(tokens) >= self.vocabulary_size:
            raise InputError(f"a token id is outside 0 … {self.vocabulary_size - 1}, the drafter's vocabulary")
        self._library._lib.llama_kv_cache_seq_rm(self._context, 0, start, -1)
        batch, last = self._batch, 0
        for first in range(0, len(tokens), _PROMPT_TOKENS_AT_ONCE):
            part = tokens[first : first + _PROMPT_TOKENS_AT_ONCE]
            last = len(part) - 1
            batch.n_tokens = len(part)
            for place, token in enumerate(part):
                batch.token[place] = token
                batch.pos[place] = start + first + place
                batch.logits[place] = 0
            batch.logits[last] = 1
            failed = self._library.llama_decode(self._context, batch)
            if failed:
                raise RuntimeError(f"llama.cpp cannot decode {len(part)} tokens (its code is {failed})")
        logits = self._library.llama_get_logits_ith(self._context, last)
        return np.ctypeslib.as_array(logits, (self.vocabulary_size,))

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, special tokens recognised, none added."""
        raw = text.encode()
        buffer = (ctypes.c_int32 * (len(raw) + 8))()
        count = self._library.llama_tokenize(self._model, raw, len(raw), buffer, len(buffer), False, True)
        if count < 0:
            raise InputError(f"the drafter's tokenizer cannot split a text of {len(raw)} bytes")
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The bytes that one token stands for; for a special token its name."""
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        count = self._library.llama_token_to_piece(self._model, token, buffer, _PIECE_BYTES, 0, True)
        return buffer.raw[: max(0, count)]

    def metadata(self, key: str) -> str | None:
        """A text from the file's metadata, such as `tokenizer.chat_template`; None if the file has none."""
        buffer = ctypes.create_string_buffer(MAX_METADATA_BYTES)
        read = self._library._lib.llama_model_meta_val_str
        count = read(self._model, key.encode(), buffer, MAX_METADATA_BYTES)
        return None if count < 0 else buffer.value.decode(errors="replace")

    def self_test(self) -> None:
        """Decode, roll back and decode again: the logits must be finite and the same bits, else InputError."""
        tokens = [index % self.vocabulary_size for index in (1, 2, 3, 5, 8)][: self.max_length - 1]
        first = self.decode(0, tokens).copy()
        self.decode(len(tokens) - 1, [tokens[0]])
        again = self.decode(len(tokens) - 1, tokens[-1:])
        # A batch of one and a batch of five add in different orders; a rolled back token must still agree closely.
        if not np.isfinite(first).all() or int(first.argmax()) != int(again.argmax()):
            raise InputError("llama.cpp failed its self-test on this file: a token decoded again has other logits")
        self.decode(0, tokens[:1])


class LlamaCppDrafter:
    """A `Drafter` over llama.cpp.

    Args:
        model: the GGUF file, loaded.

    """

    def __init__(self, model: LlamaCppModel) -> None:
        self._model = model
        self._cached: list[int] = []

    def prepare(self, committed: Sequence[int]) -> None:
        """Read all but the newest committed token, so that the first draft is not slower than the others."""
        committed = committed[: self._model.max_length]
        start = self._common(committed)
        if start < len(committed) - 1:
            self._feed(start, committed[start:-1])

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Draw up to `length` tokens one after the other; fewer where the drafter's context ends."""
        return self._draw(committed, length, lambda row, position: draw_row(row, position, params))

    def draft_laws(
        self, committed: Sequence[int], length: int, params: SamplingParams, form: LawFormat
    ) -> tuple[list[int], list[TruncatedLaw]]:
        """Draw up to `length` tokens, each from the truncated distribution that is sent for it."""
        laws: list[TruncatedLaw] = []

        def pick(row: Row, position: int) -> int:
            laws.append(truncate_row(row, position, params, form))
            return draft_token(laws[-1], params.seed, len(committed), position)

        return self._draw(committed, length, pick), laws

    def _draw(self, committed: Sequence[int], length: int, pick: Callable[[Row, int], int]) -> list[int]:
        length = min(length, self._model.max_length - len(committed) + 1)
        if length <= 0:
            return []
        start = self._common(committed)
        drafted = [pick(self._feed(start, committed[start:]), len(committed))]
        for position in range(len(committed) + 1, len(committed) + length):
            drafted.append(pick(self._feed(position - 1, drafted[-1:]), position))
        return drafted

    def _common(self, committed: Sequence[int]) -> int:
        """Length of the cached prefix that still holds, at most all but the newest committed token."""
        limit = min(len(self._cached), len(committed) - 1)
        common = 0
        while common < limit and self._cached[common] == committed[common]:
            common += 1
        return common

    def _feed(self, start: int, tokens: Sequence[int]) -> Row:
        row = self._model.decode(start, tokens)
        self._cached[start:] = tokens
        return row
