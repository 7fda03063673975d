"""Tools: how they are described to the model, the form of its calls, and how calls are read from the growing text.

A call has the form that models of the Hermes and Qwen families use:

    <tool_call>
    {"name": "weather", "arguments": {"city": "Rome"}}
    </tool_call>

A grammar makes every call follow this form and the schema of its tool. With `tool_choice` "auto" the model may also
write text, and the grammar begins at `<tool_call>`. With a `response_format` as well, the answer is either calls or a
document of that format. For a chat template without tools, a first system message describes them.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from multispin.checks import shown
from multispin.errors import InputError
from multispin.gateway.formats import FormatError, held_schema
from multispin.outside import json_value

MAX_TOOLS = 64
"""Most tools of one request."""
MAX_CALLS = 8
"""Most calls in one answer; `parallel_tool_calls: false` allows one."""
OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"arguments"\s*:\s*')
_MAX_HEAD = 400  # characters of a call before its arguments; a longer head is taken for text


class Tool(NamedTuple):
    """A function that the model may call.

    Attributes:
        name: 1 … 64 letters, digits, "_", "." or "-".
        description: description of the tool, for the model.
        parameters: JSON schema of its arguments, an object.

    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def arguments_of(text: str) -> Any:
    """The arguments of a call as chat templates take them: the value of their JSON, or the text where it is none."""
    try:
        return json_value(text or "{}", "a call")
    except InputError:
        return text


class ToolUse(NamedTuple):
    """The tools of a request and how they may be used.

    Attributes:
        tools: all tools that are described to the model.
        required: whether the answer must consist of calls only.
        only: names of the tools that may be called; empty: all.
        most_calls: most calls in an answer.
        form: JSON schema of an answer without calls; None: any text.

    """

    tools: tuple[Tool, ...]
    required: bool = False
    only: frozenset[str] = frozenset()
    most_calls: int = MAX_CALLS
    form: Mapping[str, Any] | None = None

    def grammar(self) -> str:
        """The grammar of the answer."""
        # Each schema is a document of its own, so that its references point into itself.
        guidance = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
        able = [tool for tool in self.tools if not self.only or tool.name in self.only]
        forms = [{**held_schema(tool.parameters), "type": "object", "x-guidance": guidance} for tool in able]
        rules = "".join(
            f'body{k}: "{{\\"name\\": \\"{tool.name}\\", \\"arguments\\": " arguments{k} "}}"\n'
            f"arguments{k}: %json {json.dumps(form)}\n"
            for k, (tool, form) in enumerate(zip(able, forms, strict=True))
        )
        rules += "body: " + " | ".join(f"body{k}" for k in range(len(able))) + "\n"
        further = self.most_calls - 1
        if self.required or self.form is not None:
            more = f' ("\\n" call){{0,{further}}}' if further else ""
            form = "" if self.required else f" | form\nform: %json {json.dumps(self.form)}"
            return f'start: call{more}{form}\ncall: "{OPEN_CALL}\\n" body "\\n{CLOSE_CALL}"\n{rules}'
        more = f"call{{0,{further}}} " if further else ""
        return (
            f"start: {more}(call | rest)\nrest: TEXT\nTEXT: /(.|\\n)*/\n"
            f'open[lazy]: TEXT "{OPEN_CALL}"\ncall: open "\\n" body "\\n{CLOSE_CALL}"\n{rules}'
        )

    def told(self) -> str:
        """A system message that describes the tools, for a chat template without tools."""
        listed = "\n".join(json.dumps(tool.document(), ensure_ascii=False) for tool in self.tools)
        return (
            "You may call functions to help with the user's request. These are their signatures:\n"
            f"<tools>\n{listed}\n</tools>\n"
            "For each call, write a JSON object with the function's name and arguments:\n"
            f'{OPEN_CALL}\n{{"name": "NAME", "arguments": {{…}}}}\n{CLOSE_CALL}'
        )


def read_tools(
    given: Any, choice: Any, parallel: bool | None, flat: bool = False, form: Mapping[str, Any] | None = None
) -> ToolUse | None:
    """The tools of a request; None if there are none or none may be used. FormatError names what is wrong.

    Args:
        given: the field `tools`.
        choice: the field `tool_choice`.
        parallel: the field `parallel_tool_calls`.
        flat: whether a tool's fields stand beside its type, as in `/v1/responses`, not under `function`; default no.
        form: JSON schema of an answer without calls; default any text.
    """
    if not given:
        if choice not in (None, "none", "auto"):
            raise FormatError("tool_choice asks for a call, but tools is empty: give at least one tool")
        return None
    if not isinstance(given, list) or len(given) > MAX_TOOLS:
        raise FormatError(f"tools must be a list of at most {MAX_TOOLS} tools")
    tools = tuple(_tool(each, flat) for each in given)
    if len({tool.name for tool in tools}) < len(tools):
        raise FormatError("two tools have the same name: give each its own")
    most, only = 1 if parallel is False else MAX_CALLS, frozenset[str]()
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        inner = choice if flat else choice.get("allowed_tools")
        named = inner.get("tools") if isinstance(inner, dict) else None
        only = frozenset(_chosen(each, flat, tools) for each in named) if isinstance(named, list) else only
        choice = inner.get("mode") if isinstance(inner, dict) and only else choice
    if choice in (None, "auto", "required"):
        return ToolUse(tools, choice == "required", only, most, form)
    if choice == "none":
        return None
    return ToolUse(tools, True, frozenset({_chosen(choice, flat, tools)}), 1)


