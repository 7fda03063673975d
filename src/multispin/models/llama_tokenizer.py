"""The tokenizer that a GGUF file carries, as llama.cpp reads it: no library `tokenizers`."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from multispin.models.llama_cpp import LlamaCppError, LlamaCppModel
from multispin.models.tokenizer import Tokenizer

_TESTED_TOKENS = 64
_SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "eom": "eom"}
"""Special tokens as chat templates call them, with the word of the file's metadata."""


class _Encoded(NamedTuple):
    """Ids under the name that the library `tokenizers` gives them."""

    ids: list[int]


class _Added(NamedTuple):
    """The entry of a token in the library `tokenizers` beside the vocabulary proper."""

    special: bool


class LlamaCppTokens:
    """llama.cpp's tokenizer with the methods of the library `tokenizers` that `models.tokenizer` calls."""

    def __init__(self, model: LlamaCppModel) -> None:
        self._model = model
        self._pieces = model.pieces()
        ids = range(model.vocabulary_size)
        self._special = frozenset(token for token in ids if model.is_special(token))
        self._bytes = frozenset(token for token in ids if model.is_byte(token))
        space = model.metadata("tokenizer.ggml.add_space_prefix") != "false"
        self._begins_with_space = space and model.metadata("tokenizer.ggml.model") == "llama"

    def self_test(self) -> None:
        """Split a text of tokens from all over the vocabulary; LlamaCppError if its ids stand for another text."""
        step = max(1, len(self._pieces) // _TESTED_TOKENS)
        # With SentencePiece's vocabularies the library puts a space behind each of the tokens that it finds first.
        tokens = [token for token in range(0, len(self._pieces), step) if not self._model.is_found_first(token)]
        text = "".join(piece for token in tokens if (piece := _readable(self._pieces[token])))
        found = b"".join(self._pieces[token] for token in self._model.tokenize(text))
        if found.lstrip(b" ") != text.encode().lstrip(b" "):  # some families put a space before a text
            raise LlamaCppError(
                f"llama.cpp's tokenizer failed its self-test on {self._model.path}: a text was not kept"
            )

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """Number of token ids."""
        return self._model.vocabulary_size

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Every token of the vocabulary with its id."""
        return {self._model.token_text(token): token for token in range(self._model.vocabulary_size)}

    def get_added_tokens_decoder(self) -> dict[int, _Added]:
        """The special tokens."""
        return dict.fromkeys(self._special, _Added(special=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> _Encoded:
        """Ids of a text."""
        return _Encoded(self._model.tokenize(text, add_special_tokens))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        skipped = self._special if skip_special_tokens else frozenset[int]()
        kept = (token for token in ids if token not in skipped)
        text = "".join(self._joined(list(run), single) for single, run in groupby(kept, self._bytes.__contains__))
        return text[1:] if self._begins_with_space and text.startswith(" ") else text

    def _joined(self, ids: Sequence[int], single: bool) -> str:
        """Text of ids that are all single bytes of a SentencePiece vocabulary, or all something else."""
        joined = b"".join(self._pieces[token] for token in ids)
        try:
            return joined.decode()
        except UnicodeDecodeError:  # then each of the single bytes becomes a mark, as in the library `tokenizers`
            return "\N{REPLACEMENT CHARACTER}" * len(joined) if single else joined.decode(errors="replace")


def _readable(piece: bytes) -> str:
    """The text of a token, if it is printable text of its own; else nothing."""
    text = piece.decode(errors="ignore")
    return text if text.isprintable() and text.encode() == piece else ""


def tokenizer_of(model: LlamaCppModel) -> Tokenizer:
    """The tokenizer, chat template and end-of-text ids that a GGUF file carries."""
    ids = {
        name: token
        for name, word in _SPECIAL_TOKENS.items()
        if (token := _id_of(model, f"tokenizer.ggml.{word}_token_id")) is not None
    }
    special = {f"{name}_token": model.token_text(token) for name, token in ids.items()}
    stops = tuple(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if name in ids))
    tokens = LlamaCppTokens(model)
    tokens.self_test()
    return Tokenizer(tokens, stops, model.metadata("tokenizer.chat_template") or "", special)


def _id_of(model: LlamaCppModel, key: str) -> int | None:
    """A token id from a file's metadata; None if it names none. The library ends the process for one that it lacks."""
    found = model.metadata(key)
    if found is None:
        return None
    if not found.isdecimal() or len(found) > 10 or int(found) >= model.vocabulary_size:
        raise LlamaCppError(f"{model.path} says {key} = {found[:40]}, and has {model.vocabulary_size} tokens")
    return int(found)
