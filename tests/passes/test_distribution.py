"""The distribution of the text through the whole conversation: edge, sessions, losses, late distributions.

A first-order target and drafter over five tokens behind the Engine seam; a hundred devices write short texts of
three tokens, each with its own seed. Drafts, verdicts, questions and answers are lost or late at random, and edges too.
Under the coupled rule each text must be what the target draws alone. Under the rejection rules: chi-square of the joint
counts and of each position against the exact distribution. A correct system fails one test in 10,000 random seeds, and
the seeds are fixed. The same test must reject a system that makes one of the known mistakes.
"""

import random
from dataclasses import replace

import pytest
import torch
from tests.five_tokens import DRAFTER, TARGET, TEXT, V, follow, joint_distribution
from tests.passes.counting import SlotDrafter

from multispin.passes import Controller, ControllerSettings, Limits, LocalDriver, Passes, Sleep
from multispin.protocol import (
    PROTOCOL_VERSION,
    Ask,
    DeviceSession,
    DistributionAsked,
    Granted,
    Hello,
    Profile,
    Request,
    device_stages,
    edge_session,
)
from multispin.protocol.device_stages import Disconnected, Waiting
from multispin.speculation import (
    DistributionFormat,
    Outcome,
    Rule,
    SamplingParams,
    SlotTable,
    derive_seed,
    draft_token,
    draw,
    judge,
    shaped,
    target_distribution,
    truncate,
)

pytestmark = pytest.mark.long

TEXTS, DEVICES = 1000, 100
FEWER_TEXTS = 600
"""Texts where a mistake of the edge's draws would be seen sooner than one of what devices forget."""
PROMPT = (1, 3, 0, 2, 0)
FORM = DistributionFormat(V, retained=4, probability_bits=3)
PARAMS = SamplingParams(0.9, top_p=0.85, logit_bias=((1, 0.4),))
DISTRIBUTIONS = [truncate(row, PARAMS, FORM) for row in shaped(DRAFTER, [0] * V, PARAMS)]
LOSS, LATE = 0.15, 0.15


class TableEngine(SlotTable):
    """Logits by the newest token; the real rules."""

    def __init__(self, slots=DEVICES, joins=False):
        super().__init__(slots)
        self.joins = joins
        self.max_length, self.vocabulary_size, self.rules = 64, V, frozenset(Rule)

    def verify(self, feeds):
        self.check(feeds, self.max_length, V)
        self.take(feeds)
        findings = []
        for feed in feeds:
            rows = TARGET[list(feed.tokens[feed.context :])]
            findings.append(
                None if feed.params is None else judge(feed.draft, feed.evidence, rows, feed.newest + 1, feed.params)
            )
        return findings


class Device(DeviceSession):
    """A device session, the drafting around it, and what it has been asked."""

    def __init__(self, name):
        super().__init__(Hello(PROTOCOL_VERSION, "abc", name, "table", True, Profile(0.05, 3.0)))
        self.index, self.ask, self.attempt = None, None, 0

    def draft(self):
        base = len(self.committed)
        ids, distributions, context = [], [], self.committed[-1]
        for position in range(base, base + (0 if self.over else self.grant.length)):
            distributions.append(DISTRIBUTIONS[context])
            context = draft_token(distributions[-1], self.params.seed + self.attempt, base, position)
            ids.append(context)
        return self.answer(ids, 0.1, distributions)


class TableDrafter(SlotDrafter):
    """The edge's own drafter: the same distributions, drawn by the same noise as a device's."""

    def draft(self, asks):
        return [ids for ids, _ in self.draft_distributions(asks, FORM)]

    def draft_distributions(self, asks, form):
        drafts = []
        for ask in asks:
            base, ids, distributions, context = len(ask.committed), [], [], ask.committed[-1]
            for position in range(base, base + ask.length):
                distributions.append(DISTRIBUTIONS[context])
                context = draft_token(distributions[-1], ask.params.seed, base, position)
                ids.append(context)
            drafts.append((ids, distributions))
        return drafts


