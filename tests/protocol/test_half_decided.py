"""Rounds that end in two steps: a distribution asked for, an offer whose token the device finds; and what may break."""

import pytest
import torch
from msgspec.structs import replace

from multispin.errors import InputError
from multispin.protocol import (
    PROTOCOL_VERSION,
    Ask,
    DeviceSession,
    Distribution,
    EdgeSession,
    Granted,
    Hello,
    Profile,
    ProtocolError,
    Request,
    Tail,
    Verdict,
    Welcome,
)
from multispin.speculation import Rule, SamplingParams, certain_distribution, judge

V = 50
REFUSED = 9
HELLO = Hello(PROTOCOL_VERSION, "abc", "phone", "q5", True, Profile(0.05, 3.0))
WELCOME = Welcome(7, "secret", 99, V, 100, 30.0)
PARAMS = SamplingParams(1.0, seed=3)


def pair(rule, max_tokens=20, stop_ids=(), vocabulary=V, **options):
    edge, device = EdgeSession(7, "secret", HELLO, vocabulary), DeviceSession(HELLO)
    device.greet()
    device.receive(replace(WELCOME, vocabulary_size=vocabulary))
    device.begin(Request((1, 2, 3), PARAMS, max_tokens, stop_ids=stop_ids, rule=rule, **options))
    edge.open(device.open(), 100)
    return edge, device


def drafted(edge, device, number, ids):
    """Grant and draft `ids`; every guess is certain of itself."""
    device.receive(edge.give(number, len(ids), 1e4))
    message = device.answer(ids, 0.1, [certain_distribution(token, device.form) for token in ids])
    assert edge.receive(message) == []
    return message


def decided(edge):
    """A target that is sure of the drafted tokens, all but REFUSED, and knows nothing else."""
    logits = torch.zeros(len(edge.stage.draft) + 1, edge.request.form.vocabulary_size)
    for row, token in enumerate(edge.stage.draft):
        logits[row, token] = -100.0 if token == REFUSED else 100.0
    base = len(edge.request.committed)
    return edge.settle(judge(edge.stage.draft, edge.stage.evidence, logits, base, edge.request.params))


def test_a_refused_draft_is_asked_about_until_its_distribution_comes_and_decided_once():
    edge, device = pair(Rule.REJECTION_UP)
    draft = drafted(edge, device, 1, [4, 5, REFUSED, 6])
    ask = decided(edge)
    assert ask == Ask(7, 1, 2)
    assert edge.receive(draft) == [ask]  # once more: the same question, no second verification
    tail, again = edge.catch_up(len(device.committed))  # the connection broke before the question came
    assert (tail.count, tail.grant, again) == (0, None, ask)
    device.receive(tail)
    device.receive(again)
    distribution = device.distribution(again)
    verdict = edge.receive_distribution(distribution)
    assert isinstance(verdict, Verdict)
    assert verdict.accepted == 2
    assert verdict.next_token != REFUSED
    assert edge.receive_distribution(distribution) == verdict == edge.receive(draft)[0]
    device.receive(verdict)
    assert device.committed == edge.request.committed == [1, 2, 3, 4, 5, verdict.next_token]


def test_a_stop_id_before_the_refused_token_ends_the_text_without_a_question():
    for rule in (Rule.REJECTION_UP, Rule.REJECTION_DOWN):
        edge, device = pair(rule, stop_ids=(5,))
        drafted(edge, device, 1, [4, 5, REFUSED])
        verdict = decided(edge)
        assert isinstance(verdict, Verdict)
        assert (verdict.finish, verdict.offer) == ("stop", b"")
        device.receive(verdict)
        assert device.generated == [4, 5]


def test_distributions_that_do_not_fit_the_question_are_refused():
    edge, device = pair(Rule.REJECTION_UP)
    with pytest.raises(ProtocolError, match="none was asked for"):
        edge.receive_distribution(Distribution(7, 1, 0, b""))
    drafted(edge, device, 1, [4, REFUSED])
    distribution = device.distribution(decided(edge))
    for broken in (replace(distribution, round=2), replace(distribution, accepted=0), replace(distribution, session=8)):
        with pytest.raises(ProtocolError):
            edge.receive_distribution(broken)
    for packed in (b"", distribution.distribution + b"\0", distribution.distribution[:-1]):
        with pytest.raises(InputError):
            edge.receive_distribution(replace(distribution, distribution=packed))
    with pytest.raises(InputError, match="from which nothing was drafted"):
        device.distribution(Ask(7, 1, 2))
    with pytest.raises(InputError, match="from which nothing was drafted"):
        device.distribution(Ask(7, 2, 1))
    assert edge.receive_distribution(distribution).accepted == 1  # nothing of this has changed what is asked


def test_an_offer_is_taken_up_by_the_device_and_named_at_the_head_of_its_next_draft():
    edge, device = pair(Rule.REJECTION_DOWN)
    first = drafted(edge, device, 1, [4, REFUSED])
    verdict = edge.attach(decided(edge), edge.give(2, 1, 1e4))
    assert verdict.offer
    assert edge.request.committed == [1, 2, 3, 4]
    assert edge.receive(first) == [verdict]
    progress = device.receive(verdict)
    assert progress.tokens[0] == 4
    assert len(device.committed) == 5
    device.receive(verdict)  # heard twice: no harm
    assert len(device.committed) == 5
    second = device.answer([6], 0.1, [certain_distribution(6, device.form)])
    assert second.head == device.committed[4]
    assert edge.receive(second) == []
    assert edge.request.committed == device.committed
    assert edge.receive(second) == []  # once more before the verdict
    device.receive(decided(edge))
    assert device.committed == edge.request.committed
    device.receive(edge.give(3, 0, 1e4))
    assert not device.wants_draft  # nothing is owed any more
    assert edge.stage.draft == []


