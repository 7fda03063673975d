"""Drafting for many texts at once draws what drafting for each of them alone draws."""

import random

import pytest

from multispin.errors import InputError
from multispin.models import ModelBatchDrafter, ModelDrafter, PackedModel
from multispin.models.batch_drafter import READ_ALONG
from multispin.speculation import DistributionFormat, DraftAsk, SamplingParams, SlotsTakenError

SAMPLING = [
    SamplingParams(),
    SamplingParams(0.8, seed=3),
    SamplingParams(1.0, top_k=20, top_p=0.9, seed=4),
    SamplingParams(0.9, seed=5, logit_bias=((3, -100.0),), withheld=(7,), withheld_until=30),
]


@pytest.mark.long
@pytest.mark.parametrize("static", [False, True])
def test_a_batch_drafts_what_each_text_is_drafted_alone_through_turns_rollbacks_and_leaves(make_model, family, static):
    model, rng = make_model(family), random.Random(8)
    together = ModelBatchDrafter(model, 4, 96, static=static)
    alone, texts, slots = {}, {}, {}
    for turn in range(12):
        for k in range(4):
            if k not in texts or (turn == 6 and k == 2):  # one leaves, and another comes into its slot
                if k in slots:
                    together.close(slots[k])
                slots[k], alone[k] = together.open(), ModelDrafter(model, 96)
                texts[k] = [rng.randrange(97) for _ in range(rng.choice([1, 5, 11]))]
        asked = [k for k in range(4) if rng.random() < 0.8]
        rng.shuffle(asked)
        asks = [DraftAsk(slots[k], texts[k], rng.randrange(6), SAMPLING[k]) for k in asked]
        for k, ask, drafted in zip(asked, asks, together.draft(asks), strict=True):
            assert drafted == alone[k].draft(texts[k], ask.length, SAMPLING[k])
            assert len(drafted) == ask.length
            kept = rng.randrange(len(drafted) + 1)
            texts[k] = [*texts[k], *drafted[:kept], *([rng.randrange(97)] if len(texts[k]) < 70 else [])]


def test_distributions_for_the_rejection_rules_are_those_of_each_text_alone(make_model):
    model, form = make_model("llama"), DistributionFormat(97, retained=20, probability_bits=8)
    together = ModelBatchDrafter(model, 3, 64)
    texts = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8]]
    asks = [DraftAsk(together.open(), text, 4, sampling) for text, sampling in zip(texts, SAMPLING[1:], strict=True)]
    for ask, (drafted, distributions) in zip(asks, together.draft_distributions(asks, form), strict=True):
        ids, own = ModelDrafter(model, 64).draft_distributions(ask.committed, 4, ask.params, form)
        assert drafted == ids
        assert [distribution.ids.tolist() for distribution in distributions] == [
            distribution.ids.tolist() for distribution in own
        ]


def test_under_the_rejection_rules_no_draft_ends_because_of_its_last_token(make_model):
    """A drafter that knows 30 of 97 ids draws none of the others, so that its drafts are as long as asked for."""
    drafter, form = ModelDrafter(make_model("llama"), 64, 30), DistributionFormat(97, retained=97, probability_bits=8)
    for seed in range(20):
        drafted, distributions = drafter.draft_distributions([5, 6, 7], 6, SamplingParams(1.5, seed=seed), form)
        assert len(drafted) == len(distributions) == 6
        assert max(drafted) < 30
        assert all(distribution.ids.max() < 30 for distribution in distributions)


