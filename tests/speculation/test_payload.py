import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.speculation import (
    DistributionFormat,
    FlooredDistribution,
    Rule,
    TruncatedDistribution,
    bits_per_token,
    downlink_bits_per_rejection,
    framing_bits,
    pack_distributions,
    pack_offer,
    pack_scalars,
    unpack_distributions,
    unpack_offer,
    unpack_scalars,
    uplink_bits_per_rejection,
)
from multispin.speculation.distributions import quantise

LLAMA, QWEN = DistributionFormat(32_000), DistributionFormat(248_320)


@pytest.mark.parametrize(("form", "q_tok", "index"), [(LLAMA, 31_744, 15), (QWEN, 34_816, 18)])
def test_the_papers_payload_is_reproduced_to_the_bit(form, q_tok, index):
    # arXiv 2606.04581, eq. 9 with V̂ = 1024 and Q_B = 16.
    assert bits_per_token(Rule.REJECTION, form) == q_tok
    assert bits_per_token(Rule.GREEDY, form) == bits_per_token(Rule.COUPLED, form) == index
    assert bits_per_token(Rule.REJECTION_UP, form) == bits_per_token(Rule.REJECTION_DOWN, form) == 16 + index
    assert uplink_bits_per_rejection(Rule.REJECTION_UP, form) == q_tok
    assert uplink_bits_per_rejection(Rule.REJECTION_DOWN, form) == index
    assert downlink_bits_per_rejection(Rule.REJECTION_DOWN, form) == q_tok + index
    assert framing_bits(Rule.REJECTION, form) == 11
    for rule in (Rule.GREEDY, Rule.COUPLED, Rule.REJECTION):
        assert uplink_bits_per_rejection(rule, form) == downlink_bits_per_rejection(rule, form) == 0
    assert framing_bits(Rule.COUPLED, form) == downlink_bits_per_rejection(Rule.REJECTION_UP, form) == 0


@pytest.mark.parametrize("form", [LLAMA, QWEN])
def test_full_distributions_take_the_papers_bits_and_the_stated_framing(form):
    ids = np.arange(1024) * 31
    distribution = TruncatedDistribution(ids, quantise(np.full(1024, 1 / 1024), form.total), form)
    bits = bits_per_token(Rule.REJECTION, form) + framing_bits(Rule.REJECTION, form)
    for count in (1, 3, 8):
        assert len(pack_distributions([distribution] * count, form)) == math.ceil(count * bits / 8)


@st.composite
def forms(draw):
    vocabulary = draw(st.integers(2, 300_000))
    return DistributionFormat(vocabulary, draw(st.integers(1, min(vocabulary, 40))), draw(st.integers(2, 32)))


@st.composite
def entries(draw, form):
    count = draw(st.integers(1, min(form.retained, form.total)))
    ids = sorted(draw(st.sets(st.integers(0, form.vocabulary_size - 1), min_size=count, max_size=count)))
    shares = np.array(draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count)), dtype=float)
    return np.array(ids, dtype=np.int64), quantise(shares / shares.sum(), form.total)


@st.composite
def distributions(draw):
    form = draw(forms())
    made = []
    for _ in range(draw(st.integers(0, 4))):
        ids, weights = draw(entries(form))
        made.append(TruncatedDistribution(ids[weights > 0], weights[weights > 0], form))
    return form, made


@given(distributions())
def test_distributions_survive_packing_at_exactly_the_promised_size(case):
    form, made = case
    packed = pack_distributions(made, form)
    bits = sum(form.count_bits + len(distribution.ids) * form.entry_bits for distribution in made)
    assert len(packed) == math.ceil(bits / 8)
    again = unpack_distributions(packed, len(made), form)
    assert [(a.ids.tolist(), a.weights.tolist()) for a in again] == [(a.ids.tolist(), a.weights.tolist()) for a in made]


@given(forms().flatmap(lambda form: st.tuples(st.just(form), entries(form), st.integers(0, form.vocabulary_size - 1))))
def test_offers_and_scalars_survive_packing(case):
    form, (ids, weights), token = case
    ids, weights = ids[weights > 0][1:], weights[weights > 0][1:]
    floor, again = unpack_offer(pack_offer(FlooredDistribution(ids, weights, form), token), form)
    assert (floor.ids.tolist(), floor.weights.tolist(), again) == (ids.tolist(), weights.tolist(), token)
    packed = pack_scalars(ids.tolist(), weights.tolist(), form)
    assert len(packed) == math.ceil(len(ids) * form.entry_bits / 8)
    assert unpack_scalars(packed, len(ids), form) == (ids.tolist(), weights.tolist())


SMALL = DistributionFormat(10, retained=3, probability_bits=4)  # count 2 bits, entries of 4 + 4 bits


def bits(text: str) -> bytes:
    digits = text.replace(" ", "")
    digits += "0" * (-len(digits) % 8)
    return int(digits, 2).to_bytes(len(digits) // 8, "big")


def test_a_distribution_is_laid_out_as_stated():
    distribution = TruncatedDistribution(np.array([2, 9]), np.array([5, 10]), SMALL)
    assert pack_distributions([distribution], SMALL) == bits("10 0010 0101 1001 1010")


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (bits("10 0010 0101 1001 1001"), "sum to 14"),
        (bits("10 1001 0101 0010 1010"), "ascending"),
        (bits("10 0010 0101 0010 1010"), "distinct"),
        (bits("10 0010 0101 1010 1010"), "within 0 … 9"),
        (bits("10 0010 1111 1001 0000"), "outside 1"),
        (bits("00"), "sum to 0"),
        (bits("11 0010 0101"), "3 entries"),
        (bits("10 0010 0101 1001 1010 01"), "padding"),
        (bits("10 0010 0101 1001 1010") + b"\x00", "need 3 bytes"),
        (b"", "ends before"),
        (bytes(1000), "1000 bytes are more than"),
    ],
)
def test_broken_distributions_are_refused(packed, message):
    with pytest.raises(InputError, match=message):
        unpack_distributions(packed, 1, SMALL)


@pytest.mark.parametrize(
    ("packed", "message"),
    [(bits("1111 0001"), "outside 0 … 9"), (bits("0001 0000"), "outside 1 … 15"), (b"", "need 1 bytes")],
)
def test_broken_scalars_are_refused(packed, message):
    with pytest.raises(InputError, match=message):
        unpack_scalars(packed, 1, SMALL)


@pytest.mark.parametrize(
    ("packed", "message"),
    [(bits("00 1111"), "token id 15"), (bits("10 0010 1111 0011 0001 0000"), "more than 15"), (b"", "ends before")],
)
def test_broken_offers_are_refused(packed, message):
    with pytest.raises(InputError, match=message):
        unpack_offer(packed, SMALL)


def test_what_does_not_fit_the_format_is_not_packed():
    distribution = TruncatedDistribution(np.array([2]), np.array([15]), SMALL)
    with pytest.raises(InputError, match="does not fit"):
        pack_distributions([distribution], DistributionFormat(10, 3, 5))
    with pytest.raises(InputError, match="1 weights"):
        pack_scalars([1, 2], [1], SMALL)
    with pytest.raises(InputError, match="token id 10"):
        pack_offer(FlooredDistribution(distribution.ids, distribution.weights, SMALL), 10)


@given(st.binary(max_size=12), st.integers(0, 3))
def test_any_bytes_are_either_refused_or_read_back_to_the_same_bytes(packed, count):
    try:
        made = unpack_distributions(packed, count, SMALL)
    except InputError:
        return
    assert pack_distributions(made, SMALL) == packed
