"""Distilled drafters: taken out of a target, stored without it, put back on it."""

import pytest
import torch

from multispin.errors import InputError
from multispin.models import ModelDrafter, decode_alone, load_drafter
from multispin.models.distilled import (
    ReducedHead,
    carve,
    fingerprint,
    learned_parameters,
    load_for_drafting,
    load_student,
    save_drafter,
)
from multispin.models.drafter_card import DrafterCard
from multispin.models.loading import load_model
from multispin.models.quantised import RoundedLinear
from multispin.speculation import SamplingParams

IDS = torch.arange(0, 97, 3)
TEXT = torch.tensor([[3, 9, 4, 60, 7, 7, 21]])


def card_of(model, layers, storage="int8", vocabulary=97):
    return DrafterCard("tiny", fingerprint(model), layers, vocabulary, storage)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_all_layers_and_all_ids_are_the_target_itself(make_model, kind):
    model = make_model(kind)
    with torch.no_grad():
        before = model(TEXT).logits
        assert torch.equal(carve(model, (0, 1, 2))(TEXT).logits, before)
        assert torch.equal(model(TEXT).logits, before)  # untouched


def test_embeddings_are_shared_and_layers_are_copies(make_model):
    model = make_model("llama")
    student = carve(model, (0, 2), IDS)
    assert student.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    with torch.no_grad():
        for parameter in learned_parameters(student).values():
            parameter.zero_()
    assert all(bool(parameter.detach().any()) for parameter in model.model.layers.parameters())
    assert len(model.model.layers) == 3


def test_a_reduced_head_gives_the_same_logits_for_its_ids_and_none_for_others(make_model):
    model = make_model("qwen3")
    with torch.no_grad():
        whole, few = carve(model, (0, 2))(TEXT).logits, carve(model, (0, 2), IDS)(TEXT).logits
    assert torch.allclose(few[..., IDS], whole[..., IDS], atol=1e-5)
    others = torch.ones(97, dtype=torch.bool)
    others[IDS] = False
    assert bool((few[..., others] == -torch.inf).all())


@pytest.mark.parametrize(("storage", "error"), [("int8", 0.5 / 127), ("bfloat16", 2.0**-8)])
def test_what_is_stored_is_read_back(make_model, tmp_path, storage, error):
    model = make_model("llama")
    student = carve(model, (0, 2), IDS)
    save_drafter(student, card_of(model, (0, 2), storage), tmp_path)
    again = load_student(tmp_path, make_model("llama"))
    assert isinstance(again.lm_head, ReducedHead)
    assert torch.equal(again.lm_head.ids, IDS)
    for (name, one), other in zip(learned_parameters(student).items(), learned_parameters(again).values(), strict=True):
        limit = one.abs().amax() * error * 1.001 if one.ndim == 2 else 0.0
        assert (one - other).abs().max().item() <= float(limit), name


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_it_drafts_its_own_ids_and_the_text_stays_the_targets(make_model, tmp_path, temperature):
    from multispin.models import Verifier
    from multispin.speculation import Feed

    model = make_model("llama")
    save_drafter(carve(model, (0, 2), IDS), card_of(model, (0, 2)), tmp_path)
    drafter = ModelDrafter(load_student(tmp_path, make_model("llama")), 64)
    params = SamplingParams(temperature, seed=5)
    verifier = Verifier(make_model("llama"), 1, 64)
    slot, text, drafted = verifier.open(), [5, 6, 7], []
    verifier.verify([Feed(slot, 0, text[:-1], None)])
    while len(text) < 40:
        draft = drafter.draft(text, 4, params)
        drafted += draft
        (outcome,) = verifier.verify([Feed(slot, len(text) - 1, [text[-1], *draft], params)])
        text += [*draft[: outcome.accepted], outcome.next_token]
        verifier.commit(slot, len(text) - 1)
    assert set(drafted) <= set(IDS.tolist())
    assert text[3:40] == decode_alone(make_model("llama"), [5, 6, 7], params, 37, ())


