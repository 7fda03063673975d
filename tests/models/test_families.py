"""Every family that is accepted, with each feature that its configuration can turn on, computes what it computes alone.

The reference is transformers' own forward pass over one whole text, without a cache.
"""

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from multispin.errors import InputError
from multispin.models import PackedModel, Verifier, load_model
from multispin.models.attention import Scoring
from multispin.models.families import FAMILIES, INERT, check_family, longest_text
from multispin.models.packed import PackedBatch
from multispin.speculation import Feed, SamplingParams

GREEDY = SamplingParams()
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {**SIZES, "head_dim": 16}  # not hidden size / heads
WINDOW = {"sliding_window": 6}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MULTIPLIERS = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 2.0,
    "logits_scaling": 3.0,
    "residual_multiplier": 0.5,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
THETA = {"rope_theta": 10000.0}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}
PUBLISHED = json.loads(Path(__file__).with_name("published_configurations.json").read_text())
"""Configurations as the makers of models publish them, written down by heart."""
CASES = {
    "cohere": ("CohereConfig", SIZES),
    "cohere norms": ("CohereConfig", {**SIZES, "use_qk_norm": True, "logit_scale": 0.5}),
    "cohere2": ("Cohere2Config", {**HEADS, **WINDOW, "layer_types": MIXED}),
    "gemma": ("GemmaConfig", HEADS),
    "gemma2": (
        "Gemma2Config",
        {
            **HEADS,
            **WINDOW,
            "layer_types": MIXED,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        {**HEADS, **WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 12, "final_logit_softcapping": 3.0},
    ),
    "glm": ("GlmConfig", {**HEADS, "partial_rotary_factor": 0.5}),
    "glm4": ("Glm4Config", {**HEADS, "partial_rotary_factor": 0.5}),
    "gpt_oss": (
        "GptOssConfig",
        {**HEADS, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": MIXED},
    ),
    "granite": ("GraniteConfig", {**SIZES, **MULTIPLIERS, "attention_bias": True}),
    "granitemoe": ("GraniteMoeConfig", {**SIZES, **MULTIPLIERS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama": ("LlamaConfig", {**HEADS, "attention_bias": True, "mlp_bias": True}),
    **{
        f"llama {kind}": ("LlamaConfig", {**SIZES, "rope_parameters": {**THETA, **rope}})
        for kind, rope in ROPES.items()
    },
    "mistral": ("MistralConfig", {**HEADS, **WINDOW}),
    "mixtral": ("MixtralConfig", {**HEADS, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo": ("OlmoConfig", {**SIZES, "clip_qkv": 2.0}),
    "olmo2": ("Olmo2Config", SIZES),
    "olmo3": ("Olmo3Config", {**SIZES, **WINDOW, "layer_types": MIXED}),
    "phi": ("PhiConfig", {**SIZES, "partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi3": ("Phi3Config", {**SIZES, **WINDOW}),
    "phi3 part": ("Phi3Config", {**HEADS, "partial_rotary_factor": 0.5}),
    "qwen2": ("Qwen2Config", {**SIZES, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**SIZES, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]},
    ),
    "qwen3": ("Qwen3Config", {**HEADS, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**HEADS, **EXPERTS, "num_experts": 4, "norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
    "qwen3_5_text": (
        "Qwen3_5TextConfig",
        {
            **SIZES,
            "initializer_range": 0.2,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "smollm3": ("SmolLM3Config", {**SIZES, "no_rope_layers": [1, 0, 1]}),
    "smollm3 window": ("SmolLM3Config", {**SIZES, **WINDOW, "use_sliding_window": True, "no_rope_layers": [1, 0, 1]}),
    "starcoder2": ("Starcoder2Config", {**SIZES, **WINDOW, "use_bias": True}),
}


def build(case, dtype=torch.float32, **changes):
    kind, settings = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**settings, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():  # a fresh model's say nothing: all are one or zero
        if "bias" in name or "sinks" in name or "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name and "bias" not in name else 0.0, 0.5)
    return model.to(dtype)


def test_every_family_has_a_case():
    assert {name.partition(" ")[0] for name in CASES} == set(FAMILIES)


@pytest.mark.parametrize("case", sorted(CASES))
def test_ragged_passes_with_rollbacks_give_the_logits_of_the_whole_text_alone(case):
    model, rng = build(case), random.Random(5)
    check_family(model.config)
    verifier = Verifier(model, 3, 64)
    texts = {verifier.open(): [] for _ in range(3)}
    for _ in range(12):
        feeds = []
        for slot, text in texts.items():
            if rng.random() < 0.8 and len(text) < 50:
                del text[rng.randint(max(0, len(text) - 3), len(text)) :]
                feeds.append(Feed(slot, len(text), [rng.randrange(97) for _ in range(rng.choice([1, 4, 9]))], GREEDY))
        for feed, logits in zip(feeds, verifier.forward(feeds), strict=True):
            text = texts[feed.slot]
            text += feed.tokens
            with torch.inference_mode():
                expected = model(torch.tensor([text]), use_cache=False).logits[0, feed.start :]
            torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
            assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_rotary_positions_that_change_with_the_longest_text_are_taken_as_far_as_they_stay_the_same():
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
    rope = {**THETA, "rope_type": "longrope", "original_max_position_embeddings": 32, **factors}
    model = build("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    assert longest_text(model.config) == 32
    with pytest.raises(InputError, match="outside 1 … 32"):
        Verifier(model, 2, 33)
    verifier, texts = Verifier(model, 2, 32), [[5, 17, 40, 3], list(range(1, 33))]
    found = verifier.forward([Feed(verifier.open(), 0, text, GREEDY) for text in texts])
    for text, logits in zip(texts, found, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([text]), use_cache=False).logits[0]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "part"),
    [
        ("BloomConfig", {"vocab_size": 97, "hidden_size": 32, "n_layer": 1, "n_head": 4}, "'bloom'"),
        (
            "FalconConfig",
            {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
            "'falcon'",
        ),
        ("MptConfig", {"vocab_size": 97, "d_model": 32, "n_layers": 1, "n_heads": 4}, "'mpt'"),
        ("LlamaConfig", {**SIZES, "sliding_window": 6}, "sliding_window = 6"),
        ("LlamaConfig", {**SIZES, "attention_sinks": 4}, "attention_sinks = 4"),
        ("LlamaConfig", {**SIZES, "attn_logit_softcapping": 30.0}, "attn_logit_softcapping = 30.0"),
        ("Qwen2Config", {**SIZES, "use_qk_norm": True}, "use_qk_norm = True"),
        ("Gemma3TextConfig", {**HEADS, "use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("LlamaConfig", {**SIZES, "rope_parameters": {**THETA, "rope_type": "proportional"}}, "'proportional'"),
        ("LlamaConfig", {**SIZES, "rope_parameters": {**THETA, "rope_type": "default", "twist": 2}}, "twist = 2"),
        ("LlamaConfig", {**SIZES, "quantization_config": {"quant_method": "awq"}}, "quantised"),
        ("LlamaConfig", {**SIZES, "partial_rotary_factor": 0.5}, "a llama model does not apply"),
        ("Qwen3Config", {**HEADS, "rope_parameters": {**THETA, "partial_rotary_factor": 0.25}}, "does not apply"),
        ("LlamaConfig", {**SIZES, "rope_parameters": {"full_attention": ROPES["linear"]}}, "layer_types do not name"),
        ("LlamaConfig", {**SIZES, "rope_parameters": {**THETA, "rope_type": "linear", "factor": 0.0}}, "factor is 0"),
        ("LlamaConfig", {**SIZES, "rope_parameters": {"rope_theta": float("inf")}}, "rope_theta is inf"),
        ("LlamaConfig", {**SIZES, "rope_parameters": {"rope_theta": "1e4"}}, "rope_theta is '1e4'"),
        (
            "Qwen2Config",
            {**SIZES, "layer_types": ["chunked_attention"] * 3},
            "'chunked_attention' are not known in a qwen2",
        ),
        (
            "Qwen3Config",
            {**HEADS, "layer_types": ["linear_attention"] * 3},
            "'linear_attention' are not known in a qwen3",
        ),
        ("MistralConfig", {**SIZES, **WINDOW, "sliding_window_pattern": 2}, "sliding_window_pattern = 2"),
        ("LlamaConfig", {**SIZES, "is_causal": False}, "is_causal = False"),
        ("Qwen3Config", {**HEADS, "is_causal": None}, "is_causal = None"),
        ("Gemma2Config", {**HEADS, "sliding_window": 0}, "sliding_window = 0"),
        ("MistralConfig", {**SIZES, "sliding_window": -3}, "sliding_window = -3"),
        (  # beyond the self-test's texts a window that only the masks have would not show
            "SmolLM3Config",
            {**SIZES, "sliding_window": 20, "use_sliding_window": False, "layer_types": MIXED},
            "use_sliding_window = False and layer_types",
        ),
        ("LlamaConfig", {**SIZES, "architectures": ["LlamaAlibiForCausalLM"]}, "LlamaAlibiForCausalLM"),
        ("LlamaConfig", {**SIZES, "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ("LlamaConfig", {**SIZES, "auto_map": {"AutoModelForCausalLM": "own.TwistedForCausalLM"}}, "own.Twisted"),
        ("LlamaConfig", {**SIZES, "max_position_embeddings": 0}, "max_position_embeddings = 0"),
        ("LlamaConfig", {**SIZES, "max_position_embeddings": -5}, "max_position_embeddings = -5"),
    ],
)
def test_what_is_not_known_is_refused_by_name(kind, settings, part):
    with pytest.raises(InputError, match=part):
        check_family(getattr(transformers, kind)(**settings))


@pytest.mark.parametrize(
    "extras",
    [
        {"sliding_window": None, "rope_interleaved": False, "use_mrope": False},  # off
        {
            "transformers.js_config": {"dtype": "q4"},
            "pretraining_tp": 2,
            "unsloth_fixed": True,
            "torch_dtype": "bfloat16",
        },
        {"num_experts": 2, "num_local_experts": 2, "attn_logit_softcapping": 0.0},  # of no use to this family
        {
            "architectures": ["LlamaForCausalLM"],
            "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.LlamaForCausalLM"},
        },
    ],
)
def test_what_is_off_or_says_nothing_about_the_function_is_no_reason_to_refuse(extras):
    check_family(transformers.LlamaConfig(**SIZES, **extras))


OTHER_NUMBERS = {int: lambda value: value + 1, float: lambda value: 0.6 * value + 0.01, bool: lambda value: not value}


@pytest.mark.parametrize("case", sorted(CASES))
def test_each_number_and_switch_of_a_configuration_is_computed_or_refused(case):
    """A packed row against transformers' own pass, for a model of the changed configuration."""
    kind, settings = CASES[case]
    compared = 0
    for name, usual in getattr(transformers, kind)(**settings).to_dict().items():
        if type(usual) not in OTHER_NUMBERS or name in INERT:
            continue
        other = OTHER_NUMBERS[type(usual)](usual)
        try:
            model = build(case, **{name: other})
        except Exception:  # transformers itself refuses a size that does not fit the others
            continue
        try:
            verifier = Verifier(model, 1, 32)
        except InputError:
            continue
        text = [(7 * place) % 97 for place in range(20)]
        slot = verifier.open()
        found = torch.cat([verifier.forward([Feed(slot, at, text[at : at + 5], GREEDY)])[0] for at in range(0, 20, 5)])
        with torch.inference_mode():
            expected = model(torch.tensor([text]), use_cache=False).logits[0]
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3, msg=f"{name} = {other}")
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_configurations_as_they_are_published_are_accepted(name):
    settings = dict(PUBLISHED[name])
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    check_family(config)


def test_an_unknown_field_is_refused_before_any_weights_are_read(tmp_path, tiny_folder):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_sinks": 4}))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match="attention_sinks"):
        load_model(str(folder))


def test_weights_that_the_model_does_not_use_are_refused_by_name(tmp_path, tiny_folder):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_norm\.weight"):
        load_model(str(folder))


def test_an_adapter_beside_a_models_weights_is_refused(tmp_path, tiny_folder):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "owner/name"}')
    with pytest.raises(InputError, match=r"an adapter \(adapter_config\.json\)"):
        load_model(str(folder))


@pytest.mark.parametrize("changes", [{"hidden_size": 31}, {"num_key_value_heads": 3}, {"num_attention_heads": 5}])
@pytest.mark.parametrize("case", ["cohere norms", "qwen2_moe"])
def test_sizes_that_do_not_fit_each_other_are_one_sentence(case, changes):
    with pytest.raises(InputError, match="cannot compute a text"):
        PackedModel.of(build(case, **changes), reorder=False)


def test_logits_that_are_no_numbers_are_one_sentence():
    """No number for one id of many: the others are finite, and a self-test that skips it would pass."""
    model = build("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(InputError, match="are not finite"):
        PackedModel.of(model, reorder=False)


@pytest.mark.parametrize(
    ("case", "name", "value"),
    [
        ("gemma3_text", "query_pre_attn_scalar", -4),
        ("gemma2", "attn_logit_softcapping", 0.0),
        ("gemma2", "final_logit_softcapping", 0.0),
        ("granite", "logits_scaling", 0.0),
        ("granite", "attention_multiplier", math.nan),
        ("granite", "attention_multiplier", 0.0),
        ("granite", "embedding_multiplier", math.inf),
        ("cohere norms", "logit_scale", math.nan),
        ("mixtral", "num_experts_per_tok", 5),
        ("qwen3_moe", "num_experts_per_tok", 0),
    ],
)
def test_a_value_with_which_nothing_is_computed_is_refused_by_its_field(case, name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; it must be"):
        PackedModel.of(build(case, **{name: value}), reorder=False)


def test_experts_are_counted_in_the_field_that_is_read():
    check_family(build("qwen2_moe", num_local_experts=1).config)


def test_layers_of_no_width_are_one_sentence():
    with pytest.raises(InputError, match="cannot compute a text"):
        PackedModel.of(build("mistral", intermediate_size=0))


def test_heads_that_cannot_be_rotated_are_one_sentence():
    with pytest.raises(InputError, match="cannot compute a text"):
        PackedModel.of(build("gemma", head_dim=1), reorder=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rotary_frequencies_in_old_files_must_be_those_of_the_configuration(tmp_path, tiny_folder, dtype):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    name, usual = "model.layers.1.self_attn.rotary_emb.inv_freq", 10000.0 ** -(torch.arange(4) / 4)
    save_file({**weights, name: usual.to(dtype)}, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(str(folder))
    scaled = json.loads((folder / "config.json").read_text())
    scaled["rope_parameters"] = {**THETA, "rope_type": "linear", "factor": 4.0}
    (folder / "config.json").write_text(json.dumps(scaled))
    load_model(str(folder))  # such files were scaled in the program
    save_file({**weights, name: (usual / 2).to(dtype)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.rotary_emb\.inv_freq"):
        load_model(str(folder))


@pytest.mark.parametrize("case", ["gpt_oss", "gemma2", "llama"])
def test_an_attention_that_leaves_something_out_fails_the_self_test(case, monkeypatch):
    attend = PackedBatch.attend

    def lacking(self, query, keys, values, scoring):
        scale = 1.3 * query.shape[-1] ** -0.5 if case == "llama" else scoring.scale
        return attend(self, query, keys, values, Scoring(scale, scoring.window))

    PackedModel.of(build(case), reorder=False)
    monkeypatch.setattr(PackedBatch, "attend", lacking)
    with pytest.raises(InputError, match="self-test"):
        PackedModel.of(build(case), reorder=False)


@pytest.mark.parametrize("row", [0, -1])
def test_an_attention_that_gives_no_numbers_fails_the_self_test(row, monkeypatch):
    attend = PackedBatch.attend

    def broken(self, *arguments):
        found = attend(self, *arguments).clone()
        found.view(-1)[row] = torch.nan
        return found

    monkeypatch.setattr(PackedBatch, "attend", broken)
    with pytest.raises(InputError, match="self-test"):
        PackedModel.of(build("llama"), reorder=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", sorted(CASES))
def test_narrow_numbers_pass_the_self_test(case, dtype):
    assert PackedModel.of(build(case, dtype)).dtype == dtype


def test_another_argument_of_an_attention_is_refused_by_name(monkeypatch):
    model = build("llama")
    attention = type(model.model.layers[0].self_attn)
    plain = attention.forward
    monkeypatch.setattr(attention, "forward", lambda self, *args, **kw: plain(self, *args, **kw, position_bias=1))
    with pytest.raises(InputError, match="position_bias"):
        PackedModel.of(model, reorder=False)
