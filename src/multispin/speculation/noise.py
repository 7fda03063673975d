"""Shared randomness: the same number for (seed, position, token) on every machine, in any order.

It turns three integers into a uniform or Gumbel variate. It has no state, no generator and no model. Device and edge
call the same functions, so they have the same noise without exchanging it. A retry, a resume or another draft length
cannot shift it.

The 64-bit seed and the position are mixed into four 32-bit keys with splitmix64 (Steele, Lea, Flood 2014). Each token
id then passes twice through a keyed 32-bit finaliser of the murmur3 family (constants: C. Wellons' "lowbias32" search).
All integer arithmetic is modulo 2^32, so numpy and torch give the same bits on CPU and CUDA. The logarithms of `gumbel`
may differ in the last place of a float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**63 - 1
_MASK64 = 2**64 - 1
_FACTORS = 0x7FEB352D, 0x846CA68B
_INVERSE_FACTORS = tuple(pow(factor, -1, 2**32) for factor in _FACTORS)


def check_seed(seed: int) -> int:
    """Return `seed` if it lies in 0 … 2^63 − 1, else raise InputError."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed = {seed} is outside 0 … {MAX_SEED}")
    return seed


def _splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)


def noise_keys_of(seed: int, position: int) -> tuple[int, int, int, int]:
    """Four 32-bit keys of one (seed, position).

    Args:
        seed: seed of the noise, 0 … 2^63 − 1.
        position: absolute position of the token.
    """
    first = _splitmix64(_splitmix64(seed) ^ position)
    second = _splitmix64(first)
    return first >> 32, first & 0xFFFFFFFF, second >> 32, second & 0xFFFFFFFF


def noise_keys(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.int64]:
    """The four 32-bit keys of each (seed, position), as signed numbers: [4, N], as by `noise_keys_of`.

    Args:
        seeds: N seeds, 0 … 2^63 − 1.
        positions: N absolute positions, one per seed.
    """

    def mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

    first = mixed(mixed(np.array(seeds, dtype=np.uint64)) ^ np.array(positions, dtype=np.uint64))
    second = mixed(first)
    words = np.stack([first >> np.uint64(32), first, second >> np.uint64(32), second])
    return words.astype(np.uint32).view(np.int32).astype(np.int64)


def derive_seed(seed: int, *path: int) -> int:
    """An independent seed for a part of something: the seed of request 3 of a run is `derive_seed(seed, 3)`.

    Args:
        seed: seed of the whole.
        *path: numbers of the part, from the outermost.

    Returns:
        A seed in 0 … 2^63 − 1.
    """
    for step in path:
        seed = _splitmix64(_splitmix64(seed) ^ step)
    return seed >> 1


def _folded(key: int) -> np.uint32:
    """A key after a shift of its own: (w ^ k) ^ ((w ^ k) >> 16) = (w ^ (w >> 16)) ^ `_folded(k)`.

    So the shift that ends one finaliser and the one that begins the next one cancel, and a third of all work is saved.
    """
    return np.uint32(key ^ (key >> 16))


def _scramble(words: NDArray[np.uint32], shifted: NDArray[np.uint32]) -> None:
    """The middle of the finaliser, in place; `shifted` is a scratch array of the same shape."""
    words *= np.uint32(_FACTORS[0])
    words ^= np.right_shift(words, 15, out=shifted)
    words *= np.uint32(_FACTORS[1])


def _words(
    tokens: NDArray[np.integer], first_key: int, second_key: int, room: tuple[NDArray[np.uint32], ...] = ()
) -> NDArray[np.uint32]:
    words, shifted = room or (np.empty(tokens.shape, np.uint32), np.empty(tokens.shape, np.uint32))
    np.copyto(words, tokens, casting="unsafe")
    words ^= np.right_shift(words, 16, out=shifted)
    for key in (first_key, second_key):
        words ^= _folded(key)
        _scramble(words, shifted)
    words ^= np.right_shift(words, 16, out=shifted)
    return words


def high_words(
    seed: int, position: int, tokens: NDArray[np.integer], room: tuple[NDArray[np.uint32], ...] = ()
) -> NDArray[np.uint32]:
    """The upper 32 bits h of the uniform variates: h/2^32 < u < (h + 1)/2^32.

    Args:
        seed: seed of the request.
        position: absolute position of the token.
        tokens: token ids, of any shape.
        room: two arrays of that shape that are overwritten, the first with the result; by default new ones.

    """
    key_a, key_b, _, _ = noise_keys_of(seed, position)
    return _words(tokens, key_a, key_b, room)


