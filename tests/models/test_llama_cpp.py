"""The drafter over llama.cpp, on the embedded GGUF file."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import llguidance
import numpy as np
import pytest

from multispin.errors import InputError
from multispin.models import TextGrammars, load_tokenizer
from multispin.models.draft_source import load_draft_source
from multispin.models.gguf_file import open_gguf
from multispin.models.gguf_trial import try_file
from multispin.models.llama_cpp import (
    LlamaCppContext,
    LlamaCppDrafter,
    LlamaCppError,
    LlamaCppModel,
    has_gpu_backend,
)
from multispin.models.llama_tokenizer import tokenizer_of
from multispin.models.references import embedded_path
from multispin.speculation import DistributionFormat, SamplingParams
from multispin.speculation.conformance import check_drafter
from multispin.speculation.grammar import allowed
from multispin.speculation.row_sampling import draw_row

pytestmark = pytest.mark.embedded

HOT = SamplingParams(0.8, top_k=50, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def path():
    return embedded_path()


@pytest.fixture(scope="module")
def model(path):
    return LlamaCppContext.open(LlamaCppModel.load(path), 256)


@pytest.fixture(scope="module")
def prompt(model):
    return tokenizer_of(model.model).encode_chat("Why is the sky blue?")


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(0.9, seed=4), HOT])
def test_a_draft_goes_on_after_any_of_its_own_beginnings(model, prompt, params):
    whole = LlamaCppDrafter(model).draft(prompt, 12, params)
    assert len(whole) == 12
    for known in (0, 1, 5, 11):
        drafter = LlamaCppDrafter(model)
        drafter.draft(prompt, 4, params)
        drafter.draft([*prompt, 7, 8, 9], 3, params)  # something else in between, to be rolled back
        assert drafter.draft([*prompt, *whole[:known]], 12 - known, params) == whole[known:]


def test_a_drafted_token_is_drawn_with_the_shared_noise(model, prompt):
    (token,) = LlamaCppDrafter(model).draft(prompt, 1, HOT)
    row = model.decode(0, prompt)
    assert token == draw_row(row, prompt, HOT)


def test_its_argmax_is_nearly_always_that_of_the_target(path, prompt):
    """The target is the same file, unpacked to float32 by transformers: 0.979 of 192 positions were measured equal."""
    import torch

    from multispin.models import load_model

    target = load_model("embedded")
    drafter = LlamaCppDrafter(LlamaCppContext.open(LlamaCppModel.load(path), 256))
    text = [*prompt, *drafter.draft(prompt, 60, SamplingParams())]
    with torch.inference_mode():
        greedy = target(torch.tensor([text])).logits[0].argmax(-1)[len(prompt) - 1 : -1].tolist()
    same = np.mean([one == other for one, other in zip(greedy, text[len(prompt) :], strict=True)])
    assert same >= 0.85


def test_distributions_are_those_that_the_tokens_are_drawn_from(model, prompt):
    form = DistributionFormat(model.vocabulary_size)
    ids, distributions = LlamaCppDrafter(model).draft_distributions(prompt, 5, SamplingParams(0.9, seed=4), form)
    assert len(ids) == len(distributions) == 5
    for token, distribution in zip(ids, distributions, strict=True):
        assert distribution.weight(token) > 0
    assert LlamaCppDrafter(model).draft_distributions(prompt, 5, SamplingParams(0.9, seed=4), form)[0] == ids


@pytest.mark.parametrize("params", [SamplingParams(), HOT])
def test_branches_of_a_text_are_drafted_from_copies_of_its_cache(path, prompt, params, monkeypatch):
    """Two alternative next tokens, drafted in turns, as two drafters would that each read the whole text."""
    loaded = LlamaCppModel.load(path)
    context = LlamaCppContext.open(loaded, 64, branches=3)
    read = []
    decode = context.decode
    monkeypatch.setattr(
        context,
        "decode",
        lambda start, tokens, branch=0: read.append((branch, len(tokens))) or decode(start, tokens, branch),
    )
    trunk = LlamaCppDrafter(context)
    (best,) = trunk.draft(prompt, 1, params)
    tails = [[best, 28], [28, 338]]
    branches = [trunk.fork(1), trunk.fork(2)]
    drafts = [branch.draft([*prompt, *tail], 3, params) for branch, tail in zip(branches, tails, strict=True)]
    for _ in range(2):  # in turns: neither disturbs the other, nor what they have in common
        for branch, tail, draft in zip(branches, tails, drafts, strict=True):
            draft += branch.draft([*prompt, *tail, *draft], 2, params)
    assert trunk.draft(prompt, 1, params) == [best]
    for tail, draft in zip(tails, drafts, strict=True):
        alone = LlamaCppDrafter(LlamaCppContext.open(loaded, 64, branches=2))  # with the same way to compute attention
        assert draft == alone.draft([*prompt, *tail], 7, params)
    assert drafts[0] != drafts[1]
    assert max(tokens for branch, tokens in read if branch > 0) == 2  # the prompt was read once
    other = list(range(100, 140))  # nothing in common
    assert branches[0].draft(other, 4, params) == LlamaCppDrafter(LlamaCppContext.open(loaded, 64, branches=2)).draft(
        other, 4, params
    )


def test_a_branch_keeps_what_a_drafter_promises(tiny_folder, gguf_of):
    context = LlamaCppContext.open(LlamaCppModel.load(Path(gguf_of(tiny_folder, "llama"))), 64, branches=3)
    texts = [[5, 60, 7, 8, 90], [5, 60, 7, 8, 90, 28, 33]]
    check_drafter(lambda: LlamaCppDrafter(context).fork(1), texts, context.vocabulary_size, distributions=False)


def test_a_branch_that_the_context_lacks_is_refused(path, model):
    for branch in (0, 1, -1):
        with pytest.raises(ValueError, match="branch"):
            LlamaCppDrafter(model).fork(branch)
    with pytest.raises(InputError, match="branches"):
        LlamaCppContext.open(LlamaCppModel.load(path), 64, branches=0)


def test_drafts_stop_where_the_drafters_context_ends(path, prompt):
    drafter = LlamaCppDrafter(LlamaCppContext.open(LlamaCppModel.load(path), len(prompt) + 3))
    drafter.prepare([*prompt, *prompt])
    assert len(drafter.draft(prompt, 16, SamplingParams())) == 4
    assert drafter.draft([*prompt, *prompt], 16, SamplingParams()) == []


TEXTS = [
    "Why is the sky blue?",
    "你好 🍕 1234 a.b\n\n  x",
    "def f(x):\n\treturn x**2",
    "naïve café 12,345.67",
    "  a  b ",
]


def test_its_tokenizer_is_that_of_the_unpacked_file(model):
    from multispin.models import load_tokenizer

    ours, theirs = tokenizer_of(model.model), load_tokenizer("embedded")
    assert (ours.fingerprint, ours.size, ours.stop_ids) == (theirs.fingerprint, theirs.size, theirs.stop_ids)
    for text in TEXTS:
        ids = ours.encode_chat(text)
        assert ids == theirs.encode_chat(text)
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)


def test_a_tokenizer_that_loses_text_is_refused(path, monkeypatch):
    model, whole = LlamaCppModel.load(path, only_vocabulary=True), LlamaCppModel.tokenize
    tokenizer_of(model)
    monkeypatch.setattr(LlamaCppModel, "tokenize", lambda *given: whole(*given)[:-1])
    with pytest.raises(LlamaCppError, match="tokenizer failed its self-test"):
        tokenizer_of(model)


def test_what_it_cannot_read_is_refused(path, tmp_path):
    with pytest.raises(InputError, match="there is no GGUF file"):
        LlamaCppModel.load(tmp_path / "missing.gguf")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(InputError, match="cannot read"):
        LlamaCppModel.load(damaged)
    damaged.write_bytes(b"\x1b[2J it is a text")
    with pytest.raises(InputError, match="is not a GGUF file"):
        LlamaCppModel.load(damaged)
    with pytest.raises(InputError, match="threads = 0 is below 1"):
        LlamaCppContext.open(LlamaCppModel.load(path), 64, threads=0)
    with pytest.raises(InputError, match=r"threads = 100000 is over \d+, 16 for each core of this machine"):
        LlamaCppContext.open(LlamaCppModel.load(path), 64, threads=100_000)


def test_another_version_of_the_library_is_refused(monkeypatch, path):
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0.1")
    with pytest.raises(InputError, match=r"ik-llama-cpp-python 0\.0\.1 is installed"):
        LlamaCppModel.load(path)


def test_a_token_that_the_drafter_lacks_ends_its_drafts_and_nothing_else(model, prompt):
    drafter, size = LlamaCppDrafter(model, vocabulary_size=model.vocabulary_size + 3), model.vocabulary_size
    form = DistributionFormat(size + 3)
    lacked = SamplingParams(
        1.0, logit_bias=((size, 5.0), (size + 1, -3.0)), withheld=(size + 2,), withheld_until=1000,
        repetition_penalty=1.2, presence_penalty=0.5,
    )  # fmt: skip
    for text in ([1, size], [*prompt, size + 2, 5]):
        drafter.prepare(text)
        assert drafter.draft(text, 4, SamplingParams()) == []
        assert drafter.draft_distributions(text, 4, lacked, form) == ([], [])
    assert len(drafter.draft(prompt, 4, lacked)) == 4
    ids, distributions = drafter.draft_distributions(prompt, 4, lacked, form)
    assert len(ids) == 4
    assert all(distribution.ids.max() < size for distribution in distributions)


def test_padding_of_the_drafter_is_never_drawn(model, prompt):
    """A target has as many ids as its tokenizer; files are padded beyond that."""
    whole = model.decode(0, prompt)
    size = int(whole.argmax())  # the likeliest token becomes padding
    drafter, form = LlamaCppDrafter(model, vocabulary_size=size), DistributionFormat(size, 64)
    text = [token for token in prompt if token < size] or [1]
    assert max(drafter.draft(text, 6, SamplingParams())) < size
    ids, distributions = drafter.draft_distributions(text, 6, SamplingParams(0.9, seed=4), form)
    assert len(ids) == len(distributions) == 6
    assert max(max(ids), *(int(each.ids.max()) for each in distributions)) < size


def test_a_gguf_drafter_comes_with_its_own_tokenizer(path, tiny_folder, prompt):
    source = load_draft_source(str(path), None)
    assert source.target_name == path.stem
    assert source.tokenizer.encode_chat("Why is the sky blue?") == prompt
    assert len(source.drafter(64).draft(prompt, 4, SamplingParams())) == 4
    with pytest.raises(InputError, match="the tokenizer of"):
        load_draft_source(str(path), tiny_folder)


@pytest.mark.parametrize("draft", ["small", "embedded", "q8"])
def test_a_drafter_of_the_embedded_target_serves_that_one_where_none_is_named(draft):
    assert load_draft_source(draft, None).target_name == "embedded"


def test_neither_torch_nor_transformers_is_loaded(path):
    code = (
        "import sys; from multispin.models.draft_source import load_draft_source as load\n"
        f"source = load({str(path)!r}, None)\n"
        "from multispin.speculation import SamplingParams\n"
        "assert source.drafter(64).draft([1, 2, 3], 2, SamplingParams(0.5))\n"
        "print(sorted({'torch', 'transformers', 'highspy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_drafts_of_llama_cpp_follow_the_requests_grammar():
    tokenizer = load_tokenizer("embedded")
    grammars = TextGrammars(tokenizer)
    source = load_draft_source(str(embedded_path()), "embedded")
    grammar = llguidance.LLMatcher.grammar_from_json_schema(
        '{"type": "array", "items": {"type": "integer"}, "minItems": 5}'
    )
    prompt = tokenizer.encode("Once upon a time")
    drafter = source.drafter(128)
    for params in (SamplingParams(), SamplingParams(1.0, seed=3)):
        params = SamplingParams(params.temperature, seed=3, grammar=grammar, prompt_tokens=len(prompt))
        drafted = drafter.draft(prompt, 8, params)
        matcher = grammars.matcher(grammar)
        assert len(drafted) == 8
        for index, token in enumerate(drafted):
            assert allowed(matcher.mask(drafted[:index]), tokenizer.size)[token]
    ids, distributions = drafter.draft_distributions(prompt, 4, params, DistributionFormat(tokenizer.size, 50))
    assert all(
        allowed(matcher.mask(ids[:i]), tokenizer.size)[distribution.ids].all()
        for i, distribution in enumerate(distributions)
    )
    own = source.grammars.matcher(grammar)
    for text in ("", "[1", "[1, 2, 3, 4, 5]"):
        written = tokenizer.encode(text)
        matcher = grammars.matcher(grammar)
        assert (own.mask(written) == matcher.mask(written)).all()


def test_where_single_rows_are_computed_wrong_tokens_are_read_in_pairs(path, prompt):
    """As on aarch64: there a row's products leave out its end, unless another row is read with it."""
    loaded = LlamaCppModel.load(path)
    usual = LlamaCppContext.open(loaded, 64)
    real = loaded.library.llama_get_logits_ith
    rows = {"read": 0, "wrong": 1}

    class Wrong:
        """The library, wrong for calls with one row."""

        def __getattr__(self, name):
            return getattr(real_library, name)

        def llama_decode(self, context, batch):
            rows["read"] = batch.n_tokens
            return real_library.llama_decode(context, batch)

        def llama_get_logits_ith(self, context, place):
            found = real(context, place)
            if rows["read"] <= rows["wrong"]:
                found[0] = found[1] + 50.0
            return found

        def llama_free_model(self, handle):
            """The model is freed once, with the other object."""

    real_library = loaded.library
    wrong = LlamaCppModel(path, Wrong(), loaded.handle)
    context = LlamaCppContext.open(wrong, 64)
    assert (usual.twins, context.twins) == (False, True)
    for params in (SamplingParams(), HOT):
        assert LlamaCppDrafter(context).draft(prompt, 8, params) == LlamaCppDrafter(usual).draft(prompt, 8, params)
    rows["wrong"] = 2  # now pairs are wrong too
    with pytest.raises(InputError, match="failed its self-test"):
        LlamaCppContext.open(wrong, 64)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (
            "exit 3",
            r"ended while reading .* \(exit code 0x3\): .* damaged, or of a kind that the library lacks",
        ),  # what abort() gives on Windows
        ("exit 77", r"ended while reading .* \(exit code 0x4d\)"),
        ("kill -ABRT $$", r"ended while reading .* \(signal 6\): .* damaged, or of a kind that the library lacks"),
        ("echo it is odd; exit 23", r"it is odd"),
    ],
)
def test_however_a_trial_ends_that_did_not_pass_its_file_is_refused(tmp_path, monkeypatch, status, sentence):
    python, file = tmp_path / "python", tmp_path / "file.gguf"
    python.write_text(f"#!/bin/sh\n{status}\n")
    python.chmod(0o755)
    file.write_bytes(b"GGUF\3\0\0\0")
    monkeypatch.setattr("multispin.models.gguf_trial.sys.executable", str(python))
    with pytest.raises(LlamaCppError, match=sentence):
        try_file(file)


