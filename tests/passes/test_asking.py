"""Rounds in which distributions are asked for, under a clock that the test turns: who answers late, never, or goes."""

import pytest
import torch
from tests.slots import free_slots

from multispin.errors import InputError
from multispin.passes import Controller, ControllerSettings, Limits, LocalDriver, Member, Passes
from multispin.passes.rounds import MOST_SETTLING
from multispin.protocol import PROTOCOL_VERSION, Ask, Close, DeviceSession, Hello, Profile, Request, Verdict
from multispin.speculation import (
    ID_RULES,
    DistributionFormat,
    Rule,
    SamplingParams,
    SlotTable,
    bits_per_token,
    certain_distribution,
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


class Site(LocalDriver):
    """Devices whose every draft is refused; what the edge asks of them is kept until `answer` is called."""

    def __init__(self, count, slots=4, rule=Rule.REJECTION_UP, max_tokens=20, **limits):
        self.engine = RefusingEngine(slots)
        control = Controller(ControllerSettings("fixed", 1e5, 6, 4))
        control.beliefs.leaves_out = False  # every device drafts, whatever pays
        super().__init__(Passes(self.engine, control, "abc", Limits(**limits)))
        self.asks = {}
        self.numbers = [self.join(f"device-{i}", rule, max_tokens) for i in range(count)]
        self.run()

    def join(self, name, rule, max_tokens, **penalties):
        device = DeviceSession(Hello(PROTOCOL_VERSION, "abc", name, "q5", True, Profile(0.05, 3.0)))
        number = self.connect(device)
        device.begin(Request((1, 2, 3), SamplingParams(1.0, seed=number, **penalties), max_tokens, rule=rule))
        self.say(number, device.open())
        return number

    def hear(self, number, message):
        super().hear(number, message)
        if isinstance(message, Ask):
            self.asks[number] = message

    def draft(self):
        for number, device in self.devices.items():
            if device.wants_draft:
                ids = [5] * (0 if device.over else device.grant.length)
                distributions = [certain_distribution(5, device.form)] * len(ids)
                self.say(number, device.answer(ids, 0.01, [] if device.rule in ID_RULES else distributions))

    def answer(self, *numbers):
        for number in numbers:
            self.say(number, self.devices[number].distribution(self.asks.pop(number)))


def test_a_round_waits_for_its_distributions_and_then_delivers_and_grants_all():
    site = Site(2)
    one, two = site.numbers
    site.draft()
    assert site.run().until_s > site.now_s
    assert site.asks.keys() == {one, two}
    site.answer(one)
    assert site.run().until_s > site.now_s
    assert len(site.devices[one].generated) == 1  # its verdict did not wait for the other
    assert site.devices[one].grant is None
    site.answer(two)
    report = site.one_pass()
    assert set(report.members) == {one, two}
    assert report.accepted == (0, 0)
    assert report.delivered == (1, 1)
    assert all(device.grant is not None for device in site.devices.values())


@pytest.mark.parametrize("at_hand", [False, True], ids=["offer open", "draft at hand"])
def test_a_lost_device_keeps_the_slot_of_a_text_under_rejection_down(at_hand):
    """The device alone knows the token found from an offer: the edge could not read the text anew."""
    site = Site(1, slots=1, rule=Rule.REJECTION_DOWN, slot_grace_s=0.0)
    (lost,) = site.numbers
    site.draft()
    site.run()
    assert site.passes.session(lost).offer is not None
    if at_hand:  # it names the token
        site.draft()
    device = site.devices[lost]
    site.lose(lost)
    site.join("waits", Rule.REJECTION_DOWN, 20)
    site.now_s += 5.0
    assert site.passes.expire(site.now_s) == []
    assert site.connect(device) == lost
    for _ in range(60):
        site.run()
        site.draft()
        if all(device.finish for device in site.devices.values()):
            break
    assert [len(device.generated) for device in site.devices.values()] == [20, 20]


def test_who_does_not_answer_misses_the_round_and_may_answer_later():
    site = Site(2)
    fast, slow = site.numbers
    site.draft()
    site.run()
    held_hz = site.passes.session(slow).grant.bandwidth_hz
    site.answer(fast)
    site.now_s = site.run().until_s
    report = site.one_pass()
    assert report.members == (fast,)
    assert [planned.session for planned in report.plan.sessions] == [fast]
    assert sum(planned.bandwidth_hz for planned in report.plan.sessions) <= 1e5 - held_hz + 1e-6
    late = site.asks.pop(slow)
    site.draft()
    site.run()
    assert site.asks.keys() == {fast}  # the slow one's draft is not verified again
    site.asks[slow] = late
    site.answer(slow)  # now it comes
    assert len(site.devices[slow].generated) == 1
    site.answer(fast)
    assert set(site.one_pass().members) == {fast, slow}
    assert site.devices[slow].grant is not None


def test_others_wait_for_distributions_only_as_long_as_that_pays_and_not_for_who_was_late():
    site = Site(3)
    one, two, three = site.numbers
    plain = site.join("plain", Rule.COUPLED, 20)

    def asked():
        site.draft()
        return site.run().until_s

    asked()
    site.answer(one, two, three)
    round_s = site.one_pass().plan.round_s  # with all four
    until_s = asked()
    assert until_s - site.now_s == pytest.approx(MOST_SETTLING * round_s * 3 / 4)
    site.answer(one)
    site.now_s = until_s
    assert set(site.one_pass().members) == {one, plain}
    site.now_s += 0.1
    site.answer(two, three)  # too late
    asked()
    site.answer(one)
    site.one_pass()
    asked()
    passes = len(site.reports)
    assert site.asks.keys() == {one, two, three}
    site.answer(one)
    site.run()
    assert len(site.reports) == passes + 1  # nobody waited for the two
    site.answer(two, three)  # in time
    asked()
    site.answer(one)
    site.one_pass()
    asked()
    site.answer(one, two)
    passes = len(site.reports)
    site.run()
    assert len(site.reports) == passes  # everybody waits for the third
    site.answer(three)
    assert set(site.one_pass().members) == {one, two, three, plain}


def test_a_silent_device_that_had_the_whole_band_keeps_at_most_an_even_share_of_it():
    site = Site(1)
    assert site.devices[site.numbers[0]].grant.bandwidth_hz == pytest.approx(1e5)
    numbers = [site.join(f"honest-{index}", Rule.COUPLED, 20) for index in range(3)]
    site.now_s = site.run().until_s
    site.run()
    bands_hz = [site.devices[number].grant.bandwidth_hz for number in numbers]
    assert sum(bands_hz) == pytest.approx(0.75e5)


def test_a_distribution_that_comes_after_a_lost_connection_finishes_the_round():
    site = Site(1)
    (number,) = site.numbers
    site.draft()
    site.run()
    device = site.devices[number]
    site.lose(number)
    site.one_pass()  # nobody is waited for who cannot answer
    site.asks.clear()
    assert site.connect(device) == number  # the question comes again
    site.answer(number)
    assert len(device.generated) == 1
    site.run()
    assert device.grant is not None


def test_who_never_answers_is_let_go_and_who_leaves_gives_its_slot_back():
    site = Site(3, draft_timeout_s=5.0)
    mute, leaves, stays = site.numbers
    site.draft()
    site.run()
    site.say(leaves, Close(leaves))
    del site.devices[leaves]
    site.answer(stays)
    site.now_s = site.run().until_s
    site.one_pass()
    assert free_slots(site.engine) == 2
    site.now_s = 4.0
    site.draft()
    assert site.passes.expire(site.now_s) == []
    site.now_s = 6.0
    assert site.passes.expire(site.now_s) == [mute]
    assert free_slots(site.engine) == 3


def test_a_text_that_ends_with_the_token_of_a_distribution_gives_its_slot_back_at_once():
    site = Site(1, max_tokens=2)
    (number,) = site.numbers
    for _ in range(2):
        site.draft()
        site.run()
        site.answer(*site.asks)
        site.run()
    assert site.devices[number].finish == "length"
    assert free_slots(site.engine) == 4


def test_under_rejection_down_the_last_token_is_named_by_an_empty_draft():
    site = Site(1, rule=Rule.REJECTION_DOWN, max_tokens=3)
    (device,) = site.devices.values()
    for _ in range(8):
        site.draft()
        site.run()
    assert device.finish == "length"
    assert len(device.generated) == 3
    assert free_slots(site.engine) == 4


def test_a_rule_that_the_engine_does_not_know_is_refused_at_the_door():
    site = Site(1)
    site.engine.rules = ID_RULES
    with pytest.raises(InputError, match="use coupled or greedy"):
        site.join("late", Rule.REJECTION, 5)
    site.join("plain", None, 5)


def test_a_penalty_that_the_engine_cannot_apply_is_refused_at_the_door():
    site = Site(0)
    site.engine.lacks = frozenset({"presence_penalty", "repetition_penalty"})
    penalties = {"presence_penalty": 1.0, "frequency_penalty": 1.0}
    with pytest.raises(InputError, match="cannot apply presence_penalty: leave it out"):
        site.join("penalised", None, 5, **penalties)
    site.engine.lacks = frozenset()
    site.join("penalised", None, 5, **penalties)


def test_the_controller_is_charged_for_what_a_rule_puts_on_the_air():
    form = DistributionFormat(32_000, 1024, 16)
    lengths = {}
    for rule in (Rule.COUPLED, Rule.REJECTION_UP, Rule.REJECTION):
        control = Controller(ControllerSettings("heterogeneous", 1e5, 15, 16))
        control.beliefs.join(1, 0.01, 5.0)
        if rule is not Rule.COUPLED:
            control.beliefs.charge(1, bits_per_token(rule, form), uplink_bits_per_rejection(rule, form))
        for _ in range(40):
            control.observe_outcome(1, 4, 3)
            control.beliefs.observe_verification(1, 5, 0.1)
        made = control.plan([Member(1, 50)])
        lengths[rule] = made.sessions[0].draft_length, made.goodput_tokens_per_s
    assert lengths[Rule.COUPLED][0] > lengths[Rule.REJECTION][0]
    assert lengths[Rule.COUPLED][1] > lengths[Rule.REJECTION_UP][1] > lengths[Rule.REJECTION][1]
    # Distributions that turn out short are charged as what they took.
    control.beliefs.observe_draft(1, 8, 0.08, 8 * 400, 1e5, 8 * 400 / 5e5)
    control.plan([Member(1, 50)])
    assert control.plan([Member(1, 50)]).sessions[0].draft_length > lengths[Rule.REJECTION][0]
    assert isinstance(control.beliefs.upload_s(1, 1e3, 1e3), float)


def test_verdicts_that_follow_a_distribution_are_verdicts():
    site = Site(1)
    (number,) = site.numbers
    site.draft()
    site.run()
    distribution = site.devices[number].distribution(site.asks[number])
    (answer,) = site.passes.receive(number, distribution, 40, site.now_s)
    assert isinstance(answer, Verdict)
    assert answer.next_token != 5
