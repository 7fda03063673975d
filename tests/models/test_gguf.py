"""A GGUF file is the model of its folder, key by key; what is not understood is refused by name."""

import logging
import math
import os
import random
import struct
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from multispin.errors import InputError
from multispin.models import decode_alone, gguf_file, load_draft_source, load_model, load_tokenizer
from multispin.models.gguf_file import llama3_factors
from multispin.models.gguf_trial import try_file
from multispin.models.llama_cpp import LlamaCppError, LlamaCppModel
from multispin.models.llama_tokenizer import tokenizer_of
from multispin.speculation import SamplingParams

THETA = 10000.0
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": THETA, "factor": 4.0, "original_max_position_embeddings": 64}
YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
LINEAR = {"rope_type": "linear", "rope_theta": THETA, "factor": 4.0}
LINEAR_KEYS = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
PROMPT = "The path of a thin band, the other of that. " * 4


def text(reference):
    tokenizer = load_tokenizer(reference)
    prompt = tokenizer.encode_chat(PROMPT)
    return prompt, decode_alone(load_model(reference), prompt, SamplingParams(), 30, tokenizer.stop_ids)


@pytest.mark.parametrize(
    ("architecture", "kind", "rope", "options"),
    [
        ("llama", LlamaConfig, None, {}),
        ("llama", LlamaConfig, LLAMA3, {"rope_freqs": llama3_factors(THETA, 8, 8.0, 64)}),
        ("llama", LlamaConfig, None, {"rope_freqs": [1.0] * 8}),
        ("llama", LlamaConfig, LINEAR, {"keys": LINEAR_KEYS}),
        ("llama", LlamaConfig, LINEAR, {"keys": {"rope.scaling.factor": 4.0}}),
        ("qwen2", Qwen2Config, YARN, {"keys": YARN_KEYS}),
        ("qwen2", Qwen2Config, None, {"padding": 9}),
        ("qwen3", Qwen3Config, YARN, {"keys": YARN_KEYS}),
        ("qwen3", Qwen3Config, None, {"keys": {"attention.key_length": 128, "attention.value_length": 128}}),
    ],
)
def test_a_file_writes_its_folders_text(make_folder, gguf_of, architecture, kind, rope, options):
    changes = {"head_dim": 128} if kind is Qwen3Config else {"hidden_size": 64}
    if rope is not None:
        changes["rope_parameters"] = rope
    folder = make_folder("m", kind, padding=options.get("padding", 0), **changes)
    file = gguf_of(folder, architecture, **options)
    assert text(file) == text(folder)
    if rope is not None:
        plain = load_model(folder)
        plain.config.rope_parameters = {"rope_type": "default", "rope_theta": THETA}
        again = type(plain)(plain.config).eval()
        again.load_state_dict(plain.state_dict())
        prompt, own = text(folder)
        assert decode_alone(again, prompt, SamplingParams(), 30) != own  # the scaling matters to this text


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", LlamaConfig), ("qwen2", Qwen2Config), ("qwen3", Qwen3Config)]
)
def test_norms_and_biases_of_a_file_are_those_of_its_folder(make_folder, gguf_of, architecture, kind):
    """In a new model they are all one and all zero, so that none could be missed."""
    folder = make_folder("m", kind, **({"head_dim": 128} if kind is Qwen3Config else {"hidden_size": 64}))
    model = load_model(folder)
    for name, weights in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(weights, 1.0 if "norm" in name else 0.0, 0.5)
    model.save_pretrained(folder)
    ids = torch.tensor([[1, 50, 99, 7, 200, 32]])
    with torch.inference_mode():
        torch.testing.assert_close(load_model(gguf_of(folder, architecture))(ids).logits, model(ids).logits)


