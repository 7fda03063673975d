"""Loads the model of a reference (the embedded model, a folder, a GGUF file, a Hub id).

A GGUF file is dequantised once, to float32, and kept as safetensors in the user's cache under its SHA-256; after
that it loads like any folder, mapped into memory and shared by all processes that use it.
"""

import contextlib
import glob
import io
import logging
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from multispin.checks import shown
from multispin.errors import InputError
from multispin.models.blame import failing_fields, in_brackets, shaping_fields
from multispin.models.families import check_family, longest_text
from multispin.models.gguf_file import read_facts
from multispin.models.gguf_split import set_split
from multispin.models.hub import folder_of
from multispin.models.numbers import FLOATS, INT8, NUMBERS
from multispin.models.quantised import whole_weights
from multispin.models.references import (
    CONVERSION,
    WEIGHTS_FILE,
    check_readable,
    check_sizes,
    converted_folder,
    is_whole,
    locate,
    settings_in,
    writing,
)
from multispin.outside import first_line

CANNOT_LOAD = "cannot load the model"

RECOMPUTED = "rotary_emb.inv_freq"
"""End of the names of tensors that old files hold and that the configuration says as well (`_check_frequencies`)."""
FREQUENCY_TOLERANCE = 0.02
"""How far such a tensor may be off, relatively: it may be stored in few bits."""

ADAPTER_FILE = "adapter_config.json"
"""Settings of further weights that change what a model computes (LoRA and others)."""

NUMBERS_OF_WEIGHTS = frozenset({"F64", "F32", "F16", "BF16"})
"""How weights may be stored."""
_KINDS_OF_TORCH = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

log = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in FLOATS}


def load_model(reference: str, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """The causal language model of `reference`, in evaluation mode; InputError if it cannot be loaded."""
    if dtype not in NUMBERS:
        raise InputError(f"dtype = {dtype!r} is not one of {', '.join(NUMBERS)}")
    check_place(device)
    source = resolve(reference)
    config = _read(reference, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False), folder=Path(source))
    check_family(config)
    _read(reference, lambda: _check_numbers(reference, Path(source)))
    model = _read_weights(reference, source, dtype=DTYPES.get(dtype, torch.float32))
    _read(reference, lambda: _check_frequencies(reference, Path(source), model))
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot put {reference} on device {device!r}: {first_line(error)}") from None
    _check_finite(reference, model)
    return whole_weights(model) if dtype == INT8 else model


def _weight_files(folder: Path) -> Iterator[Path]:
    """The files of weights that transformers will choose; InputError for one that is none, or lies elsewhere."""
    index = folder / "model.safetensors.index.json"
    names = {WEIGHTS_FILE}
    if index.is_file() and not (folder / WEIGHTS_FILE).exists():
        listed = settings_in(index, str(folder)).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise InputError(f"{index} has no weight_map that names a file for each weight")
        names = set(listed.values())
    for path in (folder / name for name in sorted(names)):
        if path.parent != folder:
            raise InputError(f"{index} names weights outside of its folder: {shown(str(path))}")
        if not path.is_file():  # transformers says so, and knows other names
            if path.exists():  # a device file has no end, and a pipe no beginning
                raise InputError(f"{path} is not a file")
            continue
        if path.suffix != ".safetensors":
            raise InputError(f"{index} names weights that are not in a .safetensors file: {shown(path.name)}")
        check_readable(path)
        yield path


def _check_numbers(reference: str, folder: Path) -> None:
    """InputError for weights that are no floating-point numbers, since transformers would use them unscaled.

    And for a weight that two files hold with other values, of which it would use either.
    """
    seen: dict[str, Path] = {}
    for path in _weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                _check_kind(reference, name, file.get_slice(name).get_dtype())
                if (other := seen.setdefault(name, path)) is not path:
                    with safe_open(other, framework="pt") as first:
                        if not torch.equal(first.get_tensor(name), file.get_tensor(name)):
                            raise InputError(
                                f"cannot load the model {reference}: {other.name} and {path.name} hold {name} with "
                                "other values"
                            )
    if seen:
        return
    for path in sorted(folder.glob("pytorch_model*.bin")):
        for name, weights in torch.load(path, map_location="meta", weights_only=True).items():
            if isinstance(weights, torch.Tensor):
                _check_kind(reference, str(name), _KINDS_OF_TORCH.get(weights.dtype, str(weights.dtype)))


