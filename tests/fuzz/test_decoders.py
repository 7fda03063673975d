"""A short form of `make fuzz`: the same inputs, fewer of them."""

import pytest
from tests.fuzz import decoders

from multispin.errors import InputError
from multispin.models.gguf_file import read_facts


@pytest.mark.long
def test_damaged_input_is_read_or_refused():
    counts = decoders.fuzz(20_000, seed=1)
    for name, (read, refused) in counts.items():
        assert read + refused > 50, name
        assert refused > 0 or name == "shown", name
    assert counts["uplink"][0] > 100  # some damage leaves a message a message


def test_a_decoder_that_raises_something_else_is_caught(monkeypatch):
    monkeypatch.setitem(decoders.DECODERS, "uplink", (lambda data: data[10**6], [b"x"], 30))
    try:
        decoders.fuzz(200, seed=1)
    except AssertionError as error:
        assert "uplink" in str(error)
    else:
        raise AssertionError("an IndexError went unseen")


@pytest.mark.parametrize("most", [4, 10**6, 2**63])
def test_a_list_that_claims_to_go_on_behind_the_files_end_is_refused_at_once(tmp_path, most):
    """The library would read nothing for each of 2**63 elements."""
    data, key = bytearray(decoders._gguf()), b"tokenizer.ggml.merges"
    at = data.index(key) + len(key) + 8  # behind the types of the field and of its elements
    assert int.from_bytes(data[at : at + 8], "little") == 1
    data[at : at + 8] = most.to_bytes(8, "little")
    file = tmp_path / "damaged.gguf"
    file.write_bytes(data)
    with pytest.raises(InputError, match="damaged or truncated"):
        read_facts(file)
