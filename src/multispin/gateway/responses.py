"""`/v1/responses`, without memory: the body, the document, and the events of a stream as OpenAI's clients read them."""

import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, ClassVar

from multispin.checks import shown
from multispin.gateway.answers import DraftStatistics
from multispin.gateway.bodies import Sampling
from multispin.gateway.formats import FormatError, schema_of_format
from multispin.gateway.logprobs import Scored, response_logprobs
from multispin.gateway.messages import Message, TextPart, plain_role, template_variables
from multispin.gateway.parts import Part
from multispin.gateway.refusals import BadRequestError, named
from multispin.gateway.source import Piece
from multispin.gateway.tools import ToolUse, arguments_of, read_tools

MAX_ITEMS = 1024
"""Most items of an input."""
LOGPROBS = "message.output_text.logprobs"
"""Value of `include` that asks for log probabilities."""
NEVER_THERE = frozenset({
    "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results",
    "web_search_call.action.sources", "message.input_image.image_url", "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
})  # fmt: skip
"""Other allowed values of `include`: parts of items that this server never sends."""


class ResponsesBody(Sampling, frozen=True, kw_only=True):
    """The body of `/v1/responses`; the sampling fields are those of chats."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    reasoning: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    top_logprobs: int | None = None
    metadata: dict[str, Any] | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "previous_response_id": (None,),
        "conversation": (None,),
        "background": (None, False),
        "prompt": (None,),
        "truncation": (None, "disabled"),
        "max_tool_calls": (None,),
        "n": (None, 1),
        "max_tokens": (None,),
        "response_format": (None,),
        "logprobs": (None, False),
        "context_management": (None,),
    }
    prompt_field: ClassVar[str] = "input"
    form_field: ClassVar[str] = "text"

    @property
    def effort(self) -> str | None:
        """`reasoning.effort`, a variable of chat templates; BadRequestError if it is not a string."""
        found = (self.reasoning or {}).get("effort")
        if found is not None and not isinstance(found, str):
            raise BadRequestError("reasoning.effort must be a string", "reasoning")
        return found

    @property
    def variables(self) -> dict[str, Any]:
        """All variables of the chat template."""
        return template_variables(self.chat_template_kwargs, self.effort)

    @property
    def reported(self) -> int | None:
        """`top_logprobs` if `include` names log probabilities."""
        asked = set(self.include or ())
        if others := asked - NEVER_THERE - {LOGPROBS}:
            raise BadRequestError(f"include has {shown(min(others))}: only {LOGPROBS!r} is supported", "include")
        if LOGPROBS not in asked:
            if self.top_logprobs:
                raise BadRequestError(f"top_logprobs needs include = [{LOGPROBS!r}]", "top_logprobs")
            return None
        if not 0 <= (most := self.top_logprobs or 0) <= 20:
            raise BadRequestError(f"top_logprobs = {most} is outside 0 … 20", "top_logprobs")
        return most

    @property
    def limit_field(self) -> str:
        """Name of the field that limits the generated tokens."""
        return "max_output_tokens"

    @property
    def form(self) -> dict[str, Any]:
        """`text.format`."""
        given = (self.text or {}).get("format")
        if given is None:
            return {"type": "text"}
        if not isinstance(given, dict):
            raise BadRequestError("text.format must be an object", "text")
        return given

    def form_schema(self) -> dict[str, Any] | None:
        """The JSON schema of `text.format`, which has it beside its type; None for any text."""
        form = self.form
        if form.get("type") == "json_schema":
            form = {"type": "json_schema", "json_schema": form}
        return named(lambda: schema_of_format(form), self.form_field)

    def tool_use(self) -> ToolUse | None:
        """The tools that may be called; None without any."""
        given, form = (self.tools, self.tool_choice, self.parallel_tool_calls), self.form_schema()
        return named(lambda: read_tools(*given, flat=True, form=form), "tools", "tool_choice")

    def conversation(self) -> list[dict[str, Any]]:
        """The instructions and the input as messages of a chat."""
        said = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        if isinstance(self.input, str):
            return [*said, {"role": "user", "content": self.input}]
        if not 1 <= len(self.input) <= MAX_ITEMS:
            raise BadRequestError(f"input has {len(self.input)} items; it must have 1 … {MAX_ITEMS}", "input")
        # Clients send the whole output of earlier turns back, also that of other servers' reasoning models.
        items = [item for item in self.input if item.get("type") != "reasoning"]
        if not items:
            raise BadRequestError("input has only items of the type 'reasoning', which are ignored", "input")
        return [*said, *(named(lambda item=item: _message(item), "input") for item in items)]  # type: ignore[misc]


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    """One item of an input as a message of a chat."""
    kind = item.get("type", "message")
    if kind == "function_call" and isinstance(item.get("name"), str):
        arguments = arguments_of(str(item.get("arguments") or ""))
        call = {"type": "function", "function": {"name": item["name"], "arguments": arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output" and isinstance(item.get("output"), str | list):
        return {"role": "tool", "content": _plain_content("tool", item["output"])}
    content, role = item.get("content"), item.get("role")
    if kind != "message" or not isinstance(role, str) or not isinstance(content, str | list):
        raise FormatError(f"input has an item of the type {shown(kind)}, which is not supported or not complete")
    return {"role": plain_role(role), "content": _plain_content(role, content)}


def _plain_content(role: str, content: str | list[Any]) -> str:
    """The text of a message's content; FormatError if it has anything else."""
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise FormatError(f"a part of the type {shown(kind)} is not supported: this server takes text only")
        parts.append(TextPart(str(kind), text, text))
    said: str = Message(role, parts).plain()["content"]
    return said


