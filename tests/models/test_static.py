"""Passes of static shape give what passes of any shape give; on a CPU they run without the graph."""

import random

import pytest
import torch

from multispin.errors import InputError
from multispin.models import CachedModel, Verifier
from multispin.models.buckets import KEYS, TOKENS, Segment, Shape, at_least, key_size, slot_size, split, token_sizes
from multispin.models.ragged import ragged_attention
from multispin.models.self_test import relative_error
from multispin.models.static import StaticLayout
from multispin.speculation import Feed, SamplingParams

GREEDY = SamplingParams()


@pytest.fixture(params=["ragged", "padded"])
def ragged(request):
    """Both ways to attend; on a CPU a loop stands for the kernel of ragged rows."""
    return request.param == "ragged"


def test_a_size_is_the_smallest_that_fits():
    assert [at_least(count, (8, 16, 32)) for count in (1, 8, 9, 32, 33)] == [8, 8, 16, 32, None]
    assert [slot_size(needed, 20) for needed in (1, 2, 3, 9, 17)] == [1, 2, 4, 16, 20]
    assert [key_size(needed, 300) for needed in (1, KEYS, KEYS + 1, 299)] == [KEYS, KEYS, 2 * KEYS, 300]


def test_the_largest_pass_fits_the_memory_and_the_smallest_always_runs():
    assert token_sizes(100, memory_bytes=6400) == (8, 16, 32, 64)
    assert token_sizes(10**12) == TOKENS[:1]


def changes(family):
    """Weights of a model with recurrent layers, whose states sum up rounding errors, are smaller here."""
    return {"initializer_range": 0.1, "max_position_embeddings": 900} if family == "qwen3.5" else {}


def both(model, slots, length, **layout):
    """A model with passes of static shape, and one without."""
    ours = CachedModel(model, slots, length, static=StaticLayout(**layout))
    return ours, CachedModel(model, slots, length, static=False)


