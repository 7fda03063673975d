import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from multispin.errors import InputError
from multispin.models import Verifier
from multispin.speculation import (
    DistributionFormat,
    Evidence,
    Failure,
    Feed,
    Outcome,
    Rule,
    SamplingParams,
    SlotsTakenError,
    certain_distribution,
)

GREEDY = SamplingParams()


def full_logits(model, tokens):
    """Logits of a separate full forward by plain transformers."""
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


@pytest.mark.long
def test_ragged_batches_with_random_rollbacks_equal_separate_full_forwards(make_model, family):
    model = make_model(family)
    verifier = Verifier(copy.deepcopy(model), slots=4, max_length=80)
    rng = random.Random(1)
    texts = {}
    for _ in range(60):
        if len(texts) < 4 and rng.random() < 0.5:
            texts[verifier.open()] = []
        for slot in list(texts):
            if rng.random() < 0.05:
                verifier.close(slot)
                del texts[slot]
        feeds = []
        for slot, text in texts.items():
            if rng.random() < 0.8 and len(text) < 60:
                keep = rng.randint(max(0, len(text) - 6), len(text))  # roll back up to six positions
                del text[keep:]
                tokens = [rng.randrange(97) for _ in range(rng.randint(1, 9))]
                context = rng.randrange(len(tokens)) if rng.random() < 0.3 else 0  # behind the end of a prompt
                feeds.append(
                    Feed(slot, keep, tokens, GREEDY, context=context)
                    if context or rng.random() < 0.8
                    else Feed(slot, keep, tokens, None)
                )
        for feed, logits in zip(feeds, verifier.forward(feeds), strict=True):
            texts[feed.slot] += feed.tokens
            if feed.params is None:
                assert logits.shape == (0, 97)
            else:
                expected = full_logits(model, texts[feed.slot])[feed.newest :]
                torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
                assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_logits_do_not_depend_on_who_else_is_in_the_batch(make_model, family):
    verifier = Verifier(make_model(family), slots=5, max_length=64)
    slots = [verifier.open() for _ in range(5)]
    rng = random.Random(2)
    feeds = [Feed(slot, 0, [rng.randrange(97) for _ in range(rng.randint(1, 12))], GREEDY) for slot in slots]
    together = verifier.forward(feeds)
    for feed, logits in zip(feeds, together, strict=True):
        verifier.commit(feed.slot, 0)
        (alone,) = verifier.forward([feed])
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


def test_a_rolled_back_draft_leaves_no_trace(make_model, family):
    verifier = Verifier(make_model(family), slots=2, max_length=64)
    slot, clean = verifier.open(), verifier.open()
    prompt = [5, 6, 7, 8]
    verifier.forward([Feed(slot, 0, [*prompt, 90, 91, 92, 93], GREEDY)])
    verifier.commit(slot, len(prompt))
    verifier.forward([Feed(clean, 0, prompt, None)])
    dirty_logits, clean_logits = verifier.forward(
        [Feed(slot, len(prompt), [1, 2], GREEDY), Feed(clean, len(prompt), [1, 2], GREEDY)]
    )
    torch.testing.assert_close(dirty_logits, clean_logits, atol=1e-5, rtol=1e-5)


