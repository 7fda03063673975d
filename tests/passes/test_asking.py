"""Rounds in which laws are asked for, under a clock that the test turns: who answers late, never, or goes."""

import pytest
import torch

from multispin.errors import InputError
from multispin.passes import Controller, ControllerSettings, Edge, Limits, Member
from multispin.protocol import PROTOCOL_VERSION, Ask, Close, DeviceSession, Hello, Profile, Request, Verdict
from multispin.speculation import (
    ID_RULES,
    LawFormat,
    Rule,
    SamplingParams,
    SlotTable,
    bits_per_token,
    certain_law,
    judge,
    uplink_bits_per_rejection,
)

V = 40


class RefusingEngine(SlotTable):
    """A target that can emit anything but what was drafted; checks that its slots are used properly."""

    def __init__(self, slots):
        super().__init__(slots)
        self.max_length, self.vocabulary_size, self.rules = 64, V, frozenset(Rule)

    def verify(self, feeds):
        assert all(feed.start == self.cached(feed.slot) for feed in feeds)
        self.check(feeds, self.max_length, V)
        self.take(feeds)
        findings = []
        for feed in feeds:
            logits = torch.zeros(len(feed.tokens), V)
            for row, token in enumerate(feed.tokens[1:]):
                logits[row, token] = -100.0
            chunk = feed.params is None
            findings.append(
                None if chunk else judge(feed.tokens[1:], feed.evidence, logits, feed.start + 1, feed.params)
            )
        return findings


class Site:
    def __init__(self, count, slots=4, rule=Rule.REJECTION_UP, max_tokens=20, **limits):
        self.now = 0.0
        self.engine = RefusingEngine(slots)
        settings = ControllerSettings("fixed", 1e5, 6, 4)
        self.edge = Edge(self.engine, Controller(settings), "abc", Limits(**limits))
        self.devices = [self.join(f"device-{i}", rule, max_tokens) for i in range(count)]
        self.edge.schedule(self.now)
        self.batch()

    def join(self, name, rule, max_tokens):
        device = DeviceSession(Hello(PROTOCOL_VERSION, "abc", name, "q5", True, Profile(0.05, 3.0)))
        number, answers = self.edge.connect(device.greet(), self.now)
        device.receive(answers[0])
        device.begin(Request((1, 2, 3), SamplingParams(1.0, seed=number), max_tokens, rule=rule))
        self.hear(self.edge.receive(number, device.open(), 40, self.now), device)
        return device

    def hear(self, messages, device):
        for message in messages:
            device.receive(message)

    def tell(self, messages):
        asks = {}
        for number, message in messages:
            next(device for device in self.devices if device.session_number == number).receive(message)
            if isinstance(message, Ask):
                asks[number] = message
        return asks

    def draft(self):
        for device in self.devices:
            if device.wants_draft:
                ids = [5] * (0 if device.over else device.grant.length)
                message = device.answer(ids, 0.01, [certain_law(5, device.form)] * len(ids))
                self.hear(self.edge.receive(device.session_number, message, 40, self.now), device)

    def begin_batch(self):
        """Collect, verify, ask; returns the batch, the findings and the questions by session."""
        batch = self.edge.collect()
        findings = self.edge.verify(batch)
        return batch, findings, self.tell(self.edge.ask(batch, findings, self.now))

    def answer(self, device, ask):
        self.hear(self.edge.receive(device.session_number, device.law(ask), 40, self.now), device)

    def end_batch(self, batch, findings):
        report, messages = self.edge.deliver(batch, findings, 0.1, self.now)
        self.tell(messages)
        return report

    def batch(self):
        batch = self.edge.collect()
        report, messages = self.edge.deliver(batch, self.edge.verify(batch), 0.1, self.now)
        self.tell(messages)
        return report


def test_a_round_waits_for_its_laws_and_then_delivers_and_grants_all():
    site = Site(2)
    site.draft()
    batch, findings, asks = site.begin_batch()
    assert len(asks) == 2
    one, two = site.devices
    assert site.edge.laws_wait_s(site.now) > 0
    site.answer(one, asks[one.session_number])
    assert site.edge.laws_wait_s(site.now) > 0
    assert len(one.generated) == 1  # its verdict did not wait for the other
    site.answer(two, asks[two.session_number])
    assert site.edge.laws_wait_s(site.now) == 0.0
    report = site.end_batch(batch, findings)
    assert sorted(report.members) == sorted(device.session_number for device in site.devices)
    assert report.accepted == (0, 0)
    assert report.delivered == (1, 1)
    assert all(device.grant is not None for device in site.devices)


@pytest.mark.parametrize("at_hand", [False, True], ids=["offer open", "draft at hand"])
def test_a_lost_device_keeps_the_slot_of_a_text_under_rejection_down(at_hand):
    """The device alone knows the token found from an offer: the edge could not read the text anew."""
    site = Site(1, slots=1, rule=Rule.REJECTION_DOWN, slot_grace_s=0.0)
    (lost,) = site.devices
    site.draft()
    site.batch()
    assert site.edge.sessions[lost.session_number].offer is not None
    if at_hand:  # it names the token
        site.draft()
    site.edge.disconnect(lost.session_number, site.now)
    site.devices.append(site.join("waits", Rule.REJECTION_DOWN, 20))
    site.now += 5.0
    assert site.edge.expire(site.now) == []
    _, answers = site.edge.connect(lost.greet(), site.now)
    site.hear(answers, lost)
    for _ in range(60):
        if all(device.finish for device in site.devices):
            break
        if site.edge.wait_s(site.now) is None:
            site.tell(site.edge.schedule(site.now)[1].items())
        site.draft()
        if site.edge.wait_s(site.now) == 0.0:
            site.batch()
    assert [len(device.generated) for device in site.devices] == [20, 20]