def test_numbers_that_were_not_read_are_told(make_folder, gguf_of, monkeypatch):
    monkeypatch.setitem(gguf_file.ARCHITECTURES, "llama", r"blk\.0\.attn_q\.bias")
    file = gguf_of(make_folder("m", hidden_size=64), "llama", tensors={"blk.0.attn_q.bias": [1.0] * 64})
    with pytest.raises(InputError, match="of which"):
        load_model(file)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"keys": {"attention.sliding_window": 6}}, "llama.attention.sliding_window = 6"),
        ({"keys": {"attn_logit_softcapping": 30.0}}, "llama.attn_logit_softcapping"),
        ({"keys": {"expert_count": 4}}, "llama.expert_count = 4"),
        ({"keys": {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}}, "'longrope'"),
        ({"keys": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}}, "original_context_length"),
        ({"keys": {**YARN_KEYS, "rope.scaling.yarn_attn_factor": 2.0}}, "rope.scaling.yarn_attn_factor"),
        ({"keys": {**YARN_KEYS, "rope.scaling.factor": 0.5}}, "rope.scaling.factor = 0.5 for yarn"),
        ({"keys": {"attention.key_length": 24}}, "attention.key_length = 24"),
        ({"rope_freqs": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]}, "rope_freqs.weight"),
        ({"rope_freqs": [1.0] * 7 + [8.0], "keys": LINEAR_KEYS}, "twice"),
        ({"keys": {"rope.scaling.type": "linear"}}, "damaged or truncated .*rope.scaling.factor"),
        ({"keys": {"rope.scaling.factor": math.nan}}, "rope.scaling.factor = nan"),
        ({"keys": {"rope.scaling.type": "linear", "rope.scaling.factor": "4"}}, "rope.scaling.factor = '4'"),
        ({"rope_freqs": [1.0] * 7 + [8.0], "keys": {"rope.freq_base": 0.0}}, "rope.freq_base = 0.0"),
        ({"tensors": {"blk.0.attn_sinks.weight": [0.0] * 4}}, "blk.0.attn_sinks.weight"),
        ({"without": ["block_count"]}, "lacks the key block_count"),
        ({"without": ["attention.head_count_kv"]}, "lacks the key attention.head_count_kv"),
        ({"end_ids": {"eos_token_id": 259}}, "eos_token_id = 259 is none of its 259 tokens"),
        ({"end_ids": {"eom_token_id": 10**6}}, "eom_token_id = 1000000"),
        ({"tensors": {"blk.0.attn_q_norm.bias": [0.0] * 16}}, "blk.0.attn_q_norm.bias"),
        ({"tensors": {"blk.0.attn_q.bias": [0.0] * 64}}, "blk.0.attn_q.bias"),
        ({"tensors": {"blk.1.ffn_up.bias": [0.0] * 64}}, "blk.1.ffn_up.bias"),
        ({"tensors": {"blk.0.attn_k_norm.weight": [1.0] * 16}}, "blk.0.attn_k_norm.weight"),
        ({"keys": {"rope.scaling.type": "none", "rope.scaling.factor": 2.5}}, "rope.scaling.factor beside"),
    ],
)
def test_what_is_not_understood_is_refused_by_name_and_nothing_is_kept(make_folder, gguf_of, tmp_path, options, part):
    file = gguf_of(make_folder("m", hidden_size=64), "llama", **options)
    with pytest.raises(InputError, match=part):
        load_model(file)
    assert not list(tmp_path.glob("cache/multispin/models/*"))


def number(name, value):
    """A number in a file's header with its key; `value` in its own type."""
    kind, letter = (6, "f") if isinstance(value, float) else (4, "I")
    return name.encode() + struct.pack(f"<I{letter}", kind, value)


def word(text):
    return struct.pack("<Q", len(text)) + text


def place(name, dimensions, offset):
    """Name, shape, number type (float32) and place of a tensor."""
    sizes = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return word(name) + struct.pack("<I", len(dimensions)) + sizes + struct.pack("<IQ", 0, offset)


