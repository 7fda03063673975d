"""The law of the text through the whole conversation: edge, sessions, losses of every kind, late laws.

A first-order target and drafter over five tokens behind the Engine seam; a hundred devices write short texts of
three tokens, each with its own seed. Drafts, verdicts, questions and answers are lost or late at random, and edges too.
Chi-square of the joint counts and of each position against the exact law: a correct system fails one test in 10,000
random seeds, and the seeds are fixed. The same test must reject a system that makes one of the known mistakes.
"""

import random

import numpy as np
import pytest
import torch
from scipy import stats

from multispin.passes import Controller, ControllerSettings, Edge, Limits
from multispin.protocol import (
    PROTOCOL_VERSION,
    Ask,
    DeviceSession,
    Granted,
    Hello,
    Profile,
    Refused,
    Request,
    device_session,
    edge_session,
)
from multispin.protocol.device_stages import Away, Waiting
from multispin.speculation import (
    LawFormat,
    Outcome,
    Rule,
    SamplingParams,
    SlotTable,
    derive_seed,
    draft_token,
    judge,
    shaped,
    target_law,
    truncate,
)

V, TEXT, TEXTS, MUTANT_TEXTS, DEVICES, FALSE_ALARM = 5, 3, 1500, 1000, 100, 1e-4
PROMPT = (1, 3, 0, 2, 0)
FORM = LawFormat(V, retained=4, probability_bits=3)
TARGET = torch.tensor(
    [
        [1.2, 0.4, -0.3, 0.9, -2.5],
        [0.1, 1.5, 0.8, -0.6, -3.0],
        [-0.4, 0.2, 1.1, 0.6, -2.0],
        [0.9, -0.2, 0.3, 1.3, -2.8],
        [0.0, 0.5, 1.0, 0.2, -1.9],
    ]
)
DRAFTER = TARGET * 0.8 + torch.tensor([0.3, -0.6, 0.7, -0.5, 1.5])
PARAMS = SamplingParams(0.9, top_p=0.85, logit_bias=((1, 0.4),))
LAWS = [truncate(row, PARAMS, FORM) for row in shaped(DRAFTER, [0] * V, PARAMS)]
LOSS, LATE = 0.15, 0.15


class TableEngine(SlotTable):
    """Logits by the newest token; the real rules."""

    def __init__(self, slots=DEVICES):
        super().__init__(slots)
        self.max_length, self.vocabulary_size, self.rules = 64, V, frozenset(Rule)

    def verify(self, feeds):
        self.check(feeds, self.max_length, V)
        self.take(feeds)
        findings = []
        for feed in feeds:
            rows = TARGET[list(feed.tokens)]
            findings.append(
                None
                if feed.params is None
                else judge(feed.tokens[1:], feed.evidence, rows, feed.start + 1, feed.params)
            )
        return findings


class Device:
    """A device session, the drafting around it, and what has been said to it."""

    def __init__(self, name):
        self.session = DeviceSession(Hello(PROTOCOL_VERSION, "abc", name, "table", True, Profile(0.05, 3.0)))
        self.number, self.text, self.ask, self.attempt = None, None, None, 0

    def draft(self):
        session, base = self.session, len(self.session.committed)
        ids, laws, context = [], [], session.committed[-1]
        for position in range(base, base + (0 if session.over else session.grant.length)):
            laws.append(LAWS[context])
            context = draft_token(laws[-1], session.params.seed + self.attempt, base, position)
            ids.append(context)
        return session.answer(ids, 0.1, laws)


