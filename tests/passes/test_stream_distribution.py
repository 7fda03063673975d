"""Under the rejection rules devices draft in grants beside streams: whoever rides when, texts follow the target.

The target, the drafter and the test whether texts follow a distribution are those of `test_distribution`; the scheduler
of streams runs under a virtual clock, and devices lose their connections. Seeds are fixed.
"""

import random

import pytest
from tests.five_tokens import TEXT
from tests.passes import test_streams
from tests.passes.test_distribution import (
    DISTRIBUTIONS,
    FORM,
    PARAMS,
    PROMPT,
    TableEngine,
    follows_the_distribution,
)

from multispin.protocol import EdgeSession
from multispin.speculation import Rule, SamplingParams, derive_seed, draft_token

pytestmark = pytest.mark.long

TEXTS = 600
REJECTION = [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN]


class Site(test_streams.Site):
    """Devices that draft from a table, each one text, a few at a time."""

    def __init__(self):
        super().__init__(engine=TableEngine(16), max_sessions=TEXTS, max_waiting=TEXTS)
        self.lost = self.granted = 0

    def answer(self, number, phone, grant):
        session = phone.session
        if session.grant != grant:
            return
        base = len(session.committed)
        ids, distributions, context = [], [], session.committed[-1]
        for position in range(base, base + (0 if session.over else grant.length)):
            distributions.append(DISTRIBUTIONS[context])
            context = draft_token(distributions[-1], session.params.seed, base, position)
            ids.append(context)
        self.granted += len(ids)
        self.up(number, phone, session.answer(ids, len(ids) * phone.token_s, distributions))

    def write(self, rule, loss=0.002):
        params = [SamplingParams(0.9, 0, 0.85, derive_seed(2027, k), PARAMS.logit_bias) for k in range(TEXTS)]
        form = {"rule": rule, "retained": FORM.retained, "probability_bits": FORM.probability_bits}
        numbers = [self.join(f"d{k}", TEXT, params=each, prompt=PROMPT, **form) for k, each in enumerate(params)]
        rng, open_numbers = random.Random(8), set(numbers)
        while open_numbers:
            assert self.queue.step()
            if rng.random() < loss:
                self.break_off(rng.choice(sorted(open_numbers)), rng)
            open_numbers = {number for number in open_numbers if not self.phones[number].session.finish}
        return [self.phones[number].session.generated for number in numbers]

    def break_off(self, number, rng):
        phone, session = self.phones[number], self.passes.session(number)
        if session is None or session.request is None or not phone.connected:
            return
        self.lost += 1
        self.lose(number)
        for _ in range(rng.randint(0, 5)):
            self.queue.step()
        self.connect(phone)
        if (draft := phone.session.unsent()) is not None:
            self.up(number, phone, draft)


@pytest.mark.parametrize("rule", REJECTION)
def test_texts_that_draft_in_grants_beside_streams_follow_the_targets_distribution(rule):
    site = Site()
    assert follows_the_distribution(site.write(rule))
    assert site.granted > TEXTS / 2
    assert site.lost > 5


def test_a_grant_that_counts_a_refused_token_as_accepted_is_caught(monkeypatch):
    was = EdgeSession.settle

    def settle(self, finding):
        return was(self, finding._replace(accepted=min(finding.accepted + 1, len(self.stage.draft))))

    monkeypatch.setattr(EdgeSession, "settle", settle)
    assert not follows_the_distribution(Site().write(Rule.REJECTION, loss=0.0))