def test_who_does_not_answer_misses_the_round_and_may_answer_later():
    site = Site(2)
    site.draft()
    batch, findings, asks = site.begin_batch()
    fast, slow = site.devices
    held_hz = site.edge.sessions[slow.session_number].grant.bandwidth_hz
    site.answer(fast, asks[fast.session_number])
    site.now += site.edge.laws_wait_s(site.now)
    assert site.edge.laws_wait_s(site.now) == 0.0
    report = site.end_batch(batch, findings)
    assert report.members == (fast.session_number,)
    assert [device.name for device in report.plan.devices] == [str(fast.session_number)]
    assert sum(device.bandwidth_hz for device in report.plan.devices) <= 1e5 - held_hz + 1e-6
    site.draft()
    batch, findings, more = site.begin_batch()
    assert set(more) == {fast.session_number}  # the slow one's draft is not verified again
    site.answer(slow, asks[slow.session_number])  # now it comes
    assert len(slow.generated) == 1
    site.answer(fast, more[fast.session_number])
    report = site.end_batch(batch, findings)
    assert sorted(report.members) == sorted(device.session_number for device in site.devices)
    assert slow.grant is not None


def test_a_law_that_comes_after_a_lost_connection_finishes_the_round():
    site = Site(1)
    (device,) = site.devices
    number = device.session_number
    site.draft()
    batch, findings, _ = site.begin_batch()
    site.edge.disconnect(number, site.now)
    assert site.edge.laws_wait_s(site.now) == 0.0  # nobody is waited for who cannot answer
    site.end_batch(batch, findings)
    again, answers = site.edge.connect(device.greet(), site.now)
    assert again == number
    site.hear(answers, device)
    (ask,) = [answer for answer in answers if isinstance(answer, Ask)]
    site.answer(device, ask)
    assert len(device.generated) == 1
    assert site.edge.wait_s(site.now) is None  # a plan is due
    assert number in site.edge.schedule(site.now)[1]


def test_who_never_answers_is_let_go_and_who_leaves_gives_its_slot_back():
    site = Site(3, draft_timeout_s=5.0)
    site.draft()
    batch, findings, asks = site.begin_batch()
    mute, leaves, stays = site.devices
    number = leaves.session_number
    site.edge.receive(number, Close(number), 10, site.now)
    site.answer(stays, asks[stays.session_number])
    site.end_batch(batch, findings)
    assert site.engine.free_slots == 2
    site.now += 4.0
    site.draft()
    assert site.edge.expire(site.now) == []
    site.now += 2.0
    assert site.edge.expire(site.now) == [mute.session_number]
    assert site.engine.free_slots == 3


def test_a_text_that_ends_with_the_token_of_a_law_gives_its_slot_back_at_once():
    site = Site(1, max_tokens=2)
    for _ in range(2):
        site.draft()
        batch, findings, asks = site.begin_batch()
        for device in site.devices:
            if device.session_number in asks:
                site.answer(device, asks[device.session_number])
        site.end_batch(batch, findings)
    assert site.devices[0].finish == "length"
    assert site.engine.free_slots == 4


def test_under_rejection_down_the_last_token_is_named_by_an_empty_draft():
    site = Site(1, rule=Rule.REJECTION_DOWN, max_tokens=3)
    (device,) = site.devices
    for _ in range(8):
        site.draft()
        if not device.finish:
            site.batch()
    assert device.finish == "length"
    assert len(device.generated) == 3
    assert site.engine.free_slots == 4


def test_a_rule_that_the_engine_does_not_know_is_refused_at_the_door():
    site = Site(1)
    site.engine.rules = ID_RULES
    with pytest.raises(InputError, match="only by coupled, greedy: choose one of these"):
        site.join("late", Rule.REJECTION, 5)
    assert isinstance(site.join("plain", None, 5), DeviceSession)


def test_the_controller_is_charged_for_what_a_rule_puts_on_the_air():
    form = LawFormat(32_000, 1024, 16)
    lengths = {}
    for rule in (Rule.COUPLED, Rule.REJECTION_UP, Rule.REJECTION):
        control = Controller(ControllerSettings("heterogeneous", 1e5, 15, 16))
        control.join(1, 0.01, 5.0)
        if rule is not Rule.COUPLED:
            control.charge(1, bits_per_token(rule, form), uplink_bits_per_rejection(rule, form))
        for _ in range(40):
            control.observe_outcome(1, 4, 3)
            control.observe_verification(1, 5, 0.1)
        made = control.plan([Member(1, "a", 50)])
        lengths[rule] = made.devices[0].draft_length, made.goodput_tokens_per_s
    assert lengths[Rule.COUPLED][0] > lengths[Rule.REJECTION][0]
    assert lengths[Rule.COUPLED][1] > lengths[Rule.REJECTION_UP][1] > lengths[Rule.REJECTION][1]
    # Laws that turn out short are charged as what they took.
    control.observe_draft(1, 8, 0.08, 8 * 400, 1e5, 8 * 400 / 5e5)
    control.plan([Member(1, "a", 50)])
    assert control.plan([Member(1, "a", 50)]).devices[0].draft_length > lengths[Rule.REJECTION][0]
    assert isinstance(control.upload_s(1, 1e3, 1e3), float)


def test_verdicts_that_follow_a_law_are_verdicts():
    site = Site(1)
    site.draft()
    _, _, asks = site.begin_batch()
    (device,) = site.devices
    (answer,) = site.edge.receive(device.session_number, device.law(asks[device.session_number]), 40, site.now)
    assert isinstance(answer, Verdict)
    assert answer.next_token != 5
