"""Leaner layers compute what transformers' do, and stand only where they fit; the whole texts are in test_lossless."""

import copy

import pytest
import torch

from multispin.models import Verifier, round_weights
from multispin.models.lean import LeanLayer, lean
from multispin.speculation import Feed, SamplingParams

GREEDY = SamplingParams()
LEAN = {"llama", "qwen2", "qwen3"}


def kinds(model):
    return {type(layer) is LeanLayer for layer in model.model.layers}


def test_layers_of_known_families_are_replaced_and_no_others(make_model, family):
    assert kinds(lean(make_model(family))) == {family in LEAN}


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"hidden_act": "relu"}])
def test_another_activation_keeps_its_layers(make_model, change):
    assert kinds(lean(make_model("llama", **change))) == {False}


def test_a_layer_of_mixed_products_is_left_alone(make_model):
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(model.model.layers[1].mlp.up_proj)
    assert [type(layer) is LeanLayer for layer in lean(model).model.layers] == [True, False, True]


@pytest.mark.parametrize("family", sorted(LEAN))
@pytest.mark.parametrize("rounded", [False, True])
def test_lean_layers_give_the_logits_of_transformers_own(make_model, family, rounded):
    model = make_model(family, **({"attention_bias": True, "mlp_bias": True} if family == "llama" else {}))
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:  # a fresh model's say nothing: all are one or zero
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    if rounded:
        model = round_weights(model, 8)
    plain = Verifier(copy.deepcopy(model), 2, 32, reorder=False)
    quick = Verifier(model, 2, 32)
    assert kinds(quick.packed.model) == {True}
    assert kinds(model) == {False}  # the caller's is as it was
    for verifier in (plain, quick):
        verifier.verify([Feed(verifier.open(), 0, [1, 2, 3, 4, 5], None)])
    slot = quick.open()
    assert plain.open() == slot
    feeds = [Feed(1 - slot, 5, [6, 7, 8], GREEDY), Feed(slot, 0, [9], GREEDY)]
    for found, expected in zip(quick.forward(feeds), plain.forward(feeds), strict=True):
        if rounded:  # in bfloat16, whose roundings fall in other places
            assert torch.cosine_similarity(found.float(), expected.float(), dim=-1).min() > 0.998
        else:
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
