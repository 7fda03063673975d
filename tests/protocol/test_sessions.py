"""Both halves of a session, wired together without sockets."""

import random

import pytest
from msgspec.structs import replace

from multispin.errors import InputError
from multispin.protocol import (
    PROTOCOL_VERSION,
    Ask,
    Close,
    DeviceSession,
    Distribution,
    Draft,
    EdgeSession,
    Error,
    Grant,
    Hello,
    Pending,
    Profile,
    ProtocolError,
    RefusedError,
    Request,
    Resume,
    Tail,
    Verdict,
    Welcome,
    check_hello,
)
from multispin.speculation import SamplingParams, accept_matching, pack_ids

V = 50
HELLO = Hello(PROTOCOL_VERSION, "abc", "phone", "q5", True, Profile(0.05, 3.0))
WELCOME = Welcome(7, "secret", 99, V, 100, 30.0)


def own_text(prompt, length):
    """A deterministic target: the next id follows from the last two."""
    text = list(prompt)
    while len(text) < len(prompt) + length:
        text.append((3 * text[-1] + (text[-2] if len(text) > 1 else 0) + 1) % V)
    return text


def pair(prompt=(1, 2, 3), max_tokens=20, stop_ids=()):
    edge, device = EdgeSession(7, "secret", HELLO, V), DeviceSession(HELLO)
    device.greet()
    device.receive(WELCOME)
    device.begin(Request(prompt, SamplingParams(), max_tokens, stop_ids=stop_ids))
    edge.open(device.open(), 100)
    return edge, device


def settle(edge, drafted):
    base = len(edge.request.committed)
    own = own_text(edge.request.committed, len(drafted) + 1)[base:]
    return edge.settle(accept_matching(drafted, own))


def play_round(edge, device, number, ids):
    device.receive(edge.give(number, len(ids), 1e4))
    if ids:
        assert edge.receive(device.answer(ids, 0.1)) == []
    return settle(edge, ids)


def test_a_text_grows_by_the_accepted_prefix_and_one_token():
    edge, device = pair()
    truth = own_text((1, 2, 3), 20)
    progress = device.receive(play_round(edge, device, 1, [truth[3], truth[4], 0]))
    assert device.committed == truth[:6] == edge.request.committed
    assert (progress.accepted, progress.drafted, progress.tokens) == (2, 3, tuple(truth[3:6]))


def test_a_grant_of_nothing_is_plain_decoding():
    edge, device = pair()
    device.receive(play_round(edge, device, 1, []))
    assert device.committed == own_text((1, 2, 3), 1)


def test_the_text_ends_at_the_token_limit_and_never_beyond():
    edge, device = pair(max_tokens=4)
    truth = own_text((1, 2, 3), 20)
    progress = device.receive(play_round(edge, device, 1, truth[3:9]))
    assert progress.finish == "length"
    assert device.committed == truth[:7]


def test_the_text_ends_with_the_first_stop_id_even_inside_a_draft():
    truth = own_text((1, 2, 3), 20)
    edge, device = pair(stop_ids=(truth[5],))
    progress = device.receive(play_round(edge, device, 1, truth[3:9]))
    assert progress.finish == "stop"
    assert device.committed == truth[:6]
    assert progress.accepted == 2


def test_the_same_round_gets_the_same_answer_however_often_it_is_asked():
    edge, device = pair()
    device.receive(edge.give(1, 2, 1e4))
    draft = device.answer([5, 6], 0.1)
    assert edge.receive(draft) == []
    assert edge.receive(draft) == []  # once more before the verdict: no second draft
    verdict = edge.attach(settle(edge, [5, 6]), edge.give(2, 3, 1e4))
    assert edge.receive(draft) == [verdict]
    assert edge.receive(draft) == [verdict]
    device.receive(verdict)
    before = list(device.committed)
    device.receive(verdict)  # heard twice: no harm
    assert device.committed == before
    assert device.grant == verdict.grant


def test_a_stale_base_gets_the_missing_tail():
    edge, device = pair()
    for number in (1, 2, 3):
        play_round(edge, device, number, [])  # verdicts that never reach the device
    device.receive(edge.give(4, 2, 1e4))
    (answer,) = edge.receive(device.answer([1, 2], 0.1))
    assert isinstance(answer, Tail)
    device.receive(answer)
    assert device.committed == edge.request.committed == own_text((1, 2, 3), 3)
    assert device.grant == edge.grant  # it may draft again at once


def test_a_late_draft_of_an_old_round_does_no_harm():
    edge, device = pair()
    device.receive(edge.give(1, 2, 1e4))
    late = device.answer([1, 2], 0.1)
    assert isinstance(edge.receive(replace(late, round=99))[0], Tail)
    assert not isinstance(edge.stage, Pending)
    assert edge.receive(late) == []


