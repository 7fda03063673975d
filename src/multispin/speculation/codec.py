"""Token ids packed at ⌈log2 V⌉ bits each, and the bit strings that all payloads are made of."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multispin.errors import InputError

_FEW = 64
"""Up to this many ids (any draft) one long integer is faster than arrays. For more (prompts) arrays are faster."""


@lru_cache(maxsize=64)  # asked for with every frame
def bits_per_id(vocabulary_size: int) -> int:
    """⌈log2 V⌉, the bits of one token id (the index part of eq. 9 in arXiv 2606.04581); 15 for V = 32,000.

    Args:
        vocabulary_size: V, number of token ids.

    Raises:
        InputError: V is below 2.
    """
    if vocabulary_size < 2:
        raise InputError(f"vocabulary_size = {vocabulary_size} is below 2")
    return (vocabulary_size - 1).bit_length()


def to_bits(values: ArrayLike, width: int) -> NDArray[np.uint8]:
    """[n, width] bits, most significant first, of n integers in 0 … 2^width − 1.

    Args:
        values: one integer or [n] of them; their range is not checked.
        width: bits of each.
    """
    numbers = np.asarray(values, dtype=np.int64).reshape(-1)
    bits: NDArray[np.uint8] = ((numbers[:, None] >> np.arange(width - 1, -1, -1)) & 1).astype(np.uint8)
    return bits


def from_bits(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The integers of [n, width] bits, width ≤ 62.

    Args:
        bits: zeros and ones, most significant first in each row.

    Returns:
        [n] int64.
    """
    values: NDArray[np.int64] = bits.astype(np.int64) @ (1 << np.arange(bits.shape[1] - 1, -1, -1))
    return values


def check_padding(bits: NDArray[np.uint8], used: int) -> None:
    """InputError unless the bit string has `used` bits and then zeros up to a whole byte.

    Args:
        bits: the whole bit string, one element per bit.
        used: number of bits that carry something.
    """
    if len(bits) != -(-used // 8) * 8:
        raise InputError(f"{used} bits need {-(-used // 8)} bytes, not {len(bits) // 8}")
    if bits[used:].any():
        raise InputError("the padding bits are not zero")


def pack_ids(ids: Sequence[int], vocabulary_size: int) -> bytes:
    """Token ids as one big-endian bit string, zero-padded to whole bytes: ⌈n·⌈log2 V⌉/8⌉ bytes.

    Args:
        ids: n token ids.
        vocabulary_size: V, number of token ids there are.

    Raises:
        InputError: an id is outside 0 … V − 1.
    """
    width = bits_per_id(vocabulary_size)
    if len(ids) <= _FEW:
        number = 0
        for value in ids:
            if not 0 <= value < vocabulary_size:
                raise InputError(f"token id {value} is outside 0 … {vocabulary_size - 1}")
            number = number << width | int(value)
        used = len(ids) * width
        return (number << -used % 8).to_bytes(-(-used // 8), "big")
    values = np.asarray(ids, dtype=np.int64)
    if values.size and (values.min() < 0 or values.max() >= vocabulary_size):
        raise InputError(f"token ids {values.min()} … {values.max()} reach outside 0 … {vocabulary_size - 1}")
    return np.packbits(to_bits(values, width)).tobytes()


def unpack_ids(packed: bytes, count: int, vocabulary_size: int) -> list[int]:
    """The inverse of `pack_ids`; refuses a wrong length, padding that is not zero and ids outside the vocabulary.

    Args:
        packed: the bit string.
        count: n, number of ids in it.
        vocabulary_size: V, number of token ids there are.

    Raises:
        InputError: `pack_ids` cannot have made it.
    """
    width = bits_per_id(vocabulary_size)
    if len(packed) != (count * width + 7) // 8:
        raise InputError(f"{count} ids of {width} bits need {-(-count * width // 8)} bytes, not {len(packed)}")
    if count <= _FEW:
        number, padding = int.from_bytes(packed, "big"), -(count * width) % 8
        if number & ((1 << padding) - 1):
            raise InputError("the padding bits are not zero")
        number >>= padding
        if count == 1 and number < vocabulary_size:  # as most frames of a stream
            return [number]
        mask = (1 << width) - 1
        few = [number >> shift & mask for shift in range((count - 1) * width, -1, -width)]
        if few and max(few) >= vocabulary_size:
            raise InputError(f"packed id {max(few)} is outside 0 … {vocabulary_size - 1}")
        return few
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    check_padding(bits, count * width)
    values = from_bits(bits[: count * width].reshape(count, width))
    if count and values.max() >= vocabulary_size:
        raise InputError(f"packed id {values.max()} is outside 0 … {vocabulary_size - 1}")
    return [int(value) for value in values]
