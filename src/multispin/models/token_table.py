"""The bytes of every token as one file, from which a program without the tokenizer turns ids into text."""

import struct
from collections.abc import Callable, Iterable, Sequence

from multispin.errors import InputError
from multispin.models.tokenizer import Tokenizer, bytes_of

MAX_PIECE_BYTES = 2**16 - 1
_SPACE = "▁"
_CHECKED_IDS = 24
"""Ids in one of the texts that are decoded for comparison."""


def token_table(tokenizer: Tokenizer) -> bytes:
    """Bytes of each token: for id 0, 1, … two bytes with their number, big-endian, then the bytes.

    Joined and read as UTF-8 they are the text of any ids. Tokens that leave no text have no bytes.

    Args:
        tokenizer: tokenizer of the target.

    Raises:
        InputError: the tokenizer's texts are not the tokens' bytes joined.

    """
    for piece in (bytes_of, _sentence_pieces):
        pieces = _pieces(tokenizer, piece)
        if all(_agrees(tokenizer, pieces, ids) for ids in _samples(len(pieces))):
            return b"".join(struct.pack(">H", len(each)) + each for each in pieces)
    raise InputError("the target's tokens are not pieces of text that can be joined, so a page cannot show its texts")


def _pieces(tokenizer: Tokenizer, piece: Callable[[str], bytes]) -> list[bytes]:
    pieces = [b""] * tokenizer.size
    added = tokenizer.backend.get_added_tokens_decoder()
    for text, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if index >= len(pieces) or (index in added and added[index].special):
            continue
        raw = index in added and piece is bytes_of  # decoders of SentencePiece put spaces into added tokens, too
        found = text.encode("utf-8", "surrogatepass") if raw else piece(text)
        pieces[index] = found if len(found) <= MAX_PIECE_BYTES else b""
    return pieces


def _sentence_pieces(token: str) -> bytes:
    """A token of SentencePiece: ▁ is a space, and <0x0A> is a byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(_SPACE, " ").encode("utf-8", "surrogatepass")


def _samples(size: int) -> Iterable[range]:
    """Ids of all parts of the vocabulary."""
    step = max(1, size // (8 * _CHECKED_IDS))
    return (range(first, size, step)[:_CHECKED_IDS] for first in range(0, size, step * _CHECKED_IDS))


def _agrees(tokenizer: Tokenizer, pieces: Sequence[bytes], ids: Sequence[int]) -> bool:
    """Whether the joined bytes are the tokenizer's own text, but for a space that decoders leave out at the start."""
    joined = b"".join(pieces[index] for index in ids).decode("utf-8", "replace")
    return joined.removeprefix(" ") == tokenizer.decode(ids).removeprefix(" ")
