"""A drafter's GGUF file computes what the drafter's folder does, with the target's whole head."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from multispin.errors import InputError
from multispin.models import load_model, load_tokenizer
from multispin.models.distilled import carve, fingerprint, load_student, save_drafter
from multispin.models.drafter_card import DrafterCard
from multispin.models.drafter_name import DrafterName
from multispin.models.gguf_copy import gguf_copy
from multispin.models.gguf_drafter import COPY_KEPT_S, PART_KEPT_S, GgufOrder, file_for_llama_cpp, write_gguf

TEXT = torch.tensor([[3, 9, 4, 60, 7, 7, 21]])
KINDS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


@pytest.fixture
def target(make_folder, gguf_of):
    def make(architecture, **more):
        sizes = {"head_dim": 128} if architecture == "qwen3" else {"hidden_size": 64}
        folder = make_folder("m", KINDS[architecture], num_hidden_layers=4, initializer_range=0.2, **sizes, **more)
        return gguf_of(folder, architecture)

    return make


def distilled(target, folder, layers, frozen=0, ids=None, storage="bfloat16"):
    """A drafter that was taught something: its own layers are not quite the target's."""
    model = load_model(target)
    student = carve(model, layers, ids, frozen)
    with torch.no_grad():
        for layer in student.model.layers[frozen:]:
            layer.mlp.up_proj.weight.mul_(1.1)
    vocabulary = len(ids) if ids is not None else model.config.vocab_size
    save_drafter(student, DrafterCard(target, fingerprint(model), layers, vocabulary, storage, frozen), folder)
    return load_student(folder, model)


def logits(model):
    with torch.inference_mode():
        return model(TEXT).logits[0]


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize(("layers", "frozen", "tied"), [((0, 3), 0, True), ((0, 1, 3), 2, False)])
def test_a_file_computes_what_its_folder_does(target, tmp_path, architecture, layers, frozen, tied):
    own = target(architecture, tie_word_embeddings=tied)
    student = distilled(own, tmp_path / "d", layers, frozen)
    out = tmp_path / "out.gguf"
    assert write_gguf(GgufOrder(str(tmp_path / "d"), out, storage="f16")) == out.stat().st_size
    found = load_model(str(out))
    assert found.config.num_hidden_layers == len(layers)
    torch.testing.assert_close(logits(found), logits(student), atol=0.02, rtol=0.02)
    ours, theirs = load_tokenizer(str(out)), load_tokenizer(own)
    assert (ours.fingerprint, ours.stop_ids, ours.template) == (theirs.fingerprint, theirs.stop_ids, theirs.template)


def test_the_whole_head_of_the_target_stands_in_for_a_part_of_it(target, tmp_path):
    ids = torch.arange(0, 200, 3)
    own = target("llama")
    student = distilled(own, tmp_path / "d", (0, 3), ids=ids, storage="int8")
    write_gguf(GgufOrder(str(tmp_path / "d"), tmp_path / "out.gguf", storage="f16"))
    found = logits(load_model(str(tmp_path / "out.gguf")))
    torch.testing.assert_close(found[:, ids], logits(student)[:, ids], atol=0.02, rtol=0.02)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize(("storage", "error"), [("q8_0", 0.06), ("q4_0", 0.8), ("bf16", 0.06)])
def test_a_target_is_stored_in_other_numbers(target, tmp_path, storage, error):
    own = target("llama")
    size = write_gguf(GgufOrder(own, tmp_path / "out.gguf", storage=storage))
    expected, found = logits(load_model(own)), logits(load_model(str(tmp_path / "out.gguf")))
    assert 0 < float((found - expected).std()) < error * float(expected.std())
    assert size < 0.7 * (tmp_path / "m.gguf").stat().st_size


