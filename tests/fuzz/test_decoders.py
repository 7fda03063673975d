"""A short form of `make fuzz`: the same inputs, fewer of them."""

from tests.fuzz import decoders


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
