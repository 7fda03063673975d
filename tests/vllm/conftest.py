import contextlib
import importlib.util
import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from multispin.models import Verifier, load_model
from multispin.models.vllm_engine import VllmEngine
from multispin.speculation import SlotsTakenError

SLOTS, LENGTH, DRAFT = 3, 96, 8

INSTALLED = importlib.util.find_spec("vllm") is not None

# Two vLLM workers on two cores, beside the test itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items):
    if not INSTALLED:
        for item in items:
            if "tests/vllm/" in item.path.as_posix() and "without_vllm" not in item.name:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: make vllm sets it up"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tiny_folder):
    """A tiny Llama whose heads are as wide as vLLM's attention on a CPU wants them."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("vllm") / "tiny")
    config = LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32})
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="session")
def started(folder):
    """vLLM's state is the process's: where one engine follows another, their workers need processes of their own."""
    options = {"enforce_eager": True, "distributed_executor_backend": "mp"}
    engine = VllmEngine.load(folder, SLOTS, LENGTH, max_draft=DRAFT, options=options)
    yield engine
    engine.shutdown()


@pytest.fixture
def vllm_engine(started):
    yield started
    with contextlib.suppress(SlotsTakenError):
        while True:
            started.open()
    for slot in reversed(range(SLOTS)):  # the next test gets them from 0 again, as from a new engine
        started.close(slot)


@pytest.fixture
def embedded_engine(folder):
    return Verifier(load_model(folder), SLOTS, LENGTH)


@pytest.fixture(params=["embedded", "vllm"])
def engine(request):
    return request.getfixturevalue(f"{request.param}_engine")