class Site(LocalDriver):
    """An edge and devices that lose their connections, at random but for no reason."""

    def __init__(self, rule, forgetful=False, mode="rounds", joins=False):
        edge = TableDrafter() if mode in ("edge", "mixture", "auto") else None
        settings = ControllerSettings("fixed", 1e6, 3, 2, mode=mode, edge_drafts=edge is not None)
        limits = Limits(10**4, 10**4, prefill_tokens_per_round=10**6, prefill_share=10**6)
        super().__init__(Passes(TableEngine(joins=joins), Controller(settings), "abc", limits, edge_drafter=edge))
        self.rule, self.forgetful = rule, forgetful
        self.rng = random.Random(5)
        self.texts, self.begun = {}, 0  # by the order in which they were begun
        self.counts = {"refused": 0, "late distributions": 0, "resumed": 0, "reopened": 0}

    def chance(self, probability):
        return self.rng.random() < probability

    def write(self, texts):
        for index in range(DEVICES):
            self.begin(self.connect(Device(f"device-{index}")))
        while not all(index in self.texts for index in range(texts)):  # not the first to end: they may be special
            self.step()
        return [self.texts[index] for index in range(texts)]

    def begin(self, number):
        params = SamplingParams(PARAMS.temperature, 0, PARAMS.top_p, derive_seed(2026, self.begun), PARAMS.logit_bias)
        device = self.devices[number]
        device.index, self.begun = self.begun, self.begun + 1
        device.begin(
            Request(
                PROMPT, params, TEXT, rule=self.rule, retained=FORM.retained, probability_bits=FORM.probability_bits
            )
        )
        self.say(number, device.open())

    def break_off(self, number):
        """The connection breaks; the device resumes, or takes the edge for lost and opens again."""
        device = self.devices[number]
        device.ask = None
        self.lose(number)
        if self.chance(0.2):
            self.counts["reopened"] += 1
            self.passes.leave(number)
            device.forget_edge()
            self.say(self.connect(device), device.open())
        else:
            self.counts["resumed"] += 1
            session = self.passes.session(number)
            if self.forgetful and isinstance(session.stage, DistributionAsked):
                session.stage = Granted(session.grant)
                device.stage = Disconnected(Waiting())  # both forget the draft, and the device draws anew
                device.attempt += 1
            self.connect(device)

    def run(self):
        """A few passes: where nobody waits for drafts there is always one more."""
        for _ in range(6):
            step = self.advance()
            if isinstance(step, Sleep):
                break
            self.work(step)

    def hear(self, number, message):
        device = self.devices.get(number)
        if device is None:  # gone, between two messages
            return
        device.receive(message)
        if isinstance(message, Ask):
            device.ask = message
        if device.finish:
            assert len(device.generated) == TEXT
            self.texts[device.index] = device.generated
            self.begin(number)

    def deliver(self, number, message):
        if number not in self.devices:  # gone, between two messages
            return
        if self.chance(LOSS) or (self.forgetful and isinstance(message, Ask)):
            self.break_off(number)
        else:
            self.hear(number, message)

    def verify(self, step):
        findings = self.passes.verify(step.batch)
        self.counts["refused"] += sum(f is not None and not isinstance(f, Outcome) for f in findings)
        self.passes.verified(step.batch, findings, self.verify_s, self.now_s)

    def answer_asks(self, late):
        for number, device in list(self.devices.items()):
            if device.ask is not None and not self.chance(LATE):
                ask, device.ask = device.ask, None
                self.counts["late distributions"] += late
                distribution = device.distribution(ask)
                for _ in range(self.rng.choice([1, 1, 2])):  # and perhaps twice
                    self.say(number, distribution)

    def step(self):
        """Drafts, a pass without the late ones, and answers to what it asks."""
        self.answer_asks(late=True)
        for number, device in list(self.devices.items()):
            again = device.unsent()
            if again is not None or (device.wants_draft and not self.chance(LATE)):
                before, after = self.chance(LOSS), self.chance(LOSS)
                message = device.draft() if again is None else again
                if before:  # it never left the device
                    self.break_off(number)
                    continue
                self.say(number, message)
                if after:
                    self.break_off(number)
        self.now_s += 5.0
        self.run()
        self.answer_asks(late=False)
        self.now_s += 5.0
        self.run()


