import pytest
import torch
from tests.written_gguf import write_gguf
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
)

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Random weights of the usual size make nearly constant logits; larger ones make texts that differ.
    "initializer_range": 0.3,
}
FAMILIES = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    # Two sliding layers and a full one, a scale that is not 1/√head_dim, embeddings scaled by √hidden.
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    # Two recurrent layers and one with attention, grouped value heads, partial rotary positions.
    # Its states sum up rounding errors, so its weights are smaller.
    "qwen3.5": lambda: Qwen3_5TextConfig(
        **{**SIZES, "initializer_range": 0.2},
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    ),
}


def tiny_model(family, seed=0, **changes):
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def make_model():
    return tiny_model


@pytest.fixture
def sizes():
    return dict(SIZES)


@pytest.fixture
def gguf_of(tmp_path, monkeypatch):
    """Writes GGUF files of folders; what is converted is kept in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda folder, architecture, **changes: write_gguf(folder, tmp_path / "m.gguf", architecture, **changes)


@pytest.fixture
def make_folder(tmp_path):
    """Saves tiny models that speak bytes, with merges, padding of the logits and further special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(
        name, kind=LlamaConfig, padding=0, special=(), end="<|end|>", words=("Ġa", "th"), template=None, **changes
    ):
        folder = tmp_path / name
        alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
        backend = Tokenizer(models.BPE({token: k for k, token in enumerate(alphabet)}, [("Ġ", "a"), ("t", "h")]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)
        if special:
            tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
        tokenizer.chat_template = template
        torch.manual_seed(0)
        sizes = {**SIZES, "num_hidden_layers": 2, "vocab_size": len(tokenizer) + padding, "intermediate_size": 64}
        config = kind(**{**sizes, "eos_token_id": tokenizer.eos_token_id, **changes})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make
