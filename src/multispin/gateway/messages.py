"""The messages of a chat, as clients send them and as chat templates take them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from multispin.checks import shown
from multispin.gateway.refusals import BadRequestError
from multispin.gateway.tools import arguments_of

MAX_MESSAGES = 1024
"""Most messages of one chat."""


class TextPart(Struct, frozen=True):
    """One part of a message's content; only text is supported, a refusal's text included."""

    type: str
    text: str | None = None
    refusal: str | None = None

    def plain(self) -> str:
        """The text of the part; BadRequestError if it is anything else."""
        found = self.refusal if self.type == "refusal" else self.text
        if self.type not in ("text", "input_text", "output_text", "refusal") or found is None:
            raise BadRequestError(
                f"a message part of type {shown(self.type)} is not supported: this server takes text only", "messages"
            )
        return found


class CalledFunction(Struct, frozen=True):
    """The function of a call, with its arguments as JSON."""

    name: str
    arguments: str = "{}"


class CalledTool(Struct, frozen=True):
    """A call in a message of the assistant."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"

    def plain(self) -> dict[str, Any]:
        """The call as chat templates take it, its arguments as an object where they are one."""
        return {"name": self.function.name, "arguments": arguments_of(self.function.arguments)}


class Message(Struct, frozen=True):
    """One message of a chat."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """The message as chat templates take it; BadRequestError if it holds anything but text and calls."""
        content, role = self.content, plain_role(self.role)
        if isinstance(content, list):
            content = "".join(part.plain() for part in content)
        if self.tool_calls:
            calls = [{"type": "function", "id": each.id, "function": each.plain()} for each in self.tool_calls]
            return {"role": role, "content": content or "", "tool_calls": calls}
        if content is None and role == "assistant":  # an earlier answer with neither text nor calls
            content = ""
        if content is None:
            raise BadRequestError(f"a message of role {shown(self.role)} has no content", "messages")
        # Some templates use the speaker's name, and refuse a tool's result without the id of its call.
        said = {"name": self.name, "tool_call_id": self.tool_call_id}
        return {"role": role, "content": content, **{key: value for key, value in said.items() if value}}


def plain_role(role: str) -> str:
    """The role as chat templates know it: they call OpenAI's "developer" "system"."""
    return "system" if role == "developer" else role


def plain_conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them; BadRequestError if they are too few or too many."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise BadRequestError(f"{len(messages)} messages are outside 1 … {MAX_MESSAGES}", "messages")
    return [message.plain() for message in messages]


def template_variables(given: Mapping[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """Variables for the chat template: the request's own, and the reasoning effort under vLLM's name."""
    return ({} if effort is None else {"reasoning_effort": effort}) | dict(given or {})