def _check_kind(reference: str, name: str, kind: str) -> None:
    """InputError unless weights can be stored as this kind of numbers."""
    if kind not in NUMBERS_OF_WEIGHTS:
        raise InputError(
            f"cannot load the model {reference}: {name} is stored as {kind}, not as floating-point numbers: its "
            "weights are quantised in a way that is not known here"
        )


def _check_finite(reference: str, model: PreTrainedModel) -> None:
    """InputError for weights that are not finite, since texts that do not use them would not show them."""
    for name, weights in model.named_parameters():
        if weights.numel() and not all(bool(end.isfinite()) for end in weights.detach().aminmax()):
            raise InputError(f"cannot load the model {reference}: {name} has values that are not finite numbers")


def _check_frequencies(reference: str, folder: Path, model: PreTrainedModel) -> None:
    """InputError for rotary frequencies in a file that are not those of its configuration, which are used instead."""
    known: list[torch.Tensor] = []
    for path in _weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in (name for name in file.keys() if name.endswith(RECOMPUTED)):  # noqa: SIM118
                known = known or _frequencies(model)
                found = file.get_tensor(name).float()
                if not any(
                    found.shape == each.shape and torch.allclose(found, each, rtol=FREQUENCY_TOLERANCE, atol=1e-6)
                    for each in known
                ):
                    raise InputError(
                        f"cannot load the model {reference}: its files hold the rotary frequencies {name}, which are "
                        "not those of its configuration"
                    )


def _frequencies(model: PreTrainedModel) -> list[torch.Tensor]:
    """The rotary frequencies that a model computes with, and those before any scaling."""
    used = [buffer.float().cpu() for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    config = model.config.get_text_config()
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    plain = [theta ** -(torch.arange(len(each)) / len(each)) for each in used if each.ndim == 1] if theta else []
    return [*used, *plain]


def check_place(place: str) -> None:
    """InputError unless this machine has the named device.

    Args:
        place: a device of torch's, such as "cpu", "cuda:0" or "mps".

    """
    if place.partition(":")[0] == "mps" and not torch.backends.mps.is_available():  # torch's own reason is a page long
        raise InputError(f"there is no device {place!r} here: only Macs with Apple's chips have it")
    try:
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"there is no device {place!r} here: {first_line(error)}; cpu always works") from None


def known_positions(reference: str) -> int | None:
    """Longest text [tokens] that the model of `reference` knows, from its configuration alone; None if it says none."""
    source = resolve(reference, weights=False)

    def read() -> int | None:
        return longest_text(AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config())

    found: int | None = _read(reference, read)
    return found


def older_tokenizer(reference: str) -> tuple[Any, str, dict[str, str]]:
    """The tokenizer of a model whose files are older than `tokenizer.json`, as transformers reads them.

    Returns:
        The tokenizer of the library `tokenizers`, its chat template or "", and its special tokens by name.

    """
    source = resolve(reference, weights=False)
    found = _read(
        reference,
        lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False),
        "there is no tokenizer, or a damaged one, with the model",
    )
    special = {name: str(text) for name, text in found.special_tokens_map.items() if isinstance(text, str)}
    return found.backend_tokenizer, found.chat_template or "", special


def resolve(reference: str, weights: bool = True) -> str:
    """Turn a reference into a folder that transformers loads.

    A GGUF file is converted once. A model of the hub is fetched once, without its weights where they are not needed.
    InputError for a model with an adapter.
    """
    found = locate(reference)
    if isinstance(found, Path) and found.is_file():
        return str(_converted(found, converted_folder(reference, found)))
    folder = found if isinstance(found, Path) else folder_of(found, weights)
    if folder is not found:
        check_sizes(folder)
    if (folder / ADAPTER_FILE).exists():  # transformers applies it only where a further library is installed
        raise InputError(
            f"{reference} holds an adapter ({ADAPTER_FILE}), which is not applied here: merge it into the weights, or "
            "remove its files"
        )
    return str(folder)


def _converted(path: Path, folder: Path) -> Path:
    """Folder with the dequantised copy of a GGUF file; made now if it is not there, or not whole.

    Of several processes one converts and the others wait for it. What an earlier one left behind when it was killed is
    removed, and so are copies that older versions of this program made of the file.
    """
    if is_whole(folder):
        return folder
    locks = folder.parent.with_name("locks")
    for each in (folder.parent, locks):
        each.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / folder.name):
        if not is_whole(folder):
            for left in (folder, *folder.parent.glob(f".{glob.escape(folder.name)}-*")):
                shutil.rmtree(left, ignore_errors=True)
            _convert(path, folder)
            for version in range(CONVERSION):
                older = folder.with_name(f"{folder.name.removesuffix(str(CONVERSION))}{version}")
                shutil.rmtree(older, ignore_errors=True)
    return folder


