"""Any key or tensor of a GGUF file, missing or of any type and value: it is refused by its name, or changes nothing.

What a file may say of its model otherwise, and how it is then computed, is in test_gguf.py.
"""

import math
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from multispin.errors import InputError
from multispin.models import load_model, load_tokenizer
from multispin.models.gguf_file import open_gguf
from multispin.models.references import cache_folder


def words(text):
    return text.split()


FOLDERS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
NAMES = words(
    "context_length block_count embedding_length feed_forward_length vocab_size attention.head_count "
    "attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon "
    "attention.layer_norm_epsilon attention.causal attention.sliding_window attention.scale "
    "attention.max_alibi_bias attention.clamp_kqv attention.temperature_scale rope.dimension_count "
    "rope.freq_base rope.freq_base_swa rope.scaling.type rope.scaling.factor "
    "rope.scaling.original_context_length rope.scaling.attn_factor rope.scaling.yarn_log_multiplier "
    "rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow rope.scaling.yarn_ext_factor rope.scale_linear "
    "rope.dimension_sections expert_count expert_used_count attn_logit_softcapping final_logit_softcapping "
    "logit_scale residual_scale embedding_scale use_parallel_residual tensor_data_layout pooling_type "
    "swiglu_clamp_exp something.unheard_of"
)
OTHERS = words(
    "general.architecture general.name general.file_type split.count split.no tokenizer.chat_template "
    "tokenizer.ggml.model tokenizer.ggml.pre tokenizer.ggml.tokens tokenizer.ggml.token_type "
    "tokenizer.ggml.scores tokenizer.ggml.merges tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id "
    "tokenizer.ggml.eot_token_id tokenizer.ggml.unknown_token_id tokenizer.ggml.add_bos_token "
    "tokenizer.ggml.add_sep_token tokenizer.ggml.add_space_prefix tokenizer.ggml.remove_extra_whitespaces "
    "tokenizer.ggml.precompiled_charsmap tokenizer.ggml.suppress_tokens context_length rope.freq_base "
    "rope.scaling.type"
)
CHANGE = frozenset(
    words(
        "context_length layer_norm_rms_epsilon freq_base factor original_context_length yarn_beta_fast "
        "yarn_beta_slow bos_token_id eos_token_id eot_token_id add_bos_token merges token_type model pre type "
        "chat_template"
    )
)
"""Last parts of the keys that say something of the model or its texts; with others a file that is read is as before."""
NUMBERS = [
    *((7, value) for value in (True, False)),
    *((0, value) for value in (0, 1, 3, 255)),
    *((5, value) for value in (-1, 1, -(2**31))),
    *((4, value) for value in (0, 2, 7, 2**32 - 1)),
    *((10, value) for value in (1, 2**63, 2**64 - 1)),
    (11, -(2**63)),
    *((6, value) for value in (0.0, -1.0, 0.5, 1.0, 1e-40, math.nan, math.inf)),
    *((12, value) for value in (3.5, 1e300, -math.inf)),
]
TEXTS = [(TEXT, text.encode()) for text in ("", "none", "linear", "1", "{{ 1/0 }}", "x" * 5000, "\x1b[31m\n\u202e")]
LISTS = [
    (LIST, (4, [])),
    (LIST, (8, [])),
    (LIST, (4, [1, 2, 3])),
    (LIST, (8, [b"a", b"b"])),
    (LIST, (6, [1.0, math.nan])),
    (LIST, (9, [(4, [1]), (4, [2])])),
]
KEY_CHANGES = st.tuples(st.just("key"), st.sampled_from(NAMES + OTHERS), st.sampled_from([
    "missing", *NUMBERS, *TEXTS, (TEXT, b"\xff\xfe"), *LISTS
]))  # fmt: skip
TENSOR_CHANGES = st.tuples(
    st.just("tensor"),
    st.sampled_from(
        ["token_embd", "output_norm", "blk.0.attn_q", "blk.1.attn_output", "blk.1.ffn_down", "blk.0.attn_norm"]
    ),
    st.sampled_from(["missing", "transposed", "half", "flat", "renamed", "whole numbers"]),
)


def text(data):
    return struct.pack("<Q", len(data)) + data


