"""Penalties: the formula, written once more without arrays, and drafts that change nothing of the text."""

import random
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from multispin.errors import InputError
from multispin.speculation import (
    DistributionFormat,
    Evidence,
    Outcome,
    Rule,
    SamplingParams,
    draft_token,
    draw,
    judge,
    penalised,
    shaped_after,
    truncate,
    truncated_logits,
)
from multispin.speculation.penalties import Seen, seen_before

V = 12
PARAMS = [
    SamplingParams(presence_penalty=0.8),
    SamplingParams(frequency_penalty=0.6),
    SamplingParams(repetition_penalty=1.4),
    SamplingParams(0.9, frequency_penalty=0.9, presence_penalty=-0.5, repetition_penalty=0.7, seed=5),
    SamplingParams(1.2, top_k=6, min_p=0.05, presence_penalty=1.0, logit_bias=((2, 1.5), (4, -2.0)), seed=6),
]
TABLE = np.random.default_rng(0).normal(0.0, 2.0, (V, V))


def logits_after(text):
    """A target whose logits depend on the last two tokens."""
    return [float(TABLE[text[-1], token] + 0.5 * TABLE[text[-2], token]) for token in range(V)]


def by_hand(logits, text, params):
    """The formula for one row, token by token."""
    logits = list(logits)
    for token, bias in params.logit_bias:
        logits[token] += bias
    times = Counter(text[params.prompt_tokens :])
    for token in set(text):
        if logits[token] > 0:
            logits[token] /= params.repetition_penalty
        else:
            logits[token] *= params.repetition_penalty
        logits[token] -= params.frequency_penalty * times[token] + params.presence_penalty * (times[token] > 0)
    return logits


def plain_text(prompt, params, count):
    """The text that decoding by hand writes, one token at a time."""
    text = list(prompt)
    for _ in range(count):
        row = torch.tensor([by_hand(logits_after(text), text, params)])
        text += draw(row, [len(text)], params.of_shaped)
    return text


def rows(text, drafted):
    return _rows(tuple(text), tuple(drafted)).clone()


@cache
def _rows(text, drafted):
    return torch.tensor([logits_after([*text, *drafted[:index]]) for index in range(len(drafted) + 1)])


@pytest.mark.parametrize("params", PARAMS)
def test_every_row_has_the_counts_of_its_own_prefix(params):
    text, drafted = [3, 3, 5, 7, 7, 1], [7, 2, 2, 9]
    params = replace(params, prompt_tokens=3)
    found, rest = shaped_after(rows(text, drafted), text, drafted, params)
    for index, row in enumerate(found):
        expected = by_hand(logits_after([*text, *drafted[:index]]), [*text, *drafted[:index]], params)
        assert row.tolist() == pytest.approx(expected, abs=1e-5)
    assert not rest.remembers
    assert not rest.logit_bias


@pytest.mark.parametrize("params", PARAMS)
def test_drafts_of_any_kind_leave_the_text_of_decoding_by_hand(params):
    rng, accepted = random.Random(1), 0
    for case in range(20):
        prompt = [rng.randrange(V) for _ in range(rng.randint(2, 6))]
        distribution = replace(params, prompt_tokens=len(prompt), seed=params.seed + case)
        expected = plain_text(prompt, distribution, 24)
        text = list(prompt)
        while len(text) < len(expected):
            right = expected[len(text) : len(text) + rng.randint(0, 5)]
            drafted = [*right, *(rng.randrange(V) for _ in range(rng.randint(0, 2)))]
            outcome = judge(drafted, None, rows(text, drafted), len(text), distribution, text)
            accepted += outcome.accepted
            text += [*drafted[: outcome.accepted], outcome.next_token]
        assert text[: len(expected)] == expected
    assert accepted > 100


def blind_to_drafts(text, drafted, prompt_tokens, size):
    """A mutant: every row has the counts of the committed text alone."""
    seen = seen_before(text, (), prompt_tokens, size)
    return Seen(seen.ids, *(np.repeat(each, len(drafted) + 1, axis=0) for each in seen[1:]))


def counts_the_prompt(text, drafted, prompt_tokens, size):
    """A mutant: tokens of the prompt count as generated."""
    return seen_before(text, drafted, 0, size)