def test_a_file_at_which_the_library_ends_its_process_is_refused_and_not_loaded(path, tmp_path):
    """A constant that is no number: the library asserts that its logits are numbers."""
    whole, key = path.read_bytes(), b"llama.attention.layer_norm_rms_epsilon"
    at = whole.index(key) + len(key) + 4  # behind the type of the value
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(whole[:at] + b"\x00\x00\xc0\x7f" + whole[at + 4 :])
    with pytest.raises(LlamaCppError, match=r"llama\.cpp's library (ended while|did not)"):
        try_file(damaged, timeout_s=10.0)


def test_a_file_that_goes_on_behind_its_tensors_is_refused_before_it_is_mapped(path, tmp_path, monkeypatch):
    """A sparse one of 40 GB took 15 GB of memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, size = tmp_path / "long.gguf", path.stat().st_size
    file.write_bytes(path.read_bytes())
    with file.open("r+b") as opened:
        opened.truncate(40 * 2**30)
    with pytest.raises(InputError, match=f"has {40 * 2**30} bytes, but its tensors end at byte {size}"):
        try_file(file)
    os.truncate(file, size + 31)  # zeros up to the next multiple of 32, as some writers leave them
    try_file(file)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (1, "of version 1: only versions 2 and 3"),
        (4, "of version 4: only versions 2 and 3"),
        (3 << 24, "for big-endian processors"),
    ],
)
def test_a_file_of_an_unknown_version_is_refused_by_name(path, tmp_path, version, reason):
    file = tmp_path / "other.gguf"
    file.write_bytes(b"GGUF" + version.to_bytes(4, "little") + path.read_bytes()[8:5000])
    for read in (try_file, LlamaCppModel.load, open_gguf):
        with pytest.raises(InputError, match=reason):
            read(file)


def test_what_the_library_writes_of_a_file_that_it_refuses_does_not_reach_the_terminal(path, tmp_path, capfd):
    """Its own message goes past Python, and may hold bytes of the file."""
    file = tmp_path / "damaged.gguf"
    file.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(LlamaCppError, match=r"llama\.cpp cannot read .*damaged\.gguf"):
        try_file(file)
    assert capfd.readouterr() == ("", "")


def test_a_refusal_has_the_librarys_own_reason_on_one_line(path, tmp_path):
    file = tmp_path / "other.gguf"
    whole = path.read_bytes()
    at = whole.index(b"general.architecture")
    place = whole.index(b"llama", at)
    file.write_bytes(whole[:place] + b"odd\x1b\n" + whole[place + 5 :])
    with pytest.raises(LlamaCppError) as raised:
        try_file(file)
    assert r"unknown model architecture: 'odd\x1b\n'" in str(raised.value)
    assert str(raised.value).isprintable()


def test_where_neither_library_can_read_a_file_one_reason_is_given(path, tmp_path, caplog):
    file = tmp_path / "damaged.gguf"
    file.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged or truncated"):
        load_draft_source(str(file), "embedded")
    assert not caplog.messages


def test_torch_drafts_where_llama_cpp_cannot_and_says_so(monkeypatch, caplog):
    version = importlib.metadata.version
    old = {"ik-llama-cpp-python": "0.0.1"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: old.get(name) or version(name))
    assert load_draft_source("small", "embedded").model is not None
    (said,) = caplog.messages
    assert said.startswith("ik-llama-cpp-python 0.0.1 is installed")
    assert said.endswith("; torch drafts instead")


def test_a_file_that_has_passed_is_tried_again_when_it_has_changed(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trials = []

    def popen(*given, **options):
        trials.append(given)
        return subprocess.Popen(*given, **options)

    monkeypatch.setattr(
        "multispin.models.gguf_trial.subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen})
    )
    file = tmp_path / "copy.gguf"
    file.write_bytes(path.read_bytes())
    try_file(file)
    try_file(file)
    assert len(trials) == 1
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(LlamaCppError):
        try_file(file)
    assert len(trials) == 2


def test_layers_for_a_graphics_processor_that_the_library_cannot_use_are_refused(path):
    if has_gpu_backend():
        pytest.skip("this library has a backend for a graphics processor")
    with pytest.raises(InputError, match=r"gpu_layers = 9: .* leave it out"):
        LlamaCppModel.load(path, gpu_layers=9)