def test_a_lost_offer_comes_again_and_a_found_token_is_not_found_twice():
    edge, device = pair(Rule.REJECTION_DOWN)
    drafted(edge, device, 1, [4, REFUSED])
    decided(edge)
    grant = edge.give(2, 1, 1e4)
    tail, verdict = edge.catch_up(len(device.committed))  # neither the verdict nor the grant came
    assert (tail.count, tail.grant) == (0, None)
    for message in (tail, verdict):
        device.receive(message)
    assert device.grant == grant
    found = device.committed[4]
    (tail,) = edge.catch_up(len(device.committed))  # the verdict came, then the connection broke
    assert (tail.count, tail.grant) == (0, grant)
    device.receive(tail)
    message = device.answer([6], 0.1, [certain_distribution(6, device.form)])
    assert (message.head, message.base) == (found, 5)
    assert edge.receive(message) == []
    (tail,) = edge.catch_up(5)  # the draft came, then the connection broke
    assert (tail.count, tail.grant) == (0, None)
    with pytest.raises(ProtocolError, match="not between"):
        edge.catch_up(6)


def test_a_grant_of_nothing_waits_for_an_owed_token():
    edge, device = pair(Rule.REJECTION_DOWN, max_tokens=2)
    drafted(edge, device, 1, [REFUSED])
    device.receive(decided(edge))
    assert (len(device.generated), device.finish) == (1, "")
    assert edge.room == 0
    device.receive(edge.give(2, 0, 1e4))
    assert isinstance(edge.stage, Granted)
    assert device.wants_draft
    assert edge.receive(device.answer([], 0.0)) == []
    device.receive(decided(edge))
    assert device.finish == "length"
    assert device.committed == edge.request.committed


def test_a_second_grant_of_the_same_round_is_answered_with_an_owed_token():
    edge, device = pair(Rule.REJECTION_DOWN)
    drafted(edge, device, 1, [4, REFUSED])
    device.receive(decided(edge))
    device.receive(edge.give(1, 0, 0.0))  # a pass of those whose devices do not draft, before the next plan
    assert edge.receive(device.answer([], 0.0)) == []
    assert edge.request.committed == device.committed
    assert not isinstance(edge.stage, Granted)


@pytest.mark.parametrize("stop", [False, True])
def test_a_text_may_end_with_a_token_that_the_device_finds(stop):
    vocabulary = 17  # all of it but the refused token can be named as stop ids
    stop_ids = tuple(token for token in range(vocabulary) if token != REFUSED) if stop else ()
    edge, device = pair(Rule.REJECTION_DOWN, 20 if stop else 1, stop_ids, vocabulary)
    drafted(edge, device, 1, [REFUSED])
    device.receive(decided(edge))
    assert device.over
    assert device.finish == ""  # the edge says when it ends
    device.receive(edge.give(2, 0 if not stop else 5, 1e4))
    (tail,) = edge.receive(device.answer([], 0.0))
    assert isinstance(tail, Tail)
    device.receive(tail)
    assert device.finish == edge.request.finish == ("stop" if stop else "length")
    assert device.committed == edge.request.committed
    assert edge.catch_up(len(device.committed)) == [tail]  # the answer was lost: it comes again


def test_a_lost_edge_is_told_the_found_token_as_part_of_the_text():
    edge, device = pair(Rule.REJECTION_DOWN)
    drafted(edge, device, 1, [4, REFUSED])
    device.receive(decided(edge))
    device.forget_edge()
    device.greet()
    device.receive(WELCOME)
    other = EdgeSession(7, "secret", HELLO, V)
    other.open(device.open(), 100)
    assert other.request.committed == device.committed
    device.receive(other.give(1, 0, 1e4))
    assert not device.wants_draft


def test_tokens_that_no_offer_gives_are_refused():
    edge, device = pair(Rule.REJECTION_DOWN, retained=2, probability_bits=4)
    drafted(edge, device, 1, [4, REFUSED])
    device.receive(edge.attach(decided(edge), edge.give(2, 0, 1e4)))
    draft = device.answer([], 0.0)
    for head in (None, REFUSED):
        with pytest.raises(ProtocolError, match=r"offer"):
            edge.receive(replace(draft, head=head))
    assert edge.receive(draft) == []
    device.receive(edge.attach(decided(edge), edge.give(3, 1, 1e4)))
    with pytest.raises(ProtocolError, match="only that"):
        edge.receive(replace(device.answer([5], 0.1, [certain_distribution(5, device.form)]), head=3))


def test_a_device_refuses_an_offer_for_a_draft_that_it_never_made():
    _, device = pair(Rule.REJECTION_DOWN)
    with pytest.raises(InputError, match="never sent"):
        device.receive(Verdict(7, 1, 3, 0, 0, "", None, b"\0\0\0"))
