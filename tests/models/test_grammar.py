"""Grammars are part of the target's distribution: drafts change nothing, and the text has the form asked for."""

import json
import random
import sys
from dataclasses import replace

import llguidance
import numpy as np
import pytest
import torch

from multispin.errors import InputError
from multispin.models import (
    ModelBatchDrafter,
    ModelDrafter,
    PackedModel,
    TextGrammars,
    Verifier,
    load_model,
    load_tokenizer,
)
from multispin.models.grammar import load_grammars
from multispin.speculation import (
    DistributionFormat,
    DraftAsk,
    Failure,
    Feed,
    Follower,
    SamplingParams,
    draw,
    judge,
    masks_along,
)
from multispin.speculation.grammar import allowed

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMAR = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA))
SAMPLING = {
    "greedy": SamplingParams(),
    "coupled": SamplingParams(1.0, seed=5),
    "everything": SamplingParams(0.9, top_k=40, min_p=0.001, frequency_penalty=0.4, repetition_penalty=1.1, seed=9),
}
LIMIT = 120


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return load_tokenizer(tiny_folder)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return TextGrammars(tokenizer)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(tiny_folder)


@torch.inference_mode()
def naive(model, tokenizer, prompt, params):
    """Masked decoding, one token at a time; every mask by a matcher of llguidance that has read the text anew."""
    tokens = llguidance.LLTokenizer(
        tokenizer.backend.to_str(), n_vocab=tokenizer.size, eos_token=list(tokenizer.stop_ids)
    )
    text = list(prompt)
    while len(text) - len(prompt) < LIMIT and (len(text) == len(prompt) or text[-1] not in tokenizer.stop_ids):
        row = model(input_ids=torch.tensor([text])).logits[0, -1:].clone()
        matcher = llguidance.LLMatcher(tokens, params.grammar)
        assert matcher.consume_tokens(text[len(prompt) :])
        bits = matcher.compute_bitmask()
        for token in range(tokenizer.size):
            if not bits[token // 8] >> (token % 8) & 1:
                row[0, token] = -torch.inf
        for token in set(text):
            times = text[len(prompt) :].count(token)
            row[0, token] *= 1 / params.repetition_penalty if row[0, token] > 0 else params.repetition_penalty
            row[0, token] -= params.frequency_penalty * times
        text += draw(row, [len(text)], params.of_shaped)
    return text[len(prompt) :]


class Nonsense:
    """Drafts random ids, the text's own ones now and then."""

    def __init__(self, expected, rng):
        self.expected, self.rng = expected, rng

    def draft(self, committed, length, params):
        written = len(committed) - params.prompt_tokens
        right = self.expected[written : written + self.rng.randint(0, length)]
        return [*right, *(self.rng.randrange(200) for _ in range(length - len(right)))]


def written_by(verifier, grammars, prompt, params, drafter, stop_ids):
    """The text of the verifier with drafts; and how many drafted tokens were accepted."""
    slot, text, matcher, accepted = verifier.open(), list(prompt), grammars.matcher(params.grammar), 0
    verifier.verify([Feed(slot, 0, prompt[:-1], None)])
    while len(text) - len(prompt) < LIMIT:
        drafted = drafter.draft(text, min(5, LIMIT - (len(text) - len(prompt)) - 1), params)
        masks = masks_along(matcher, drafted)
        (found,) = verifier.verify([Feed(slot, len(text) - 1, [text[-1], *drafted], params, None, [*text], masks)])
        new = [*drafted[: found.accepted], found.next_token]
        end = next((place for place, token in enumerate(new, start=1) if token in stop_ids), len(new))
        matcher.advance(new[:end])
        text += new[:end]
        accepted += min(found.accepted, end)
        verifier.commit(slot, len(text) - 1)
        if text[-1] in stop_ids:
            break
    verifier.close(slot)
    return text[len(prompt) :], accepted


@pytest.mark.long
@pytest.mark.parametrize("sampling", sorted(SAMPLING))
def test_a_text_under_a_schema_is_that_of_naive_masked_decoding(model, tokenizer, grammars, sampling):
    prompt, rng = tokenizer.encode("Give me JSON: "), random.Random(2)
    params = replace(SAMPLING[sampling], grammar=GRAMMAR, prompt_tokens=len(prompt))
    expected = naive(model, tokenizer, prompt, params)
    text = tokenizer.decode(expected)
    verifier = Verifier(model, 1, 256)
    drafters = {
        "nonsense": Nonsense(expected, rng),
        "masked": ModelDrafter(model, 256, tokenizer.size, grammars),
        "not masked": ModelDrafter(model, 256, tokenizer.size),
    }
    shares = {}
    for name, drafter in drafters.items():
        found, shares[name] = written_by(verifier, grammars, prompt, params, drafter, tokenizer.stop_ids)
        assert found == expected, name
    assert shares["masked"] > shares["not masked"]
    if expected[-1] in tokenizer.stop_ids:
        document = json.loads(text)
        assert set(document) == {"name", "age", "tags"}
        assert 0 <= document["age"] <= 999
    else:
        assert len(expected) == LIMIT


def test_a_mutant_that_masks_by_the_committed_text_alone_is_noticed(model, tokenizer, grammars):
    prompt = tokenizer.encode("Give me JSON: ")
    params = replace(SAMPLING["coupled"], grammar=GRAMMAR, prompt_tokens=len(prompt))
    expected = naive(model, tokenizer, prompt, params)
    drafter, verifier = Nonsense(expected, random.Random(2)), Verifier(model, 1, 256)

    class Blind:
        def matcher(self, grammar):
            inner = grammars.matcher(grammar)
            real = inner.mask
            inner.mask = lambda drafted: real([])
            return inner

    with pytest.raises(InputError, match="does not fit"):
        written_by(verifier, Blind(), prompt, params, drafter, tokenizer.stop_ids)


def test_the_edges_drafter_and_the_rejection_rule_stay_within_the_grammar(model, tokenizer, grammars):
    prompt, form = tokenizer.encode("Give me JSON: "), DistributionFormat(tokenizer.size, 50)
    params = SamplingParams(1.0, seed=4, grammar=GRAMMAR, prompt_tokens=len(prompt))
    drafter = ModelBatchDrafter(PackedModel.of(model), 1, 256, tokenizer.size)
    matcher = grammars.matcher(GRAMMAR)
    ask = DraftAsk(drafter.open(), prompt, 12, params, matcher)
    check = grammars.matcher(GRAMMAR)
    (drafted,) = drafter.draft([ask])
    ((drawn, distributions),) = drafter.draft_distributions([ask], form)
    for ids in (drafted, drawn):
        assert len(ids) == 12
        for index, token in enumerate(ids):
            assert bits(check.mask(ids[:index]))[token]
    for index, distribution in enumerate(distributions):
        assert bits(check.mask(drawn[:index]))[distribution.ids].all()


def bits(mask):
    return allowed(mask, 257)


def test_a_mask_leaves_the_matcher_where_it_was(tokenizer, grammars):
    matcher = grammars.matcher(GRAMMAR)
    text = tokenizer.encode('{"name":"ab","age":5,"tags":["red"]}')
    assert bits(matcher.mask([])).sum() < 10
    for cut in range(0, len(text), 3):
        before = matcher.mask([]).tolist()
        matcher.mask(text[cut : cut + 9])
        matcher.mask([*text[cut:], *tokenizer.stop_ids, 3, 4])
        matcher.mask([1, 2, 3])
        assert matcher.mask([]).tolist() == before
        matcher.advance(text[cut : cut + 3])
    assert np.flatnonzero(bits(matcher.mask([]))).tolist() == list(tokenizer.stop_ids)
    matcher.advance(tokenizer.stop_ids[:1])
    assert bits(matcher.mask([])).all()  # the text is over: what follows does not matter
    assert bits(matcher.mask([7])).all()


def test_a_drafted_token_that_the_grammar_forbids_is_refused_and_nothing_after_it_matters(tokenizer, grammars):
    masks = masks_along(grammars.matcher(GRAMMAR), tokenizer.encode("{x"))
    assert bits(masks[2]).all()
    assert not bits(masks[1])[tokenizer.encode("x")[0]]


def test_a_text_that_does_not_fit_ends_its_request_and_no_other(model, tokenizer, grammars):
    matcher = grammars.matcher(GRAMMAR)
    matcher.advance(tokenizer.encode("no"))
    with pytest.raises(InputError, match="does not fit"):
        matcher.mask([])
    everything_forbidden = np.zeros((1, (tokenizer.size + 7) // 8), dtype=np.uint8)
    params = SamplingParams(grammar=GRAMMAR)
    verifier = Verifier(model, 2, 64)
    feeds = [
        Feed(verifier.open(), 0, [5], params, None, (), everything_forbidden),
        Feed(verifier.open(), 0, [5], SamplingParams()),
    ]
    failed, found = verifier.verify(feeds)
    assert isinstance(failed, Failure)
    assert "allows no token" in failed.reason
    assert found.accepted == 0
    with pytest.raises(InputError, match="not at hand"):
        judge([], None, torch.zeros(1, 4), 1, params)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("start: /(/", "cannot be compiled"),
        (llguidance.LLMatcher.grammar_from_json_schema('{"type": "nothing"}'), "cannot be compiled"),
        (llguidance.LLMatcher.grammar_from_json_schema('{"$ref": "https://example.org/x"}'), "cannot be compiled"),
        (llguidance.LLMatcher.grammar_from_json_schema('{"$ref": "#"}'), "allows nothing here.*only to itself.$"),
        ("start: a\na: a", "allows nothing here.*only to itself.$"),
        ("start: /" + "a" * 70_000 + "/", "over the limit"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(grammars, text, sentence):
    with pytest.raises(InputError, match=sentence):
        grammars.matcher(text)


def test_compiled_grammars_are_kept_and_bounded(tokenizer):
    grammars = TextGrammars(tokenizer, max_compiled=3)
    for index in (0, 1, 0, 2, 3, 4, 5):
        grammars.matcher(f'start: "{index}"')
    assert grammars.compiled == 3


def test_a_follower_goes_back_with_its_text_and_drafts_without_a_grammar_that_it_cannot_have(tokenizer, grammars):
    follower, text = Follower(grammars), tokenizer.encode('{"name":"ab"')
    assert follower.follow("", text) is None
    assert Follower(None).follow(GRAMMAR, text) is None
    assert follower.follow("start: /(/", text) is None
    for written in (text[:5], text, text[:3], []):
        expected = grammars.matcher(GRAMMAR)
        expected.advance(written)
        assert follower.follow(GRAMMAR, written).mask([]).tolist() == expected.mask([]).tolist()


def test_without_the_library_grammars_are_refused_by_name(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "llguidance", None)  # as if it were not installed
    assert load_grammars(tokenizer) is None
    with pytest.raises(InputError, match=r"pip install '\.\[device\]'"):
        TextGrammars(tokenizer)


def test_a_model_without_an_end_cannot_follow_a_grammar(tokenizer):
    with pytest.raises(InputError, match="no token that ends a text"):
        TextGrammars(replace(tokenizer, stop_ids=())).matcher(GRAMMAR)
