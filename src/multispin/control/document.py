"""Reads TOML documents of bounded size and makes dataclasses of their tables; refusals name the file and the line."""

import copy
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from multispin.checks import shown
from multispin.errors import InputError, Where
from multispin.outside import read_file

MAX_FILE_BYTES = 16 * 2**20
"""Largest file that is read: some hundred thousand devices."""
MAX_DOTS = 16
"""Most dots in a key. Reading a key takes time quadratic in their number, and no document here needs more than one."""

_Kind = TypeVar("_Kind")
_PART = r"(?:[\w-]++|\"[^\"\n]*+\"|'[^'\n]*+')"
_DOTTED = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MAX_DOTS + 1}}}")
_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]\]?")
_KEY = re.compile(r"^\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=")


class Document:
    """The tables of one file, and where they stand in it.

    Attributes:
        source: name of the file, for refusals.
        tables: what was read, unchecked. It may be changed before it is checked.
    """

    def __init__(self, text: str, source: str) -> None:
        """Parse TOML text; `source` names it in refusals."""
        self.source = source
        if dotted := _DOTTED.search(text):
            line = text.count("\n", 0, dotted.start()) + 1
            raise InputError(
                f"{source}, line {line}: a key has more than {MAX_DOTS} dots; tables are not nested so deep"
            )
        try:
            self.tables: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{source} is not valid TOML: {error}") from error
        except RecursionError:
            raise InputError(f"{source}: values are nested too deep") from None
        except ValueError as error:  # tomllib lets the limit on digits through
            raise InputError(f"{source}: a number is too long") from error
        self._lines = _lines(text)

    def copy(self) -> "Document":
        """The same with tables of its own, to be changed."""
        other = copy.copy(self)
        other.tables = copy.deepcopy(self.tables)
        return other

    def at(self, where: Where) -> str:
        """`file, line n` of a value, of the nearest table around it that has a line, or the file alone.

        Args:
            where: path of the value, outermost key first.
        """
        for end in range(len(where), 0, -1):
            if (line := self._lines.get(where[:end])) is not None:
                return f"{self.source}, line {line}"
        return self.source

    def refuse(self, error: InputError, where: Where = ()) -> InputError:
        """The error with its place in front, to be raised.

        Args:
            error: what is wrong; its own path begins in the table `where`.
            where: path of that table; by default the whole document.
        """
        return InputError(f"{self.at((*where, *error.where))}: {error}", where=(*where, *error.where))

    def table(self, where: Where, header: str) -> dict[str, Any]:
        """The table at a path, which must be there and be a table.

        Args:
            where: path of the table, outermost key first.
            header: how the table is written, such as "[cell]", for the message.

        Raises:
            InputError: the table is missing, or something else stands there.
        """
        value: Any = self.tables
        for part in where:
            if isinstance(part, str) and part not in value:
                raise InputError(f"{self.source}: table {header} is missing", where=where)
            value = value[part]
        if not isinstance(value, dict):
            name = ".".join(part for part in where if isinstance(part, str))
            raise InputError(f"{self.at(where)}: {name} must be a table, written {header}", where=where)
        return value

    def build(
        self,
        kind: Callable[..., _Kind],
        where: Where,
        header: str,
        *,
        given: dict[str, Any] | None = None,
        known: Sequence[str] = (),
    ) -> _Kind:
        """A dataclass from the table at a path.

        Args:
            kind: the dataclass; its fields are the keys that the table may have.
            where: path of the table.
            header: how the table is written, such as "[cell]".
            given: values to build it from instead of the table's own, which were read in another way; default None.
            known: further keys to name when one is unknown; by default none.

        Raises:
            InputError: an unknown or a missing key, or a value that the dataclass refuses; with file and line.
        """
        table = self.table(where, header) if given is None else given
        own = fields(kind)  # type: ignore[arg-type]
        names = (*(item.name for item in own), *known)
        for key in table:
            if key not in names:
                raise self.refuse(
                    InputError(f"unknown key {shown(key)} in {header}; known are {', '.join(names)}", where=(key,)),
                    where,
                )
        for item in own:
            if item.default is MISSING and item.default_factory is MISSING and item.name not in table:
                raise self.refuse(InputError(f"key {item.name!r} is missing in {header}"), where)
        try:
            return kind(**table)
        except InputError as error:
            raise self.refuse(error, where) from error


def read_document(path: str | Path) -> Document:
    """Read a TOML file of at most `MAX_FILE_BYTES`; a byte order mark is skipped.

    Raises:
        InputError: the file cannot be read, is too long, or is no TOML; one sentence with the file and the line.
    """
    return Document(read_file(Path(path), MAX_FILE_BYTES), str(path))


def _lines(text: str) -> dict[Where, int]:
    """Lines of the tables and keys of a document, as far as each line by itself tells."""
    found: dict[Where, int] = {}
    counts: dict[Where, int] = {}
    table: Where = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            parts = header.group(2).split(".")
            table = ()
            for depth, part in enumerate(parts, start=1):
                table = (*table, part)
                found.setdefault(table, number)
                if depth == len(parts) and header.group(1) == "[[":
                    counts[table] = counts.get(table, 0) + 1
                if table in counts:
                    table = (*table, counts[table] - 1)
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, key.group(1)), number)
    return found
