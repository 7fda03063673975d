"""Log probabilities: the model's own, for every token of a decided draft, whatever else the request asks."""

import math

import pytest
import torch

from multispin.errors import InputError
from multispin.speculation import (
    DistributionFormat,
    Evidence,
    Rule,
    SamplingParams,
    certain_distribution,
    judge,
    scores,
)

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, -math.inf], [1.0, 1.0, 1.0, 5.0]])


def by_hand(row, token):
    total = sum(math.exp(value) for value in row)
    return math.log(math.exp(row[token]) / total) if row[token] > -math.inf else -9999.0


def test_a_score_is_the_log_probability_before_anything_is_applied():
    found = scores(LOGITS, [1, 3, 0], 2)
    for row, token, score in zip(LOGITS.tolist(), [1, 3, 0], found, strict=True):
        assert score.logprob == pytest.approx(by_hand(row, token))
        best = sorted(range(4), key=lambda each, row=row: -row[each])[:2]
        assert [logprob for _, logprob in score.top] == pytest.approx([by_hand(row, each) for each in best])
    assert [token for token, _ in found[0].top] == [0, 1]
    assert scores(LOGITS, [2], 0)[0].top == ()
    assert len(scores(LOGITS, [2], 20)[0].top) == 4


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(logprobs=1),
        SamplingParams(1.5, top_k=2, seed=3, logprobs=1, logit_bias=((1, 2.0),)),
        SamplingParams(1.5, presence_penalty=1.0, seed=3, logprobs=1, prompt_tokens=2),
    ],
)
def test_every_token_of_an_outcome_has_its_score(params):
    found = judge([0, 1], None, LOGITS, 2, params, (0, 1))
    tokens = [*[0, 1][: found.accepted], found.next_token]
    assert found.scores == scores(LOGITS, tokens, 1)
    assert judge([0, 1], None, LOGITS, 2, SamplingParams()).scores == ()


def test_the_rejection_rule_reports_too():
    form = DistributionFormat(4, 4)
    evidence = Evidence(
        Rule.REJECTION, form, distributions=(certain_distribution(0, form), certain_distribution(1, form))
    )
    found = judge([0, 1], evidence, LOGITS, 2, SamplingParams(1.0, seed=1, logprobs=3))
    assert found.scores == scores(LOGITS, [*[0, 1][: found.accepted], found.next_token], 3)


@pytest.mark.parametrize("logprobs", [-1, 21])
def test_the_number_of_alternatives_is_bounded(logprobs):
    with pytest.raises(InputError, match="logprobs"):
        SamplingParams(logprobs=logprobs)
