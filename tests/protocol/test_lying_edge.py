"""An edge that says anything, in any order: the device refuses it with one sentence, and never believes nonsense."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.protocol import (
    PROTOCOL_VERSION,
    Ask,
    Commit,
    DeviceSession,
    Error,
    Grant,
    Hello,
    Profile,
    Request,
    Tail,
    Verdict,
    Welcome,
    Window,
    decode_downlink,
    encode,
)
from multispin.protocol.device_stages import Welcomed
from multispin.protocol.limits import MAX_MESSAGES_WITHOUT_TOKENS
from multispin.speculation import Rule, SamplingParams, certain_distribution, pack_ids

V, PROMPT, LENGTH = 50, (1, 2, 3), 6
HELLO = Hello(PROTOCOL_VERSION, "abc", "phone", "q5", True, Profile(0.05, 3.0))

sessions = st.sampled_from([1, 1, 1, 1, 1, 2])
small = st.integers(0, 12)
rounds = st.integers(0, 3)
tokens = st.one_of(st.integers(0, V - 1), st.integers(V, 2**31 - 1))
bands = st.sampled_from([0.0, 1e4, 1e300, float("inf")])
finishes = st.sampled_from(["", "", "", "stop", "length", "because"])
grants = st.builds(Grant, sessions, rounds, st.integers(0, 63), bands)
packed = st.lists(st.integers(0, V - 1), max_size=8).map(lambda ids: (pack_ids(ids, V), len(ids)))
tails = st.builds(
    lambda session, base, ids, finish, grant: Tail(session, base, ids[0], ids[1], finish, grant),
    *(sessions, small, st.one_of(packed, st.tuples(st.binary(max_size=9), st.integers(0, 2**31 - 1)))),
    *(finishes, st.none() | grants),
)
messages = st.one_of(
    st.builds(
        Welcome, sessions, st.just("t"), st.integers(0, 2**64 - 1), st.sampled_from([0, V, V, V]), small, st.just(30.0)
    ),
    st.builds(Welcome, st.just(1), st.just("t"), st.just(5), st.just(V), st.just(100), st.just(30.0)),
    grants,
    st.builds(Verdict, sessions, rounds, small, small, tokens, finishes, st.none() | grants, st.binary(max_size=6)),
    st.builds(Verdict, st.just(1), rounds, st.integers(3, 5), st.just(0), tokens),
    tails,
    st.builds(Ask, sessions, rounds, small),
    st.builds(Error, st.sampled_from(["ahead", "unknown-session", "full"]), st.text(max_size=5)),
)


@pytest.mark.long
@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(list(Rule)),
    st.booleans(),
    st.lists(st.one_of(messages, st.sampled_from(["draft", "cut"])), max_size=25),
)
def test_whatever_an_edge_says_ends_in_a_text_or_in_one_sentence(rule, joined, happenings):
    device = DeviceSession(HELLO)
    params = SamplingParams() if rule is Rule.GREEDY else SamplingParams(1.0, seed=3)
    device.begin(Request(PROMPT, params, LENGTH, rule=rule, seed_of_edge=True))
    device.greet()
    if joined:
        device.receive(Welcome(1, "t", 5, V, 100, 30.0))
        device.open()
        device.receive(Grant(1, 1, 3, 1e4))
    for happening in happenings:
        try:
            if happening == "cut":
                device.lose()
                device.greet()
            elif happening == "draft":
                if device.wants_draft:
                    ids = [4] * (0 if device.over else min(2, device.grant.length))
                    encode(device.answer(ids, 0.1, [certain_distribution(token, device.form) for token in ids]))
            else:
                message = decode_downlink(encode(happening))
                progress = device.receive(message)
                assert progress.accepted <= progress.drafted
                if isinstance(device.stage, Welcomed):
                    encode(device.open())
                if isinstance(message, Ask) and not device.finish:
                    encode(device.distribution(message))
                if (draft := device.unsent()) is not None:
                    encode(draft)
        except InputError as error:
            assert "\n" not in str(error) or isinstance(happening, Error)
            return
        assert tuple(device.committed[:3]) == PROMPT
        assert len(device.generated) <= LENGTH
        assert all(0 <= token < V for token in device.committed)


@pytest.mark.parametrize(("message", "name"), [(Ask(2, 1, 0), "an Ask"), (Grant(2, 1, 4, 1e5), "a Grant")])
def test_a_message_that_is_refused_is_named_with_its_article(message, name):
    device = DeviceSession(HELLO)
    device.begin(Request(PROMPT, SamplingParams(), LENGTH))
    device.greet()
    with pytest.raises(InputError, match=f"the edge sent {name} of session 2, not ours"):
        device.receive(message)


def at_work(*messages):
    """A device whose request is open at an edge that has sent these messages."""
    device = DeviceSession(HELLO)
    device.begin(Request(PROMPT, SamplingParams(), LENGTH))
    device.greet()
    device.receive(Welcome(1, "t", 5, V, 100, 30.0))
    device.open()
    for message in messages:
        device.receive(message)
    return device


def flood(device, message):
    """The same message, more often than any device takes it."""
    for _ in range(MAX_MESSAGES_WITHOUT_TOKENS + 1):
        device.receive(message)


NEXT = Tail(1, 3, pack_ids([4], V), 1)
WINDOW = Window(1, 4, 1, 1e4)
WITHOUT_TOKENS = {
    "Tail": ([], Tail(1, 3, b"", 0)),
    "Grant": ([], Grant(1, 1, 3, 1e4)),
    "Window": ([], WINDOW),
    "Commit of nothing": ([WINDOW], Commit(3, 1, 0, 0, ())),
    "repeated Commit": ([NEXT, WINDOW], Commit(3, 1, 0, 0, (4,))),
    "repeated Verdict": ([NEXT], Verdict(1, 1, 3, 0, 4)),
    "repeated Tail": ([NEXT], NEXT),
}


@pytest.mark.parametrize(("before", "message"), WITHOUT_TOKENS.values(), ids=WITHOUT_TOKENS)
def test_an_edge_that_writes_without_end_and_without_tokens_is_left(before, message):
    device = at_work(*before)
    text = device.generated
    with pytest.raises(InputError, match=f"has sent {MAX_MESSAGES_WITHOUT_TOKENS} messages without a new token"):
        flood(device, message)
    assert device.generated == text


def test_only_messages_since_the_text_last_grew_are_counted_and_a_new_connection_changes_nothing():
    device = at_work()
    for _ in range(MAX_MESSAGES_WITHOUT_TOKENS - 1):  # the Welcome is one more
        device.receive(Tail(1, 3, b"", 0))
    device.receive(NEXT)
    for _ in range(MAX_MESSAGES_WITHOUT_TOKENS - 2):
        device.receive(Tail(1, 4, b"", 0))
    device.lose()
    device.greet()
    device.receive(Welcome(1, "t", 5, V, 100, 30.0))
    device.receive(Tail(1, 4, b"", 0))
    with pytest.raises(InputError, match="without a new token"):
        device.receive(Tail(1, 4, b"", 0))


def test_an_ask_without_end_is_an_edge_without_tokens():
    device = DeviceSession(HELLO)
    device.begin(Request(PROMPT, SamplingParams(1.0, seed=3), LENGTH, rule=Rule.REJECTION_UP))
    device.greet()
    for message in (Welcome(1, "t", 5, V, 100, 30.0), Grant(1, 1, 1, 1e4)):
        device.receive(message)
        if isinstance(device.stage, Welcomed):
            device.open()
    device.answer([4], 0.1, [certain_distribution(4, device.form)])
    with pytest.raises(InputError, match="without a new token"):
        flood(device, Ask(1, 1, 0))


def test_the_messages_of_the_last_text_do_not_count_for_the_next():
    device = at_work()
    for _ in range(MAX_MESSAGES_WITHOUT_TOKENS - 1):
        device.receive(Tail(1, 3, b"", 0))
    device.receive(Tail(1, 3, b"", 0, "stop"))  # an end without a token
    device.begin(Request(PROMPT, SamplingParams(), LENGTH))
    device.open()
    device.receive(Tail(1, 3, b"", 0))
