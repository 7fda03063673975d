"""The models that are computed exactly: families and features that tests cover. All others are refused.

A packed pass leaves everything but attention to transformers' own modules. So three things matter: what attention does
beside plain products and masks, what depends on the other tokens of a batch, and what keeps a state. Each family below
is in tests/models/test_families.py with every feature that its configuration can turn on. An unknown field of a
configuration may change the results, so it is refused by name unless it is off.
"""

from typing import Any

import transformers

from multispin.checks import number, positive, whole
from multispin.errors import InputError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMON = _names(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim max_position_embeddings hidden_act rms_norm_eps rope_parameters tie_word_embeddings "
    "attention_bias mlp_bias"
)
"""Fields that all families may have."""

_WINDOW = "sliding_window layer_types"
_EXPERTS = "num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob"
FAMILIES = {
    family: _names(fields)
    for family, fields in {
        "cohere": "layer_norm_eps logit_scale use_qk_norm",
        "cohere2": f"layer_norm_eps logit_scale {_WINDOW}",
        "gemma": "hidden_activation",
        "gemma2": f"hidden_activation query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping {_WINDOW}",
        "gemma3_text": "hidden_activation query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping "
        f"_sliding_window_pattern {_WINDOW}",
        "glm": "",
        "glm4": "",
        "gpt_oss": f"{_EXPERTS} {_WINDOW} swiglu_alpha swiglu_limit",
        "granite": "attention_multiplier embedding_multiplier logits_scaling residual_multiplier",
        "granitemoe": f"attention_multiplier embedding_multiplier logits_scaling residual_multiplier {_EXPERTS}",
        "llama": "",
        "mistral": _WINDOW,
        "mixtral": f"{_EXPERTS} {_WINDOW}",
        "olmo": "clip_qkv",
        "olmo2": "",
        "olmo3": _WINDOW,
        "phi": "layer_norm_eps qk_layernorm",
        "phi3": f"{_WINDOW} original_max_position_embeddings",
        "qwen2": f"{_WINDOW} use_sliding_window max_window_layers",
        "qwen2_moe": f"{_EXPERTS} {_WINDOW} use_sliding_window max_window_layers shared_expert_intermediate_size "
        "decoder_sparse_step mlp_only_layers qkv_bias",
        "qwen3": f"{_WINDOW} use_sliding_window max_window_layers",
        "qwen3_moe": f"{_EXPERTS} {_WINDOW} use_sliding_window max_window_layers decoder_sparse_step mlp_only_layers",
        "qwen3_5_text": "layer_types linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads "
        "linear_num_value_heads linear_value_head_dim",
        "smollm3": f"no_rope_layers no_rope_layer_interval use_sliding_window {_WINDOW}",
        "starcoder2": f"norm_epsilon use_bias {_WINDOW}",
    }.items()
}
"""Per family (`model_type`), the fields beside `COMMON` that its tests cover."""

INERT = _names(
    "_attn_implementation _model_name_or_path _name_or_path architectures attention_dropout auto_map bos_token_id "
    "cache_implementation chunk_size_feed_forward dtype embd_pdrop embedding_dropout eos_token_id "
    "hidden_dropout id2label initializer_range is_llama_config label2id model_type output_attentions "
    "output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type residual_dropout "
    "resid_pdrop return_dict router_aux_loss_coef router_jitter_noise torch_dtype transformers.js_config "
    "transformers_version unk_token_id unsloth_fixed unsloth_version use_cache"
)
"""Fields without effect on a trained model's results: training, files, ids that only texts need."""

REPEATED = _names(
    "experts_per_token hidden_act initial_context_length max_window_layers num_experts num_local_experts "
    "partial_rotary_factor"
)
"""Fields that published files have beside the one that is read, with the same meaning."""

OFF: dict[str, Any] = {"full_attn_mod": 1, "interpolate_factor": 1}
"""Values that turn a field off, beside None, False and nothing at all."""

