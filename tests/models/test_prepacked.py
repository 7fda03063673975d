import pytest
import torch
from torch import nn

from multispin.errors import InputError
from multispin.models import prepacked, round_weights
from multispin.models.prepacked import PrepackedLinear, can_prepack, prepack, quick_dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reordered_weights_give_the_same_logits(make_model, family, dtype):
    plain, reordered = make_model(family).to(dtype), make_model(family).to(dtype)
    if not can_prepack(reordered):
        pytest.skip(f"this CPU or PyTorch has no oneDNN products in {dtype}")
    prepack(reordered)
    assert not [m for m in reordered.modules() if type(m) is nn.Linear]  # none is left, so none is kept twice
    tokens = torch.arange(2 * 9).reshape(2, 9)
    with torch.inference_mode():
        expected, logits = plain(tokens).logits, reordered(tokens).logits
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)


def test_other_numbers_are_left_alone(make_model):
    model = prepack(make_model("llama").to(torch.float16))
    assert not [m for m in model.modules() if isinstance(m, PrepackedLinear)]


def test_a_reordered_model_is_not_rounded_in_part(make_model):
    model = prepack(make_model("llama"))
    if not [m for m in model.modules() if isinstance(m, PrepackedLinear)]:
        pytest.skip("nothing was reordered")
    with pytest.raises(InputError, match="load the model again"):
        round_weights(model, 8)


@pytest.mark.parametrize(("narrow", "quickest"), [(True, torch.bfloat16), (False, torch.float32)])
def test_many_rows_are_multiplied_in_float32_where_bfloat16_is_emulated(monkeypatch, narrow, quickest):
    monkeypatch.setattr(prepacked, "multiplies_bfloat16", lambda: narrow)
    assert quick_dtype("cpu") == quickest
    assert quick_dtype("cuda:0") == torch.bfloat16
