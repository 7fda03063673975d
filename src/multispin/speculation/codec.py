"""What a draft costs on the air: token ids packed at ⌈log2 V⌉ bits each."""

from collections.abc import Sequence

import numpy as np

from multispin.errors import InputError


def bits_per_id(vocabulary_size: int) -> int:
    """⌈log2 V⌉, the bits of one token id (the index part of eq. 9 in arXiv 2606.04581); 15 for V = 32,000."""
    if vocabulary_size < 2:
        raise InputError(f"vocabulary_size = {vocabulary_size} is below 2")
    return (vocabulary_size - 1).bit_length()


def pack_ids(ids: Sequence[int], vocabulary_size: int) -> bytes:
    """Token ids as one big-endian bit string, zero-padded to whole bytes: ⌈n·⌈log2 V⌉/8⌉ bytes."""
    width = bits_per_id(vocabulary_size)
    values = np.asarray(ids, dtype=np.int64)
    if values.size and (values.min() < 0 or values.max() >= vocabulary_size):
        raise InputError(f"a token id is outside 0 … {vocabulary_size - 1}")
    bits = (values[:, None] >> np.arange(width - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).ravel()).tobytes()


def unpack_ids(packed: bytes, count: int, vocabulary_size: int) -> list[int]:
    """The inverse of `pack_ids`; refuses a wrong length, padding that is not zero and ids outside the vocabulary."""
    width = bits_per_id(vocabulary_size)
    if len(packed) != -(-count * width // 8):
        raise InputError(f"{count} ids of {width} bits need {-(-count * width // 8)} bytes, not {len(packed)}")
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    if bits[count * width :].any():
        raise InputError("the padding bits of packed ids are not zero")
    values = bits[: count * width].reshape(count, width).astype(np.int64) @ (1 << np.arange(width - 1, -1, -1))
    if count and values.max() >= vocabulary_size:
        raise InputError(f"a packed id is outside 0 … {vocabulary_size - 1}")
    return [int(value) for value in values]
