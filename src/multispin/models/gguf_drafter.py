"""Drafters as GGUF files, which llama.cpp and browsers run: made from a target's GGUF file, without torch.

A distilled drafter is a few blocks of its target. Its file has the target's architecture, tokenizer and whole output
head, so that anything that runs the target's file runs the drafter's. A distilled drafter was trained with a head over
a part of the vocabulary, which llama.cpp does not have. With the whole head, every id can be drafted.
"""

import contextlib
import glob
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multispin.errors import InputError
from multispin.models.drafter_card import (
    DRAFTER_WEIGHTS_FILE,
    HASHED_ROWS,
    SCALE,
    VOCABULARY,
    fingerprint_of,
    read_card,
)
from multispin.models.drafter_name import CARD_FILE, DrafterKind, DrafterName
from multispin.models.gguf_file import check_layout, open_gguf, read_facts
from multispin.models.gguf_header import check_header
from multispin.models.numbers import GGUF_STORAGES
from multispin.models.references import EMBEDDED, cache_folder, locate, remove_older, sha256_of

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, ReaderTensor

LIBRARY = "ik_llama_cpp"
"""The Python package that brings llama.cpp's library."""
COPIED_BITS = 8
"""The drafter q8 is the target with its weights in this many bits, which is GGUF's Q8_0."""

log = logging.getLogger(__name__)

PART_KEPT_S = 3600.0
"""Time without a change after which an unfinished file counts as left behind by a dead process [s]."""
COPY_KEPT_S = 90 * 86_400.0
"""Time without use after which a copy in the cache is removed when another one is written [s]."""
_LABEL_CHARACTERS = 60
_VERSION = 1  # of what is written: copies of an older one are made anew
_BLOCK = re.compile(r"blk\.(\d+)\.(.*)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)\.(weight|bias)")
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Parts of a layer as transformers calls them, with GGUF's names."""
_NOT_COPIED = (
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "general.name",
    "general.size_label",
)
_QUANTISATION_VERSION = 2

Matrix = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GgufOrder:
    """A drafter's GGUF file to make.

    Attributes:
        drafter: a distilled drafter (small, medium, large or a folder), or a GGUF file to be stored anew.
        out: the file to write.
        target: GGUF file of the target, for a distilled drafter; None for the one that its card names.
        storage: how matrices are stored, one of `GGUF_STORAGES`; default "q8_0".

    """

    drafter: str
    out: Path
    target: str | None = None
    storage: str = "q8_0"

    def __post_init__(self) -> None:
        if self.storage not in GGUF_STORAGES:
            raise InputError(f"storage = {self.storage!r}; it must be one of {', '.join(GGUF_STORAGES)}")
        if self.out.name and self.out.suffix != ".gguf":
            raise InputError(f"{self.out}: the name of a GGUF file must end in .gguf")


def write_gguf(order: GgufOrder, report: Callable[[int, int], None] | None = None) -> int:
    """Write a drafter as a GGUF file. A file of that name is replaced once the new one is complete.

    Args:
        order: the file to make.
        report: function of (tensors written, all tensors); default none.

    Returns:
        Bytes of the file.

    Raises:
        InputError: the drafter or its target is not there, has no GGUF file, or is damaged.

    """
    name = DrafterName.parse(order.drafter)
    if name.kind is DrafterKind.DISTILLED:
        assert name.folder is not None
        source = gguf_of(order.target or read_card(name.folder).target)
        reader = open_gguf(source)
        tensors, keys = _distilled(name.folder, source, reader)
    elif name.kind is DrafterKind.MODEL:
        if order.target is not None:
            raise InputError(f"the drafter {order.drafter!r} is a complete model: leave the target out")
        source = gguf_of(name.reference)
        reader = open_gguf(source)
        check_layout(source, reader)
        tensors, keys = {each.name: each.name for each in reader.tensors}, {}
    else:
        raise InputError(
            f"the drafter {order.drafter!r} has no weights of its own: give a distilled one or a .gguf file"
        )
    if order.out.exists() and order.out.samefile(source):
        raise InputError(f"{order.out} is also the input file: choose another name")
    return _write(order, reader, tensors, keys, report or (lambda _done, _total: None))


def is_for_llama_cpp(name: DrafterName, target: str | None) -> bool:
    """Whether llama.cpp is to run a drafter: it is installed, and the drafter is or can become a GGUF file.

    Cheap: nothing is written, and no weights are read.

    Args:
        name: name of the drafter.
        target: reference of the target; None for the one that the drafter names, or the embedded one.

    """
    if find_spec(LIBRARY) is None:
        return False
    if name.kind is DrafterKind.MODEL:
        return _is_gguf(name.reference)
    if find_spec("gguf") is None:
        return False
    if name.kind is DrafterKind.DISTILLED and name.folder is not None and find_spec("safetensors") is not None:
        return _is_gguf(target or read_card(name.folder).target)
    return name.bits == COPIED_BITS and _is_gguf(name.reference or target or EMBEDDED)