def test_what_is_stored_in_whole_numbers_drafts_in_the_same_ones(make_model, tmp_path):
    from safetensors.torch import load_file

    model = make_model("qwen2")  # has biases, which are kept
    student = carve(model, (0, 1, 2), IDS, frozen=1)
    card = DrafterCard("tiny", fingerprint(model), (0, 1, 2), len(IDS), "int8", frozen=1)
    save_drafter(student, card, tmp_path)
    stored = load_file(tmp_path / "weights.safetensors")
    drafting = load_for_drafting(tmp_path, make_model("qwen2").to(torch.bfloat16))
    assert not [module for module in drafting.modules() if type(module) is torch.nn.Linear]
    layer = drafting.model.layers[1].mlp.up_proj
    assert isinstance(layer, RoundedLinear)
    apart = layer.weight.int() - stored["model.layers.1.mlp.up_proj.weight"].int()
    assert apart.abs().max() <= 1  # the way there is through bfloat16
    assert apart.bool().float().mean() < 0.1
    with torch.no_grad():
        found, expected = drafting(TEXT).logits[0, :, IDS].float(), student(TEXT).logits[0, :, IDS]
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.99
    save_drafter(student, DrafterCard("tiny", fingerprint(model), (0, 1, 2), len(IDS), "bfloat16", frozen=1), tmp_path)
    wide = load_for_drafting(tmp_path, make_model("qwen2"))
    assert wide.dtype == torch.bfloat16
    assert not [module for module in wide.modules() if isinstance(module, RoundedLinear)]


def test_another_target_is_refused(make_model, tmp_path):
    model = make_model("llama")
    save_drafter(carve(model, (0,), IDS), card_of(model, (0,)), tmp_path)
    with pytest.raises(InputError, match="not from this target"):
        load_student(tmp_path, make_model("llama", seed=1))


@pytest.mark.parametrize("harm", ["truncated", "card", "format", "layers", "missing"])
def test_a_damaged_folder_is_one_sentence(make_model, tmp_path, harm):
    model = make_model("llama")
    save_drafter(carve(model, (0, 2), IDS), card_of(model, (0, 2)), tmp_path)
    weights, card = tmp_path / "weights.safetensors", tmp_path / "drafter.json"
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif harm == "missing":
        weights.unlink()
    elif harm == "card":
        card.write_text("{")
    elif harm == "format":
        card.write_text(card.read_text().replace("multispin-drafter-1", "multispin-drafter-9"))
    else:
        card.write_text(card.read_text().replace("2\n", "7\n", 1))
    with pytest.raises(InputError) as caught:
        load_student(tmp_path, make_model("llama"))
    assert "\n" not in str(caught.value)


FIRST = "model.layers.0.self_attn.q_proj.weight"
ODD = {
    "a number for a matrix": {FIRST: torch.tensor(3, dtype=torch.int8)},
    "a row for a matrix": {FIRST: torch.ones(32, dtype=torch.int8)},
    "a transposed matrix": {"model.layers.0.mlp.down_proj.weight": torch.ones(48, 32, dtype=torch.int8)},
    "a number for a norm": {"model.norm.weight": torch.tensor(1.0)},
    "one scale for all rows": {FIRST + ".row_scale": torch.ones(1)},
    "no scale": {FIRST + ".row_scale": None},
    "a scale where none belongs": {"model.norm.weight.row_scale": torch.ones(32)},
    "numbers of another kind": {"model.norm.weight": torch.ones(32, dtype=torch.int64)},
    "complex numbers": {"model.norm.weight": torch.ones(32, dtype=torch.complex64)},
    "not numbers": {"model.norm.weight": torch.full((32,), torch.nan)},
    "a scale without end": {FIRST + ".row_scale": torch.full((32,), torch.inf)},
    "a weight too many": {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)},
    "ids out of order": {"vocabulary": torch.tensor([3, 1, 2], dtype=torch.int32)},
    "an id twice": {"vocabulary": torch.tensor([1, 1, 2], dtype=torch.int32)},
    "ids beyond the vocabulary": {"vocabulary": torch.tensor([1, 97], dtype=torch.int32)},
    "negative ids": {"vocabulary": torch.tensor([-1, 5], dtype=torch.int32)},
    "ids that are no whole numbers": {"vocabulary": torch.tensor([1.5, 2.5])},
    "no ids at all": {"vocabulary": torch.zeros(0, dtype=torch.int32)},
    "a table of ids": {"vocabulary": torch.ones(2, 2, dtype=torch.int32)},
    "one id, not in a list": {"vocabulary": torch.tensor(4, dtype=torch.int32)},
}