@pytest.mark.parametrize(
    ("found", "instead", "part"),
    [
        (number("block_count", 2), number("block_count", 1), "block_count = 1, so that no block uses .* blk.1."),
        (number("block_count", 2), number("block_count", 0), "block_count = 0, which is no whole number from 1 on"),
        (number("feed_forward_length", 64), number("feed_forward_length", 64.0), "feed_forward_length = 64.0"),
        (number("rms_epsilon", 1e-6), number("rms_epsilon", 0.0), "rms_epsilon = 0.0, which is no number above 0"),
        (number("freq_base", 1e4), number("freq_base", math.nan), "freq_base = nan"),
        (number("freq_base", 1e4), number("freq_base", 5), "freq_base = 5"),
        (word(b"tokenizer.ggml.model"), word(b"tokenizer.chat_template"), "has no tokenizer: name a GGUF file that"),
        (word(b"gpt2"), word(b"bert"), "the tokenizer 'bert'"),
        (word(b"default"), word(b"unheard"), "'gpt2' with 'unheard' .*tokenizer.ggml.pre"),
        (word(b"b"), word(b"c"), "259 tokens has repetitions"),
        (place(b"output_norm.weight", [64], 0), place(b"output_norm.weight", [64], 32), "output_norm.weight"),
        (
            place(b"output_norm.weight", [64], 0),
            place(b"output_norm.weight", [32], 0),
            r"output_norm.weight of the shape \[32\]",
        ),
        (word(b"token_embd.weight"), word(b"rope_freqs.weight"), "it has no tensor token_embd.weight"),
        (place(b"output_norm.weight", [64], 0), place(b"output_norm.weight", [2**62], 0), "damaged or truncated"),
    ],
)
def test_a_header_that_lies_is_refused_in_one_sentence(make_folder, gguf_of, found, instead, part):
    path = Path(gguf_of(make_folder("m", hidden_size=64), "llama"))
    data = path.read_bytes()
    if found[8:].startswith(b"output_norm"):  # where it stands depends on the order of the tensors
        stands = data.index(found[:-8])
        offset = int.from_bytes(data[stands + len(found) - 8 : stands + len(found)], "little")
        shift = int.from_bytes(instead[-8:], "little")
        found, instead = (
            part[:-8] + struct.pack("<Q", at) for part, at in ((found, offset), (instead, offset + shift))
        )
    assert found in data
    path.write_bytes(data.replace(found, instead, 1))
    with pytest.raises(InputError, match=part) as raised:
        load_model(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("first", [True, False])
def test_one_part_of_a_split_model_is_refused_with_the_remedy(make_folder, gguf_of, first):
    """No part but the first names an architecture."""
    path = Path(gguf_of(make_folder("m", hidden_size=64), "llama"))
    data, reader = path.read_bytes(), gguf_file.open_gguf(path)
    written = with_keys(data, reader, word(b"split.count") + struct.pack("<IH", 2, 2))
    path.write_bytes(written if first else written.replace(b"general.architecture", b"general.organization"))
    with pytest.raises(
        InputError, match=r"one part of a split model \(split.count\): join them with .*llama-gguf-split --merge"
    ):
        load_model(str(path))


@pytest.mark.parametrize("name", ["m-00001-of-00002.gguf", "m.gguf"])
def test_llama_cpp_takes_no_first_part_without_the_others(make_folder, gguf_of, tmp_path, name):
    path = Path(gguf_of(make_folder("m", hidden_size=64), "llama"))
    numbers = (b"split.no", 2, "H", 0), (b"split.count", 2, "H", 2), (b"split.tensors.count", 5, "i", 99)
    keys = [word(key) + struct.pack("<I" + form, kind, value) for key, kind, form, value in numbers]
    part = tmp_path / name
    part.write_bytes(with_keys(path.read_bytes(), gguf_file.open_gguf(path), *keys))
    for read in (try_file, LlamaCppModel.load):
        with pytest.raises(
            LlamaCppError, match=r"is one part of a split model \(split.count\): join them with .* --merge, or draft"
        ):
            read(part)


def test_a_file_far_longer_than_its_tensors_is_refused_before_it_is_hashed(make_folder, gguf_of, monkeypatch):
    path = Path(gguf_of(make_folder("m", hidden_size=64), "llama"))
    os.truncate(path, 2**30)
    monkeypatch.setattr("multispin.models.references.sha256_of", lambda _path: pytest.fail("all of it is read"))
    with pytest.raises(InputError, match=f"has {2**30} bytes, but its tensors end at byte"):
        load_model(str(path))
    with pytest.raises(InputError, match=f"has {2**30} bytes, but its tensors end at byte"):
        load_tokenizer(str(path))


def with_keys(data, reader, *keys):
    """A file with further keys before the others; its tensors stand where 32 bytes of alignment put them."""
    last = reader.tensors[-1].field
    end = last.offset + sum(part.nbytes for part in last.parts)
    header = data[:16] + struct.pack("<Q", struct.unpack_from("<Q", data, 16)[0] + len(keys)) + b"".join(keys)
    header += data[24:end]
    return header + bytes(-len(header) % 32) + data[reader.data_offset :]


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16])
def test_an_alignment_that_shifts_all_tensors_is_refused(make_folder, gguf_of, alignment):
    """The data stay where they were: read from elsewhere, they are other weights."""
    path = Path(gguf_of(make_folder("m", hidden_size=64), "llama"))
    data, reader = path.read_bytes(), gguf_file.open_gguf(path)
    key = word(b"general.alignment") + struct.pack("<II", 4, alignment)
    refusals = []
    for length in range(32):  # the header ends at each place between two multiples of 32
        name = word(b"general.name") + struct.pack("<I", 8) + word(b"x" * length)
        path.write_bytes(with_keys(data, reader, key, name))
        try:
            gguf_file.read_facts(path)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) == 32 - alignment
    assert all("its tensors end at byte" in why for why in refusals)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_no_text_of_the_self_test_uses_must_be_a_finite_number(make_folder, gguf_of, value):
    from gguf import GGUFReader

    path = gguf_of(make_folder("m", hidden_size=64), "llama")
    reader = GGUFReader(path, "r+")
    next(each for each in reader.tensors if each.name == "token_embd.weight").data[255, 3] = value
    reader.data.flush()
    with pytest.raises(InputError, match=r"embed_tokens\.weight has values that are not finite numbers"):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "array", "value", "part"),
    [
        ("scores", "f", [0.0] * 5, "it has 5 scores for 259 tokens"),
        ("scores", "f", [math.nan] * 259, "or one is no number"),
        ("add_bos_token", None, "no", "add_bos_token = 'no' is neither true nor false"),
        ("eos_token_ids", "I", [2, 5], r"tokenizer.ggml.eos_token_ids = \[2, 5\], not known here"),
        ("remove_extra_whitespaces", None, True, "remove_extra_whitespaces = True, not known here"),
        ("suppress_tokens", "I", [5], "suppress_tokens"),
    ],
)
def test_what_a_file_says_of_its_tokenizer_is_read_or_refused(make_folder, gguf_of, name, array, value, part):
    path = Path(gguf_of(make_folder("m", hidden_size=64), "llama"))
    data, reader = path.read_bytes(), gguf_file.open_gguf(path)
    key = word(b"tokenizer.ggml." + name.encode())
    if array:
        kind = {"I": 4, "f": 6}[array]
        key += struct.pack(f"<IIQ{len(value)}{array}", 9, kind, len(value), *value)
    else:
        key += struct.pack("<I?", 7, value) if isinstance(value, bool) else struct.pack("<I", 8) + word(value.encode())
    path.write_bytes(with_keys(data, reader, key))
    with pytest.raises(InputError, match=part):
        load_model(str(path))