def file_for_llama_cpp(name: DrafterName, target: str | None) -> Path:
    """The GGUF file of a drafter that `is_for_llama_cpp`.

    A distilled drafter, or a target in 8 bits, is written as Q8_0 once and kept in the cache.
    """
    if name.kind is DrafterKind.MODEL:
        return gguf_of(name.reference)
    if name.kind is DrafterKind.DISTILLED:
        assert name.folder is not None
        target = target or read_card(name.folder).target
        sources = [name.folder / CARD_FILE, name.folder / DRAFTER_WEIGHTS_FILE, gguf_of(target)]
        return _kept_copy(name.folder.resolve().name, GgufOrder(str(name.folder), Path(), target), sources)
    drafter = name.reference or target or EMBEDDED
    source = gguf_of(drafter)
    return _kept_copy(f"{source.stem}-q{COPIED_BITS}", GgufOrder(drafter, Path()), [source])


def _kept_copy(label: str, order: GgufOrder, sources: Sequence[Path]) -> Path:
    """The copy of a drafter in the cache, made if it is missing; copies unused for long are removed then."""
    mark = hashlib.sha256("".join(sha256_of(path) for path in sources if path.is_file()).encode()).hexdigest()
    readable = re.sub(r"[^\w.-]+", "-", label)[:_LABEL_CHARACTERS].lstrip(".-")
    kept = cache_folder() / "drafters" / f"{readable}-{mark[:16]}-{_VERSION}.gguf"
    if not _begins(kept):
        remove_older(kept.parent, "*.part", PART_KEPT_S)
        remove_older(kept.parent, "*.gguf", COPY_KEPT_S)
        log.info("writing the drafter %s as a GGUF file, once; it is kept in %s", label, kept.parent)
        write_gguf(replace(order, out=kept))
    with contextlib.suppress(OSError):
        kept.touch()  # the time of its last use
    return kept


def _begins(kept: Path) -> bool:
    """Whether a copy is there and begins as it should: after a power cut a file may be empty. Reads 8 bytes."""
    with contextlib.suppress(InputError):
        check_header(kept)
        return True
    return False


def _is_gguf(reference: str) -> bool:
    found = locate(reference)
    return isinstance(found, Path) and found.suffix == ".gguf"


def gguf_of(reference: str) -> Path:
    """The GGUF file that a reference names; InputError for a model of another kind."""
    found = locate(reference)
    if not isinstance(found, Path) or found.suffix != ".gguf":
        raise InputError(
            f"{reference} is no GGUF file: convert it with llama.cpp's convert_hf_to_gguf.py, and name that file"
        )
    return found


def _distilled(folder: Path, target: Path, reader: "GGUFReader") -> tuple[dict[str, "Matrix | str"], dict[str, int]]:
    """Tensors of a distilled drafter by GGUF's names, each its values or the name of the target's, and changed keys."""
    card = read_card(folder)
    read_facts(target, reader)  # refuses an architecture whose layers are not known
    architecture = str(reader.fields["general.architecture"].contents())
    values = {each.name: each for each in reader.tensors}
    found = _fingerprint(values["token_embd.weight"])
    if found != card.fingerprint:
        raise InputError(
            f"the drafter in {folder} was made from {card.target} ({card.fingerprint}), not from {target} ({found})"
        )
    total = int(reader.fields[f"{architecture}.block_count"].contents())
    if max(card.layers) >= total:
        raise InputError(
            f"the drafter in {folder} has layer {max(card.layers)} of its target, and {target} has {total}"
        )
    heads = [
        int(reader.fields[f"{architecture}.attention.{key}"].contents()) for key in ("head_count", "head_count_kv")
    ]
    tensors: dict[str, Matrix | str] = {name: name for name in values if not _BLOCK.fullmatch(name)}
    tensors |= {name: name for name in values if (block := _BLOCK.fullmatch(name)) and int(block[1]) < card.frozen}
    for name, value in _learned(folder):
        shape = _shape_of(values, name, card.layers)
        if value.shape != shape:
            raise InputError(f"{name} in {folder} is {list(value.shape)}, and the target's is {list(shape or ())}")
        tensors[name] = _rotated(value, heads["attn_k" in name]) if _is_rotated(architecture, name) else value
    expected = {
        f"blk.{new}.{block[2]}"
        for new, old in enumerate(card.layers)
        for name in values
        if (block := _BLOCK.fullmatch(name)) and int(block[1]) == old
    }
    if missing := expected - tensors.keys():
        raise InputError(f"the weights in {folder} lack {min(missing)}")
    return tensors, {f"{architecture}.block_count": len(card.layers)}


def _shape_of(values: "Mapping[str, ReaderTensor]", name: str, layers: Sequence[int]) -> tuple[int, ...] | None:
    """Shape of the target's tensor in whose place one of the drafter stands; None if there is none."""
    block = _BLOCK.fullmatch(name)
    if block and int(block[1]) >= len(layers):
        return None
    own = f"blk.{layers[int(block[1])]}.{block[2]}" if block else name
    return tuple(int(size) for size in values[own].shape[::-1]) if own in values else None


