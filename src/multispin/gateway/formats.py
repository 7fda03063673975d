"""The form of a text: `response_format` as a grammar of the library that masks the target's distribution.

The grammar is written here and compiled elsewhere (`speculation.grammar`), so that this file needs no library.
"""

import json
from collections.abc import Mapping
from typing import Any

from multispin.errors import InputError

MAX_SCHEMA_BYTES = 32 * 1024
"""Largest JSON schema of a request, as JSON."""
MAX_SCHEMA_DEPTH = 32
"""Deepest nesting of objects and lists in a schema."""
WHITESPACE = r"[ \n\t]{0,16}"
"""Whitespace between the tokens of JSON: bounded, so that no text goes on with blanks for ever."""
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class FormatError(InputError):
    """A format that cannot be had; the message says why."""


def schema_of_format(given: Any) -> dict[str, Any] | None:
    """The JSON schema of a `response_format`, which bounds whitespace; None for plain text.

    Args:
        given: `{"type": "text"}`, `{"type": "json_object"}` or
            `{"type": "json_schema", "json_schema": {"name": …, "schema": …}}`; None for text.
    """
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return bounded_schema(_ANY_OBJECT)
    if kind == "json_schema":
        named = given.get("json_schema")
        if not isinstance(named, dict) or "schema" not in named:
            raise FormatError('response_format of type "json_schema" needs json_schema.schema, a JSON schema')
        return bounded_schema(named["schema"])
    raise FormatError(f'response_format has the type {str(kind)[:60]!r}: use "text", "json_object" or "json_schema"')


def bounded_schema(schema: Any) -> dict[str, Any]:
    """A JSON schema whose documents have little whitespace; FormatError if it is none, too large or too deep."""
    check_schema(schema)
    options = {"x-guidance": {"whitespace_pattern": WHITESPACE}}
    return {**schema, **options} if isinstance(schema, dict) else {"allOf": [schema], **options}


def grammar_of_schema(schema: Mapping[str, Any] | None) -> str:
    """The grammar of all JSON documents that fit a schema; empty for None, which is any text."""
    return "" if schema is None else json.dumps({"grammars": [{"json_schema": schema}]})


def check_schema(schema: Any) -> None:
    """FormatError if a schema is no schema, too large or too deep."""
    if not isinstance(schema, dict | bool):
        raise FormatError("a JSON schema must be an object")
    size, depth = len(json.dumps(schema)), _depth(schema)
    if size > MAX_SCHEMA_BYTES:
        raise FormatError(f"a JSON schema of {size} bytes is over the limit of {MAX_SCHEMA_BYTES}")
    if depth > MAX_SCHEMA_DEPTH:
        raise FormatError(f"a JSON schema {depth} levels deep is over the limit of {MAX_SCHEMA_DEPTH}")


def _depth(value: Any) -> int:
    """Levels of objects and lists, counted level by level: a hostile document must not fill the stack."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
    return depth