def encoded(kind, value):
    if kind == TEXT:
        return text(value)
    if kind == LIST:
        return struct.pack("<IQ", value[0], len(value[1])) + b"".join(encoded(value[0], each) for each in value[1])
    return struct.pack("<" + FORMS[kind], value)


class File:
    """A GGUF file taken apart: keys by name with type and value, tensors as name, shape, kind and bytes."""

    def __init__(self, path):
        reader = open_gguf(Path(path))
        self.keys = {}
        for name, field in reader.fields.items():
            kind = int(field.types[0])
            if not name.startswith("GGUF."):
                value, inner = field.contents(), int(field.types[-1])
                if kind == LIST:
                    value = (inner, [each.encode() for each in value] if inner == TEXT else value)
                self.keys[name] = (kind, value.encode() if kind == TEXT else value)
        self.tensors = [
            (tensor.name, list(map(int, tensor.shape)), int(tensor.tensor_type), np.array(tensor.data).tobytes())
            for tensor in reader.tensors
        ]

    def changed(self, what, name, how):
        """The bytes of the file with one key or tensor changed."""
        keys, tensors = dict(self.keys), list(self.tensors)
        if what == "key":
            keys.pop(name, None)
            if how != "missing":
                keys[name] = how
        else:
            place = next(place for place, each in enumerate(tensors) if each[0] == name)
            _, shape, kind, data = tensors.pop(place)
            new = {
                "transposed": (name, shape[::-1], kind, data),
                "half": (name, [shape[0] // 2, *shape[1:]], kind, data[: len(data) // 2]),
                "flat": (name, [math.prod(shape)], kind, data),
                "renamed": (name.replace("weight", "wait"), shape, kind, data),
                "whole numbers": (name, shape, 26, data),
            }
            if how != "missing":
                tensors.insert(place, new[how])
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
        head += b"".join(
            text(key.encode()) + struct.pack("<I", value[0]) + encoded(*value) for key, value in keys.items()
        )
        body = b""
        for each, shape, kind, data in tensors:
            head += text(each.encode()) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(body))
            body += data + bytes(-len(data) % 32)
        return head + bytes(-len(head) % 32) + body


def found(path):
    """What a file computes, and how its texts begin and end."""
    with torch.inference_mode():
        logits = load_model(path)(torch.tensor([[1, 50, 99, 7, 200, 32] * 3])).logits
    tokenizer = load_tokenizer(path)
    return logits, tokenizer.encode("a th, x"), tokenizer.stop_ids


@pytest.mark.parametrize("architecture", sorted(FOLDERS))
def test_a_key_or_tensor_is_refused_by_its_name_or_changes_nothing(make_folder, gguf_of, tmp_path, architecture):
    sizes = {"head_dim": 128} if architecture == "qwen3" else {"hidden_size": 64}
    usual = File(gguf_of(make_folder("m", FOLDERS[architecture], **sizes), architecture))
    path = tmp_path / "changed.gguf"
    path.write_bytes(usual.changed("key", "general.name", (TEXT, b"as it was")))
    logits, ids, ends = found(str(path))

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(KEY_CHANGES, KEY_CHANGES, TENSOR_CHANGES))
    @example(("key", "general.file_type", LISTS[-1]))  # transformers refuses these without naming a key
    @example(("key", "tokenizer.ggml.merges", LISTS[3]))
    @example(("key", "tokenizer.ggml.tokens", LISTS[3]))  # a list as long as no other of the tokenizer
    @example(("key", "rope.dimension_count", (4, 7)))  # a head's size in the architecture llama
    def check(change):
        what, name, how = change
        if name in NAMES and name not in OTHERS:
            name = f"{architecture}.{name}"
        full = name + (".weight" if what == "tensor" else "")
        path.write_bytes(usual.changed(what, full, how))
        try:
            new = found(str(path))
        except InputError as error:
            sentence = str(error).replace(str(path), "")
            assert "\n" not in sentence
            assert len(sentence) < 500
            assert name.rpartition(".")[2] in sentence
        else:
            if full.rpartition(".")[2] not in CHANGE or full in ("context_length", "rope.freq_base"):
                torch.testing.assert_close(new[0], logits)
                assert new[1:] == (ids, ends)
        finally:
            shutil.rmtree(cache_folder(), ignore_errors=True)

    check()
