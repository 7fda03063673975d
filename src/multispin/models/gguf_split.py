"""How a GGUF file lets a text be cut before its tokens are found, where transformers passes over what the file says."""

from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from multispin.models.gguf_file import SENTENCEPIECE

_SPACE = "▁"  # as a letter of such a vocabulary

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PATTERNS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "smollm": (r"\p{N}", _WORDS),
}
"""By the name in the file: each pattern cuts the pieces that the one before has left, as llama.cpp does it."""


def set_split(backend: Tokenizer, split: str) -> None:
    """Let a tokenizer cut texts as llama.cpp does for a file.

    transformers knows the other names of patterns. With the two here it would cut as GPT-2 does: of the line feeds in
    "List:\\n\\n1. tea" it would make two tokens, where the model has learned one. With SentencePiece it would put no
    space before a text that follows a special token, or that begins with a space.

    Args:
        backend: tokenizer that transformers made of the file; changed in place.
        split: value of `tokenizer.ggml.pre`, or `SENTENCEPIECE`. What is not named here changes nothing.

    """
    if split == SENTENCEPIECE:
        prefix = [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
        backend.normalizer, backend.pre_tokenizer = normalizers.Sequence(prefix), None
    elif split in _PATTERNS:
        cuts = [Split(Regex(pattern), "isolated") for pattern in _PATTERNS[split]]
        backend.pre_tokenizer = Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
