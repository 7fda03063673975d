import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.speculation import bits_per_id, pack_ids, unpack_ids


@given(st.integers(2, 300_000).flatmap(lambda v: st.tuples(st.just(v), st.lists(st.integers(0, v - 1), max_size=40))))
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
    [(b"\x00", 2, "need 4 bytes"), (b"\xff\xff", 1, "outside"), (b"\x00\x01" + b"\x00", 1, "need 2 bytes")],
)
def test_broken_packings_are_refused(packed, count, message):
    with pytest.raises(InputError, match=message):
        unpack_ids(packed, count, 49_152)


def test_padding_that_is_not_zero_is_refused():
    with pytest.raises(InputError, match="padding"):
        unpack_ids(b"\x00\x01", 1, 32_000)


@pytest.mark.parametrize("ids", [[-1], [49_152]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(InputError, match="49151"):
        pack_ids(ids, 49_152)