@pytest.mark.parametrize(
    ("split", "begun", "before"),
    [
        ("default", None, []),
        ("default", True, [40]),
        ("smollm", None, []),
        ("qwen2", None, []),
        ("llama-bpe", None, [40]),
        ("llama3", None, [40]),
        ("tekken", None, [40]),
        ("llama-bpe", False, []),
    ],
)
def test_a_text_begins_as_llama_cpp_lets_it_begin(make_folder, gguf_of, split, begun, before):
    """A file that does not say so has the BOS token before its texts with some ways to cut them."""
    ids = {"eos_token_id": 258, "bos_token_id": 40}
    path = Path(gguf_of(make_folder("m", hidden_size=64), "llama", end_ids=ids, split=split))
    if begun is not None:
        data, reader = path.read_bytes(), gguf_file.open_gguf(path)
        key = word(b"tokenizer.ggml.add_bos_token") + struct.pack("<I?", 7, begun)
        path.write_bytes(with_keys(data, reader, key))
    assert load_tokenizer(str(path)).encode("a th") == [*before, 64, 220, 257]


SPACES = (" ", "  ", "    ", "\n", "\n\n", "\r\n", "\t")


def check_texts(path, parts):
    """Random texts of these parts are the same ids for transformers and llama.cpp, and random ids the same text."""
    ours, theirs = load_tokenizer(path), tokenizer_of(LlamaCppModel.load(Path(path), only_vocabulary=True))
    draw = random.Random(0)
    texts = ["".join(draw.choices(parts, k=draw.randint(1, 7))) for _ in range(400)]
    assert {text: ours.encode(text) for text in texts} == {text: theirs.encode(text) for text in texts}
    assert ours.fingerprint == theirs.fingerprint
    ids = [draw.choices(range(ours.size), k=draw.randint(1, 5)) for _ in range(400)]
    assert [*map(ours.decode, ids)] == [*map(theirs.decode, ids)]