@pytest.mark.parametrize(("unread", "passes"), [(1, 3), (7, 3), (READ_ALONG, 3), (READ_ALONG + 1, 4)])
def test_what_a_device_drafted_is_read_in_the_pass_that_drafts_the_first_token(make_model, unread, passes):
    model, fed = make_model("llama"), []
    drafter = ModelBatchDrafter(model, 1, 200)
    slot, text = drafter.open(), [(3 * k) % 90 + 1 for k in range(60)]
    drafter.prepare([(slot, text[: len(text) - unread])])
    assert drafter.unread(slot, text) == unread
    forward = drafter.model.forward
    drafter.model.forward = lambda feeds: fed.append(feeds) or forward(feeds)
    drafted = drafter.draft([DraftAsk(slot, text, 3, SamplingParams())])
    assert len(fed) == passes
    fresh = ModelBatchDrafter(model, 1, 200)
    assert drafted == fresh.draft([DraftAsk(fresh.open(), text, 3, SamplingParams())])


def test_prompts_are_read_a_budget_at_a_time(make_model):
    drafter, prompt = ModelBatchDrafter(make_model("llama"), 2, 64), list(range(20))
    slots = [drafter.open(), drafter.open()]
    texts = [(slot, prompt) for slot in slots]
    drafter.prepare(texts, most=25)
    assert [drafter.unread(slot, prompt) for slot in slots] == [0, 13]
    drafter.prepare(texts, most=25)
    assert [drafter.unread(slot, prompt) for slot in slots] == [0, 0]


def test_a_text_that_the_drafter_cannot_hold_gets_a_shorter_draft_or_none_and_limits_nobody(make_model):
    model = make_model("llama", max_position_embeddings=16)
    drafter = ModelBatchDrafter(model, 3, 1000)  # asked for more positions than the model knows
    slots = [drafter.open() for _ in range(3)]
    params = SamplingParams()
    asks = [
        DraftAsk(slots[0], [1] * 13, 8, params),
        DraftAsk(slots[1], list(range(16)), 8, params),
        DraftAsk(slots[2], list(range(40)), 8, params),
    ]
    drafter.prepare([(ask.slot, ask.committed) for ask in asks])
    assert [len(draft) for draft in drafter.draft(asks)] == [3, 0, 0]


def test_ids_that_only_one_side_has_are_neither_drafted_nor_a_reason_to_fail(make_model):
    model = make_model("llama")
    free = ModelDrafter(model, 64).draft([5, 6, 7], 20, SamplingParams())
    cut = ModelDrafter(model, 64, vocabulary_size=max(free)).draft([5, 6, 7], 20, SamplingParams())
    assert cut != free
    assert max(cut) < max(free)
    wide = ModelDrafter(model, 64, vocabulary_size=120)
    assert wide.draft([5, 6, 7], 20, SamplingParams()) == free
    assert wide.draft([5, 119, 7], 4, SamplingParams()) == []
    for size in (90, 97, 120, 130):  # what the edge says counts, not what the device's copy of the tokenizer has
        ids, distributions = wide.draft_distributions([5, 6, 7], 3, SAMPLING[1], DistributionFormat(size, 8, 8))
        assert len(ids) == len(distributions) == 3
        assert max(ids) < size


def test_a_drafter_whose_logits_are_not_numbers_drafts_nothing(make_model):
    model = make_model("llama")
    model.model.embed_tokens.weight.data[42] = float("nan")
    together = ModelBatchDrafter(model, 2, 64, static=True)
    asks = [DraftAsk(together.open(), text, 3, SAMPLING[1]) for text in ([5, 42], [5, 6])]
    assert [len(drafted) for drafted in together.draft(asks)] == [0, 3]
    drafter = ModelDrafter(PackedModel.of(model), 64)
    assert drafter.draft([5, 42], 4, SAMPLING[1]) == []
    assert drafter.draft_distributions([5, 42], 4, SAMPLING[1], DistributionFormat(97, 8, 8)) == ([], [])


def test_slots_run_out(make_model):
    drafter = ModelBatchDrafter(make_model("llama"), 1, 16)
    assert drafter.open() == 0
    with pytest.raises(SlotsTakenError):
        drafter.open()
    with pytest.raises(InputError, match="slots = 0"):
        ModelBatchDrafter(make_model("llama"), 0, 16)