def _chosen(choice: Any, flat: bool, tools: Sequence[Tool]) -> str:
    """The name of the tool that a choice names."""
    name = None
    if isinstance(choice, dict) and choice.get("type") == "function":
        inner = choice if flat else choice.get("function")
        name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or name not in {tool.name for tool in tools}:
        raise FormatError('tool_choice must be "none", "auto" or "required", or name one of the tools or allowed_tools')
    return name


def _tool(given: Any, flat: bool) -> Tool:
    kind = given.get("type") if isinstance(given, dict) else None
    if kind != "function":
        raise FormatError(f'a tool has the type {shown(kind)}: only "function" is supported')
    function = given if flat else given.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        where = "beside its type, as in Responses" if flat else 'under "function"'
        raise FormatError(f"a tool has no name: give it {where}")
    name, description = function["name"], function.get("description") or ""
    if not _NAME.fullmatch(name):
        raise FormatError(f"the tool name {shown(name)} is wrong: use 1 … 64 letters, digits, '_', '.' or '-'")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise FormatError(f'the parameters of the tool {name!r} must be a JSON schema of type "object"')
    held_schema(parameters)  # refuses what cannot be enforced
    if not isinstance(description, str):
        raise FormatError(f"the description of the tool {name!r} must be a string")
    return Tool(name, description, parameters)


class Call(NamedTuple):
    """A part of a tool call.

    Attributes:
        number: number of the call in the answer, from 0.
        name: name of the tool in the first part of each call; empty in later ones.
        id: identifier of the call in its first part; empty in later ones.
        arguments: further JSON of the arguments.

    """

    number: int
    name: str = ""
    id: str = ""
    arguments: str = ""


class CallReader:
    """Separates calls from text in an answer that comes in pieces.

    Attributes:
        calls: number of calls so far.

    """

    def __init__(self) -> None:
        self.calls = 0
        self._held = ""  # text that may still become part of a call
        self._state = "text"
        self._depth = 0
        self._quoted = self._escaped = False

    @property
    def cut(self) -> bool:
        """Whether the arguments of the newest call are incomplete."""
        return self._state == "arguments"

    def push(self, text: str) -> tuple[str, list[Call]]:
        """Take further text, and return its plain text and its parts of calls."""
        self._held += text
        plain, parts = "", list[Call]()
        while True:
            before = self._state, len(self._held)
            match self._state:
                case "text":
                    plain += self._text()
                case "head":
                    plain += self._head(parts)
                case "arguments":
                    self._arguments(parts)
                case "tail":
                    self._tail()
            if (self._state, len(self._held)) == before:
                return plain, parts

    def end(self) -> str:
        """The plain text that was held back, at the end of the answer. A call that was cut in its head leaves none."""
        held, self._held = self._held, ""
        return held if self._state == "text" else ""

    def _text(self) -> str:
        if self.calls:  # blanks between calls are dropped
            self._held = self._held.lstrip()
        place = self._held.find(OPEN_CALL)
        if place >= 0:
            plain, self._held, self._state = self._held[:place], self._held[place + len(OPEN_CALL) :], "head"
            return plain
        kept = next((n for n in range(len(OPEN_CALL) - 1, 0, -1) if self._held.endswith(OPEN_CALL[:n])), 0)
        end = len(self._held) - kept
        plain, self._held = self._held[:end], self._held[end:]
        return plain

    def _head(self, parts: list[Call]) -> str:
        found = _HEAD.match(self._held)
        if found is not None:
            parts.append(Call(self.calls, found[1], "call_" + secrets.token_hex(12)))
            self._held, self._state = self._held[found.end() :], "arguments"
            self._depth, self._quoted, self._escaped = 0, False, False
            self.calls += 1
        elif len(self._held) > _MAX_HEAD:
            plain, self._held, self._state = OPEN_CALL + self._held, "", "text"
            return plain
        return ""

    def _arguments(self, parts: list[Call]) -> None:
        if self._depth == 0:  # blanks before them
            self._held = self._held.lstrip()
        for place, character in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    parts.append(Call(self.calls - 1, arguments=self._held[: place + 1]))
                    self._held, self._state = self._held[place + 1 :], "tail"
                    return
        if self._held:
            parts.append(Call(self.calls - 1, arguments=self._held))
            self._held = ""

    def _tail(self) -> None:
        _, closed, after = self._held.partition(CLOSE_CALL)
        if closed:
            self._held, self._state = after, "text"


def plain_messages(messages: Sequence[Mapping[str, Any]], use: ToolUse | None) -> list[dict[str, Any]]:
    """Messages for a chat template without tools: tools, calls and results become text.

    Args:
        messages: the conversation, with `tool_calls` and messages of the role "tool".
        use: the tools of the request.
    """
    told = [{"role": "system", "content": use.told()}] if use is not None else []
    plain: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            plain.append({"role": "user", "content": content})
        elif calls := message.get("tool_calls"):
            written = "\n".join(
                f"{OPEN_CALL}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CLOSE_CALL}" for call in calls
            )
            plain.append({"role": message["role"], "content": f"{message.get('content') or ''}{written}"})
        else:
            plain.append({"role": message["role"], "content": message["content"]})
    if told and plain and plain[0]["role"] == "system":
        told[0]["content"] = f"{plain.pop(0)['content']}\n\n{told[0]['content']}"
    return [*told, *plain]
