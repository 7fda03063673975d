"""Keeps llama.cpp's library from printing, and keeps its first message about an error."""

import ctypes
from typing import Any

from multispin.outside import one_line

MAX_REASON_BYTES = 200
"""Most characters of the library's own message that an error quotes."""
_ERROR_LEVEL = 4
_said: list[bytes] = []


def listen(library: Any) -> None:
    """Keep the library from printing. It still writes some words itself; they go to the process's standard error."""
    library._lib.llama_log_set(_QUIET, None)


def forget() -> None:
    """Forget what was said: another file is loaded."""
    _said.clear()


def reason() -> str:
    """The library's first words about an error since `forget`, fit for a terminal; they may quote the file."""
    return one_line(_said[0].decode(errors="replace").strip()) if _said else "it gave no reason"


def _note(level: int, text: bytes | None, _data: object) -> None:
    if level == _ERROR_LEVEL and text and not _said:
        _said.append(text[:MAX_REASON_BYTES])


Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_QUIET = Log(_note)  # the library keeps the pointer, so it lives as long as this module