def test_rows_that_do_not_divide_into_blocks_stay_as_they_are(make_folder, gguf_of, tmp_path):
    own = gguf_of(make_folder("m", intermediate_size=48, hidden_size=64), "llama")
    write_gguf(GgufOrder(own, tmp_path / "out.gguf"))
    weights = [load_model(path).model.layers[0].mlp.down_proj.weight for path in (own, str(tmp_path / "out.gguf"))]
    assert torch.equal(*weights)


def test_a_file_with_an_alignment_of_its_own_is_stored_anew_as_it_is(target, tmp_path, monkeypatch):
    import gguf

    class Aligned(gguf.GGUFWriter):
        def __init__(self, *args):
            super().__init__(*args)
            self.add_custom_alignment(128)

    with monkeypatch.context() as patched:
        patched.setattr(gguf, "GGUFWriter", Aligned)
        own = target("llama")
    write_gguf(GgufOrder(own, tmp_path / "out.gguf"))
    expected, found = logits(load_model(own)), logits(load_model(str(tmp_path / "out.gguf")))
    assert 0 < float((found - expected).std()) < 0.1 * float(expected.std())


def test_a_file_whose_tensors_lie_elsewhere_than_it_says_is_not_stored_anew(target, tmp_path):
    own = Path(target("llama"))
    own.write_bytes(own.read_bytes() + bytes(32))
    with pytest.raises(InputError, match="its tensors end at byte"):
        write_gguf(GgufOrder(str(own), tmp_path / "out.gguf"))


def test_what_cannot_be_written_is_refused_and_leaves_nothing(target, tiny_folder, tmp_path):
    own = target("llama")
    distilled(own, tmp_path / "d", (0, 3))
    other = GgufOrder(own, tmp_path / "other.gguf", storage="q4_0")
    write_gguf(other)
    folder, out = str(tmp_path / "d"), tmp_path / "x" / "out.gguf"
    for order, part in (
        ((folder, out, str(other.out)), "not from"),
        ((folder, out, tiny_folder), r"convert_hf_to_gguf\.py"),
        ((tiny_folder, out), r"convert_hf_to_gguf\.py"),
        (("lookup", out), "no weights of its own"),
        (("q8", out), "no weights of its own"),
        ((own, tmp_path / "m.gguf"), "is also the input file"),
    ):
        with pytest.raises(InputError, match=part):
            write_gguf(GgufOrder(*order))
    for name, value in (("storage", "q9"), ("out", tmp_path / "out.bin")):
        with pytest.raises(InputError, match=str(value)):
            GgufOrder(**{"drafter": own, "out": out, name: value})
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_damaged_weights_are_refused(target, tmp_path):
    own = target("llama")
    distilled(own, tmp_path / "d", (0, 3))
    card = tmp_path / "d" / "drafter.json"
    document = json.loads(card.read_text())
    weights = tmp_path / "d" / "weights.safetensors"
    for layers, part in (([0, 1, 3], "lack blk.2"), ([0, 4], "layer 4"), ([0], "blk.1")):
        card.write_text(json.dumps({**document, "layers": layers}))
        with pytest.raises(InputError, match=part):
            write_gguf(GgufOrder(str(tmp_path / "d"), tmp_path / "out.gguf"))
    for odd in ([], [-1, 0], [3, 0], [0, 0], [0, 3, 3]):
        card.write_text(json.dumps({**document, "layers": odd}))
        with pytest.raises(InputError, match="not ascending indices"):
            write_gguf(GgufOrder(str(tmp_path / "d"), tmp_path / "out.gguf"))
    for frozen in (-1, 2, 9):
        card.write_text(json.dumps({**document, "frozen": frozen}))
        with pytest.raises(InputError, match="cannot be frozen"):
            write_gguf(GgufOrder(str(tmp_path / "d"), tmp_path / "out.gguf"))
    card.write_text(json.dumps(document))
    for data in (b"", b"{}", weights.read_bytes()[:-9]):
        weights.write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            write_gguf(GgufOrder(str(tmp_path / "d"), tmp_path / "out.gguf"))
    assert not (tmp_path / "out.gguf").exists()