class ResponseAnswer:
    """The document of one response, while it grows.

    Args:
        model: name of the model in the document.
        body: body of the request.
        prompt_tokens: tokens of the prompt.
        bytes_of: function that gives the bytes of a token's text, for log probabilities.

    """

    def __init__(self, model: str, body: ResponsesBody, prompt_tokens: int, bytes_of: Callable[[int], bytes]) -> None:
        self._model, self._body, self._bytes_of = model, body, bytes_of
        self._reported = body.reported is not None
        self._prompt_tokens, self._tokens, self._drafting = prompt_tokens, 0, DraftStatistics()
        self._id, self._created = "resp_" + secrets.token_hex(16), int(time.time())
        self._status, self._finish = "in_progress", ""
        self._items: list[dict[str, Any]] = []
        self._sequence = 0

    def count(self, piece: Piece) -> None:
        """Count what a pass brought."""
        self._tokens += len(piece.tokens)
        self._drafting.add(piece)

    async def take_all(self, parts: AsyncGenerator[Part, None]) -> None:
        """Take a text to its end."""
        async for _ in self.events(parts):
            pass

    def document(self) -> dict[str, Any]:
        """The response so far."""
        body, cut = self._body, self._status == "incomplete"
        usage = {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self._tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prompt_tokens + self._tokens,
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._model,
            "output": self._items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.effort, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": body.form},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None if self._status == "in_progress" else usage,
            "metadata": body.metadata or {},
            "metrics": {"speculative_decoding": self._drafting.document()},
        }

    async def events(self, parts: AsyncGenerator[Part, None]) -> AsyncGenerator[bytes, None]:
        """The events of a stream, in OpenAI's order; the document grows with them."""
        began = False
        async with aclosing(parts) as each:
            async for part in each:
                if not began:
                    yield self._event("response.created", response=self.document())
                    yield self._event("response.in_progress", response=self.document())
                    began = True
                if part.text or part.tokens:
                    for event in self._text(part):
                        yield event
                for call in part.calls:
                    if call.id:
                        for event in self._begin_call(call.name, call.id):
                            yield event
                    self._items[-1]["arguments"] += call.arguments
                    if call.arguments:
                        yield self._of_item("response.function_call_arguments.delta", delta=call.arguments)
                if part.finish:
                    self._finish = part.finish
        if not self._items:  # the model ended the text at once
            for event in self._begin_message():
                yield event
        for event in self._end_item():
            yield event
        self._status = "incomplete" if self._finish == "length" else "completed"
        yield self._event(f"response.{self._status}", response=self.document())

    def _text(self, part: Part) -> list[bytes]:
        """The events of new text, in the last message of the output or in a new one."""
        events = []
        if not self._items or self._items[-1]["type"] != "message":
            if not part.text.strip():
                return []  # blanks before or between calls make no message
            events = self._begin_message()
        content = self._items[-1]["content"][0]
        content["text"] += part.text
        logprobs = self._logprobs(part.tokens)
        content["logprobs"] += logprobs
        delta = {"content_index": 0, "delta": part.text, "logprobs": logprobs}
        return [*events, self._of_item("response.output_text.delta", **delta)]

    def _logprobs(self, tokens: tuple[Scored, ...]) -> list[dict[str, Any]]:
        return response_logprobs(tokens, self._bytes_of) if self._reported else []

    def _begin_message(self) -> list[bytes]:
        events = self._end_item()
        content: list[dict[str, Any]] = []
        message = {"id": _new("msg"), "type": "message", "status": "in_progress", "role": "assistant"}
        self._items.append({**message, "content": content})
        events.append(self._item_event("response.output_item.added"))
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        content.append(part)
        events.append(self._of_item("response.content_part.added", content_index=0, part=part))
        return events

    def _begin_call(self, name: str, call_id: str) -> list[bytes]:
        events = self._end_item()
        item = {"id": _new("fc"), "type": "function_call", "status": "in_progress", "call_id": call_id}
        self._items.append({**item, "name": name, "arguments": ""})
        return [*events, self._item_event("response.output_item.added")]

    def _end_item(self) -> list[bytes]:
        """The events that end the open item, if there is one."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return []
        item = self._items[-1]
        cut = self._finish == "length" or (self._finish == "stop" and item["type"] == "function_call")
        item["status"] = "incomplete" if cut else "completed"
        if item["type"] == "message":
            part = item["content"][0]
            said = {"content_index": 0, "text": part["text"], "logprobs": part["logprobs"]}
            events = [self._of_item("response.output_text.done", **said)]
            events.append(self._of_item("response.content_part.done", content_index=0, part=part))
        else:
            said = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._of_item("response.function_call_arguments.done", **said)]
        return [*events, self._item_event("response.output_item.done")]

    def _item_event(self, kind: str) -> bytes:
        return self._event(kind, output_index=len(self._items) - 1, item=self._items[-1])

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._items[-1]["id"], output_index=len(self._items) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        document = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return f"event: {kind}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def _new(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"