@pytest.mark.parametrize("what", sorted(ODD))
def test_odd_tensors_are_refused_and_never_made_to_fit(make_model, tmp_path, what):
    from safetensors.torch import load_file, save_file

    model, file = make_model("llama"), tmp_path / "weights.safetensors"
    save_drafter(carve(model, (0,), IDS), card_of(model, (0,), "int8"), tmp_path)
    load_student(tmp_path, make_model("llama"))
    tensors = {**load_file(file), **ODD[what]}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
    with pytest.raises(InputError) as caught:
        load_student(tmp_path, make_model("llama"))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_files_that_are_too_large_or_no_files_are_refused_before_they_are_read(make_model, tmp_path):
    model = make_model("llama")
    save_drafter(carve(model, (0,), IDS), card_of(model, (0,)), tmp_path)
    weights, card = tmp_path / "weights.safetensors", tmp_path / "drafter.json"
    weights.unlink()
    weights.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is not a file"):
        load_student(tmp_path, make_model("llama"))
    card.write_text(card.read_text() + " " * 2**24)
    with pytest.raises(InputError, match="the limit"):
        load_student(tmp_path, make_model("llama"))
    card.write_text("[" * 500_000)
    with pytest.raises(InputError, match="no drafter that can be read"):
        load_student(tmp_path, make_model("llama"))


@pytest.mark.parametrize("layers", [(), (2, 0), (0, 3), (-1,), (1, 1)])
def test_odd_layers_are_refused(make_model, layers):
    with pytest.raises(InputError, match="layers"):
        carve(make_model("llama"), layers)


def test_a_folder_is_a_drafter_spec(tiny_folder, tmp_path):
    model = load_model(tiny_folder, "bfloat16")
    save_drafter(carve(model, (0,), torch.arange(100)), card_of(model, (0,)), tmp_path)
    drafter, tokenizer = load_drafter(str(tmp_path), tiny_folder, 64)
    assert len(drafter.draft(tokenizer.encode_chat("Hello"), 3, SamplingParams())) == 3


def test_frozen_layers_are_the_targets_own_and_are_not_stored(make_model, tmp_path):
    from safetensors.torch import load_file

    model = make_model("qwen3")
    student = carve(model, (0, 1, 2), IDS, frozen=2)
    ours, theirs = ([layer.mlp.up_proj.weight.data_ptr() for layer in each.model.layers] for each in (student, model))
    assert ours[:2] == theirs[:2]
    assert ours[2] != theirs[2]
    card = DrafterCard("tiny", fingerprint(model), (0, 1, 2), len(IDS), "bfloat16", frozen=2)
    save_drafter(student, card, tmp_path)
    names = load_file(tmp_path / "weights.safetensors")
    assert any(name.startswith("model.layers.2.") for name in names)
    assert not any(name.startswith(("model.layers.0.", "model.layers.1.")) for name in names)
    with torch.no_grad():
        again = load_student(tmp_path, make_model("qwen3"))(TEXT).logits[..., IDS]
        assert torch.allclose(again, student(TEXT).logits[..., IDS], atol=0.05)


@pytest.mark.parametrize(("layers", "frozen"), [((0, 2), 2), ((1, 2), 1), ((0, 1), -1)])
def test_only_first_layers_can_be_frozen_and_not_all(make_model, layers, frozen):
    with pytest.raises(InputError, match="frozen"):
        carve(make_model("llama"), layers, frozen=frozen)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_drafting_token_by_token_is_the_students_own_greedy_text(make_model, kind, frozen):
    """Each token must see those before it: against transformers' plain forward over the whole text."""
    text = [5, 6, 7, 8]
    with torch.no_grad():
        student = carve(make_model(kind), (0, 2) if not frozen else (0, 1, 2), IDS, frozen)
        expected = list(text)
        for _ in range(12):
            expected.append(int(student(torch.tensor([expected])).logits[0, -1].argmax()))
    again = carve(make_model(kind), (0, 2) if not frozen else (0, 1, 2), IDS, frozen)
    drafter = ModelDrafter(again, 64)
    assert drafter.draft(text, 12, SamplingParams()) == expected[4:]
    assert drafter.draft(expected[:9], 7, SamplingParams()) == expected[9:]  # from the middle, cached differently


def test_a_reduced_heads_ids_lie_beside_its_rows():
    head = ReducedHead(torch.zeros(4, 8, device="meta"), torch.arange(4), 10)
    assert head.ids.device == head.rows.weight.device
