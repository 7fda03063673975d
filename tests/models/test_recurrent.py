"""What only recurrent layers need: states that move along, replays from a checkpoint, and limits on going back."""

import os
import random
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3NextConfig

from multispin.errors import InputError
from multispin.models import Verifier
from multispin.models.recurrent import HISTORY
from multispin.speculation import Feed, SamplingParams

GREEDY = SamplingParams()
LENGTH = 900


# Over hundreds of tokens transformers' own cached and uncached logits differ by 3e-4 with larger weights.
@pytest.fixture
def model(make_model):
    model = make_model("qwen3.5", max_position_embeddings=LENGTH, initializer_range=0.1)
    for layer in model.model.layers:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn.A_log.data.fill_(-4.0)  # states that remember some fifty tokens, not two
    return model


def full_logits(model, tokens):
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0]
    model.set_attn_implementation("multispin_packed")
    return logits


@pytest.mark.long
def test_long_texts_with_long_chunks_and_far_rollbacks_equal_a_full_forward(model):
    verifier = Verifier(model, slots=2, max_length=LENGTH)
    slots, texts, rng = [verifier.open(), verifier.open()], [[], []], random.Random(4)
    assert slots == [0, 1]
    furthest, checked = [0, 0], 0
    for _ in range(40):
        feeds = []
        for slot, text in zip(slots, texts, strict=True):
            furthest[slot] = max(furthest[slot], len(text))
            if rng.random() < 0.5:
                del text[rng.randint(max(0, furthest[slot] - HISTORY), len(text)) :]
            count = rng.choice([1, 1, 5, HISTORY, 130, 300])
            tokens = [rng.randrange(97) for _ in range(min(count, LENGTH - 150 - len(text)))] or [1]
            last = rng.choice([0, 1, 6, HISTORY])  # of a long chunk a draft may be the end
            context = max(0, len(tokens) - last) if last else 0
            asks = GREEDY if len(tokens) - context <= HISTORY else None
            feeds.append(Feed(slot, len(text), tokens, asks, context=context))
        for feed, text, logits in zip(feeds, texts, verifier.forward(feeds), strict=True):
            text += feed.tokens
            if feed.params:
                expected = full_logits(model, text)[feed.newest :]
                torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
                checked += 1
    assert checked > 30
    assert max(map(len, texts)) > 5 * HISTORY  # the checkpoint moved


