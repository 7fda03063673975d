"""Loading: a reference (the embedded model, a folder, a GGUF file, a Hub id) becomes a model and its tokenizer.

A GGUF file is dequantised once, to float32, and kept as safetensors in the user's cache under its SHA-256; after
that it loads like any folder, mapped into memory and shared by all processes that use it.
"""

import contextlib
import hashlib
import inspect
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from multispin.errors import InputError
from multispin.models.families import check_family, longest_text
from multispin.models.quantised import whole_weights
from multispin.models.references import EMBEDDED, EMBEDDED_SHA256, cache_folder, locate, sha256_of

CANNOT_LOAD = "cannot load the model"

RECOMPUTED = ("rotary_emb.inv_freq",)
"""Ends of names of tensors that old files hold and that the configuration says as well."""

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8 = "int8"
"""Beside them: weights and sums of linear layers in whole numbers, the rest float32 (see `quantised`)."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, and a fingerprint by which both ends know that they mean the same ids."""

    backend: Any
    fingerprint: str
    stop_ids: tuple[int, ...]
    size: int

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text, with the special tokens that the tokenizer puts around one."""
        return list(self.backend(text).input_ids)

    def encode_messages(
        self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Ids of a chat in the model's template, up to where the answer begins.

        Args:
            messages: each with a `role` and its `content`.
            variables: further values for the template, such as `enable_thinking`; default none.

        Raises:
            InputError: the model has no template, a variable has a name of its own meaning, or the template refuses.
        """
        if not self.backend.chat_template:
            raise InputError("this model has no chat template: send it a plain prompt instead of messages")
        variables = dict(variables or {})
        reserved = inspect.signature(self.backend.apply_chat_template).parameters.keys() & variables.keys()
        if reserved:
            raise InputError(f"a template variable cannot be called {min(reserved)!r}: it has a meaning of its own")
        try:
            rendered = self.backend.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **variables
            )
        except Exception as error:  # a template is a program of its author's
            raise InputError(f"the model's chat template refuses these messages: {_first_line(error)}") from error
        return list(self.backend(rendered, add_special_tokens=False).input_ids)

    def encode_chat(self, text: str) -> list[int]:
        """Ids of one user message in the model's chat template, or of the plain text if the model has none."""
        if not self.backend.chat_template:
            return self.encode(text)
        return self.encode_messages([{"role": "user", "content": text}])

    def chat_frame(self) -> tuple[list[int], list[int]] | None:
        """Ids that stand before and after a user message in the chat template; None without a template."""
        if not self.backend.chat_template:
            return None
        mark = "\ue000"  # a private character, in no template
        message = [{"role": "user", "content": mark}]
        rendered = self.backend.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before, _, after = rendered.partition(mark)
        encode = [list(self.backend(part, add_special_tokens=False).input_ids) for part in (before, after)]
        return encode[0], encode[1]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))


def load_model(reference: str, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """The causal language model of `reference`, in evaluation mode; InputError says why it cannot be had."""
    if dtype not in (*DTYPES, INT8):
        raise InputError(f"dtype = {dtype!r} is not one of {', '.join((*DTYPES, INT8))}")
    source = resolve(reference)
    check_family(_read(reference, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False)))
    model = _read_weights(reference, source, dtype=DTYPES.get(dtype, torch.float32))
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot put {reference} on device {device!r}: {_first_line(error)}") from None
    return whole_weights(model) if dtype == INT8 else model


def known_positions(reference: str) -> int | None:
    """Longest text [tokens] that the model of `reference` knows, from its configuration alone; None if it says none."""
    source = resolve(reference)
    config = _read(reference, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False))
    return longest_text(config.get_text_config())


def load_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of `reference` and its fingerprint: SHA-256 over all (id, token) pairs, 16 hex digits."""
    source = resolve(reference)
    config = _read(reference, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False))
    backend = _read(
        reference,
        lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False),
        "there is no tokenizer, or a damaged one, with the model",
    )
    vocabulary = sorted((index, token) for token, index in backend.get_vocab().items())
    digest = hashlib.sha256(json.dumps(vocabulary, ensure_ascii=True).encode()).hexdigest()
    stops: list[int] = []
    for value in (backend.eos_token_id, getattr(config, "eos_token_id", None)):
        stops += value if isinstance(value, list) else [value] if value is not None else []
    return Tokenizer(backend, digest[:16], tuple(dict.fromkeys(stops)), len(backend))


def resolve(reference: str) -> str:
    """Turn a reference into a folder or Hub id that transformers loads; a GGUF file is converted once."""
    found = locate(reference)
    if isinstance(found, Path) and found.is_file():
        return str(_converted(found, EMBEDDED_SHA256 if reference == EMBEDDED else sha256_of(found)))
    return str(found)


def _converted(path: Path, sha256: str) -> Path:
    """Folder with the dequantised copy of a GGUF file; made now if it is not there, never half-made."""
    folder = cache_folder() / "models" / f"{path.stem}-{sha256[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    log.info("dequantising %s, once; it is kept in %s", path.name, folder)
    work = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=folder.parent))
    try:
        damaged = "this GGUF file is damaged, truncated, or of a kind that transformers cannot read:"
        model = _read_weights(str(path), str(path.parent), damaged, gguf_file=path.name, dtype=torch.float32)
        tokenizer = _read(str(path), lambda: AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), damaged)
        # What is saved is an ordinary float32 model: transformers must not take it for a quantised one.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        # Two processes may convert at once; the first rename wins and both copies are equal.
        with contextlib.suppress(OSError):
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _read_weights(reference: str, source: str, problem: str = CANNOT_LOAD, **options: Any) -> PreTrainedModel:
    """Read a model whole; transformers alone would put random numbers where a file lacks weights."""
    model, found = _read(
        reference,
        lambda: AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, output_loading_info=True, **options
        ),
        problem,
    )
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"cannot load the model {reference}: its files lack the weights {missing[0]}{more}")
    unread = sorted(name for name in found["unexpected_keys"] if not name.endswith(RECOMPUTED))
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise InputError(
            f"cannot load the model {reference}: its files hold the weights {unread[0]}{more}, which this "
            f"{model.config.model_type} model does not use: it would compute something else than it was made to"
        )
    loaded: PreTrainedModel = model
    return loaded


def _read(reference: str, load: Callable[[], Any], problem: str = CANNOT_LOAD) -> Any:
    """Call a loader of transformers, quietly; whatever it makes of bad files becomes one sentence."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars; errors come as exceptions
            return load()
    except (KeyboardInterrupt, MemoryError):
        raise
    except SafetensorError as error:
        cause = f"a safetensors file is truncated or damaged ({_first_line(error)}); fetch it again"
        raise InputError(f"{problem} {reference}: {cause}") from error
    except Exception as error:
        raise InputError(f"{problem} {reference}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".: ")[:300]
