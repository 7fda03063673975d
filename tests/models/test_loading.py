"""Model files as they come: sharded, truncated, damaged, incomplete. Each bad one is answered in one sentence."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.test_families import CASES, build
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, Gemma3Config, PreTrainedTokenizerFast

from multispin.errors import InputError
from multispin.models import Verifier, load_model, load_tokenizer, loading
from multispin.models.references import CONVERSION, is_whole
from multispin.speculation import Feed, SamplingParams


@pytest.fixture
def folder(tmp_path, make_model):
    make_model("llama").save_pretrained(tmp_path / "model", max_shard_size="20KB")
    backend = Backend(WordLevel({str(i): i for i in range(97)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="96").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(call, *parts):
    """The one sentence with which `call` refuses, which must hold all `parts`."""
    with pytest.raises(InputError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert len(sentence) < 500
    for part in parts:
        assert part in sentence
    return sentence


def test_a_sharded_checkpoint_loads_whole(folder, make_model):
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    loaded, original = load_model(str(folder)).state_dict(), make_model("llama").state_dict()
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[name], original[name]) for name in original)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_checkpoint_loads_in_the_numbers_asked_for(folder, dtype):
    assert load_model(str(folder), dtype).dtype == getattr(torch, dtype)


def test_other_numbers_are_refused(folder):
    refused(lambda: load_model(str(folder), "int4"), "int4", "bfloat16")


@pytest.mark.parametrize("keep", [0, 4, 100, -50])
def test_a_truncated_shard_is_refused(folder, keep):
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:keep])
    refused(lambda: load_model(str(folder)), str(folder), "truncated")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../other.safetensors", "outside of its folder"),
        ("/dev/zero", "outside of its folder"),
        ("pytorch_model.bin", "not in a .safetensors file"),
        ("zero.safetensors", "is not a file"),
        ("pipe.safetensors", "is not a file"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(folder, name, said):
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.safetensors")
    shutil.copy(sorted(folder.glob("model-*.safetensors"))[0], folder.parent / "other.safetensors")
    shutil.copy(sorted(folder.glob("model-*.safetensors"))[0], folder / "pytorch_model.bin")
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(document))
    refused(lambda: load_model(str(folder)), said)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"lm_head.weight": ["a"]}}'])
def test_an_index_of_another_form_is_refused_by_its_name(folder, index):
    (folder / "model.safetensors.index.json").write_text(index)
    refused(lambda: load_model(str(folder)), "model.safetensors.index.json")


def test_a_weight_that_two_files_hold_with_other_values_is_refused(folder):
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    name, found = next(iter(load_file(second).items()))
    save_file({**load_file(first), name: found}, first, metadata={"format": "pt"})
    load_model(str(folder))  # the same values
    save_file({**load_file(first), name: found + 1}, first, metadata={"format": "pt"})
    refused(lambda: load_model(str(folder)), first.name, second.name, name)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_whole_numbers_are_found_in_the_file_that_is_read(folder, make_model, file):
    name = "model.layers.0.mlp.up_proj.weight"
    weights = make_model("llama").state_dict()
    whole = {**weights, name: (20 * weights[name]).to(torch.int8)}
    if file == "model.safetensors":
        save_file(whole, folder / file, metadata={"format": "pt"})  # which an index beside it does not name
    else:
        for each in folder.glob("model*"):
            each.unlink()
        torch.save(weights, folder / file)
        load_model(str(folder))
        torch.save(whole, folder / file)
    refused(lambda: load_model(str(folder)), f"{name} is stored as")


def test_a_program_in_a_file_of_weights_is_not_run_and_nobody_is_told_to(folder, tmp_path):
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    for each in folder.glob("model*"):
        each.unlink()
    torch.save({"lm_head.weight": Program()}, folder / "pytorch_model.bin")
    assert "weights_only" not in refused(lambda: load_model(str(folder)), "a program, which is never run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_settings_that_are_no_file_are_refused(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")
    refused(lambda: load_model(str(folder)), name)
    refused(lambda: load_tokenizer(str(folder)), name)


def test_settings_of_the_library_do_not_change_how_a_model_runs(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"return_dict": False}))
    verifier = Verifier(load_model(str(folder)), slots=1, max_length=16)
    assert verifier.verify([Feed(verifier.open(), 0, [1, 2], SamplingParams())])


@pytest.mark.parametrize("ends", [{}, [[1]], [1, {}]])
def test_end_ids_that_are_none_are_refused(folder, ends):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    refused(lambda: load_tokenizer(str(folder)), "eos_token_id")


def test_a_garbled_header_is_refused(folder):
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    refused(lambda: load_model(str(folder)), str(folder))


def test_a_missing_shard_is_refused_by_name(folder):
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(lambda: load_model(str(folder)), shard.name)


def test_weights_that_are_not_in_the_file_are_not_made_up(folder, make_model):
    from safetensors.torch import save_file

    shutil.copytree(folder, folder.parent / "lacking")
    for file in (folder.parent / "lacking").glob("model*.safetensors*"):
        file.unlink()
    weights = {k: v for k, v in make_model("llama").state_dict().items() if "layers.1.mlp.up_proj" not in k}
    save_file(weights, folder.parent / "lacking" / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: load_model(str(folder.parent / "lacking")), "layers.1.mlp.up_proj")


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_no_plain_numbers_are_refused_by_name(folder, make_model, kind):
    """transformers takes them as they are, without the scales that some file beside them may hold."""
    from safetensors.torch import save_file

    weights, name = make_model("llama").state_dict(), "model.layers.1.mlp.up_proj.weight"
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file({**weights, name: weights[name].to(kind)}, folder / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: load_model(str(folder)), name, "not as floating-point numbers")


def test_a_model_that_computes_no_number_is_refused_before_it_serves_anybody(make_model):
    model = make_model("llama")
    model.model.norm.weight.data[3] = torch.nan
    refused(lambda: Verifier(model, slots=1, max_length=32), "are not finite")


def test_weights_of_another_shape_are_refused(folder, make_model):
    make_model("llama").save_pretrained(folder.parent / "other")
    config = (folder.parent / "other" / "config.json").read_text()
    (folder.parent / "other" / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 40'))
    refused(lambda: load_model(str(folder.parent / "other")), "other")


@pytest.mark.parametrize(
    ("case", "name", "value"),
    [
        ("llama", "num_key_value_heads", 4),
        ("llama", "head_dim", 8),
        ("llama", "intermediate_size", 49),
        ("llama", "vocab_size", 98),
        ("llama", "hidden_size", 64),
        ("llama", "num_hidden_layers", 2),
        ("llama", "num_hidden_layers", 4),
        ("llama", "attention_bias", False),
        ("phi3", "num_attention_heads", 2),
        ("qwen2", "num_key_value_heads", 0),
        ("cohere2", "tie_word_embeddings", False),
        ("granitemoe", "head_dim", 6),
        ("llama", "model_type", "gemma"),
        ("qwen3", "hidden_act", "nonsense"),
        ("qwen3", "text_config", {"num_hidden_layers": 1}),
        ("qwen3", "rms_norm_eps", "1e-5"),
        ("mixtral", "num_experts", None),
        ("mixtral", "num_local_experts", 8),
        ("qwen2_moe", "mlp_only_layers", [0]),
        ("qwen3_moe", "mlp_only_layers", []),
        ("qwen3", "model_type", "ministral"),
        ("gemma3_text", "layer_types", ["sliding_attention"] * 3),
        ("gemma3_text", "layer_types", ["chunked_attention"] * 3),
        ("gemma3_text", "layer_types", ["full_attention"]),
        ("mistral", "rope_scaling", "linear"),
        ("mistral", "rope_scaling", {"rope_type": "ntk", "factor": 2.0}),
        ("mistral", "rope_parameters", {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0, "alpha": 1000}),
        ("mistral", "per_layer_config", {"0": {"sliding_window": 3}}),
        ("olmo", "attn_implementation", "flash_attention_2"),
        ("smollm3", "no_rope_layers", [1]),
    ],
)
def test_a_field_with_which_a_model_cannot_be_loaded_is_named(tmp_path, case, name, value):
    build(case).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text()) | {name: value}
    if name == "rope_scaling":
        del settings["rope_parameters"]
    path.write_text(json.dumps(settings))
    refused(lambda: Verifier(load_model(str(tmp_path)), 1, 32), name)


def test_a_field_of_a_model_that_also_sees_is_named(tmp_path):
    _, settings = CASES["gemma3_text"]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=settings, vision_config={**sizes, "image_size": 28, "patch_size": 14})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    Verifier(load_model(str(tmp_path)), 1, 32)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))
    refused(lambda: load_model(str(tmp_path)), "lm_head.weight", "(tie_word_embeddings)")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "no-such-model"}'])
def test_a_config_that_makes_no_sense_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    refused(lambda: load_model(str(folder)), str(folder))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_settings_file_of_absurd_size_is_refused_before_it_is_read(folder, name):
    with (folder / name).open("ab") as file:
        file.truncate(2**28)  # sparse
    refused(lambda: load_tokenizer(str(folder)), name, "over the limit")
    refused(lambda: load_model(str(folder)), name, "over the limit")


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**9}, {"text_config": {"num_experts": 10**9}}])
def test_a_config_of_a_thousand_million_parts_is_refused_before_any_is_made(folder, change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for load in (load_model, load_tokenizer):
        refused(lambda load=load: load(str(folder)), "1000000000, over the limit of 4096")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_settings_with_a_key_twice_are_refused_by_its_name(folder, name):
    path = folder / name
    path.write_text(path.read_text().rstrip()[:-1] + ', "eos_token_id": 5, "eos_token_id": 6}')
    for load in (load_model, load_tokenizer):
        refused(lambda load=load: load(str(folder)), f"the {name} of {folder}: the key 'eos_token_id' comes twice")


def test_a_folder_without_weights_is_refused(folder):
    for file in folder.glob("model*"):
        file.unlink()
    refused(lambda: load_model(str(folder)), str(folder))


def test_a_folder_without_a_tokenizer_is_refused(folder):
    assert load_tokenizer(str(folder)).size == 97
    for file in folder.glob("*token*"):
        file.unlink()
    refused(lambda: load_tokenizer(str(folder)), str(folder), "there is no tokenizer", "from one of: (1)")


def test_a_folder_without_a_config_and_a_path_to_nothing_are_refused(tmp_path):
    refused(lambda: load_model(str(tmp_path)), "config.json")
    refused(lambda: load_model(str(tmp_path / "nothing")), "nothing")
    refused(lambda: load_model(str(tmp_path / "nothing.gguf")), "nothing.gguf")
    refused(lambda: load_model(""), "there is no model ''")


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"not a model at all" * 40, b"GGUF\x03\0\0\0" + b"\xff" * 64, b"GGUF\x63\0\0\0" + b"\0" * 64],
)
def test_what_is_not_a_gguf_file_is_refused_and_leaves_nothing_behind(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(content)
    refused(lambda: load_model(str(tmp_path / "model.gguf")), "model.gguf", "GGUF file")
    assert not list(tmp_path.glob("cache/multispin/models/*"))


def test_a_half_made_copy_of_a_gguf_file_is_made_anew_and_leftovers_are_removed(make_folder, gguf_of):
    file = gguf_of(make_folder("m"), "llama")
    folder = Path(loading.resolve(file))
    mark = folder / "mark"  # lies in this copy and in no other
    for damage in (lambda: (folder / "tokenizer.json").unlink(), lambda: (folder / "model.safetensors").write_text("")):
        mark.touch()
        loading.resolve(file)
        assert mark.exists()
        damage()
        left = folder.with_name(f".{folder.name}-killed")
        old = folder.with_name(folder.name.removesuffix(str(CONVERSION)) + str(CONVERSION - 1))
        other = folder.with_name("another-model-1")
        for each in (left, old, other):
            each.mkdir(exist_ok=True)
        assert Path(loading.resolve(file)) == folder
        assert not mark.exists()
        assert not left.exists()
        assert not old.exists()
        assert other.exists()
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "part-1.safetensors").write_text("x")
    assert not is_whole(folder)
    (folder / "part-2.safetensors").write_text("x")
    assert is_whole(folder)


def test_a_text_whose_logits_are_not_numbers_fails_and_others_go_on(make_model):
    model = make_model("llama")
    model.model.embed_tokens.weight.data[42] = torch.nan
    verifier = Verifier(model, slots=2, max_length=32)
    good, bad = verifier.open(), verifier.open()
    (expected,) = verifier.verify([Feed(good, 0, [1, 2, 3], SamplingParams())])
    for distribution in (SamplingParams(), SamplingParams(0.8, seed=4)):
        (failure,) = verifier.verify([Feed(bad, 0, [1, 42], distribution)])
        assert "finite numbers" in failure.reason
        assert verifier.cached(bad) == 0
    verifier.close(bad)
    again = verifier.open()
    outcomes = verifier.verify(
        [Feed(good, 0, [1, 2, 3], SamplingParams()), Feed(again, 0, [1, 2, 3], SamplingParams())]
    )
    assert outcomes == [expected, expected]


def test_weights_that_this_user_may_not_read_are_said_to_be_so(folder, monkeypatch):
    """safetensors says of them that they do not exist; root may read everything, so the system's answer is played."""
    hidden = sorted(folder.glob("*.safetensors"))[1]
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != hidden and access(path, mode))
    refused(lambda: load_model(str(folder)), "may not read", hidden.name, "chmod")
