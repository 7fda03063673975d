"""Text from outside: read in one place, and made harmless in one place before a person's terminal shows it.

Names, reasons and generated texts come from other machines. Shown as they are, they could move the cursor, change the
window's title or forge a line of a log; and a byte that is no UTF-8, or a character that a terminal cannot encode, must
not end a program that only wanted to tell somebody.
"""

import codecs
import contextlib
import io
import json
import numbers
import os
import re
import select
import stat
import sys
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from multispin.errors import InputError

MAX_TEXT_BYTES = 16 * 2**20
"""Most bytes that are read from a file or from standard input; more than any prompt can use."""
MAX_PIPE_WAIT_S = 20.0
"""Longest time for which a pipe that was named as a file may hold nothing [s]."""

_COMPLAINT_END = 1000
"""Characters of a very long complaint's beginning, and of its end, that are shown."""

_UNSAFE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""Control characters except tab and line feed, line separators, direction overrides, and lone surrogates."""
_UNSAFE_IN_TEXT = re.compile(f"[{_UNSAFE}]")
_UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff"
    "\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
"""Characters that show nothing: two names that differ in them look alike. Texts may need them, as Thai does."""
_UNSAFE_IN_LINE = re.compile(f"[{_UNSAFE}{_UNSEEN}\t\n]")
_TAG = re.compile(r"(\\*)(\[[a-z#/@][^[]*?])")
"""Text that rich takes for markup, with the backslashes before it."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and how Python calls the encodings that they begin."""


class TwiceError(InputError):
    """An object in a JSON text holds a key twice, of which readers silently take the first or the last."""


def decode(data: bytes, source: str) -> str:
    """Text of bytes: UTF-8, or what their byte order mark says.

    Args:
        data: bytes that were read.
        source: where it comes from, as the subject of a sentence: "standard input".

    Raises:
        InputError: the bytes are not such text; the message names the first wrong byte and the remedy.

    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start}; convert it, for "
            "example with `iconv -f latin1 -t utf-8`"
        ) from None


def read(stream: BinaryIO, source: str, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """All text of a stream (see `decode`); InputError if it is longer than `most_bytes`."""
    data = stream.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise InputError(f"{source} is longer than {most_bytes} bytes, the limit")
    return decode(data, source)


def read_standard_input() -> str:
    """All text of standard input (see `read`); InputError if it was closed when the program began."""
    if sys.stdin is None:
        raise InputError("standard input is closed: there is no text to read")
    return read(sys.stdin.buffer, "standard input")


def read_file(path: Path, most_bytes: int = MAX_TEXT_BYTES, pipe_wait_s: float = MAX_PIPE_WAIT_S) -> str:
    """All text of a file (see `decode`).

    Args:
        path: the file, or a pipe.
        most_bytes: most bytes that it may hold [bytes]; default `MAX_TEXT_BYTES`.
        pipe_wait_s: how long a pipe may hold nothing [s]; default `MAX_PIPE_WAIT_S`.

    Raises:
        InputError: the file cannot be read, is too long or is not text; the message names it.

    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            _await_writer(file, path, pipe_wait_s)
            return read(file, str(path), most_bytes)
    except (OSError, ValueError) as error:  # a name may hold a null character
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def check_file(path: Path, most_bytes: int) -> None:
    """InputError unless a library may read this file to its end: a device file has none, and a pipe no beginning.

    Args:
        path: file to read.
        most_bytes: most bytes that it may hold [bytes].

    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is not a file")
        if found.st_size > most_bytes:
            raise InputError(f"{path} is longer than {most_bytes} bytes, the limit")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _without_waiting(path: str, flags: int) -> int:
    """Open a file, and a pipe although nobody may ever write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _await_writer(file: BinaryIO, path: Path, wait_s: float) -> None:
    """Wait until something is written into a pipe that was named as a file; InputError if nothing is."""
    if not hasattr(os, "O_NONBLOCK"):  # Windows
        return
    if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) and not select.select([file], [], [], wait_s)[0]:
        raise InputError(f"{path} is a pipe into which nobody has written for {wait_s:.0f} s")
    os.set_blocking(file.fileno(), True)


