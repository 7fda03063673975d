import gc
import os

import pytest

# Waiting threads sleep, and tiny models need only one: tests stay quick beside other work on a few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hypothesis import settings

# A slow machine is no bug: no example has a deadline. Every run tries the same examples; `make fuzz` tries others.
settings.register_profile("multispin", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=1000)
settings.load_profile("multispin")


def pytest_configure(config):
    """Tiny models need one thread. The process that only hands out tests to others does without torch."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)


def pytest_collection_finish(session):
    """What is there before the first test stays: the collector need not look through all of torch again and again."""
    gc.collect()
    gc.freeze()


def save_tiny_model(folder, seed=0, extra_token="<|end|>", kind="LlamaConfig", **changes):
    """A random model that speaks bytes, as a model folder; seconds to make and run."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=extra_token)
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        **changes,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_copy(tmp_path_factory):
    """The same model in a folder that may be changed."""
    return save_tiny_model(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="session")
def other_vocabulary_folder(tmp_path_factory):
    """The same kind of model whose tokenizer differs in one token."""
    return save_tiny_model(tmp_path_factory.mktemp("other"), extra_token="<|other|>")


@pytest.fixture(scope="session", params=["qwen2", "qwen3"])
def qwen_folder(request, tmp_path_factory):
    """Qwen 2 has biases and ties its embeddings here; Qwen 3 norms queries and keys and has a head of its own."""
    kind, changes = {
        "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
        "qwen3": ("Qwen3Config", {"tie_word_embeddings": False, "head_dim": 8}),
    }[request.param]
    return save_tiny_model(tmp_path_factory.mktemp(request.param), kind=kind, **changes)


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def processor(request):
    """Where torch computes: what holds on a CPU must hold on a GPU."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA")
    return request.param
