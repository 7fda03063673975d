"""The payload of each rule: the number of bits, for the controller, and the bit strings themselves.

Layouts, most significant bit first, padded with zeros to a whole byte once per message:
distributions     for each distribution [number n of entries: bits of V̂], then n × [id: ⌈log2 V⌉][weight: Q_B]
scalars  for each drafted token [id: ⌈log2 V⌉][weight: Q_B]
offer    one floored distribution, then [rest token: ⌈log2 V⌉]
Decoding refuses what encoding cannot have made.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.codec import bits_per_id, check_padding, from_bits, to_bits
from multispin.speculation.distributions import DistributionFormat, FlooredDistribution, TruncatedDistribution
from multispin.speculation.rule import Rule


def bits_per_token(rule: Rule, form: DistributionFormat) -> int:
    """Uplink bits of one drafted token, the Q_tok of eq. 9 in arXiv 2606.04581.

    Under `rejection` it is V̂(Q_B + ⌈log2 V⌉), an upper bound: distributions with a smaller support are shorter.
    31,744 bits for V̂ = 1024, Q_B = 16, V = 32,000; 34,816 for V = 248,320. Framing is not included: `framing_bits`.

    Args:
        rule: the request's acceptance rule.
        form: V, V̂ and Q_B.
    """
    if rule is Rule.REJECTION:
        return form.retained * form.entry_bits
    if rule in (Rule.REJECTION_UP, Rule.REJECTION_DOWN):
        return form.entry_bits
    return bits_per_id(form.vocabulary_size)


def uplink_bits_per_rejection(rule: Rule, form: DistributionFormat) -> int:
    """Further uplink bits after a refusal: `rejection-up` sends one distribution, `rejection-down` one token.

    Args:
        rule: the request's acceptance rule.
        form: V, V̂ and Q_B.

    Returns:
        Bits, for a distribution of V̂ entries as in `bits_per_token`; 0 under every other rule.
    """
    if rule is Rule.REJECTION_UP:
        return form.retained * form.entry_bits
    if rule is Rule.REJECTION_DOWN:
        return bits_per_id(form.vocabulary_size)
    return 0


def downlink_bits_per_rejection(rule: Rule, form: DistributionFormat) -> int:
    """Further downlink bits after a refusal: `rejection-down` sends one distribution and the rest token.

    Args:
        rule: the request's acceptance rule.
        form: V, V̂ and Q_B.

    Returns:
        V̂(Q_B + ⌈log2 V⌉) + ⌈log2 V⌉ bits, an upper bound; 0 under every other rule.
    """
    if rule is Rule.REJECTION_DOWN:
        return form.retained * form.entry_bits + bits_per_id(form.vocabulary_size)
    return 0


def framing_bits(rule: Rule, form: DistributionFormat) -> int:
    """Bits that our codec adds to each distribution: its number of entries. Up to 7 more pad each message.

    Args:
        rule: the request's acceptance rule.
        form: V, V̂ and Q_B.

    Returns:
        `count_bits`; 0 under `greedy` and `coupled`, which send no distribution.
    """
    return form.count_bits if rule in (Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN) else 0


def pack_distributions(distributions: Sequence[TruncatedDistribution], form: DistributionFormat) -> bytes:
    """Draft distributions as one bit string: Σ (count_bits + n·(Q_B + ⌈log2 V⌉)) bits.

    Args:
        distributions: the distributions, the first one first.
        form: V, V̂ and Q_B.

    Raises:
        InputError: a distribution has another format.
    """
    return _to_bytes([part for distribution in distributions for part in _distribution_bits(distribution, form)])


def unpack_distributions(packed: bytes, count: int, form: DistributionFormat) -> list[TruncatedDistribution]:
    """The inverse of `pack_distributions` for a known number of distributions.

    Args:
        packed: the bit string.
        count: number of distributions in it.
        form: V, V̂ and Q_B.

    Raises:
        InputError: `pack_distributions` cannot have made it.
    """
    bits = _bits_of(packed, count * (form.count_bits + form.retained * form.entry_bits))
    distributions, at = [], 0
    for _ in range(count):
        ids, weights, at = _read_entries(bits, at, form)
        distributions.append(TruncatedDistribution(ids, weights, form))
    check_padding(bits, at)
    return distributions


def pack_scalars(drafted: Sequence[int], weights: Sequence[int], form: DistributionFormat) -> bytes:
    """Drafted ids, each with its weight in its own distribution: L·(⌈log2 V⌉ + Q_B) bits.

    Args:
        drafted: L token ids.
        weights: L integers, q(x) · total of each.
        form: V, V̂ and Q_B.

    Raises:
        InputError: the numbers of both differ, or an id or a weight is out of range.
    """
    ids, values = np.array(drafted, dtype=np.int64), np.array(weights, dtype=np.int64)
    _check_scalars(ids, values, form)
    return _to_bytes([_entry_bits(ids, values, form)])


def unpack_scalars(packed: bytes, count: int, form: DistributionFormat) -> tuple[list[int], list[int]]:
    """The inverse of `pack_scalars`: drafted ids and weights.

    Args:
        packed: the bit string.
        count: L, number of tokens in it.
        form: V, V̂ and Q_B.

    Raises:
        InputError: `pack_scalars` cannot have made it.
    """
    used = count * form.entry_bits
    bits = _bits_of(packed, used)
    check_padding(bits, used)
    ids, weights = _split_entries(bits[:used], form)
    _check_scalars(ids, weights, form)
    return [int(token) for token in ids], [int(weight) for weight in weights]


def pack_offer(floor: FlooredDistribution, rest_token: int) -> bytes:
    """Bits that go down after a rejection: count_bits + n·(Q_B + ⌈log2 V⌉) + ⌈log2 V⌉ bits.

    Args:
        floor: the part of the target's distribution that fits on the air, with n entries.
        rest_token: id of the token drawn from the part that does not fit.

    Raises:
        InputError: the id is outside the vocabulary.
    """
    form = floor.form
    _check_id(rest_token, form)
    return _to_bytes([*_distribution_bits(floor, form), to_bits(rest_token, bits_per_id(form.vocabulary_size))])


def unpack_offer(packed: bytes, form: DistributionFormat) -> tuple[FlooredDistribution, int]:
    """The inverse of `pack_offer`: the floored distribution and the rest token.

    Args:
        packed: the bit string.
        form: V, V̂ and Q_B.

    Raises:
        InputError: `pack_offer` cannot have made it.
    """
    width = bits_per_id(form.vocabulary_size)
    bits = _bits_of(packed, form.count_bits + form.retained * form.entry_bits + width)
    ids, weights, at = _read_entries(bits, 0, form)
    check_padding(bits, at + width)
    rest_token = int(from_bits(bits[None, at : at + width])[0])
    _check_id(rest_token, form)
    return FlooredDistribution(ids, weights, form), rest_token


def _distribution_bits(
    distribution: TruncatedDistribution | FlooredDistribution, form: DistributionFormat
) -> list[NDArray[np.uint8]]:
    if distribution.form != form:
        raise InputError(f"a distribution written as {distribution.form} does not fit {form}")
    return [to_bits(len(distribution.ids), form.count_bits), _entry_bits(distribution.ids, distribution.weights, form)]


def _entry_bits(ids: NDArray[np.int64], weights: NDArray[np.int64], form: DistributionFormat) -> NDArray[np.uint8]:
    return np.hstack([to_bits(ids, bits_per_id(form.vocabulary_size)), to_bits(weights, form.probability_bits)])


def _split_entries(bits: NDArray[np.uint8], form: DistributionFormat) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    entries = bits.reshape(-1, form.entry_bits)
    width = bits_per_id(form.vocabulary_size)
    return from_bits(entries[:, :width]), from_bits(entries[:, width:])


def _read_entries(
    bits: NDArray[np.uint8], at: int, form: DistributionFormat
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Ids and weights of the distribution that begins at bit `at`, and the bit where it ends."""
    begin = at + form.count_bits
    if begin > len(bits):
        raise InputError("the bit string ends before a distribution's number of entries")
    entries = int(from_bits(bits[None, at:begin])[0])
    end = begin + entries * form.entry_bits
    if entries > form.retained or end > len(bits):
        raise InputError(f"a distribution claims {entries} entries, more than may be retained or than follow")
    return *_split_entries(bits[begin:end], form), end