def are_the_targets_own(texts):
    """Each text is what the target draws alone with the same seed."""
    for index, text in enumerate(texts):
        committed, params = list(PROMPT), replace(PARAMS, seed=derive_seed(2026, index))
        for _ in range(TEXT):
            committed += draw(TARGET[committed[-1:]], [len(committed)], params)
        assert text == committed[len(PROMPT) :]
    return True


def follows_the_distribution(texts):
    logits = shaped(TARGET, [0] * V, PARAMS)
    return follow(texts, joint_distribution(PROMPT[-1], target_distribution(logits, PARAMS).numpy()))


def test_a_coupled_text_is_what_the_target_draws_whatever_is_lost_or_late():
    site = Site(Rule.COUPLED)
    assert are_the_targets_own(site.write(300))
    assert min(site.counts["resumed"], site.counts["reopened"]) > 30


@pytest.mark.parametrize("mode", ["edge", "mixture", "auto"])
def test_a_coupled_text_is_what_the_target_draws_whoever_drafts(mode):
    site = Site(Rule.COUPLED, mode=mode)
    assert are_the_targets_own(site.write(300))
    assert sum(count for report in site.reports for count in report.drafted) > 100


REJECTION = [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN]


@pytest.mark.parametrize("rule", REJECTION)
def test_the_text_follows_the_targets_distribution_whatever_is_lost_or_late(rule):
    site = Site(rule)
    assert follows_the_distribution(site.write(TEXTS))
    assert min(site.counts["resumed"], site.counts["reopened"]) > 100
    if rule in (Rule.REJECTION_UP, Rule.REJECTION_DOWN):
        assert site.counts["refused"] > 500
    if rule is Rule.REJECTION_UP:
        assert site.counts["late distributions"] > 50


@pytest.mark.parametrize("mode", ["edge", "mixture", "auto"])
@pytest.mark.parametrize("rule", REJECTION)
def test_the_text_follows_the_targets_distribution_whoever_drafts(rule, mode):
    site = Site(rule, mode=mode)
    assert follows_the_distribution(site.write(FEWER_TEXTS))
    assert sum(count for report in site.reports for count in report.drafted) > 300


@pytest.mark.parametrize("mode", ["rounds", "auto"])
@pytest.mark.parametrize("rule", REJECTION)
def test_the_text_follows_the_targets_distribution_where_the_end_of_its_prompt_brings_a_token(rule, mode):
    site = Site(rule, mode=mode, joins=True)
    assert follows_the_distribution(site.write(FEWER_TEXTS))
    assert sum(count for report in site.reports for count in report.drafted) > 300


def test_a_refused_draft_that_is_forgotten_and_drawn_anew_is_caught():
    assert not follows_the_distribution(Site(Rule.REJECTION_UP, forgetful=True).write(TEXTS))


def test_an_edge_that_draws_from_the_whole_distribution_where_the_draft_distribution_is_missing_is_caught(monkeypatch):
    def from_the_whole_distribution(rejection, distribution):
        generator = torch.Generator().manual_seed(rejection.seed % 2**31 + rejection.base)
        return Outcome(rejection.accepted, int(torch.multinomial(rejection.distribution, 1, generator=generator)))

    monkeypatch.setattr(edge_session, "resolve_up", from_the_whole_distribution)
    assert not follows_the_distribution(Site(Rule.REJECTION_UP).write(FEWER_TEXTS))


def test_a_device_that_takes_the_likeliest_of_an_offer_is_caught(monkeypatch):
    def likeliest(offer, distribution, seed):
        floor = offer.floor
        return int(floor.ids[floor.weights.argmax()]) if len(floor.ids) else offer.rest_token

    monkeypatch.setattr(device_stages, "resolve_down", likeliest)
    assert not follows_the_distribution(Site(Rule.REJECTION_DOWN).write(300))
