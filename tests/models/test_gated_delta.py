"""The kernel of recurrent layers gives what PyTorch's steps give, in outputs and in the states that it keeps.

It runs on a CUDA device, or in Triton's interpreter: TRITON_INTERPRET=1, with triton and numpy below 2.4 installed.
"""

import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch

from multispin.models import static_recurrent
from multispin.models.static_recurrent import StaticRecurrent

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs Triton and a CUDA device",
)
CAPACITY, TOKENS = 64, 8


def a_layer(sizes, slots, dtype):
    """A layer with random weights, and random inputs and states of all slots and of a spare one."""
    keys, heads, key, value, kernel, bias = sizes
    channels = 2 * keys * key + heads * value
    layer = SimpleNamespace(
        kernel=kernel,
        mixed=torch.randn(slots + 1, kernel - 1 + CAPACITY, channels).to(DEVICE, dtype),
        decay=-torch.rand(slots + 1, CAPACITY, heads).to(DEVICE),
        beta=torch.rand(slots + 1, CAPACITY, heads).to(DEVICE, dtype),
        newest=torch.randn(slots + 1, heads, key, value).to(DEVICE),
    )
    convolution = SimpleNamespace(
        weight=torch.randn(channels, 1, kernel).to(DEVICE, dtype),
        bias=torch.randn(channels).to(DEVICE, dtype) if bias else None,
    )
    sizes = {"key_dim": keys * key, "value_dim": heads * value, "head_k_dim": key, "head_v_dim": value}
    return layer, SimpleNamespace(conv1d=convolution, activation="silu", **sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [8, 32])
@pytest.mark.parametrize(
    "sizes", [(2, 4, 16, 16, 4, False), (1, 3, 12, 24, 4, True), (2, 2, 32, 48, 3, False)], ids=str
)
def test_on_a_cuda_device_the_kernel_gives_what_the_steps_give(monkeypatch, sizes, window, dtype):
    from multispin.models.gated_delta import scan_slots

    torch.manual_seed(window)
    slots, heads = 5, sizes[1]
    layer, module = a_layer(sizes, slots, dtype)
    context = layer.kernel - 1
    counts = torch.tensor([0, 1, window, window // 2, window - 1], device=DEVICE)
    kept = torch.tensor([0, 1, window, 0, 3], device=DEVICE)
    past = torch.tensor([0, CAPACITY - 1, 0, 5, CAPACITY - window], device=DEVICE)
    slot = torch.arange(slots, device=DEVICE)
    spare = torch.full((TOKENS,), slots, device=DEVICE)
    parts = {
        "windows": slot * (context + CAPACITY) + past,
        "window_gates": slot * CAPACITY + past,
        "counts": counts,
        "kept": kept,
        "input_lines": spare * (context + CAPACITY) + context,
        "gate_lines": spare * CAPACITY,
        "outputs": torch.arange(slots * window, device=DEVICE),
    }
    states = SimpleNamespace(layers={0: layer}, context=context, capacity=CAPACITY)
    row = [torch.randn(TOKENS, layer.mixed.shape[-1]), -torch.rand(TOKENS, heads), torch.rand(TOKENS, heads)]
    row = [row[0].to(DEVICE, dtype), row[1].to(DEVICE), row[2].to(DEVICE, dtype)]
    before, found = layer.newest.clone(), []
    for function in (None, scan_slots):
        monkeypatch.setattr(static_recurrent, "kernel", lambda device, function=function: function)
        layer.newest.copy_(before)
        batch = StaticRecurrent(states, SimpleNamespace(slots=slots, window=window, tokens=TOKENS), parts)
        batch.begin()
        found.append((batch.advance(module, 0, *row), layer.newest.clone()))
    (expected, expected_states), (outputs, kept_states) = found
    real = (torch.arange(window, device=DEVICE) < counts[:, None]).reshape(-1)
    loose = {"atol": 3e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 3e-2}
    torch.testing.assert_close(outputs[real], expected[real], **loose)
    torch.testing.assert_close(kept_states, expected_states, **loose)
    assert torch.equal(kept_states[[0, 3, slots]], before[[0, 3, slots]])
    assert not outputs[~real].any()