def _convert(path: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a new folder, which is whole or not there."""
    facts = read_facts(path)
    log.info("dequantising %s, once; it is kept in %s", path.name, folder)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        damaged = "this GGUF file is damaged, truncated, or of a kind that transformers cannot read:"
        model = _read_weights(str(path), str(path.parent), damaged, gguf_file=path.name, dtype=torch.float32)
        tokenizer = _read(str(path), lambda: AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), damaged)
        if (read := sum(weights.numel() for weights in model.parameters())) != facts.numbers:
            raise InputError(f"{path} holds {facts.numbers} numbers, of which {read} were read: use the model's folder")
        # What is saved is an ordinary float32 model: transformers must not take it for a quantised one.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
        if facts.rope is not None:
            model.config.rope_parameters = dict(facts.rope)
        # A file that names none has none: its configuration has got that of the first model of its family.
        model.config.eos_token_id = model.generation_config.eos_token_id = list(facts.end_ids) or None
        special = [token for token in facts.special if token in tokenizer.get_vocab()]
        tokenizer.add_special_tokens({"additional_special_tokens": special})
        tokenizer.add_bos_token = facts.begun
        tokenizer.update_post_processor()
        set_split(tokenizer.backend_tokenizer, facts.split)
        with writing(folder):
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read_weights(reference: str, source: str, problem: str = CANNOT_LOAD, **options: Any) -> PreTrainedModel:
    """Read a complete model. transformers alone would use random numbers for missing weights."""
    model, found = _read(
        reference,
        lambda: AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **options
        ),
        problem,
        None if "gguf_file" in options else Path(source),
    )
    if others := sorted(found["mismatched_keys"]):
        name, shape, asked = others[0]
        raise InputError(
            f"cannot load the model {reference}: its files hold {name} of the shape {list(shape)}, but its "
            f"configuration asks for {list(asked)}{in_brackets(shaping_fields(model.config, [name], shape=True))}"
        )
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"cannot load the model {reference}: its files lack the weights {missing[0]}{more}, which its "
            f"configuration asks for{in_brackets(shaping_fields(model.config, missing))}"
        )
    unread = sorted(name for name in found["unexpected_keys"] if not name.endswith(RECOMPUTED))
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise InputError(
            f"cannot load the model {reference}: its files hold the weights {unread[0]}{more}, which this "
            f"{model.config.model_type} model does not use{in_brackets(shaping_fields(model.config, unread))}: its "
            "results would be wrong"
        )
    loaded: PreTrainedModel = model
    loaded.config.return_dict = True  # or its modules would hand tuples to each other
    return loaded


def _read(reference: str, load: Callable[[], Any], problem: str = CANNOT_LOAD, folder: Path | None = None) -> Any:
    """Call a loader of transformers without its output. Its errors about bad files become one sentence.

    Args:
        reference: reference of the model, for the sentence.
        load: calls the loader.
        problem: beginning of the sentence; default `CANNOT_LOAD`.
        folder: folder of the model, whose configuration may be the reason; default None.

    """
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars; errors come as exceptions
            return load()
    except (KeyboardInterrupt, MemoryError, InputError):
        raise
    except SafetensorError as error:
        cause = f"a safetensors file is truncated or damaged ({first_line(error)}); fetch it again"
        raise InputError(f"{problem} {reference}: {cause}") from error
    except pickle.UnpicklingError as error:  # which advises to run the program in the file
        cause = "a .bin file is damaged, or holds a program, which is never run; use .safetensors files"
        raise InputError(f"{problem} {reference}: {cause}") from error
    except Exception as error:
        with contextlib.redirect_stderr(io.StringIO()):
            fields = failing_fields(folder) if folder is not None else []
        about = f"its configuration{in_brackets(fields)}: " if fields else ""
        cause = first_line(error)
        if "Meta tensors" in cause:  # of two weights to be tied, whose sizes are others
            cause = "the embeddings have another shape than its configuration says (vocab_size, hidden_size)"
        raise InputError(f"{problem} {reference}: {about}{cause}") from error
