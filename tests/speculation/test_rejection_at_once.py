"""Drafts that are judged together are judged as each of them alone, whatever else there is beside them."""

import random

import numpy as np
import pytest
import torch

from multispin.errors import InputError
from multispin.speculation import (
    DistributionFormat,
    Evidence,
    Judged,
    Offer,
    Outcome,
    Rejection,
    Rule,
    SamplingParams,
    draft_token,
    judge,
    judge_together,
    truncate,
)
from multispin.speculation.together import NUMBERS_AT_ONCE

V = 60
RULES = (Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN)


def comparable(found):
    """What can be compared of any finding."""
    if isinstance(found, Outcome):
        return found
    if isinstance(found, Offer):
        return found.accepted, found.rest_token, found.floor.ids.tolist(), found.floor.weights.tolist()
    return found.accepted, found.token, found.weight, found.distribution.tolist()


def a_draft(rng, turn, rule):
    """A draft of random length, often near enough to the target to be accepted in part."""
    form = DistributionFormat(V, rng.choice([3, 20, V]), rng.choice([6, 12]))
    length, base = rng.randint(0, 6), rng.randint(1, 50)
    extra = {"min_p": rng.choice([0.0, 0.02]), "logit_bias": rng.choice([(), ((3, 1.5),)])}
    if rng.random() < 0.2:
        extra |= {"repetition_penalty": 1.2, "prompt_tokens": 1}
    params = SamplingParams(rng.choice([0.6, 1.0]), rng.choice([0, 12]), rng.choice([1.0, 0.9]), turn, **extra)
    logits = 2.0 * torch.randn(length + 1, V)
    near = logits + 0.7 * torch.randn(length + 1, V)
    distributions = [truncate(near[index], SamplingParams(params.temperature), form) for index in range(length)]
    drafted = [draft_token(each, params.seed, base, base + index) for index, each in enumerate(distributions)]
    weights = [each.weight(token) for each, token in zip(distributions, drafted, strict=True)]
    given = {"distributions": tuple(distributions)} if rule is Rule.REJECTION else {"weights": tuple(weights)}
    return Judged(drafted, Evidence(rule, form, **given), logits, base, params, list(range(base)))


@pytest.mark.parametrize("at_once", [NUMBERS_AT_ONCE, 10 * V])
@pytest.mark.parametrize("seed", [3, 20])
def test_a_batch_of_all_rules_finds_what_each_draft_finds_alone(seed, at_once, processor):
    rng, kinds = random.Random(seed), set()
    torch.manual_seed(seed)
    for turn in range(20):
        drafts = [a_draft(rng, 100 * turn + index, rng.choice(RULES)) for index in range(rng.randint(2, 12))]
        expected = [judge(*draft) for draft in drafts]
        found = judge_together([draft._replace(logits=draft.logits.to(processor)) for draft in drafts], at_once)
        kinds |= {type(each) for each in expected}
        for mine, other in zip(found, expected, strict=True):
            assert type(mine) is type(other)
            np.testing.assert_equal(comparable(mine)[:2], comparable(other)[:2])
            if processor == "cpu" and not isinstance(mine, Rejection):
                assert comparable(mine) == comparable(other)
            if isinstance(mine, Rejection):
                torch.testing.assert_close(mine.distribution.cpu(), other.distribution, atol=1e-6, rtol=1e-5)
    assert kinds == {Outcome, Offer, Rejection}


def test_a_draft_that_cannot_be_judged_harms_no_other(processor):
    torch.manual_seed(0)
    rng = random.Random(0)
    drafts = [a_draft(rng, index, RULES[index % 3]) for index in range(9)]
    drafts = [draft._replace(logits=draft.logits.to(processor)) for draft in drafts]
    expected = [judge(*draft) for draft in drafts]
    bad = drafts[4]._replace(evidence=Evidence(Rule.REJECTION_UP, DistributionFormat(V, 20, 12), weights=(1,) * 50))
    nothing = drafts[7]._replace(logits=torch.full_like(drafts[7].logits, -torch.inf))
    ids_only = Judged([], None, drafts[0].logits[:1], 3, SamplingParams())
    found = judge_together([*drafts[:4], bad, *drafts[5:7], nothing, drafts[8], ids_only])
    assert isinstance(found[4], InputError)
    assert "50 probabilities" in str(found[4])
    assert isinstance(found[7], InputError)
    for index in (0, 1, 2, 3, 5, 6, 8):
        assert comparable(found[index])[:2] == comparable(expected[index])[:2]
    assert found[9] == Outcome(0, int(drafts[0].logits[0].argmax()))


def test_a_refusal_that_waits_holds_its_own_row_alone():
    torch.manual_seed(3)
    rng = random.Random(3)
    drafts = [a_draft(rng, index, Rule.REJECTION_UP) for index in range(30)]
    waiting = [each for each in judge_together(drafts) if isinstance(each, Rejection)]
    assert len(waiting) > 5
    assert all(each.distribution.untyped_storage().nbytes() == 8 * V for each in waiting)