NEVER_OFF: dict[str, Any] = {"is_causal": True}
"""Fields that every family reads without declaring them, and the one value that is computed here: None and False are
not off."""

LAYERS = frozenset({"full_attention", "sliding_attention"})
RECURRENT = ("linear_attention", "qwen3_5_text")
"""Kinds of layers (`layer_types`); the last one in its family alone."""

ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn", "dynamic", "longrope"})
"""Rotary positions; the last two change with the longest text of a batch beyond `longest_text`."""
ROPE_FIELDS = _names(
    "rope_type type rope_theta factor attention_factor partial_rotary_factor low_freq_factor high_freq_factor "
    "beta_fast beta_slow mscale mscale_all_dim truncate original_max_position_embeddings short_factor "
    "long_factor"
)
PARTLY_ROTARY = frozenset({"glm", "glm4", "phi", "phi3", "qwen3_5_text"})
"""Families that rotate only a part of each head where their settings say so. The others do not look at that."""
_POSITIVE = _names("rope_theta factor low_freq_factor high_freq_factor beta_fast beta_slow attention_factor")
_ROPE = "the rotary positions (rope_parameters, in older files rope_scaling)"
_ABOVE_ZERO = _names(
    "query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping logits_scaling attention_multiplier"
)
"""Numbers with which a model computes nothing if they are 0."""
_FACTORS = _names("embedding_multiplier residual_multiplier logit_scale")
_MULTIMODAL_ROPE = frozenset({"mrope_section", "mrope_interleaved"})  # for text, all three positions are the same


def check_family(config: Any) -> None:
    """InputError unless every feature that a model's configuration turns on is computed exactly here."""
    text = config.get_text_config()
    if not isinstance(text, transformers.PreTrainedConfig):
        raise InputError(f"a {config.model_type} model has no text_config: remove that field of its configuration")
    family = text.model_type
    if family not in FAMILIES:
        raise InputError(
            f"models of the family {family!r} (model_type) are not known to be computed exactly in a batch: choose one "
            "of " + ", ".join(sorted(FAMILIES))
        )
    _check_programs(config)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            "the model's weights are quantised (quantization_config): load it in bfloat16 or from a GGUF file"
        )
    usual = type(text)().to_dict()
    known = COMMON | FAMILIES[family]
    for name, value in text.to_dict().items():
        declared = name in usual or name == "head_dim"  # read by every family that does not declare it
        if name in INERT or (declared and name in known) or (not declared and name in REPEATED):
            continue
        if name == "sliding_window_pattern" and value == getattr(text, "_sliding_window_pattern", None):
            continue  # how Gemma 3's published files call what is read
        if name in NEVER_OFF:
            if value is not NEVER_OFF[name]:
                raise InputError(
                    f"the configuration of this {family} model sets {name} = {str(value)[:60]}: only models that look "
                    "at earlier tokens alone can write texts, so choose another model"
                )
            continue
        if value in (None, False, [], {}, "") or (name in OFF and value == OFF[name]):
            continue
        if declared and value == usual[name]:
            continue
        raise InputError(
            f"the configuration of this {family} model sets {name} = {str(value)[:60]}, which is not known here and "
            "may change what it computes: remove the field if it does not, or choose another model"
        )
    longest = getattr(text, "max_position_embeddings", None)
    if longest is not None and longest < 1:
        raise InputError(f"the configuration has max_position_embeddings = {longest}, which leaves no room for a text")
    window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None) or ["sliding_attention"]
    if window is not None and not (isinstance(window, int) and window >= 1) and "sliding_attention" in kinds:
        raise InputError(f"the configuration has sliding_window = {str(window)[:60]}, which is not a number of tokens")
    if not getattr(text, "use_sliding_window", True) and "sliding_attention" in (
        getattr(text, "layer_types", None) or ()
    ):
        raise InputError(  # SmolLM3 then has a window in its masks and none in its attention
            "the configuration has use_sliding_window = False and layer_types with sliding_attention, which contradict "
            "each other: correct one of them"
        )
    for kind in getattr(text, "layer_types", None) or ():
        if kind not in LAYERS and (kind, family) != RECURRENT:
            raise InputError(f"layer_types: layers of the type {str(kind)[:60]!r} are not known in a {family} model")
    for name, part in (getattr(text, "rope_parameters", None) or {}).items():
        if isinstance(part, dict) and name not in (getattr(text, "layer_types", None) or ()):
            raise InputError(f"{_ROPE} are for layers {str(name)[:60]!r}, which its layer_types do not name")
    for rope in _rotary(text):
        _check_rotary(rope, text)
    of = f"the configuration of this {family} model: "
    for name in sorted(FAMILIES[family] & (_ABOVE_ZERO | _FACTORS)):
        if (value := getattr(text, name, None)) is not None:
            (positive if name in _ABOVE_ZERO else number)(name, value, of=of)
    experts = next((getattr(text, name) for name in ("num_local_experts", "num_experts") if name in usual), None)
    if experts and "num_experts_per_tok" in usual:
        whole("num_experts_per_tok", text.num_experts_per_tok, 1, experts, of=of)


