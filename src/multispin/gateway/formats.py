"""Turns `response_format` into a grammar for llguidance, which masks the target's distribution.

The grammar is written here and compiled in `speculation.grammar`, so that this file does not need the library. The
library refuses most of what it cannot enforce. What it would enforce only in part is tightened or refused here.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from multispin.checks import shown
from multispin.errors import InputError

MAX_SCHEMA_BYTES = 32 * 1024
"""Largest JSON schema of a request, as JSON [bytes]."""
MAX_SCHEMA_DEPTH = 32
"""Deepest nesting of objects and lists in a schema."""
WHITESPACE = r"[ \n\t]{0,16}"
"""Whitespace between JSON's tokens, bounded so that no text goes on with blanks for ever."""
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_DIALECT = re.compile(r"https?://json-schema\.org/(draft-0[467]|draft/20(19-09|20-12))/schema#?")
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keys whose value has a schema for each name."""
_VALUES = frozenset({"enum", "const", "default", "examples", "example"})
"""Keys whose value is no schema, whatever it looks like."""
_FORMATS = frozenset(
    (
        *("date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
        *("uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer"),
        *("relative-json-pointer", "regex"),
    )
)
"""The formats of JSON Schema; any other, such as OpenAPI's "int32", is a remark, which a validator ignores."""
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_MAX_INTEGER = 2**63 - 1
_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE = f"^([0-9]{{4}}-(0[13-9]|1[0-2]|02-([01][0-9]|2[0-8]))|{_LEAP}-02-29)"
_SECONDS = "[0-9]{2}:[0-9]{2}:[0-5]"  # RFC 3339 has a second 60, but only where one was inserted
_PATTERNS = {"date": (_DATE,), "time": (f"^{_SECONDS}",), "date-time": (_DATE, f"^.{{11}}{_SECONDS}")}
"""Wrong times that the library lets through: 29 February in any year, a second 60 at any time."""


class FormatError(InputError):
    """A format that is wrong or not supported; the message says why."""


def schema_of_format(given: Any) -> dict[str, Any] | None:
    """The JSON schema of a `response_format`, with bounded whitespace; None for plain text.

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
            raise FormatError('a format of the type "json_schema" needs a JSON schema under "schema"')
        return bounded_schema(named["schema"])
    raise FormatError(f'a format has the type {shown(kind)}: use "text", "json_object" or "json_schema"')


def bounded_schema(schema: Any) -> dict[str, Any]:
    """A JSON schema with bounded whitespace; FormatError if it is malformed, too large or too deep."""
    schema = held_schema(schema)
    options = {"x-guidance": {"whitespace_pattern": WHITESPACE}}
    return {**schema, **options} if isinstance(schema, dict) else {"allOf": [schema], **options}


def grammar_of_schema(schema: Mapping[str, Any] | None) -> str:
    """The grammar of all JSON documents that fit a schema; empty for None, which is any text."""
    return "" if schema is None else json.dumps({"grammars": [{"json_schema": schema}]})


def held_schema(schema: Any) -> Any:
    """A schema for the same documents that llguidance enforces exactly.

    Args:
        schema: JSON schema of a client, an object or a bool.

    Raises:
        FormatError: it is malformed, too large or too deep, or has parts that the library would enforce only in part.

    """
    if not isinstance(schema, dict | bool):
        raise FormatError("a JSON schema must be an object")
    size, depth = len(written := json.dumps(schema)), _depth(schema)
    if size > MAX_SCHEMA_BYTES:
        raise FormatError(f"a JSON schema has {size} bytes; the limit is {MAX_SCHEMA_BYTES}")
    if depth > MAX_SCHEMA_DEPTH:
        raise FormatError(f"a JSON schema is {depth} levels deep; the limit is {MAX_SCHEMA_DEPTH}")
    return _held(schema, '"patternProperties"' in written)


def _held(given: Any, has_patterns: bool) -> Any:
    """Rewrite one or several schemas, inner ones included. The library forbids a name that fits two patterns."""
    if isinstance(given, list):
        return [_held(each, has_patterns) for each in given]
    if not isinstance(given, dict):
        return given
    held = dict(given)
    for key, part in given.items():
        if key in _MAPS and isinstance(part, dict):
            held[key] = {name: _held(each, has_patterns) for name, each in part.items()}
        elif key not in _VALUES:
            held[key] = _held(part, has_patterns)
    _check_dialect(given.get("$schema"))
    for key in _BOUNDS:
        _check_bound(key, given.get(key))
    _check_step(given.get("multipleOf"))
    _check_least(given)
    kind, others = given.get("format"), held.get("allOf", [])
    if isinstance(kind, str) and kind not in _FORMATS:
        del held["format"]
    if isinstance(kind, str) and isinstance(others, list):
        further = [{"pattern": each} for each in _PATTERNS.get(kind, ())]
        held |= {"allOf": [*others, *further]} if further else {}
    if given.get("properties") and not has_patterns and given.get("additionalProperties", True) in (True, {}):
        # The library lets free names contain escapes, so "\\u0061" would be a second "a"; names of a pattern may not.
        held |= {"patternProperties": {"": True}, "additionalProperties": False}
    return held


def _check_dialect(named: Any) -> None:
    if isinstance(named, str) and not _DIALECT.fullmatch(named):
        raise FormatError(f"$schema = {shown(named)} is not supported: use draft 4, 6, 7, 2019-09 or 2020-12")


def _check_bound(key: str, bound: Any) -> None:
    """FormatError for a bound that the library would round to a wider one, since it reads bounds as 64-bit floats."""
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        return
    beyond = (key == "maximum" and bound >= _MAX_INTEGER) or (key == "exclusiveMaximum" and bound > _MAX_INTEGER)
    if not beyond and (abs(bound) > _MAX_INTEGER or float(bound) != bound):
        raise FormatError(f"{key} = {bound} of a JSON schema cannot be enforced exactly: use a number up to 2^53")


def _check_step(step: Any) -> None:
    """FormatError for a `multipleOf` that JSON Schema forbids; the library lets a negative one through."""
    if isinstance(step, int | float) and not isinstance(step, bool) and step <= 0:
        raise FormatError(f"multipleOf = {step} of a JSON schema must be greater than 0")


def _check_least(schema: Mapping[str, Any]) -> None:
    """FormatError for a `minProperties` that one free name, written twice, could seem to fulfil."""
    least, required = schema.get("minProperties"), schema.get("required")
    free = schema.get("additionalProperties", True) is not False or schema.get("patternProperties")
    sure = len(required) if isinstance(required, list) else 0
    if isinstance(least, int | float) and free and least > sure + 1:
        raise FormatError(f"minProperties = {least} is not supported with free names, since one might be written twice")


def _depth(value: Any) -> int:
    """Levels of objects and lists, counted without recursion, since a hostile document must not overflow the stack."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
    return depth