def _learned(folder: Path) -> Iterator[tuple[str, Matrix]]:
    """Tensors of a distilled drafter in float32, by GGUF's names."""
    from safetensors import SafetensorError, deserialize

    path = folder / DRAFTER_WEIGHTS_FILE
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file")
        stored = {name: _array(found) for name, found in deserialize(path.read_bytes())}  # type: ignore[no-untyped-call]
        for name, value in stored.items():
            if name == VOCABULARY or name.endswith(SCALE):
                continue
            scale = stored.get(name + SCALE)
            whole = value if scale is None else value * scale[:, None]
            if not np.isfinite(whole).all():
                raise InputError(f"the weights {name} in {folder} are not finite numbers")
            yield _gguf_name(folder, name), np.ascontiguousarray(whole, dtype=np.float32)
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the weights in {folder} are damaged: {error}") from None


def _array(found: Mapping[str, Any]) -> Matrix:
    """A tensor of a safetensors file in float32."""
    kinds = {"I8": np.int8, "F32": np.float32, "I32": np.int32, "BF16": np.uint16}
    values = np.frombuffer(found["data"], kinds[found["dtype"]])
    if found["dtype"] == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(found["shape"]).astype(np.float32)


def _gguf_name(folder: Path, name: str) -> str:
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer = _LAYER.fullmatch(name)
    if layer is None or layer[2] not in _NAMES:
        raise InputError(f"the weights in {folder} hold {name}, which has no name in a GGUF file")
    return f"blk.{layer[1]}.{_NAMES[layer[2]]}.{layer[3]}"


def _is_rotated(architecture: str, name: str) -> bool:
    """Whether llama.cpp pairs the dimensions of a query or key in another way than transformers."""
    return architecture == "llama" and re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", name) is not None


def _rotated(value: Matrix, heads: int) -> Matrix:
    """Rows of a head from (first halves, second halves) to pairs, as llama.cpp rotates them."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _fingerprint(embeddings: "ReaderTensor") -> str:
    """`models.distilled.fingerprint` of a target, from the embeddings in its GGUF file."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    edges = np.concatenate([embeddings.data[:HASHED_ROWS], embeddings.data[-HASHED_ROWS:]])
    rows = np.ascontiguousarray(dequantize(edges, embeddings.tensor_type), dtype=np.float32)
    return fingerprint_of(quantize(rows, GGMLQuantizationType.BF16).tobytes())


def _write(
    order: GgufOrder,
    reader: "GGUFReader",
    tensors: Mapping[str, "Matrix | str"],
    changed: Mapping[str, int],
    report: Callable[[int, int], None],
) -> int:
    """Write the keys of `reader`, some of them changed, and the tensors."""
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType, GGUFValueType

    architecture = str(reader.fields["general.architecture"].contents())
    try:
        order.out.parent.mkdir(parents=True, exist_ok=True)
        remove_older(order.out.parent, f"{glob.escape(order.out.name)}.*.part", PART_KEPT_S)
        handle, name = tempfile.mkstemp(prefix=f"{order.out.name}.", suffix=".part", dir=order.out.parent)
        os.close(handle)
        work = Path(name)
    except OSError as error:
        raise InputError(f"cannot write {order.out}: {error.strerror}") from None
    try:
        writer = GGUFWriter(work, architecture)
        for key, field in reader.fields.items():
            if key.startswith("GGUF.") or key == "general.architecture" or key in _NOT_COPIED:
                continue
            inner = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(key, changed.get(key, field.contents()), field.types[0], inner)
        writer.add_string("general.name", f"{order.drafter[-80:]} {order.storage}")
        writer.add_file_type(GGUF_STORAGES[order.storage])
        writer.add_quantization_version(_QUANTISATION_VERSION)
        own = {each.name: each for each in reader.tensors}
        kind = GGMLQuantizationType[order.storage.upper()]
        for done, (name, value) in enumerate(tensors.items()):
            _add(writer, name, own[value] if isinstance(value, str) else value, kind)
            report(done, len(tensors))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        work.chmod(0o644)
        with work.open("r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())  # else a power cut could leave an empty file under the final name
        work.replace(order.out)
    except OSError as error:  # one of numpy's, about a part that was written, has no reason
        raise InputError(
            f"cannot write {order.out}: {error.strerror or f'the disk is full, or a limit is reached ({error})'}"
        ) from None
    finally:
        work.unlink(missing_ok=True)
    report(len(tensors), len(tensors))
    return order.out.stat().st_size


def _add(writer: "GGUFWriter", name: str, value: "ReaderTensor | Matrix", kind: "GGMLQuantizationType") -> None:
    """Add one tensor: matrices in `kind` where their rows divide into its blocks, all else in float32."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    if not isinstance(value, np.ndarray):
        if value.tensor_type == kind:
            writer.add_tensor(name, value.data, raw_dtype=kind)
            return
        value = dequantize(value.data, value.tensor_type)
    fits = value.ndim > 1 and value.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0
    stored = kind if fits else GGMLQuantizationType.F32
    writer.add_tensor(name, quantize(np.ascontiguousarray(value, dtype=np.float32), stored), raw_dtype=stored)