class Site:
    """An edge and devices that lose their connections, at random but for no reason."""

    def __init__(self, rule, forgetful=False):
        controller = Controller(ControllerSettings("fixed", 1e6, 3, 2))
        limits = Limits(max_sessions=10**4, max_waiting=10**4, prefill_tokens_per_round=10**6)
        self.edge = Edge(TableEngine(), controller, "abc", limits)
        self.rule, self.forgetful = rule, forgetful
        self.rng, self.now = random.Random(5), 0.0
        self.devices = {}
        self.texts, self.begun = {}, 0  # by the order in which they were begun
        self.counts = {"refused": 0, "late laws": 0, "resumed": 0, "reopened": 0}

    def chance(self, probability):
        return self.rng.random() < probability

    def run(self, texts):
        for index in range(DEVICES):
            device = Device(f"device-{index}")
            self.connect(device)
            self.begin(device)
        while not all(index in self.texts for index in range(texts)):  # not the first to end: they may be special
            self.step()
        return [self.texts[index] for index in range(texts)]

    def begin(self, device):
        params = SamplingParams(PARAMS.temperature, 0, PARAMS.top_p, derive_seed(2026, self.begun), PARAMS.logit_bias)
        device.text, self.begun = self.begun, self.begun + 1
        device.session.begin(
            Request(
                PROMPT, params, TEXT, rule=self.rule, retained=FORM.retained, probability_bits=FORM.probability_bits
            )
        )
        self.say(device, device.session.open())

    def connect(self, device):
        device.number, answers = self.edge.connect(device.session.greet(), self.now)
        self.devices[device.number] = device
        for answer in answers:
            self.hear(device, answer)

    def lose(self, device):
        """The connection breaks; the device resumes, or takes the edge for lost and opens again."""
        device.ask = None
        self.edge.disconnect(device.number, self.now)
        if self.chance(0.2):
            self.counts["reopened"] += 1
            self.edge.leave(device.number)
            del self.devices[device.number]
            device.session.forget_edge()
            self.connect(device)
            self.say(device, device.session.open())
        else:
            self.counts["resumed"] += 1
            session = self.edge.sessions[device.number]
            if self.forgetful and isinstance(session.stage, Refused):
                session.stage = Granted(session.grant)
                device.session.stage = Away(Waiting())  # both forget the draft, and the device draws anew
                device.attempt += 1
            self.connect(device)

    def say(self, device, message):
        for answer in self.edge.receive(device.number, message, 40, self.now):
            self.hear(device, answer)

    def hear(self, device, message):
        device.session.receive(message)
        if isinstance(message, Ask):
            device.ask = message
        if device.session.finish:
            assert len(device.session.generated) == TEXT
            self.texts[device.text] = device.session.generated
            self.begin(device)

    def deliver(self, messages):
        for number, message in messages:
            device = self.devices[number]
            if self.chance(LOSS) or (self.forgetful and isinstance(message, Ask)):
                self.lose(device)
            else:
                self.hear(device, message)

    def answer_asks(self, late):
        for device in list(self.devices.values()):
            if device.ask is not None and not self.chance(LATE):
                ask, device.ask = device.ask, None
                self.counts["late laws"] += late
                law = device.session.law(ask)
                for _ in range(self.rng.choice([1, 1, 2])):  # and perhaps twice
                    self.say(device, law)

    def step(self):
        self.now += 100.0
        if self.edge.wait_s(self.now) is None:
            self.deliver(self.edge.schedule(self.now)[1].items())
        self.answer_asks(late=True)
        for device in list(self.devices.values()):
            again = device.session.unsent()
            if again is not None or (device.session.wants_draft and not self.chance(LATE)):
                before, after = self.chance(LOSS), self.chance(LOSS)
                message = device.draft() if again is None else again
                if before:  # it never left the device
                    self.lose(device)
                    continue
                self.say(device, message)
                if after:
                    self.lose(device)
        batch = self.edge.collect()
        findings = self.edge.verify(batch)
        self.counts["refused"] += sum(f is not None and not isinstance(f, Outcome) for f in findings)
        self.deliver(self.edge.ask(batch, findings, self.now))
        self.answer_asks(late=False)
        self.deliver(self.edge.deliver(batch, findings, 0.1, self.now)[1])


def joint_law():
    logits = shaped(TARGET, [0] * V, PARAMS)
    p = target_law(logits, PARAMS).numpy()
    law = p[PROMPT[-1]]
    for _ in range(TEXT - 1):
        law = law[..., None] * p
    return law


def follows_the_law(texts):
    joint = joint_law()
    seen = np.zeros_like(joint)
    np.add.at(seen, tuple(np.array(texts).T), 1)
    if seen[joint == 0].any():
        return False
    values = []
    for keep in (None, *range(TEXT)):
        axes = () if keep is None else tuple(axis for axis in range(TEXT) if axis != keep)
        expected, counts = (joint * len(texts)).sum(axis=axes).ravel(), seen.sum(axis=axes).ravel()
        few = expected < 5
        expected = np.append(expected[~few], expected[few].sum())
        counts = np.append(counts[~few], counts[few].sum())
        values.append(stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue)
    return min(values) > FALSE_ALARM / (TEXT + 1)


@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_the_text_follows_the_targets_law_whatever_is_lost_or_late(rule):
    site = Site(rule)
    assert follows_the_law(site.run(TEXTS))
    assert min(site.counts["resumed"], site.counts["reopened"]) > 100
    if rule in (Rule.REJECTION_UP, Rule.REJECTION_DOWN):
        assert site.counts["refused"] > 500
    if rule is Rule.REJECTION_UP:
        assert site.counts["late laws"] > 50


def test_a_refused_draft_that_is_forgotten_and_drawn_anew_is_caught():
    assert not follows_the_law(Site(Rule.REJECTION_UP, forgetful=True).run(MUTANT_TEXTS))


def test_an_edge_that_draws_from_the_whole_law_where_the_draft_law_is_missing_is_caught(monkeypatch):
    def from_the_whole_law(rejection, law):
        generator = torch.Generator().manual_seed(rejection.seed % 2**31 + rejection.base)
        return Outcome(rejection.accepted, int(torch.multinomial(rejection.law, 1, generator=generator)))

    monkeypatch.setattr(edge_session, "resolve_up", from_the_whole_law)
    assert not follows_the_law(Site(Rule.REJECTION_UP).run(MUTANT_TEXTS))


def test_a_device_that_takes_the_likeliest_of_an_offer_is_caught(monkeypatch):
    def likeliest(offer, law, seed):
        floor = offer.floor
        return int(floor.ids[floor.weights.argmax()]) if len(floor.ids) else offer.rest_token

    monkeypatch.setattr(device_session, "resolve_down", likeliest)
    assert not follows_the_law(Site(Rule.REJECTION_DOWN).run(MUTANT_TEXTS))
