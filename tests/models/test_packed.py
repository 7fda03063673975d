"""Which sessions share an attention call, and that it changes nothing but the time."""

import random

import pytest
import torch

from multispin.models import Verifier, round_weights
from multispin.models.layout import CALL_COST, Run, grouped
from multispin.models.quantised import whole_weights
from multispin.speculation import Feed, SamplingParams

GREEDY = SamplingParams()


def slots_of(groups):
    return [[run.slot for run in group.runs] for group in groups]


def test_short_drafts_share_a_call_and_a_long_prompt_stands_alone():
    short = [Run(slot, 100, 5, 5 * slot) for slot in (0, 1, 2, 4, 5)]
    prompt = Run(3, 0, 400, 25)
    assert slots_of(grouped([*short, prompt], 9 * 64)) == [[0, 1, 2], [3], [4, 5]]


def test_a_call_is_saved_exactly_while_padding_costs_less():
    first, second = Run(0, 9, 1, 0), Run(1, 19, 1, 1)  # 10 and 20 pairs apart, 40 together
    assert slots_of(grouped([first, second], CALL_COST // 10)) == [[0, 1]]
    assert slots_of(grouped([first, second], CALL_COST // 10 + 1)) == [[0], [1]]


def test_slots_that_are_not_in_the_batch_are_paid_for():
    near, far = Run(1, 9, 1, 1), Run(40, 9, 1, 1)
    cost = CALL_COST // 100
    assert slots_of(grouped([Run(0, 9, 1, 0), near], cost)) == [[0, 1]]
    assert slots_of(grouped([Run(0, 9, 1, 0), far], cost)) == [[0], [40]]


@pytest.mark.parametrize("call_cost", [0, 8_000, 10**12])
def test_however_calls_are_shared_the_logits_are_those_of_each_session_alone(make_model, family, call_cost):
    verifier = Verifier(make_model(family), slots=7, max_length=64)
    verifier.packed.call_cost = call_cost
    slots, rng = [verifier.open() for _ in range(7)], random.Random(3)
    for slot in slots:
        verifier.forward([Feed(slot, 0, [rng.randrange(97) for _ in range(4 * slot + 1)], None)])
    present = [slot for slot in slots if slot not in (2, 3)]
    rng.shuffle(present)  # the row's order is not the slots'
    feeds = [Feed(s, 4 * s + 1, [rng.randrange(97) for _ in range(rng.choice([1, 2, 9]))], GREEDY) for s in present]
    together = verifier.forward(feeds)
    for feed, logits in zip(feeds, together, strict=True):
        verifier.commit(feed.slot, feed.start)
        (alone,) = verifier.forward([feed])
        torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


def test_padding_is_a_draft_that_is_taken_back(make_model, family):
    """The padded batch, as the benchmark runs it: every feed as long as the longest; nothing else may change."""
    verifier = Verifier(make_model(family), slots=3, max_length=64)
    for slot in range(3):
        assert verifier.open() is not None
        verifier.forward([Feed(slot, 0, [5, 6, 7 + slot], None)])
    feeds = [Feed(slot, 3, list(range(10, 10 + n)), GREEDY) for slot, n in enumerate((7, 1, 3))]
    ragged = verifier.forward(feeds)
    for feed in feeds:
        verifier.commit(feed.slot, 3)
    padded = verifier.forward([Feed(f.slot, 3, [*f.tokens, *[0] * (7 - len(f.tokens))], GREEDY) for f in feeds])
    for feed, logits, other in zip(feeds, ragged, padded, strict=True):
        torch.testing.assert_close(logits, other[: len(feed.tokens)], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device_the_logits_are_the_cpus(make_model, family):
    on_cpu = Verifier(make_model(family), slots=3, max_length=64)
    on_cuda = Verifier(make_model(family).to("cuda"), slots=3, max_length=64)
    rng = random.Random(6)
    for _ in range(3):
        on_cpu.open()
        on_cuda.open()
    length = [0, 0, 0]
    for _ in range(10):
        feeds = []
        for slot in range(3):
            start = rng.randint(max(0, length[slot] - 4), length[slot])
            tokens = [rng.randrange(97) for _ in range(rng.randint(1, 6))]
            feeds.append(Feed(slot, start, tokens, GREEDY))
            length[slot] = start + len(tokens)
        for mine, theirs in zip(on_cpu.forward(feeds), on_cuda.forward(feeds), strict=True):
            torch.testing.assert_close(theirs.cpu(), mine, atol=1e-4, rtol=1e-4)
            assert torch.equal(theirs.argmax(-1).cpu(), mine.argmax(-1))


@pytest.mark.parametrize("numbers", ["bfloat16", "rounded", "whole"])
def test_narrow_numbers_give_the_logits_of_the_same_models_plain_forward(make_model, family, numbers):
    """bfloat16 and int8 weights through the slots, up to the rounding of bfloat16."""
    model = make_model(family)
    if numbers == "whole":
        model = whole_weights(model)
    else:
        model = round_weights(model, 8) if numbers == "rounded" else model.to(torch.bfloat16)
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    with torch.inference_mode():
        expected = model(torch.tensor([text])).logits[0]
    verifier = Verifier(model, slots=2, max_length=32)
    slots = [verifier.open(), verifier.open()]
    first, _ = verifier.forward([Feed(slots[0], 0, text[:5], GREEDY), Feed(slots[1], 0, [7], GREEDY)])
    (second,) = verifier.forward([Feed(slots[0], 5, text[5:], GREEDY)])
    got = torch.cat((first, second))
    assert got.dtype == model.dtype
    assert torch.nn.functional.cosine_similarity(got.float(), expected.float(), dim=-1).min() > 0.99