@pytest.mark.long
def test_ragged_batches_with_random_rollbacks_and_prompts_equal_todays_path(make_model, family, ragged):
    ours, theirs = both(make_model(family, **changes(family)), 5, 200, ragged=ragged)
    rng, texts = random.Random(1), {}
    for _ in range(50):
        if len(texts) < 5 and rng.random() < 0.5:
            slot = ours.open()
            assert theirs.open() == slot
            texts[slot] = 0
        for slot in list(texts):
            if rng.random() < 0.05:
                ours.close(slot)
                theirs.close(slot)
                del texts[slot]
        feeds = []
        for slot, length in texts.items():
            if rng.random() < 0.8 and length < 150:
                start = rng.randint(max(0, length - 6), length)
                count = rng.choice([1, 2, 5, 9, 40])
                tokens = [rng.randrange(97) for _ in range(count)]
                context = rng.randrange(count) if rng.random() < 0.3 else 0  # behind the end of a prompt
                asks = GREEDY if context or rng.random() < 0.7 else None
                feeds.append(Feed(slot, start, tokens, asks, context=context))
                texts[slot] = start + count
        if not feeds:
            continue
        for found, expected in zip(ours.forward(feeds), theirs.forward(feeds), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    shapes = ours.static_shapes
    assert len(shapes) > 5
    assert all((shape.rows == 0) == ragged for shape in shapes)


def test_a_batch_beyond_the_largest_shape_runs_as_before(make_model, family):
    ours, theirs = both(make_model(family, **changes(family)), 2, 200, tokens=(8,))
    text = [(7 * k) % 97 for k in range(60)]
    for verifier in (ours, theirs):
        slot = verifier.open()
        verifier.forward([Feed(slot, 0, text, None)])
    assert not ours.static_shapes
    for start in (60, 58, 61):  # with a step back, over both ways to run
        feeds = [Feed(slot, start, [1, 2, 3], GREEDY)]
        torch.testing.assert_close(ours.forward(feeds)[0], theirs.forward(feeds)[0], atol=1e-4, rtol=1e-4)
    [shape] = ours.static_shapes
    assert shape == Shape(8, 1, *shape[2:])


def test_long_texts_with_recurrent_layers_move_their_checkpoint(make_model):
    ours, theirs = both(make_model("qwen3.5", **changes("qwen3.5")), 2, 800)
    rng, length = random.Random(5), 0
    for verifier in (ours, theirs):
        slot = verifier.open()
    for _ in range(60):
        start = max(0, length - rng.choice([0, 0, 0, 3, 20]))
        count = rng.choice([1, 5, 17, 33])
        tokens = [rng.randrange(97) for _ in range(count)]
        feeds = [Feed(slot, start, tokens, GREEDY, context=rng.choice([0, count // 2, count - 1]))]
        length = start + len(feeds[0].tokens)
        torch.testing.assert_close(ours.forward(feeds)[0], theirs.forward(feeds)[0], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="cannot go back to 256"):
        ours.commit(slot, 256)
    assert length > 500


def test_a_slot_of_a_recurrent_model_goes_back_to_before_its_last_pass(make_model):
    ours, theirs = both(make_model("qwen3.5", **changes("qwen3.5")), 1, 300)
    text = [(k * k) % 97 for k in range(100)]
    for verifier in (ours, theirs):
        verifier.open()
        for start in range(0, 100, 10):
            verifier.forward([Feed(0, start, text[start : start + 10], GREEDY)])
    feeds = [Feed(0, 45, [1, 2, 3], GREEDY)]
    torch.testing.assert_close(ours.forward(feeds)[0], theirs.forward(feeds)[0], atol=1e-4, rtol=1e-4)


def test_padding_reaches_nobody(make_model, family, ragged):
    """The spare slot takes all padding: after a pass of others, a slot goes on to the bit as if there had been none."""
    model, found = make_model(family), []
    for between in (True, False):
        ours, _ = both(model, 3, 40, ragged=ragged)
        slots = [ours.open() for _ in range(3)]
        ours.forward([Feed(slot, 0, [3, 4, 5, 6, 7, 8], None) for slot in slots])
        if between:
            ours.forward([Feed(slots[0], 6, [1], GREEDY), Feed(slots[2], 2, [2, 3], GREEDY)])
        found += ours.forward([Feed(slots[1], 6, [4, 5], GREEDY)])
    assert torch.equal(*found)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("head", [64, 128, 96])
def test_on_a_cuda_device_the_kernel_gives_what_the_loop_gives(window, head):
    torch.manual_seed(0)
    keys, values = (torch.randn(5, 2, 300, head, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    query = torch.randn(40, 8, head, dtype=torch.bfloat16, device="cuda")
    bounds, counts = [0, 1, 10, 26, 26, 40], [200, 17, 300, 1, 14]
    first = [slot * 2 * 300 for slot in (3, 0, 1, 4, 2, 4)]
    layout = [torch.tensor(part, dtype=torch.int32, device="cuda") for part in (bounds, first, counts)]
    found = ragged_attention(query, keys, values, *layout, None, window)
    cpu = [part.float().cpu() for part in (query, keys, values)]
    expected = ragged_attention(*cpu, *(part.cpu() for part in layout), None, window)
    torch.testing.assert_close(found.float().cpu(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device_passes_are_captured(make_model, family, monkeypatch):
    played, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: played.append(1) or replay(graph))
    model = CachedModel(make_model(family).to("cuda"), 2, 64)
    model.forward([Feed(model.open(), 0, [1, 2, 3], GREEDY)])
    assert len(played) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device_narrow_numbers_give_nearly_todays_path(make_model, family):
    """Ragged attention and graphs in bfloat16, over rollbacks and prompts; roundings fall in other places."""
    ours, theirs = both(make_model(family, **changes(family)).to("cuda", torch.bfloat16), 4, 200)
    rng, length = random.Random(3), [0] * 4
    for verifier in (ours, theirs):
        for _ in range(4):
            verifier.open()
    for _ in range(12):
        feeds = []
        for slot in rng.sample(range(4), rng.randint(1, 4)):
            start = rng.randint(max(0, length[slot] - 4), length[slot])
            ids = [rng.randrange(97) for _ in range(rng.choice([1, 4, 9]))]
            feeds.append(Feed(slot, start, ids, GREEDY if rng.random() < 0.8 else None))
            length[slot] = start + len(ids)
        for found, expected in zip(ours.forward(feeds), theirs.forward(feeds), strict=True):
            if len(expected):
                assert relative_error(found.float(), expected.float()) < 0.15


# One shape for all passes ---------------------------------------------------------------------------------------------


def test_runs_are_split_into_passes_of_one_shape_in_their_order():
    assert split([3, 2], Shape(8, 2)) == [[Segment(0, 0, 3), Segment(1, 0, 2)]]
    assert split([3, 20], Shape(8, 2)) == [
        [Segment(0, 0, 3), Segment(1, 0, 5)],
        [Segment(1, 5, 8)],
        [Segment(1, 13, 7)],
    ]
    assert split([5, 1], Shape(8, 2, rows=4)) == [[Segment(0, 0, 4), Segment(1, 0, 1)], [Segment(0, 4, 1)]]
    counts = [random.Random(k).randrange(1, 40) for k in range(9)]
    passes = split(counts, Shape(32, 9, rows=8))
    assert all(sum(piece.size for piece in each) <= 32 for each in passes)
    taken = [[piece for each in passes for piece in each if piece.run == run] for run in range(9)]
    for count, pieces in zip(counts, taken, strict=True):
        assert [piece.first for piece in pieces] == [sum(p.size for p in pieces[:k]) for k in range(len(pieces))]
        assert sum(piece.size for piece in pieces) == count
        assert max(piece.size for piece in pieces) <= 8


def alone(verifier, prompt, params, tokens):
    slot, text = verifier.open(), list(prompt)
    if prompt[:-1]:
        verifier.verify([Feed(slot, 0, prompt[:-1], None)])
    while len(text) < len(prompt) + tokens:
        text.append(verifier.verify([Feed(slot, len(text) - 1, [text[-1]], params)])[0].next_token)
        verifier.commit(slot, len(text) - 1)
    verifier.close(slot)
    return text


def together(verifier, prompts, samplings, owns, rng):
    """All texts at once, with drafts of 0 to 17 of their own tokens, some of which end in a wrong one."""
    slots, texts = [verifier.open() for _ in prompts], [list(prompt) for prompt in prompts]
    while any(len(text) < len(own) for text, own in zip(texts, owns, strict=True)):
        feeds, fed = [], []
        for k, (text, own) in enumerate(zip(texts, owns, strict=True)):
            if verifier.cached(slots[k]) < len(prompts[k]) - 1:  # its prompt, in chunks of any size
                start = verifier.cached(slots[k])
                feeds.append(Feed(slots[k], start, text[:-1][start : start + rng.randint(1, 12)], None))
            elif len(text) < len(own) and rng.random() < 0.8:
                draft = own[len(text) : len(text) + min(rng.randrange(18), len(own) - len(text) - 1)]
                if draft and rng.random() < 0.5:
                    draft[-1] = (draft[-1] + 1) % verifier.vocabulary_size
                feeds.append(Feed(slots[k], len(text) - 1, [text[-1], *draft], samplings[k]))
            else:
                continue
            fed.append(k)
        for k, feed, found in zip(fed, feeds, verifier.verify(feeds) if feeds else (), strict=True):
            if found is not None:
                texts[k] += [*feed.tokens[1 : 1 + found.accepted], found.next_token]
                verifier.commit(slots[k], len(texts[k]) - 1)
    for slot in slots:
        verifier.close(slot)
    return [text[: len(own)] for text, own in zip(texts, owns, strict=True)]


def differing(model, batch_invariant):
    """Of 12 texts, how many differ when others share their passes."""
    verifier = Verifier(model, 6, 128, batch_invariant=batch_invariant)
    rng, differ = random.Random(3), 0
    for turn in range(2):
        prompts = [[rng.randrange(97) for _ in range(rng.choice([1, 9, 31]))] for _ in range(6)]
        samplings = [
            (GREEDY, SamplingParams(0.8, seed=10 * turn + k), SamplingParams(1.0, top_k=20, top_p=0.9, seed=k))[k % 3]
            for k in range(6)
        ]
        owns = [alone(verifier, *pair, 30) for pair in zip(prompts, samplings, strict=True)]
        found = together(verifier, prompts, samplings, owns, rng)
        differ += sum(text != own for text, own in zip(found, owns, strict=True))
    return differ


@pytest.mark.long
def test_in_bfloat16_who_shares_a_pass_changes_texts_unless_all_passes_have_one_shape(make_model):
    model = make_model("llama").to(torch.bfloat16)
    assert differing(model, batch_invariant=False) > 0
    assert differing(model, batch_invariant=True) == 0


@pytest.mark.long
def test_passes_of_one_shape_are_exact_with_sliding_windows_too(make_model):
    assert differing(make_model("gemma3").to(torch.bfloat16), batch_invariant=True) == 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_in_passes_of_one_shape_a_row_has_the_same_bits_whoever_shares_its_pass(make_model, family):
    """However a text is divided into pieces, in whichever slot, beside drafts that are taken back."""
    verifier, rng = Verifier(make_model(family).to(torch.bfloat16), 5, 64, batch_invariant=True), random.Random(5)
    texts = [[rng.randrange(97) for _ in range(rng.choice([7, 30]))] for _ in range(5)]
    alone = []
    for text in texts:
        slot = verifier.open()
        alone.append(
            torch.cat([verifier.forward([Feed(slot, at, text[at : at + 1], GREEDY)])[0] for at in range(len(text))])
        )
        verifier.close(slot)
    slots, rows = [verifier.open() for _ in texts], [[] for _ in texts]
    while running := [k for k, text in enumerate(texts) if verifier.cached(slots[k]) < len(text)]:
        feeds, right = [], []
        for k in running:
            start = verifier.cached(slots[k])
            piece = texts[k][start : start + rng.choice([1, 2, 5, 17])]
            wrong = rng.randrange(4) if start + len(piece) < 60 else 0
            feeds.append(Feed(slots[k], start, [*piece, *(rng.randrange(97) for _ in range(wrong))], GREEDY))
            right.append(len(piece))
        for k, count, found in zip(running, right, verifier.forward(feeds), strict=True):
            rows[k].append(found[:count])
            verifier.commit(slots[k], verifier.cached(slots[k]) - len(found) + count)
    for row, own in zip(rows, alone, strict=True):
        assert torch.equal(torch.cat(row), own)


def test_passes_of_one_shape_give_what_others_give(make_model):
    model = make_model("llama")
    ours, theirs = Verifier(model, 4, 128, batch_invariant=True), Verifier(model, 4, 128)
    for each in (ours, theirs):
        assert [each.open() for _ in range(3)] == [0, 1, 2]
    feeds = [Feed(0, 0, list(range(40)), GREEDY), Feed(1, 0, [5, 6, 7], GREEDY), Feed(2, 0, list(range(33)), GREEDY)]
    for found, right in zip(ours.forward(feeds), theirs.forward(feeds), strict=True):
        assert torch.allclose(found, right, atol=1e-4)


def test_recurrent_layers_and_experts_are_refused_where_passes_have_one_shape(make_model):
    with pytest.raises(InputError, match="without recurrent layers and without experts"):
        CachedModel(make_model("qwen3.5"), 2, 64, batch_invariant=True)


@pytest.mark.parametrize(("family", "longest"), [("llama", 256), ("qwen3.5", 128)])
def test_a_prompts_piece_is_no_longer_than_has_a_shape_beside_full_drafts(make_model, family, longest):
    model = make_model(family)
    assert CachedModel(model, 2, 100, static=StaticLayout(tokens=TOKENS)).longest_chunk == longest
    assert CachedModel(model, 2, 100).longest_chunk > 2**16  # passes of any shape