@pytest.mark.parametrize(
    "split", ["default", "gpt-2", "smollm", "llama-bpe", "falcon3", "smaug-bpe", "tekken", "qwen2"]
)
def test_a_text_is_cut_as_llama_cpp_cuts_it(make_folder, gguf_of, split):
    """A device with llama.cpp and an edge with transformers read the same prompt, so they write the same text."""
    words = ("Ġa", "th", "ĊĊ", "ĠĠ", "čĊ", "12", "123", "!!", ".Ċ", "'t", "Ġ1", "aa", "a1", "$1", "=a")
    merges = ["Ġ a", "t h", "Ċ Ċ", "Ġ Ġ", "č Ċ", "1 2", "12 3", "! !", ". Ċ", "' t", "Ġ 1", "a a", "a 1", "$ 1", "= a"]
    end = 256 + len(words)
    ids = {"eos_token_id": end, "bos_token_id": end}
    folder = make_folder("m", hidden_size=64, words=words)
    path = gguf_of(folder, "llama", split=split, merges=merges, end_ids=ids)
    check_texts(path, ["a", "th", "12", "123", "1234", "½", "!!", ".", "'t", "$1", "=", "_", "é", "中", "👍", *SPACES])


def test_a_text_is_cut_as_llama_cpp_cuts_it_with_sentencepiece(make_folder, gguf_of):
    """A space stands before each text, what follows a special token included."""
    letters = ["▁", *"theainsor.,1!\n", "é", "中"]
    pieces = ["▁t", "he", "▁the", "in", "▁a", "on", "▁▁", "▁▁▁▁", "th", "or", "▁in", "is", "▁1", "11", *letters]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    path = gguf_of(make_folder("m", hidden_size=64, padding=len(pieces)), "llama", pieces=pieces, end_ids=ids)
    check_texts(path, ["the", "in", "is", "1", "11", "é", "中", "👍", "▁", "</s>", "<s>", "<unk>", ".", " a", *SPACES])


