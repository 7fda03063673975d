import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    Ask,
    Chunk,
    Close,
    Commit,
    Distribution,
    Draft,
    Error,
    Grant,
    Hello,
    Open,
    Profile,
    Resume,
    Tail,
    Verdict,
    Welcome,
    Window,
    decode_downlink,
    decode_uplink,
    encode,
    longest_draft,
    websocket_frame_bytes,
)
from multispin.speculation import DistributionFormat, Rule, bits_per_token, pack_ids

UPLINK = [
    Hello(PROTOCOL_VERSION, "f" * 16, "phone", "q5", True, Profile(0.05, 3.0)),
    Open(1, b"\x00\x01", 1, 10, 0.0, 0, 1.0, 7, (2,)),
    Open(1, b"\x00\x01", 1, 10, 0.5, 0, 1.0, 7, (2,), 0, Rule.REJECTION_UP, 64, 8, 5, ((7, -1.5),)),
    Draft(1, 2, 3, 1, b"\x00\x05", 1000),
    Draft(1, 2, 3, 0, b"", 1000, 9),
    Distribution(1, 2, 3, b"\x00\x05"),
    Resume(PROTOCOL_VERSION, "token", 12),
    Close(1),
    Chunk(3, 40, 2, b"\x00\x05\x00\x07", 1000),
]
DOWNLINK = [
    Welcome(1, "token", 0, 49152, 1024, 30.0),
    Grant(1, 2, 4, 1e4),
    Verdict(1, 2, 3, 1, 17, "", Grant(1, 3, 4, 1e4)),
    Verdict(1, 2, 3, 1, 0, "", Grant(1, 3, 4, 1e4), b"offer"),
    Ask(1, 2, 3),
    Tail(1, 3, b"\x00\x05", 1, "stop"),
    Error("full", "no room"),
    Window(1, 8, 4, 1e4),
    Commit(40, 3, 2, 1, (17,)),
    Commit(40, 3, 0, 0, (17, 18), "length"),
]


@pytest.mark.parametrize("message", UPLINK, ids=lambda m: type(m).__name__)
def test_uplink_messages_survive_the_wire(message):
    assert decode_uplink(encode(message)) == message


@pytest.mark.parametrize("message", DOWNLINK, ids=lambda m: type(m).__name__)
def test_downlink_messages_survive_the_wire(message):
    assert decode_downlink(encode(message)) == message


@pytest.mark.parametrize("message", DOWNLINK, ids=lambda m: type(m).__name__)
def test_a_device_cannot_say_what_only_the_edge_says(message):
    with pytest.raises(InputError):
        decode_uplink(encode(message))


@given(st.binary(max_size=200))
def test_noise_on_the_wire_is_refused_in_one_way(frame):
    try:
        decode_uplink(frame)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "fields",
    [
        [5, 1, 2, 3, 64, b"", 0],  # a draft longer than any grant
        [5, 1, 2, 3, -1, b"", 0],
        [5, 1, 2, 3, 1, b"", 0, -1],  # no token
        [3, 1, b"", 1, 5, 0.5, 0, 1.0, 0, [], 0, "coupled", 4097],  # distributions too long
        [3, 1, b"", 1, 5, 0.5, 0, 1.0, 0, [], 0, "coupled", 9, 33],  # probabilities too fine
        [3, 1, b"", 1, 5, 0.5, 0, 1.0, 0, [], 0, "best-of-both"],  # no such rule
        [3, 1, b"", 1, 5, 0.5, 0, 1.0, 0, [], 0, "coupled", 9, 16, 0, [[1, 0.5]] * 301],  # too many biases
        [1, 1, "f" * 81, "n", "d", True, [0.1, 1.0]],  # a name too long
        [1, 1, "f", "n", "d", True, [-0.1, 1.0]],  # negative time
        [3, 1, b"", 0, 5, 0.0, 0, 1.0, 0],  # an empty prompt
        [3, 1, b"", 1, 5, 0.0, 0, 1.0, 0, list(range(17))],  # too many stop ids
    ],
)
def test_values_out_of_bounds_are_refused_while_decoding(fields):
    with pytest.raises(InputError, match="not a message"):
        decode_uplink(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "score",
    [
        [math.nan],
        [math.inf],
        [-math.inf],
        [0.1],
        [-1.0, [[7, math.nan]]],
        [-1.0, [[-1, -1.0]]],
        [-1.0, [[7, -1.0]] * 21],
    ],
    ids=str,
)
def test_a_log_probability_that_is_none_is_refused_while_decoding(score):
    """A client would be told NaN, which is no JSON, or an id that no tokenizer has would fail its request."""
    commit = [15, 5, 1, 0, 0, [7], "", [score]]
    with pytest.raises(InputError, match="not a message"):
        decode_downlink(msgspec.msgpack.encode(commit))
    decode_downlink(msgspec.msgpack.encode([*commit[:-1], [[-1.0, [[7, -1.0]] * 20]]]))