def tokens_of_high_words(seed: int, position: int, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The inverse of `high_words`: the 32-bit number, a token id or beyond all of them, that has each upper word.

    Args:
        seed: seed of the request.
        position: absolute position of the token.
        words: upper words h, of any shape.
    """
    key_a, key_b, _, _ = noise_keys_of(seed, position)
    tokens = words ^ (words >> np.uint32(16))
    for key in (key_b, key_a):
        tokens *= np.uint32(_INVERSE_FACTORS[1])
        tokens ^= (tokens >> np.uint32(15)) ^ (tokens >> np.uint32(30))
        tokens *= np.uint32(_INVERSE_FACTORS[0])
        tokens ^= _folded(key)
    tokens ^= tokens >> np.uint32(16)
    return tokens


def uniform_word(seed: int, position: int, token: int) -> int:
    """The 52 bits of one variate as an integer, without numpy: `uniform_numpy` is (this + 0.5) / 2^52.

    Args:
        seed: seed of the request.
        position: absolute position of the token.
        token: id of the token.
    """

    def finalised(word: int, key: int) -> int:
        word ^= key
        for factor, shift in zip(_FACTORS, (16, 15), strict=True):
            word = (word ^ (word >> shift)) * factor & 0xFFFFFFFF
        return word ^ (word >> 16)

    key_a, key_b, key_c, key_d = noise_keys_of(seed, position)
    high = finalised(finalised(token, key_a), key_b)
    low = finalised(finalised(token, key_c), key_d)
    return high << 20 | low >> 12


def uniform_numpy(seed: int, position: int, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """Uniform variates in (0, 1) for token ids of any shape, 52 bits each.

    Args:
        seed: seed of the request.
        position: absolute position of the token.
        tokens: integer array of token ids.

    Returns:
        float64, of the same shape.
    """
    key_a, key_b, key_c, key_d = noise_keys_of(seed, position)
    high = _words(tokens, key_a, key_b).astype(np.float64)
    low = (_words(tokens, key_c, key_d) >> np.uint32(12)).astype(np.float64)
    uniform: NDArray[np.float64] = (high * 2.0**20 + low + 0.5) * 2.0**-52
    return uniform


def gumbel_numpy(seed: int, position: int, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard Gumbel variates −ln(−ln u) for token ids of any shape.

    Args:
        seed: seed of the request.
        position: absolute position of the token.
        tokens: integer array of token ids.

    Returns:
        float64, of the same shape.
    """
    gumbel: NDArray[np.float64] = -np.log(-np.log(uniform_numpy(seed, position, tokens)))
    return gumbel


def _mix_torch(words: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    mask = 0xFFFFFFFF
    words = words ^ key
    words = ((words ^ (words >> 16)) * 0x7FEB352D) & mask
    words = ((words ^ (words >> 15)) * 0x846CA68B) & mask
    return words ^ (words >> 16)


def uniform_torch(seed: int | Sequence[int], positions: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """`uniform_numpy` at several positions, on the device of the token ids; the same bits.

    Args:
        seed: the request's seed, or one seed per position.
        positions: R absolute positions.
        tokens: [N] token ids.

    Returns:
        [R, N] float64.
    """
    import torch

    seeds = [seed] * len(positions) if isinstance(seed, int) else seed
    each = [noise_keys_of(own, position) for own, position in zip(seeds, positions, strict=True)]
    keys = torch.tensor(each, dtype=torch.int64).reshape(-1, 4, 1)
    key_a, key_b, key_c, key_d = keys.to(tokens.device).unbind(1)
    ids = tokens.to(torch.int64)
    high = _mix_torch(_mix_torch(ids, key_a), key_b).to(torch.float64)
    low = (_mix_torch(_mix_torch(ids, key_c), key_d) >> 12).to(torch.float64)
    return (high * 2.0**20 + low + 0.5) * 2.0**-52


def gumbel_torch(seed: int | Sequence[int], positions: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """`gumbel_numpy` at several positions, on the device of the token ids: [R, N].

    Args:
        seed: the request's seed, or one seed per position.
        positions: R absolute positions.
        tokens: [N] token ids.
    """
    return uniform_torch(seed, positions, tokens).log().neg().log().neg()