def aged(path, seconds):
    path.write_bytes(b"x")
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_a_copy_is_made_once_for_devices_and_pages_and_kept_under_the_drafters_name(target, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(target("llama"))
    distilled(path, tmp_path / "my: drafter v1.2", (0, 3))
    name = DrafterName.parse(str(tmp_path / "my: drafter v1.2"))
    copy = file_for_llama_cpp(name, None)
    assert gguf_copy(name.text) == file_for_llama_cpp(name, path) == copy
    assert copy.name.startswith("my-drafter-v1.2-")
    other = file_for_llama_cpp(DrafterName.parse("q8"), path)
    assert other.name.startswith(f"{Path(path).stem}-q8-")
    assert set(copy.parent.iterdir()) == {copy, other}


def test_what_a_process_that_died_left_behind_is_removed_and_nothing_else(target, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "multispin" / "drafters"
    folder.mkdir(parents=True)
    stale = [aged(folder / "a.gguf.x.part", 2 * PART_KEPT_S), aged(folder / "b.gguf", 2 * COPY_KEPT_S)]
    kept = [aged(folder / "c.gguf.x.part", 0), aged(folder / "d.gguf", COPY_KEPT_S / 2), aged(folder / "e.txt", 1e9)]
    path = target("llama")
    copy = file_for_llama_cpp(DrafterName.parse("q8"), str(path))
    assert not [each for each in stale if each.exists()]
    assert set(folder.iterdir()) == {copy, *kept}
    os.utime(copy, (0, 0))
    assert file_for_llama_cpp(DrafterName.parse("q8"), str(path)) == copy
    assert time.time() - copy.stat().st_mtime < 60  # it has been used

    aged(tmp_path / "out.gguf.x.part", 2 * PART_KEPT_S)
    aged(tmp_path / "other.gguf.x.part", 2 * PART_KEPT_S)
    write_gguf(GgufOrder(str(path), tmp_path / "out.gguf"))
    assert [each.name for each in tmp_path.glob("*.part")] == ["other.gguf.x.part"]


@pytest.mark.parametrize("left", [b"", b"\0" * 4096], ids=["empty", "zeros"])
def test_a_copy_that_a_power_cut_left_without_its_bytes_is_made_again(target, tmp_path, monkeypatch, left):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name, path = DrafterName.parse("q8"), str(target("llama"))
    copy = file_for_llama_cpp(name, path)
    data = copy.read_bytes()
    copy.write_bytes(left)
    assert file_for_llama_cpp(name, path) == copy
    assert copy.read_bytes() == data


def test_a_full_disk_is_said_with_the_files_name_and_leaves_nothing(target, tmp_path):
    out = tmp_path / "new" / "out.gguf"
    order = GgufOrder(str(target("llama")), out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=f"cannot write {re.escape(str(out))}: "):
            write_gguf(order)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(out.parent.iterdir()) == []


@pytest.mark.embedded
def test_a_shipped_drafter_becomes_a_file_without_torch_and_llama_cpp_drafts_with_it(tmp_path):
    from multispin.models import load_drafter
    from multispin.models.llama_cpp import LlamaCppContext, LlamaCppDrafter, LlamaCppModel
    from multispin.speculation import SamplingParams

    code = (
        "import sys; from multispin.cli.main import run\n"
        f"assert run(['convert', 'small', {str(tmp_path / 'small.gguf')!r}]) == 0\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    model = LlamaCppContext.open(LlamaCppModel.load(tmp_path / "small.gguf"), 256)
    drafter, tokenizer = load_drafter("small", "embedded", 256)
    prompt = tokenizer.encode_chat("Why is the sky blue?")
    text = [*prompt, *LlamaCppDrafter(model).draft(prompt, 40, SamplingParams())]
    same = [
        drafter.draft(text[:end], 1, SamplingParams()) == text[end : end + 1] for end in range(len(prompt), len(text))
    ]
    assert sum(same) >= 0.9 * len(same)