def test_what_a_device_may_not_say_is_refused_by_code():
    edge, device = pair()
    device.receive(edge.give(1, 2, 1e4))
    draft = device.answer([1, 2], 0.1)
    for broken, code in [
        (replace(draft, session=8), "wrong-session"),
        (replace(draft, base=len(edge.request.committed) + 1), "ahead"),
        (replace(draft, length=3), "too-many"),
    ]:
        with pytest.raises(ProtocolError) as refusal:
            edge.receive(broken)
        assert refusal.value.code == code
    with pytest.raises(InputError, match="outside"):
        edge.receive(replace(draft, payload=b"\xff\xf0"))  # ids of 6 bits: 63, 63
    with pytest.raises(ProtocolError, match="still generates"):
        edge.open(device.request.to_open(7, [], V), 100)


def test_requests_that_do_not_fit_are_refused_with_the_limit():
    edge, device = EdgeSession(7, "secret", HELLO, V), DeviceSession(HELLO)
    device.greet()
    device.receive(WELCOME)
    device.begin(Request((1,) * 90, SamplingParams(), 20))
    message = device.request.to_open(7, [], V)
    with pytest.raises(InputError, match="limit of 100"):
        device.open()
    with pytest.raises(ProtocolError, match="limit of 100"):
        edge.open(message, 100)
    with pytest.raises(InputError, match="temperature"):
        edge.open(replace(message, max_tokens=5, temperature=-1.0), 100)


def test_a_greeting_is_checked():
    check_hello(HELLO, "abc")
    for hello, code in [
        (replace(HELLO, version=1), "version"),
        (replace(HELLO, fingerprint="xyz"), "tokenizer-mismatch"),
        (replace(HELLO, profile=Profile(float("nan"), 1.0)), "bad-profile"),
    ]:
        with pytest.raises(ProtocolError) as refusal:
            check_hello(hello, "abc")
        assert refusal.value.code == code
    with pytest.raises(ProtocolError, match=r"version 2 and this edge 3: update the older one"):
        check_hello(replace(HELLO, version=2), "abc")
    with pytest.raises(ProtocolError, match=r"xyz.*target owner/model .abc.*start the device with the edge's target"):
        check_hello(replace(HELLO, fingerprint="xyz"), "abc", "owner/model")


def test_a_device_does_not_believe_nonsense():
    _, device = pair()
    with pytest.raises(InputError, match="never sent"):
        device.receive(Verdict(7, 1, 3, 2, 5))
    with pytest.raises(InputError, match="Tail"):
        device.receive(Tail(7, 50, b"", 0))
    with pytest.raises(RefusedError, match="no room"):
        device.receive(Error("full", "no room"))


def test_the_edges_seed_is_taken_once_and_kept():
    device = DeviceSession(HELLO)
    device.greet()
    device.receive(WELCOME)
    device.begin(Request((1,), SamplingParams(1.0, seed=5), 10, seed_of_edge=True))
    assert device.open().seed == 99
    device.forget_edge()
    device.greet()
    device.receive(replace(WELCOME, seed=1234))
    assert device.open().seed == 99


def test_every_loss_of_connection_or_edge_leads_to_the_same_text():
    truth = own_text((1, 2, 3), 20)
    for seed in range(200):
        rng = random.Random(seed)
        edge, device = pair()
        number = 0
        while not device.finish:
            number += 1
            if rng.random() < 0.15:  # the connection breaks: resume
                resume = device.greet()
                assert isinstance(resume, Resume)
                device.receive(WELCOME)
                device.receive(edge.tail(resume.length))
            elif rng.random() < 0.1:  # the edge is lost: open again from here, at another one
                device.forget_edge()
                assert device.greet() == HELLO
                device.greet()
                device.receive(WELCOME)
                edge = EdgeSession(7, "secret", HELLO, V)
                edge.open(device.open(), 100)
                if edge.request.finish:
                    device.receive(edge.tail(len(edge.request.committed)))
            elif edge.request.finish:
                device.receive(edge.tail(len(device.committed)))
            else:
                if edge.grant is None:
                    grant = edge.give(number, rng.randint(0, min(4, edge.request.remaining - 1)), 1e4)
                    if rng.random() < 0.9:
                        device.receive(grant)
                if not isinstance(edge.stage, Pending) and device.grant is not None:
                    here = len(device.committed)
                    ids = [t if rng.random() < 0.7 else 0 for t in truth[here : here + device.grant.length]]
                    for answer in edge.receive(device.answer(ids, 0.1)):
                        device.receive(answer)
                if isinstance(edge.stage, Pending):
                    verdict = settle(edge, edge.stage.draft)
                    if rng.random() < 0.8:
                        device.receive(verdict)
                    else:
                        device.receive(edge.tail(len(device.committed)))
        assert device.committed == truth
        assert device.finish == "length"


