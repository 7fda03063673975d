"""The keys of a GGUF file beside its weights, and whether all of them are understood.

transformers reads the weights and a few keys, and silently ignores all others, such as scaled rotary positions. So
every key and every tensor is checked here. Unknown ones are refused by name.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multispin.checks import shown
from multispin.errors import InputError
from multispin.models.gguf_header import MAX_VALUES, SPLIT, check_header
from multispin.models.references import check_counts

if TYPE_CHECKING:
    from gguf import GGUFReader

ARCHITECTURES = {
    "llama": r"rope_freqs\.weight",
    "qwen2": r"blk\.\d+\.attn_(q|k|v)\.bias",
    "qwen3": r"blk\.\d+\.attn_(q|k)_norm\.weight",
}
"""The architectures whose GGUF files tests hold against their own folders, and the tensors that each has beside
`_TENSORS`. transformers passes over all others, such as biases of Llama's attention."""

_DAMAGE = (ValueError, KeyError, IndexError, OSError, OverflowError, UnicodeDecodeError, RecursionError)
_INSTEAD = "use the model's folder"
_ABOUT = re.compile(
    r"general\..*|quantize\..*|split\.(no|tensors\.count)|tokenizer\.(chat_templates?(\..*)?|huggingface\.json)"
    r"|tokenizer\.ggml\.(model|pre|tokens|token_type|token_type_count|scores|merges|\w+_token_id"
    r"|add_(bos|eos)_token|add_space_prefix)"
)
"""Keys without effect on the model's results, and keys of the tokenizer that are read."""
_COUNTS = frozenset(
    {
        "context_length",
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.scaling.original_context_length",
    }
)
_NUMBERS = frozenset(
    {
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.scaling.factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)
_NEEDED = (
    "context_length",
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
)
"""Keys for which transformers would use another model's sizes if a file lacks them."""
_QWEN3_HEAD = 128  # transformers takes it for every file of this architecture
_TEXTS = frozenset(
    {
        "rope.scaling.type",
        "tokenizer.chat_template",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "general.architecture",
    }
)
_LISTS: Mapping[str, tuple[type, str]] = {
    "tokenizer.ggml.tokens": (str, "texts"),
    "tokenizer.ggml.merges": (str, "texts"),
    "tokenizer.ggml.token_type": (int, "whole numbers"),
    "tokenizer.ggml.scores": (float, "numbers"),
}
"""Keys that hold a list, of what type, and how a sentence calls that."""
_SCALING = frozenset({"rope.scaling.type", "rope.scaling.finetuned"})
_OFF: Mapping[str, object] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "tokenizer.ggml.add_sep_token": False,
    "tokenizer.ggml.remove_extra_whitespaces": False,
}
"""Keys that change nothing with these values."""
_TOKENIZERS = frozenset({"gpt2", "llama"})
_SPLITS = frozenset(
    {"default", "gpt-2", "smollm", "llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"}
    | {"tekken", "qwen2", "deepseek-r1-qwen", "megrez"}
)
"""Supported ways to split a text before tokenization (`tokenizer.ggml.pre`): those that transformers or `gguf_split`
knows."""
SENTENCEPIECE = "sentencepiece"
"""Stands for such a name where the vocabulary is SentencePiece's: no pattern splits a text."""
_BEGUN = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"})
"""Of these, those with which llama.cpp puts the BOS token before a text if `add_bos_token` is absent."""
_NO_WEIGHTS = frozenset({"I8", "I16", "I32", "I64", "F64"})
_ALWAYS = frozenset({"token_embd.weight", "output_norm.weight"})
_BLOCK = re.compile(r"blk\.(\d+)\.")
_TENSORS = (
    r"(token_embd|output_norm|output)\.weight|blk\.\d+\.(attn_(q|k|v|output|norm)|ffn_(gate|up|down|norm))\.weight"
)
_SIZES = {
    "token_embd": ("embedding_length", "vocab_size"),
    "output_norm": ("embedding_length",),
    "output": ("embedding_length", "vocab_size"),
    "attn_norm": ("embedding_length",),
    "attn_q": ("embedding_length", "attention.head_count"),
    "attn_k": ("embedding_length", "attention.head_count_kv"),
    "attn_v": ("embedding_length", "attention.head_count_kv"),
    "attn_output": ("attention.head_count", "embedding_length"),
    "attn_q_norm": ("attention.key_length",),
    "attn_k_norm": ("attention.key_length",),
    "ffn_norm": ("embedding_length",),
    "ffn_gate": ("embedding_length", "feed_forward_length"),
    "ffn_up": ("embedding_length", "feed_forward_length"),
    "ffn_down": ("feed_forward_length", "embedding_length"),
}
"""Keys that say the shape of each tensor, inputs first; heads count with all their numbers."""
_IN_EACH_BLOCK = [part for part in _SIZES if part.startswith(("attn", "ffn")) and part[-6:] not in ("q_norm", "k_norm")]
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_LIST = 9  # kind of a key's value in GGUF
_KINDS = range(7)  # of tokens in GGUF
_CONTROL = 3  # special, leaves no text
_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0  # of all published models
_LLAMA3_CONTEXTS = tuple(2**power for power in range(4, 21))


