import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.speculation import bits_per_id, pack_ids, unpack_ids

MANY = 65
"""More ids than are packed one by one."""


@given(st.integers(2, 300_000).flatmap(lambda v: st.tuples(st.just(v), st.lists(st.integers(0, v - 1), max_size=40))))
@example((49_152, [49_151] * MANY))
@example((32_000, [0, 31_999, *range(MANY)]))
def test_ids_survive_packing_at_exactly_the_promised_size(case):
    vocabulary, ids = case
    packed = pack_ids(ids, vocabulary)
    assert len(packed) == math.ceil(len(ids) * math.ceil(math.log2(vocabulary)) / 8)
    assert unpack_ids(packed, len(ids), vocabulary) == ids


@pytest.mark.parametrize(
    ("vocabulary", "bits"), [(32_000, 15), (248_320, 18), (49_152, 16), (65_536, 16), (65_537, 17)]
)
def test_bits_of_known_vocabularies(vocabulary, bits):
    assert bits_per_id(vocabulary) == bits


@pytest.mark.parametrize(
    ("packed", "count", "message"),
    [
        (b"\x00", 2, "need 4 bytes"),
        (b"\x00\x01" + b"\x00", 1, "need 2 bytes"),
        *((b"\x00\x00" * zeros + b"\xc0\x00", zeros + 1, "outside") for zeros in (0, 1, MANY)),  # 49,152
    ],
)
def test_broken_packings_are_refused(packed, count, message):
    with pytest.raises(InputError, match=message):
        unpack_ids(packed, count, 49_152)


@pytest.mark.parametrize("count", [1, MANY])
def test_padding_that_is_not_zero_is_refused(count):
    packed = pack_ids([0] * count, 32_000)
    with pytest.raises(InputError, match="padding"):
        unpack_ids(packed[:-1] + b"\x01", count, 32_000)


@pytest.mark.parametrize("wrong", [-1, 49_152])
@pytest.mark.parametrize("zeros", [0, 1, MANY])
def test_ids_outside_the_vocabulary_are_refused(wrong, zeros):
    with pytest.raises(InputError, match="49151"):
        pack_ids([0] * zeros + [wrong], 49_152)