@pytest.mark.parametrize("sentence", ["a" * 1001, "日" * 70_000, "🙂" * 1001])
def test_a_sentence_that_quotes_too_much_is_cut_and_reaches_the_device(sentence):
    error = decode_downlink(encode(Error("bad-request", sentence, 1.0)))
    assert (error.code, error.retry_after_s) == ("bad-request", 1.0)
    assert error.sentence == sentence[:999] + "…"
    assert decode_downlink(encode(Error("bad-request", sentence[:1000]))).sentence == sentence[:1000]


def test_a_frame_over_the_limit_is_refused_unread():
    with pytest.raises(InputError, match=str(MAX_FRAME_BYTES)):
        decode_uplink(b"\x00" * (MAX_FRAME_BYTES + 1))


def test_a_draft_of_four_tokens_costs_at_most_12_bytes_a_token_with_framing():
    # Late in a long run: large round, position and time.
    draft = Draft(300, 70_000, 4000, 4, pack_ids([49_151] * 4, 49_152), 5_000_000)
    assert websocket_frame_bytes(len(encode(draft)), masked=True) <= 4 * 12


@pytest.mark.parametrize("rule", list(Rule))
def test_the_longest_draft_of_every_rule_fits_a_frame(rule):
    for vocabulary, retained, bits in ((100, 64, 8), (248_320, 1024, 16), (2**31, 4096, 32)):
        form = DistributionFormat(vocabulary, retained, bits)
        longest = longest_draft(rule, form)
        payload = -(-longest * (bits_per_token(rule, form) + form.count_bits) // 8)
        draft = Draft(2**31 - 1, 2**31 - 1, 2**31 - 1, longest, b"x" * payload, 2**32 - 1, 2**31 - 1)
        assert longest >= 1
        assert len(encode(draft)) <= MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("payload", "masked", "size"), [(10, True, 16), (10, False, 12), (126, True, 134), (65536, False, 65546)]
)
def test_frame_sizes_follow_the_standard(payload, masked, size):
    assert websocket_frame_bytes(payload, masked) == size


@pytest.mark.parametrize("vocabulary_size", [32_000, 49_152, 248_320])
def test_a_streamed_token_costs_at_most_12_bytes_up_and_a_commit_no_more_than_a_verdict(vocabulary_size):
    largest = vocabulary_size - 1
    chunk = Chunk(60_000, 60_000, 4, pack_ids([largest] * 4, vocabulary_size), 2**32 - 1)
    assert websocket_frame_bytes(len(encode(chunk)), masked=True) <= 4 * 12
    commit = encode(Commit(60_000, 60_000, 16, 16, (largest,)))
    verdict = encode(Verdict(60_000, 60_000, 60_000, 16, largest))
    assert len(commit) <= len(verdict)
    assert websocket_frame_bytes(len(commit), masked=False) <= 24