def test_a_sliding_window_is_respected(sizes):
    torch.manual_seed(3)
    config = Qwen2Config(**sizes, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert "sliding_attention" in config.layer_types
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    verifier = Verifier(copy.deepcopy(model), slots=1, max_length=64)
    slot, tokens = verifier.open(), [(7 * i) % 97 for i in range(24)]
    pieces = [verifier.forward([Feed(slot, start, tokens[start : start + 3], GREEDY)])[0] for start in range(0, 24, 3)]
    torch.testing.assert_close(torch.cat(pieces), full_logits(model, tokens), atol=1e-4, rtol=1e-4)


def test_slots_run_out_with_an_answer_and_come_back(make_model):
    verifier = Verifier(make_model("llama"), slots=2, max_length=16)
    first = verifier.open()
    verifier.open()
    with pytest.raises(SlotsTakenError, match="all 2 slots"):
        verifier.open()
    verifier.close(first)
    assert verifier.open() == first
    assert verifier.cached(first) == 0


@pytest.mark.parametrize(
    "feed",
    [
        Feed(0, 1, [1], GREEDY),  # a gap
        Feed(0, 0, [], GREEDY),
        Feed(0, 0, [1] * 17, GREEDY),  # too long
        Feed(0, 0, [97], GREEDY),  # no such token
        Feed(1, 0, [1], GREEDY),  # not open
    ],
)
def test_feeds_that_make_no_sense_are_refused(make_model, feed):
    verifier = Verifier(make_model("llama"), slots=2, max_length=16)
    assert verifier.open() == 0
    with pytest.raises(ValueError, match=r"slot|token|cached"):
        verifier.forward([feed])


@pytest.mark.parametrize(("slots", "length"), [(0, 16), (1, 0), (1, 257)])
def test_impossible_sizes_are_refused_with_their_value(make_model, slots, length):
    with pytest.raises(InputError, match=str(length if slots else slots)):
        Verifier(make_model("llama"), slots=slots, max_length=length)


def test_the_model_that_is_handed_over_stays_as_it_is_and_its_weights_are_shared(make_model, family):
    model, tokens = make_model(family), [3, 1, 4, 1, 5]
    before, kinds = full_logits(model, tokens), [type(module) for module in model.modules()]
    verifier = Verifier(model, slots=1, max_length=16)
    verifier.forward([Feed(verifier.open(), 0, tokens, GREEDY)])
    assert torch.equal(full_logits(model, tokens), before)
    assert [type(module) for module in model.modules()] == kinds
    assert verifier.packed.model.get_input_embeddings().weight is model.get_input_embeddings().weight


def test_a_text_that_cannot_be_computed_fails_alone_and_leaves_nothing_to_whoever_comes_next(make_model):
    model = make_model("llama")
    model.model.embed_tokens.weight.data[42] = torch.nan
    verifier = Verifier(model, slots=2, max_length=32)
    good, bad = verifier.open(), verifier.open()
    (expected,) = verifier.verify([Feed(good, 0, [1, 2, 3], GREEDY)])
    for tokens, params in (([1, 42, 3], None), ([1, 42], GREEDY), ([1, 42], SamplingParams(0.8, seed=4))):
        found, failure = verifier.verify([Feed(good, 0, [1, 2, 3], GREEDY), Feed(bad, 0, tokens, params)])
        assert found == expected
        assert isinstance(failure, Failure)
        assert "finite numbers" in failure.reason
        assert verifier.cached(bad) == 0
    # Long texts beside a short one share an attention call, in which the short one's slot is read to the longest's end.
    verifier.verify([Feed(good, 0, [5] * 20, None), Feed(bad, 0, [5, 6, *[42] * 18], None)])
    verifier.close(bad)
    assert verifier.open() == bad
    _, found = verifier.verify([Feed(good, 20, [5], GREEDY), Feed(bad, 0, [1, 2, 3], GREEDY)])
    assert found == expected


FORM = DistributionFormat(97, 97)
DRAWN = SamplingParams(1.5, seed=3)
MASKS = np.packbits(np.arange(97) % 2 == np.arange(4)[:, None] % 2, axis=1, bitorder="little")
ASKED = {  # parameters, masks, and whether drafts have evidence
    "drawn": (DRAWN, None, False),
    "penalties": (replace(DRAWN, presence_penalty=2.0, repetition_penalty=3.0, prompt_tokens=6), None, False),
    "log probabilities": (replace(DRAWN, logprobs=2), None, False),
    "masks": (DRAWN, MASKS, False),
    "rejection": (DRAWN, None, True),
}


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("asked", ASKED)
def test_a_draft_behind_the_end_of_its_prompt_is_judged_as_behind_one_read_before(make_model, asked, static):
    (params, masks, proved), prompt = ASKED[asked], [5, 6, 5, 6, 5, 9]
    text = prompt if params.remembers else ()
    verifier = Verifier(make_model("llama"), slots=2, max_length=32, static=static)
    apart, joined = verifier.open(), verifier.open()
    verifier.verify([Feed(apart, 0, prompt[:5], None)])
    own: list[int] = []
    for right in range(3):  # more of the draft is right each time
        draft = [*own[:right], 7, 8, 9][:3]
        distributions = tuple(certain_distribution(token, FORM) for token in draft)
        more = params, Evidence(Rule.REJECTION, FORM, distributions=distributions) if proved else None, text, masks
        (expected,) = verifier.verify([Feed(apart, 5, [9, *draft], *more)])
        (found,) = verifier.verify([Feed(joined, 0, [*prompt, *draft], *more, context=5)])
        assert isinstance(expected, Outcome)
        assert found[:2] == expected[:2]
        assert found.accepted >= right or proved
        for one, other in zip(found.scores, expected.scores, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        own = [*draft[: found.accepted], found.next_token]
        verifier.commit(apart, 5)
        verifier.commit(joined, 0)


def test_a_request_whose_own_values_cannot_be_judged_fails_alone(make_model):
    verifier = Verifier(make_model("llama"), slots=2, max_length=32)
    good, bad = verifier.open(), verifier.open()
    evidence = Evidence(Rule.REJECTION_UP, DistributionFormat(50, 8, 8), weights=(3,))  # written for another vocabulary
    (expected,) = verifier.verify([Feed(good, 0, [1, 2, 3], GREEDY)])
    found, failure = verifier.verify(
        [Feed(good, 0, [1, 2, 3], GREEDY), Feed(bad, 0, [1, 2], SamplingParams(0.8), evidence)]
    )
    assert found == expected
    assert isinstance(failure, Failure)
    assert "50 ids" in failure.reason


def test_padding_of_the_logits_cannot_be_drawn(make_model):
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[90:] *= 100.0  # without the cut, these would win
    wide, cut = Verifier(model, 1, 16), Verifier(model, 1, 16, vocabulary_size=90)
    feed = Feed(wide.open(), 0, [1, 2, 3], GREEDY)
    assert cut.open() == feed.slot
    assert cut.vocabulary_size == 90
    (free,), (found,) = wide.forward([feed]), cut.forward([feed])
    assert free.argmax() >= 90
    assert torch.equal(found, free[:, :90])
    with pytest.raises(ValueError, match="outside 0 … 89"):
        cut.forward([Feed(feed.slot, 0, [90], GREEDY)])


def test_memory_is_what_the_shape_says(make_model):
    verifier = Verifier(make_model("llama"), slots=3, max_length=20)
    assert verifier.cache_bytes == 2 * 3 * 3 * 2 * 20 * 8 * 4  # keys and values, layers, slots, heads, length, dim