def test_line_feeds_before_a_number_are_the_token_that_the_target_has_learned():
    tokenizer = load_tokenizer("embedded")
    assert [tokenizer.decode([token]) for token in tokenizer.encode("List:\n\n1. tea")][-4:] == [
        "\n\n",
        "1",
        ".",
        " tea",
    ]


def test_a_token_before_each_text_that_transformers_takes_for_a_place_is_refused(make_folder, gguf_of):
    ids = {"eos_token_id": 258, "bos_token_id": 3}  # the token $
    path = gguf_of(make_folder("m", hidden_size=64), "llama", end_ids=ids, split="llama-bpe")
    with pytest.raises(InputError, match=r"puts the token '\$' before each text"):
        load_tokenizer(path)


def test_a_file_may_name_its_unknown_token(make_folder, gguf_of):
    path = gguf_of(make_folder("m", hidden_size=64), "llama", end_ids={"eos_token_id": 258, "unknown_token_id": 3})
    assert load_model(path).config.unk_token_id == 3


def test_a_part_of_a_head_that_rotates_is_refused(make_folder, gguf_of):
    file = gguf_of(make_folder("m", Qwen2Config, hidden_size=64), "qwen2", keys={"rope.dimension_count": 8})
    with pytest.raises(InputError, match=r"rope.dimension_count = 8, and only 16 is known"):
        load_model(file)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files there")
def test_a_full_disk_is_one_sentence_and_nothing_is_kept(make_folder, gguf_of, tmp_path):
    import resource

    file = gguf_of(make_folder("m", hidden_size=64), "llama")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, usual[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be written: .*File too large"):
            load_model(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not list(tmp_path.glob("cache/multispin/models/*"))
    assert not list(tmp_path.glob("cache/multispin/models/.*"))


def test_a_file_with_endless_lists_is_refused(make_folder, gguf_of):
    """The library makes an object of each value of a list: a hundred megabytes would take it an hour."""
    file = Path(gguf_of(make_folder("m"), "llama"))
    assert gguf_file.open_gguf(file, max_values=10_000).tensors
    with pytest.raises(InputError, match="over 100 values"):
        gguf_file.open_gguf(file, max_values=100)


def test_another_architecture_is_refused_by_name(make_folder, gguf_of):
    with pytest.raises(InputError, match="'gemma2'"):
        load_model(gguf_of(make_folder("m"), "gemma2"))


def test_end_ids_of_a_file_are_its_stop_ids(make_folder, gguf_of, caplog):
    folder = make_folder("m", special=("<|eot|>",))
    assert load_tokenizer(folder).stop_ids == (258,)
    file = gguf_of(folder, "llama", end_ids={"eos_token_id": 258, "eot_token_id": 259})
    assert load_tokenizer(file).stop_ids == (258, 259)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_file_without_an_end_id_has_none(make_folder, gguf_of, caplog):
    assert load_tokenizer(gguf_of(make_folder("m"), "llama", end_ids={})).stop_ids == ()
    assert "names no token that ends a text" in caplog.text


def test_a_file_and_its_folder_accept_each_other(make_folder, gguf_of):
    folder = make_folder("m", Qwen2Config, padding=9, special=("<|im_start|>", "<|im_end|>"))
    file = gguf_of(folder, "qwen2", padding=9)
    own, theirs = load_tokenizer(folder), load_tokenizer(file)
    assert own.size == 261 <= theirs.size < load_model(file).config.vocab_size  # padding is no token
    assert own.fingerprint == theirs.fingerprint
    assert load_draft_source(file, folder).drafter(64).draft([5, 6, 7], 4, SamplingParams()) != []
    ids = [1, 2, 259, 3, 260, 258]
    assert own.decode(ids) == theirs.decode(ids)
    assert torch.equal(load_model(file).lm_head.weight, load_model(folder).lm_head.weight)