def counts_itself(text, drafted, prompt_tokens, size):
    """A mutant: a drafted token counts at its own position."""
    seen = seen_before(text, [*drafted, 0], prompt_tokens, size)
    return Seen(seen.ids, *(each[[*range(1, len(drafted) + 1), len(drafted)]] for each in seen[1:]))


@pytest.mark.parametrize("mutant", [blind_to_drafts, counts_the_prompt, counts_itself])
def test_wrong_counts_are_noticed(monkeypatch, mutant):
    monkeypatch.setattr("multispin.speculation.penalties.seen_before", mutant)
    with pytest.raises(AssertionError):
        test_drafts_of_any_kind_leave_the_text_of_decoding_by_hand(PARAMS[1])
    if mutant is blind_to_drafts:
        assert variation_under_the_rejection_rule(1500) > 0.12  # the rule itself: 0.05


@pytest.mark.long
def test_the_rejection_rule_keeps_the_penalised_distribution_after_a_drafted_prefix():
    """Two drafted tokens, each from a distribution of its own: the second token's frequencies are the target's."""
    # Expected total variation of 144 cells at 6,000 draws is at most 0.06.
    assert variation_under_the_rejection_rule(6000) < 0.09


def variation_under_the_rejection_rule(count):
    """Total variation between pairs of tokens that were written, and the target's distribution of them."""
    params = SamplingParams(1.0, frequency_penalty=-2.0, presence_penalty=-2.0, prompt_tokens=2)
    prompt, form = [1, 2], DistributionFormat(V, V)
    pairs = Counter()
    distributions = tuple(truncate(torch.tensor(TABLE[index]), SamplingParams(1.0), form) for index in range(2))
    evidence = Evidence(Rule.REJECTION, form, distributions=distributions)
    for seed in range(count):
        distribution = replace(params, seed=seed)
        drafted = [draft_token(distributions[index], seed, 2, 2 + index) for index in range(2)]
        found = judge(drafted, evidence, rows(prompt, drafted), 2, distribution, prompt)
        written = [*drafted[: found.accepted], found.next_token]
        if len(written) == 1:  # the next pass decides the second token
            after = [*prompt, *written]
            written.append(judge((), None, rows(after, ()), 3, distribution, after).next_token)
        pairs[tuple(written[:2])] += 1
    expected = np.zeros((V, V))
    first = torch.tensor(by_hand(logits_after(prompt), prompt, params)).softmax(-1).numpy()
    for token in range(V):
        text = [*prompt, token]
        expected[token] = first[token] * torch.tensor(by_hand(logits_after(text), text, params)).softmax(-1).numpy()
    seen = np.array([[pairs[one, two] for two in range(V)] for one in range(V)]) / count
    return np.abs(seen - expected).sum() / 2


def test_min_p_keeps_tokens_by_their_share_of_the_likeliest():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    shares = (logits / 0.5 - 4.0).exp()[0].tolist()
    for min_p in (0.0, 0.01, 0.1, 0.5, 1.0):
        kept = truncated_logits(logits, SamplingParams(0.5, min_p=min_p))[0] > -torch.inf
        assert kept.tolist() == [share >= min_p for share in shares]


def test_penalties_need_the_text():
    params = SamplingParams(presence_penalty=1.0)
    with pytest.raises(InputError, match="penalties need the 3 tokens"):
        judge((), None, rows([1, 2], ()), 3, params)
    with pytest.raises(InputError, match="do not fit 1 rows"):
        shaped_after(rows([1, 2], ()), [1, 2], [3], params)
    assert judge((), None, rows([1, 2], ()), 3, SamplingParams()) == Outcome(0, int(np.argmax(logits_after([1, 2]))))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"min_p": -0.1}, "min_p = -0.1"),
        ({"min_p": float("nan")}, "min_p = nan"),
        ({"presence_penalty": 2.1}, "presence_penalty = 2.1"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty = nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty = inf"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values, sentence):
    with pytest.raises(InputError, match=sentence):
        SamplingParams(**values)


def test_logits_of_an_id_beyond_the_vocabulary_are_no_error():
    changed = penalised(torch.zeros(1, V), [V + 3, 2], (), SamplingParams(presence_penalty=1.0))
    assert changed[0].tolist() == [-1.0 if token == 2 else 0.0 for token in range(V)]