def _to_bytes(parts: list[NDArray[np.uint8]]) -> bytes:
    return np.packbits(np.concatenate([part.ravel() for part in parts])).tobytes() if parts else b""


def _bits_of(packed: bytes, most: int) -> NDArray[np.uint8]:
    """The bits of a message. InputError, before they are unpacked, if there are more than `most` (padded)."""
    if len(packed) > -(-most // 8):
        raise InputError(f"{len(packed)} bytes are more than the {-(-most // 8)} that such a payload can need")
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8))


def _check_id(token: int, form: DistributionFormat) -> None:
    if not 0 <= token < form.vocabulary_size:
        raise InputError(f"token id {token} is outside 0 … {form.vocabulary_size - 1}")


def _check_scalars(ids: NDArray[np.int64], weights: NDArray[np.int64], form: DistributionFormat) -> None:
    if ids.shape != weights.shape:
        raise InputError(f"{len(ids)} drafted ids came with {len(weights)} weights")
    if len(ids) and (ids.min() < 0 or ids.max() >= form.vocabulary_size):
        raise InputError(f"packed ids {ids.min()} … {ids.max()} reach outside 0 … {form.vocabulary_size - 1}")
    if len(weights) and (weights.min() < 1 or weights.max() > form.total):
        raise InputError(f"packed weights {weights.min()} … {weights.max()} reach outside 1 … {form.total}")