def test_going_back_further_than_the_history_is_refused_and_starting_again_is_not(model):
    verifier = Verifier(model, slots=1, max_length=LENGTH)
    slot, text = verifier.open(), [i % 97 for i in range(600)]
    verifier.forward([Feed(slot, 0, text, None)])
    with pytest.raises(ValueError, match="from position 536 on"):
        verifier.commit(slot, 535)
    with pytest.raises(ValueError, match="cannot go back to 100"):
        verifier.forward([Feed(slot, 100, [1], GREEDY)])
    verifier.commit(slot, 536)
    (logits,) = verifier.forward([Feed(slot, 0, text[:9], GREEDY)])
    torch.testing.assert_close(logits, full_logits(model, text[:9]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pieces", [[300], [200, 100], [250, 1, 5, 44]])
def test_a_checkpoint_is_the_state_of_its_position(model, pieces):
    verifier = Verifier(model, slots=1, max_length=LENGTH)
    slot, text = verifier.open(), [(i * i) % 97 for i in range(300)]
    start = 0
    for count in pieces:
        verifier.forward([Feed(slot, start, text[start : start + count], None)])
        start += count
    oldest = next(length for length in range(1, 300) if goes_back(verifier, slot, length))
    assert oldest >= 300 - 4 * HISTORY  # it moved
    (logits,) = verifier.forward([Feed(slot, oldest, [1, 2, 3], GREEDY)])
    torch.testing.assert_close(logits, full_logits(model, [*text[:oldest], 1, 2, 3])[oldest:], atol=1e-4, rtol=1e-4)


def goes_back(verifier, slot, length):
    try:
        verifier.commit(slot, length)
    except ValueError:
        return False
    return True


def test_a_draft_too_long_to_undo_is_refused(model):
    verifier = Verifier(model, slots=1, max_length=LENGTH)
    with pytest.raises(ValueError, match="a draft of 64 is longer than 63"):
        verifier.forward([Feed(verifier.open(), 0, [1] * (HISTORY + 1), GREEDY)])


def test_a_slot_taken_over_knows_nothing_of_its_last_text(model):
    verifier = Verifier(model, slots=1, max_length=LENGTH)
    slot = verifier.open()
    verifier.forward([Feed(slot, 0, [3] * 40, None)])
    verifier.close(slot)
    slot = verifier.open()
    (logits,) = verifier.forward([Feed(slot, 0, [5, 6, 7], GREEDY)])
    torch.testing.assert_close(logits, full_logits(model, [5, 6, 7]), atol=1e-4, rtol=1e-4)


def test_a_pass_that_fails_half_way_is_not_built_upon(model, monkeypatch):
    verifier = Verifier(model, slots=1, max_length=LENGTH)
    slot = verifier.open()
    verifier.forward([Feed(slot, 0, [5, 6, 7], GREEDY)])

    def lose(*_, **__):
        raise RuntimeError("lost")

    with monkeypatch.context() as broken:
        broken.setattr(verifier.packed.model.model.layers[2], "forward", lose)
        with pytest.raises(RuntimeError, match="lost"):
            verifier.forward([Feed(slot, 3, [8], GREEDY)])
    with pytest.raises(ValueError, match="feed the text again"):
        verifier.forward([Feed(slot, 3, [8], GREEDY)])
    (logits,) = verifier.forward([Feed(slot, 0, [5, 6, 7, 8], GREEDY)])
    torch.testing.assert_close(logits, full_logits(model, [5, 6, 7, 8]), atol=1e-4, rtol=1e-4)


def test_states_are_part_of_the_memory_that_is_told(model):
    one, two = (Verifier(model, slots=n, max_length=50).cache_bytes for n in (1, 2))
    attention = 2 * 2 * 50 * 16 * 4  # keys and values, heads, length, head size, bytes
    states = 2 * 2 * 4 * 8 * 8 * 4  # layers, checkpoint and newest, heads, key size, value size, bytes
    assert two == 2 * one > 2 * (attention + states)


def test_recurrent_layers_of_another_kind_are_refused(sizes):
    config = Qwen3NextConfig(**sizes, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8)
    with pytest.raises(InputError, match="qwen3_next"):
        Verifier(AutoModelForCausalLM.from_config(config), slots=1, max_length=50)


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels may be used where there is a card")
def test_without_a_card_no_kernel_that_needs_one_is_called(tmp_path):
    """transformers takes kernels wherever they are installed; here they are, and all of them fail."""
    fails = "def {0}(*_, **__):\n    raise RuntimeError('0 active drivers')\n"
    for package, inside, names in (
        ("fla", "ops/gated_delta_rule", ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule")),
        ("causal_conv1d", "", ("causal_conv1d_fn", "causal_conv1d_update")),
    ):
        for folder in [tmp_path / package, *(tmp_path / package / part for part in ("ops", inside) if inside)]:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text("".join(fails.format(name) for name in names))
    program = """
from tests.models.conftest import tiny_model
from transformers.models.qwen3_5 import modeling_qwen3_5 as found
wrapped = found.torch_chunk_gated_delta_rule
from multispin.models import CachedModel
from multispin.speculation import Feed, SamplingParams
plain = tiny_model("qwen3.5")
try:
    wrapped(*[None] * 5)
except RuntimeError as error:
    assert "0 active drivers" in str(error)  # transformers did find the kernel
else:
    raise AssertionError
model = CachedModel(plain, 1, 40)
print(model.forward([Feed(model.open(), 0, list(range(9)), SamplingParams())])[0].shape)
"""
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, capture_output=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
