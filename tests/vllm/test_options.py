import importlib.util

import pytest

from multispin.errors import InputError
from multispin.models import vllm_engine, vllm_options


def test_without_vllm_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'\.\[vllm\]'.*make vllm"):
        vllm_engine.VllmEngine.load("embedded", 2)


def test_options_are_read_without_vllm():
    pairs = ["tensor_parallel_size=8", "distributed-executor-backend=ray", "enforce_eager=true", 'x={"a": 1}']
    assert vllm_options.parse_options(pairs) == {
        "tensor_parallel_size": 8,
        "distributed_executor_backend": "ray",
        "enforce_eager": True,
        "x": {"a": 1},
    }


@pytest.mark.parametrize("pair", ["tensor_parallel_size", "=8"])
def test_options_of_another_form_are_refused_without_vllm(pair):
    with pytest.raises(InputError, match="NAME=VALUE"):
        vllm_options.parse_options([pair])


@pytest.mark.parametrize("pairs", [["a-b=1", "a_b=2"], ['x={"a": 1, "a": 2}']])
def test_a_name_that_comes_twice_is_refused_without_vllm(pairs):
    with pytest.raises(InputError, match="twice"):
        vllm_options.parse_options(pairs)


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5_000, "NaN]", ""])
def test_a_value_that_is_no_json_is_a_text_without_vllm(value):
    assert vllm_options.parse_options([f"x={value}"]) == {"x": value}
