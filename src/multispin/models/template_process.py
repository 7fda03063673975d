"""Writes chats with a chat template in a separate process, since a template is a program from outside.

`models.template` runs it as a script, so that nothing of the package is imported. It writes a line when ready, and
answers each line on standard input, a JSON object, by one on standard output. Memory is limited here, time by the
process that started it.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """`{% generation %}` marks what an assistant says, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' filter writes it: Jinja's own escapes what is for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@lru_cache(maxsize=4)
def _compiled(template: str) -> Callable[..., str]:
    """A chat template as a function of its variables, with the additions that templates on the hub rely on."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template).render


def _answer(template: str, variables: dict[str, Any], most_characters: int) -> dict[str, str]:
    """The text, or what is wrong: of the template itself ("damaged"), with these messages ("refused"), or its size."""
    try:
        try:
            render = _compiled(template)
        except jinja2.TemplateError as error:
            return {"damaged": _first_line(error)}
        text = render(variables)
    except MemoryError:
        return {"large": ""}
    except Exception as error:  # whatever its author wrote
        return {"refused": _first_line(error)}
    return {"text": text} if len(text) <= most_characters else {"large": ""}


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".: ")[:300]


def main(most_bytes: int, most_characters: int) -> None:
    """Answer every line, until there are no more."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_answer(asked["template"], asked["variables"], most_characters)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