def user_path(text: str) -> Path:
    """A path in which ~ stands for the home folder; InputError if there is none, as in some containers."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: there is no home folder here; set HOME, or write the whole path") from None


def json_value(text: str, source: str) -> Any:
    """The value in a JSON text; InputError if it is damaged, too deep, or holds an overlong number or a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise InputError(f"{source} is nested too deeply") from None
    except TwiceError as error:
        raise TwiceError(f"{source}: {error}") from None
    except ValueError as error:
        raise InputError(f"{source} is not JSON: {str(error).splitlines()[0]}") from None


def check_keys(text: str | bytes, where: str = "") -> None:
    """TwiceError if an object in a JSON text holds a key twice; other faults are left to the text's reader."""
    try:
        json.loads(text, object_pairs_hook=_once, parse_int=str, parse_float=str)
    except TwiceError as error:
        raise TwiceError(f"{where}{error}") from None
    except (ValueError, RecursionError):
        pass


def json_or_text(text: str, source: str) -> Any:
    """The value in a JSON text, or the text itself where it is none; TwiceError if it holds a key twice."""
    try:
        return json_value(text, source)
    except TwiceError:
        raise
    except InputError:
        return text


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; TwiceError if a key comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counted = Counter(name for name, _ in pairs)  # a stranger's body may hold very many keys
        twice = next(name for name in counted if counted[name] > 1)
        raise TwiceError(f"the key {twice[:60]!r} comes twice in one object")
    return found


def toml_value(value: object) -> str:
    """A switch, a number, a text, or a list of these, as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, int):
        return repr(value)
    if isinstance(value, numbers.Real):
        return repr(float(value))  # a number of numpy writes itself with its type
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")  # which TOML wants escaped too


def whole_characters(text: str, source: str) -> str:
    """The text itself; InputError for lone surrogates, which stand for bytes of a command line that are not text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{source} is not UTF-8 text: it holds halves of characters, or comes from a terminal or script that uses "
            "another encoding"
        ) from None
    return text


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey; its lines stay lines."""
    return _UNSAFE_IN_TEXT.sub(_escaped, text)


def one_line(text: str) -> str:
    """The text with everything escaped that a terminal would obey, line feeds included: for names and log lines."""
    return _UNSAFE_IN_LINE.sub(_escaped, text)


def first_line(why: BaseException | str) -> str:
    """The first line of what a library gives as its reason, at most 300 characters, to stand inside a sentence.

    Where that line ends in a colon, the next ones are what it announces, and follow.
    """
    text = str(why).strip() or (type(why).__name__ if isinstance(why, BaseException) else "no reason given")
    first, *others = (line.strip() for line in text.splitlines())
    return (" ".join([first, *others]) if first.endswith(":") else first).rstrip(".: ")[:300]


def in_markup(text: str) -> str:
    """`one_line` for a text in which rich looks for markup: what looks like a tag is shown as it is."""
    escaped = _TAG.sub(lambda tag: 2 * tag[1] + "\\" + tag[2], one_line(text))
    return escaped + "\\" if (len(escaped) - len(escaped.rstrip("\\"))) % 2 else escaped


def never_fails(*streams: TextIO) -> None:
    """Let streams escape the characters that their encoding lacks, instead of ending the program."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


class _Unheard(io.FileIO):
    """A descriptor on which writing never fails: what cannot be written is lost."""

    def write(self, data: Any) -> int:
        """Write the data if that is possible, and always report success."""
        written = None
        with contextlib.suppress(OSError):
            written = super().write(data)
        return len(data) if written is None else written


def unheard(stream: TextIO) -> TextIO:
    """A stream for remarks. Writing to it never fails, even on a full disk or after its reader has gone.

    Args:
        stream: standard error; one without a descriptor of its own is returned as it is.

    """
    try:
        raw = _Unheard(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError, AttributeError):
        return stream
    encoding = stream.encoding or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=True)


def complain(message: str, who: str = "multispin") -> None:
    """Print one line on standard error; do nothing where that is impossible (a full disk, a reader that has gone).

    A very long message, which quotes a very long value, is cut in its middle: its end says what is wrong.
    """
    said = one_line(message)
    if len(said) > 2 * _COMPLAINT_END:
        said = f"{said[:_COMPLAINT_END]} … {said[-_COMPLAINT_END:]}"
    with contextlib.suppress(OSError, ValueError):
        print(f"{who}: {said}", file=sys.stderr, flush=True)


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