def resumed(device, *, grant=None):
    resume = device.greet()
    assert isinstance(resume, Resume)
    device.receive(WELCOME)
    assert not device.wants_draft
    assert not device.joined
    device.receive(Tail(7, resume.length, b"", 0, "", grant))


def test_a_grant_of_an_old_connection_stands_only_if_the_edge_says_so_again():
    edge, device = pair()
    grant = edge.give(1, 2, 1e4)
    device.receive(grant)
    resumed(device)
    assert device.grant is None
    device.receive(grant)
    resumed(device, grant=grant)
    assert device.wants_draft
    assert device.grant == grant


def test_a_draft_that_was_made_while_the_connection_was_away_answers_the_grant_when_it_stands():
    edge, device = pair()
    grant = edge.give(1, 2, 1e4)
    device.receive(grant)
    device.lose()
    draft = device.answer([4, 5], 0.1)
    resumed(device, grant=grant)
    assert device.unsent() == draft
    assert device.unsent() is None  # once is enough
    assert edge.receive(draft) == []
    resumed(device)  # the edge has it now
    assert device.unsent() is None
    device.receive(settle(edge, [4, 5]))
    assert device.committed == edge.request.committed


def test_a_draft_made_away_is_dropped_where_the_edge_has_moved_on():
    edge, device = pair()
    device.receive(edge.give(1, 2, 1e4))
    device.lose()
    device.answer([4, 5], 0.1)
    resumed(device)
    assert device.unsent() is None
    with pytest.raises(InputError, match="never sent"):
        device.receive(Verdict(7, 1, 3, 2, 5))


WHAT_IS_NOT_DUE = {
    "a grant before the Welcome": (lambda d: d.greet(), Grant(7, 1, 2, 1e4), "not ours"),
    "a verdict before the request": (lambda d: (d.greet(), d.receive(WELCOME)), Verdict(7, 1, 3, 0, 5), "not allowed"),
    "a second Welcome": (lambda d: (d.greet(), d.receive(WELCOME)), WELCOME, "in the middle"),
    "a Welcome without a vocabulary": (lambda d: d.greet(), replace(WELCOME, vocabulary_size=0), "empty vocabulary"),
}


@pytest.mark.parametrize("case", WHAT_IS_NOT_DUE)
def test_an_edge_that_says_what_is_not_due_is_refused(case):
    before, message, sentence = WHAT_IS_NOT_DUE[case]
    device = DeviceSession(HELLO)
    device.begin(Request((1, 2, 3), SamplingParams(), 20))
    before(device)
    with pytest.raises(InputError, match=sentence):
        device.receive(message)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (Verdict(7, 1, 3, 0, V), "outside its vocabulary of 50"),
        (Verdict(8, 1, 3, 0, 5), "of session 8, not ours"),
        (Verdict(7, 1, 3, 0, 5, "bored"), "the unknown reason 'bored'"),
        (Tail(7, 3, pack_ids([1] * 21, V), 21), "more than the 20 tokens"),
        (Tail(7, 3, b"\xff\xff\xff", 4), "outside"),
        (Tail(7, 3, b"", 2**31 - 1), "need 1610612736 bytes"),
        (Ask(7, 1, 0), "from which nothing was drafted"),
    ],
)
def test_every_message_of_an_edge_is_checked(message, sentence):
    _, device = pair()
    with pytest.raises(InputError, match=sentence):
        device.receive(message)
    assert device.generated == []


def test_only_an_answer_to_what_was_asked_is_awaited_and_only_once():
    edge, device = pair()
    assert not edge.awaits(Draft(7, 1, 3, 0, b"", 0))
    grant = edge.give(1, 2, 1e4)
    device.receive(grant)
    draft = device.answer([5, 6], 0.1)
    for other in (replace(draft, round=2), replace(draft, base=2), Distribution(7, 1, 0, b""), Close(7)):
        assert not edge.awaits(other)
    assert edge.awaits(draft)
    edge.receive(draft)
    assert not edge.awaits(draft)  # it has come


def test_what_was_on_its_way_when_the_text_ended_is_not_heard():
    edge, device = pair(max_tokens=1)
    device.receive(play_round(edge, device, 1, []))
    assert device.finish == "length"
    device.receive(Grant(7, 2, 3, 1e4))
    assert device.finish == "length"
    assert not device.wants_draft