@dataclass(frozen=True)
class GgufFacts:
    """Facts in a GGUF file that transformers does not read.

    Attributes:
        rope: settings of scaled rotary positions as transformers writes them; None for plain ones.
        end_ids: ids that end a text, ascending.
        special: tokens that leave no text.
        begun: whether the BOS token stands before a plain text.
        split: how to split a text before tokenization, for `gguf_split.set_split`.
        numbers: how many numbers its weights are.

    """

    rope: Mapping[str, Any] | None
    end_ids: tuple[int, ...]
    special: tuple[str, ...]
    begun: bool
    split: str
    numbers: int


def open_gguf(path: Path, max_values: int = MAX_VALUES) -> "GGUFReader":
    """A GGUF file's keys and tensors; InputError if it is damaged, or has over `max_values` values in its keys."""
    from gguf import GGUFReader

    class BoundedReader(GGUFReader):  # type: ignore[misc]
        """Reads nothing behind the file's end, and no endless list: the library makes an object of each value."""

        values = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            self.values += 1
            if self.values > max_values:
                raise ValueError(f"it has over {max_values} values in its keys")
            if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends in the middle of a value")
            return super()._get(offset, dtype, count, override_order)

    check_header(path)
    try:
        return BoundedReader(str(path))
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> InputError:
    words = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return InputError(f"{path} cannot be read: this GGUF file is damaged or truncated ({words})")


def read_facts(path: Path, reader: "GGUFReader | None" = None) -> GgufFacts:
    """Read a GGUF file's keys and tensors' names; InputError names the first one that is not known.

    Args:
        path: path of the GGUF file.
        reader: the file, if it is open already; default None.

    """
    reader = reader or open_gguf(path)
    try:
        keys = {
            name: _value(path, name, field) for name, field in reader.fields.items() if not name.startswith("GGUF.")
        }
        facts = _facts(path, keys, {tensor.name: tensor for tensor in reader.tensors})
        check_layout(path, reader)
        return facts
    except InputError:
        raise
    except (*_DAMAGE, TypeError, ArithmeticError) as error:  # a key that is missing, or of another type than it has
        raise _damaged(path, error) from error


def _value(path: Path, name: str, field: Any) -> Any:
    """A key's value; InputError for text that is not UTF-8, and for a list of lists, which transformers cannot read."""
    if field.types[:2] == [_LIST, _LIST]:
        raise InputError(f"{path} sets {name[:80]} to a list of lists, as no key known here is: {_INSTEAD}")
    try:
        return field.contents()
    except UnicodeDecodeError as error:
        raise _damaged(path, ValueError(f"{name[:80]} is not UTF-8 text")) from error


