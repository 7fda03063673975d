"""Checks the beginning of a GGUF file without the libraries that read the rest.

llama.cpp's library maps a whole file and takes any version for a known one, and the package `gguf` needs seconds for a
large vocabulary. So the version, and the end of the last tensor, are checked here first.
"""

import math
import mmap
import struct
from pathlib import Path

from multispin.errors import InputError

MAX_VALUES = 5_000_000
"""Most values in a file's keys, texts counted twice; a vocabulary of 256,000 tokens with merges has 1.5 million."""
VERSIONS = (2, 3)
"""Versions of the format that are read. They differ in nothing for a little-endian file."""
SPLIT = (
    "is one part of a split model (split.count): join them with llama.cpp's llama-gguf-split --merge, or draft with "
    "the first part, with all others beside it under the names that they were given"
)
"""End of the message about a file that is one part of a model."""
_MAGIC = b"GGUF"
_TEXT, _LIST = 8, 9
_NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number of each kind that a key can have."""
_LARGEST_BLOCK = (1, 8)
"""Numbers and bytes of a block, for kinds of tensors that only this library has."""
_DEFAULT_ALIGNMENT = 32
_ALIGNMENT_KEY = b"general.alignment"
_MAX_DIMENSIONS = 4


def check_header(path: Path) -> None:
    """InputError unless a file is there and begins as a little-endian GGUF file of a known version does."""
    if not path.is_file():
        raise InputError(f"there is no GGUF file {path}")
    try:
        with path.open("rb") as file:
            first = file.read(8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if first[:4] != _MAGIC:
        raise InputError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    version = int.from_bytes(first[4:], "little")
    if version and version % 2**16 == 0:
        raise InputError(f"{path} is a GGUF file for big-endian processors: convert the model for little-endian ones")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise InputError(f"{path} is a GGUF file of version {version}: only versions {known} can be read")


def check_end(path: Path) -> None:
    """InputError if a file goes on behind its last tensor, or has over `MAX_VALUES` values in its keys.

    A file that ends too early, or that has keys of an unknown kind, passes: llama.cpp tells what is wrong with it.

    Args:
        path: file that passes `check_header`.

    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            end, alignment = _Beginning(path, data).end_of_tensors()
        except (struct.error, KeyError, OverflowError):
            return
        if len(data) >= end + alignment:
            raise InputError(
                f"{path} has {len(data)} bytes, but its tensors end at byte {end}: this GGUF file is damaged"
            )


class _Beginning:
    """A GGUF file's keys and list of tensors, passed over from the first to the last."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._values = path, data, 4, 0

    def end_of_tensors(self) -> tuple[int, int]:
        """Byte behind the last tensor's last, and the alignment of tensors [byte].

        Raises:
            struct.error, KeyError, OverflowError: the file ends before, or has a key of a kind that GGUF lacks.

        """
        from gguf.constants import GGML_QUANT_SIZES

        blocks = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
        _version, tensors, keys = self._read("<IQQ")
        alignment, end = _DEFAULT_ALIGNMENT, 0
        for _ in range(keys):
            key, (kind,) = self._text(), self._read("<I")
            if key == _ALIGNMENT_KEY:
                (alignment,) = struct.unpack_from("<I", self._data, self._at)
            self._skip(kind)
        for _ in range(tensors):
            self._text()
            (dimensions,) = self._read("<I")
            if dimensions > _MAX_DIMENSIONS:
                raise KeyError(dimensions)
            *shape, kind, offset = self._read(f"<{dimensions}QIQ")
            numbers, size = blocks.get(kind, _LARGEST_BLOCK)
            end = max(end, offset + math.prod(shape) // numbers * size)
        alignment = max(alignment, 1)
        return -(-self._at // alignment) * alignment + end, alignment

    def _read(self, form: str) -> tuple[int, ...]:
        self._values += 1
        if self._values > MAX_VALUES:
            raise InputError(f"{self._path} has over {MAX_VALUES} values in its keys: this GGUF file is damaged")
        found = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return found

    def _text(self) -> bytes:
        """The next text, cut to what tells a known key from all others."""
        (length,) = self._read("<Q")
        start, self._at = self._at, self._at + length
        return self._data[start : start + min(length, len(_ALIGNMENT_KEY) + 1)]

    def _skip(self, kind: int) -> None:
        """Pass over a key's value."""
        if kind == _TEXT:
            self._text()
        elif kind == _LIST:
            inner, count = self._read("<IQ")
            if inner == _TEXT:
                for _ in range(count):
                    self._text()
            else:
                self._at += _NUMBERS[inner] * count
        else:
            self._at += _NUMBERS[kind]
