"""A short form of what `make fuzz` does with the JavaScript client."""

import pytest
from tests.fuzz import javascript
from tests.fuzz.javascript import Kind

from multispin.errors import InputError


@pytest.fixture(autouse=True)
def _node():
    try:
        javascript.node()
    except InputError as error:
        pytest.skip(str(error))


def test_javascript_and_python_take_damaged_frames_alike():
    counts = javascript.fuzz(4_000, seed=1)
    for name in ("message", "ids", "table"):
        assert counts[name, "read"] > 30, name
        assert counts[name, "refused"] > 30, name
    assert counts["session", "read"] > 100


@pytest.mark.parametrize(("frame", "verdict"), [("950903a574946b656e0ce5", "read"), ("930aa2c3ffa178", "refused")])
def test_text_that_is_no_utf8_is_refused_in_a_known_field_and_skipped_in_an_unknown_one(frame, verdict):
    one = {"message": Kind(1, lambda rng: bytes.fromhex(frame), javascript.read_message)}
    assert javascript.fuzz(1, seed=1, kinds=one) == {("message", verdict): 1}


def test_a_frame_that_only_one_of_them_reads_is_caught():
    wrong = {"message": Kind(1, lambda rng: b"\x92\x09\x07", lambda data: "920908")}
    with pytest.raises(AssertionError, match="Python reads"):
        javascript.fuzz(1, seed=1, kinds=wrong)


def test_a_session_that_stands_otherwise_is_caught():
    wrong = {"session": Kind(1, javascript.a_session, lambda script: [{"stage": "Ended"}] * len(script["steps"]))}
    with pytest.raises(AssertionError, match="at 0"):
        javascript.fuzz(1, seed=1, kinds=wrong)