def _facts(path: Path, keys: Mapping[str, Any], tensors: Mapping[str, Any]) -> GgufFacts:
    """Read the keys and tensors of a file."""
    if isinstance(parts := keys.get("split.count"), int) and parts > 1:  # all parts but the first have no other keys
        raise InputError(f"{path} {SPLIT}")
    architecture = keys.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise InputError(
            f"{path} is of the architecture {shown(architecture)} (general.architecture), not "
            f"{', '.join(sorted(ARCHITECTURES))}: {_INSTEAD}"
        )
    for name, value in keys.items():
        own = name.removeprefix(architecture + ".")
        known = _ABOUT.fullmatch(name) or (own != name and own in _COUNTS | _NUMBERS | _SCALING)
        if not known and not (own in _OFF and value == _OFF[own]) and not (name == "split.count" and value == 1):
            raise InputError(
                f"{path} sets {name[:80]} = {shown(value)}, not known here: it may change what it computes; {_INSTEAD}"
            )
    for name, tensor in tensors.items():
        if not re.fullmatch(f"{_TENSORS}|{ARCHITECTURES[architecture]}", name):
            raise InputError(f"{path} holds the tensor {name[:80]}, which no layer known here uses: {_INSTEAD}")
        if (stored := tensor.tensor_type.name) in _NO_WEIGHTS:
            raise InputError(f"{path} stores the tensor {name} as {stored}, as no weights known here are: {_INSTEAD}")
    for name in _ALWAYS - tensors.keys():
        raise _damaged(path, ValueError(f"it has no tensor {name}"))
    own_keys = {name.removeprefix(architecture + "."): value for name, value in keys.items()}
    check_counts({name.rpartition(".")[2]: value for name, value in own_keys.items()}, str(path))
    _check_values(path, own_keys)
    head = _head_size(path, architecture, own_keys)
    _check_vocabulary(path, keys)
    _check_tensors(path, own_keys, head, {name: list(map(int, each.shape)) for name, each in tensors.items()})
    factors = np.array(tensors["rope_freqs.weight"].data) if "rope_freqs.weight" in tensors else None
    if factors is not None and factors.shape != (head // 2,):
        raise _damaged(path, ValueError(f"rope_freqs.weight is not of {head // 2} numbers, one per pair of a head"))
    names = keys["tokenizer.ggml.tokens"]
    types = keys.get("tokenizer.ggml.token_type", ())
    ends = {int(keys[key]) for key in (f"tokenizer.ggml.{name}" for name in _END_KEYS) if key in keys}
    return GgufFacts(
        _rope(path, own_keys, factors),
        tuple(sorted(ends)),
        tuple(str(token) for token, kind in zip(names, types, strict=False) if kind == _CONTROL),
        _begun(path, keys),
        SENTENCEPIECE if keys["tokenizer.ggml.model"] == "llama" else keys.get("tokenizer.ggml.pre", "default"),
        sum(int(tensor.n_elements) for name, tensor in tensors.items() if name != "rope_freqs.weight"),
    )


def _begun(path: Path, keys: Mapping[str, Any]) -> bool:
    """Whether the BOS token stands before a plain text, as llama.cpp reads a file."""
    usual = keys["tokenizer.ggml.model"] == "llama" or keys.get("tokenizer.ggml.pre") in _BEGUN
    bos = keys.get("tokenizer.ggml.bos_token_id")
    if bos is None or not keys.get("tokenizer.ggml.add_bos_token", usual):
        return False
    if (token := str(keys["tokenizer.ggml.tokens"][bos])).startswith("$"):  # a place in transformers' own notation
        raise InputError(f"{path} puts the token {shown(token)} before each text, which is not known here: {_INSTEAD}")
    return True


def _check_values(path: Path, keys: Mapping[str, Any]) -> None:
    """InputError for a size that is missing or no whole number from 1 on, and for numbers that are not above 0."""
    for name in _NEEDED:
        if name not in keys:
            raise InputError(f"{path} lacks the key {name}: this GGUF file is damaged")
    for name, value in keys.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name in _COUNTS and not (whole and value >= 1):
            raise InputError(f"{path} sets {name} = {shown(value)}, which is no whole number from 1 on")
        if name in _NUMBERS and not (isinstance(value, float) and 0.0 < value < math.inf):
            raise InputError(f"{path} sets {name} = {shown(value)}, which is no number above 0")
        if name in _TEXTS and not isinstance(value, str):
            raise InputError(f"{path} sets {name} = {shown(value)}, which is no text")
        kind, of = _LISTS.get(name, (object, ""))
        if of and not (isinstance(value, list) and all(type(each) is kind for each in value)):
            raise InputError(f"{path} sets {name} = {shown(value)}, which is no list of {of}")
    heads, shared = int(keys["attention.head_count"]), int(keys["attention.head_count_kv"])
    if heads % shared:
        raise InputError(f"{path} sets attention.head_count_kv = {shared}, which does not divide head_count = {heads}")


def _head_size(path: Path, architecture: str, keys: Mapping[str, Any]) -> int:
    """Size of a head that transformers computes with; InputError where the keys name another one."""
    size = int(keys["embedding_length"]) // int(keys["attention.head_count"])
    if architecture == "qwen3":
        size = _QWEN3_HEAD
    elif architecture == "llama":
        size = int(keys.get("rope.dimension_count", size))
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if name in keys and int(keys[name]) != size:
            raise InputError(f"{path} sets {name} = {keys[name]}, and only {size} is known here: {_INSTEAD}")
    return size


def _check_vocabulary(path: Path, keys: Mapping[str, Any]) -> None:
    """InputError for a damaged list of tokens, and for ways to cut texts into them that transformers passes over."""
    own = {name.removeprefix("tokenizer.ggml."): value for name, value in keys.items()}
    model, split = own.get("model"), own.get("pre", "default")
    if model is None:
        raise InputError(f"{path} has no tokenizer: name a GGUF file that has one, or the model's folder")
    if model not in _TOKENIZERS or (model == "gpt2" and split not in _SPLITS):
        raise InputError(
            f"{path} has the tokenizer {shown(model)} with {shown(split)} (tokenizer.ggml.model, tokenizer.ggml.pre), "
            f"not known here: {_INSTEAD}"
        )
    for name in ("tokens", "merges") if model == "gpt2" else ("tokens", "scores"):
        if name not in own:
            raise InputError(f"{path} lacks the key tokenizer.ggml.{name}: this GGUF file is damaged")
    if model == "llama" and own.get("add_space_prefix", True) is not True:
        raise InputError(f"{path} sets tokenizer.ggml.add_space_prefix = False, not known here: {_INSTEAD}")
    tokens, types = own["tokens"], own.get("token_type", ())
    if not tokens or len(set(tokens)) < len(tokens):
        raise _damaged(
            path, ValueError(f"tokenizer.ggml.tokens: its list of {len(tokens)} tokens has repetitions, or none")
        )
    if len(types) not in (0, len(tokens)) or not set(types) <= set(_KINDS):
        kinds = f"{len(tokens)} kinds that GGUF has, one of each of tokenizer.ggml.tokens"
        raise _damaged(path, ValueError(f"tokenizer.ggml.token_type is no list of {kinds}"))
    if model == "gpt2" and not all(len(each.split(" ")) == 2 for each in own["merges"]):
        raise _damaged(path, ValueError("tokenizer.ggml.merges is no list of two tokens with a space between"))
    scores = own.get("scores", ())
    if len(scores) not in (0, len(tokens)) or not np.isfinite(np.asarray(scores, np.float64)).all():
        raise _damaged(path, ValueError(f"it has {len(scores)} scores for {len(tokens)} tokens, or one is no number"))
    for name, value in own.items():
        if name.startswith("add_") and not isinstance(value, bool):
            raise _damaged(path, ValueError(f"{name} = {shown(value)} is neither true nor false"))
        if name.endswith("_token_id") and not (type(value) is int and 0 <= value < len(tokens)):
            raise _damaged(path, ValueError(f"{name} = {shown(value)} is none of its {len(tokens)} tokens"))


def _check_tensors(path: Path, keys: Mapping[str, Any], head: int, shapes: Mapping[str, list[int]]) -> None:
    """InputError for a tensor that the keys leave out, or give another shape; it names both.

    Args:
        path: the file.
        keys: its keys, without the architecture's name.
        head: numbers of a head.
        shapes: shape of each tensor as GGUF has it, the input's size first.

    """
    tokens = len(keys["tokenizer.ggml.tokens"])
    counts = {name: head * int(keys[name]) for name in ("attention.head_count", "attention.head_count_kv")}
    counts |= {name: int(keys[name]) for name in ("embedding_length", "feed_forward_length", "block_count")}
    counts |= {"vocab_size": int(keys.get("vocab_size", tokens)), "attention.key_length": head}
    blocks = counts["block_count"]
    for name, shape in shapes.items():
        block, (*_, part, kind) = _BLOCK.match(name), name.split(".")
        if block and (int(block[1]) >= blocks or str(int(block[1])) != block[1]):
            raise InputError(f"{path} says block_count = {blocks}, so that no block uses its tensor {name}")
        sizes = _SIZES.get(part, ())
        asked = {size: counts[size] for size in (sizes if kind == "weight" else sizes[-1:])}
        if asked and shape != list(asked.values()):
            named = [*asked, *(["rope.dimension_count"] if "rope.dimension_count" in keys else [])]  # a head's size
            raise InputError(
                f"{path} holds {name} of the shape {shape}, but its keys ask for {list(asked.values())} "
                f"({', '.join(named)}): this GGUF file is damaged"
            )
    for name in (f"blk.{block}.{part}.weight" for block in range(blocks) for part in _IN_EACH_BLOCK):
        if name not in shapes:
            raise _damaged(path, ValueError(f"block_count = {blocks}, but there is no tensor {name}"))


def check_layout(path: Path, reader: "GGUFReader") -> None:
    """InputError unless a GGUF file's tensors fill it to its end, one behind the other.

    Args:
        path: the file, for the refusal.
        reader: reader of the open file.

    """
    start, alignment = int(reader.data_offset), int(reader.alignment)
    end = start
    for tensor in reader.tensors:
        if tensor.data_offset != start or math.prod(map(int, tensor.shape)) != tensor.n_elements:
            raise _damaged(path, ValueError(f"{tensor.name} does not begin where the tensor before it ends"))
        end = start + int(tensor.n_bytes)
        start += -(-tensor.n_bytes // alignment) * alignment
    if not end <= len(reader.data) <= start:  # a wrong general.alignment shifts all tensors
        raise _damaged(path, ValueError(f"its tensors end at byte {end} of {len(reader.data)}"))


def _rope(path: Path, keys: Mapping[str, Any], factors: "np.ndarray[Any, Any] | None") -> Mapping[str, Any] | None:
    """Settings of scaled rotary positions."""
    base, scaled = float(keys.get("rope.freq_base", 10000.0)), "rope.scaling.factor" in keys
    kind = keys.get("rope.scaling.type", "linear" if scaled else "none")  # as llama.cpp reads a file without one
    if kind == "none" and keys.get("rope.scaling.factor", 1.0) != 1.0:  # which llama.cpp applies in some architectures
        raise InputError(f"{path} sets rope.scaling.factor beside rope.scaling.type = none: {_INSTEAD}")
    if kind not in ("none", "linear", "yarn"):
        raise InputError(
            f"{path} scales rotary positions by {shown(kind)} (rope.scaling.type), which is not known here: {_INSTEAD}"
        )
    if factors is not None:
        if kind != "none":
            raise InputError(f"{path} scales rotary positions twice (rope_freqs.weight and {kind}): {_INSTEAD}")
        return _llama3(path, base, [float(value) for value in factors])
    if kind == "none":
        return None
    rope = {"rope_type": kind, "rope_theta": base, "factor": keys["rope.scaling.factor"]}
    if kind == "yarn":
        original = keys.get("rope.scaling.original_context_length")
        if original is None:
            raise InputError(f"{path} lacks rope.scaling.original_context_length, which yarn needs")
        rope["original_max_position_embeddings"] = original
        if rope["factor"] < 1.0:  # the scale of attention for such factors is another one in each library
            raise InputError(
                f"{path} sets rope.scaling.factor = {rope['factor']} for yarn, which lengthens: {_INSTEAD}"
            )
        for name in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{name}" in keys:
                rope[name] = keys[f"rope.scaling.yarn_{name}"]
    return rope


def _llama3(path: Path, base: float, factors: Sequence[float]) -> Mapping[str, Any] | None:
    """The settings of Llama 3's scaling whose factors on wavelengths these are: the file keeps no others."""
    if all(factor == 1.0 for factor in factors):
        return None
    largest = max(factors)
    for original in _LLAMA3_CONTEXTS:
        found = llama3_factors(base, len(factors), largest, original)
        if all(abs(a / b - 1.0) < 1e-5 for a, b in zip(factors, found, strict=True)):
            return {
                "rope_type": "llama3",
                "rope_theta": base,
                "factor": float(np.float32(largest)) if largest != round(largest) else float(round(largest)),
                "low_freq_factor": _LLAMA3_LOW,
                "high_freq_factor": _LLAMA3_HIGH,
                "original_max_position_embeddings": original,
            }
    raise InputError(
        f"{path} scales rotary positions by factors (rope_freqs.weight) that are not Llama 3's: {_INSTEAD}"
    )


def llama3_factors(base: float, count: int, factor: float, original: int) -> list[float]:
    """By how much Llama 3's scaling lengthens each of `count` wavelengths: 1 for short ones, `factor` for long ones."""
    found = []
    for index in range(count):
        turns = original / (2.0 * math.pi * base ** (index / count))  # within the original context
        if turns > _LLAMA3_HIGH:
            found.append(1.0)
        elif turns < _LLAMA3_LOW:
            found.append(factor)
        else:
            smooth = (turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
            found.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return found