def _check_programs(config: Any) -> None:
    """InputError for a model that names another program than transformers' own of its family."""
    kinds = {config.model_type, config.get_text_config().model_type}
    mapped = getattr(config, "auto_map", None) or {}
    named = [("architectures", name) for name in getattr(config, "architectures", None) or ()]
    named += [("auto_map", name) for part, name in mapped.items() if part.startswith("AutoModel")]
    for field, name in named:
        program = getattr(transformers, str(name).rpartition(".")[2], None)
        if getattr(getattr(program, "config_class", None), "model_type", None) not in kinds:
            raise InputError(
                f"the configuration of this {config.model_type} model names the program {str(name)[:60]} ({field}), "
                "which is not that of its family (model_type) and may compute something else: remove the field if it "
                "does not, or choose another model"
            )


def longest_text(config: Any) -> int | None:
    """Length of the longest text for which a model's results are defined [tokens]; None without a limit."""
    limits = [getattr(config, "max_position_embeddings", None)]
    limits += [
        rope.get("original_max_position_embeddings") for rope in _rotary(config) if rope.get("rope_type") == "longrope"
    ]
    return min((int(limit) for limit in limits if limit is not None), default=None)


def _rotary(config: Any) -> list[dict[str, Any]]:
    """The settings of rotary positions: one for all layers, or one per kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in found.values() if isinstance(part, dict)]
    plain = {name: part for name, part in found.items() if not isinstance(part, dict)}
    return [*parts, *([plain] if plain else [])]


def _check_rotary(rope: dict[str, Any], text: Any) -> None:
    kind, family = rope.get("rope_type", "default"), text.model_type
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise InputError(f"{_ROPE} are of the type {kind!r}, which is not known here: choose another model")
    known = ROPE_FIELDS | (_MULTIMODAL_ROPE if family == "qwen3_5_text" else frozenset())
    for name, value in rope.items():
        if name not in known and value is not None:
            raise InputError(f"{_ROPE} set {name} = {str(value)[:60]}, which is not known here")
    for name in _POSITIVE & rope.keys():
        if rope[name] is not None:
            positive(name, rope[name], of=f"{_ROPE}: ")
    part = rope.get("partial_rotary_factor")
    if part not in (None, 1.0) and family not in PARTLY_ROTARY:
        raise InputError(f"{_ROPE} set partial_rotary_factor = {str(part)[:60]}, which a {family} model does not apply")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    pairs = int(head * (1.0 if part is None else part)) // 2
    for name in ("short_factor", "long_factor"):
        factors = rope.get(name)
        if factors is not None and (not isinstance(factors, list | tuple) or len(factors) != pairs):
            raise InputError(f"{_ROPE} need a list of {pairs} numbers as {name}, one per pair")
