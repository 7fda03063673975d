"""Answers to clients: the JSON documents of the OpenAI-compatible API, whole or as a stream of server-sent events.

The figures of drafting stand under `metrics.speculative_decoding`, with vLLM's names.
"""

import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from multispin.gateway.logprobs import Scored, chat_logprobs, completion_logprobs
from multispin.gateway.parts import Part
from multispin.gateway.source import Piece
from multispin.gateway.tools import Call

DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""


@dataclass
class DraftStatistics:
    """How drafting went for one request.

    Attributes:
        passes: number of passes, by the number of drafted tokens that they accepted.
        drafted: number of drafted tokens.
        accepted: number of accepted drafted tokens.
        longest: length of the longest draft [tokens].

    """

    passes: Counter[int] = field(default_factory=Counter)
    drafted: int = 0
    accepted: int = 0
    longest: int = 0

    def add(self, piece: Piece) -> None:
        """Count a pass; one without a draft is not counted."""
        if piece.drafted:
            self.passes[piece.accepted] += 1
            self.drafted += piece.drafted
            self.accepted += piece.accepted
            self.longest = max(self.longest, piece.drafted)

    def document(self) -> dict[str, Any]:
        """The figures under vLLM's names; rates are 0 if nothing was drafted."""
        steps = self.passes.total()
        return {
            "mean_acceptance_length": 1.0 + self.accepted / steps if steps else 0.0,
            "draft_acceptance_rate": self.accepted / self.drafted if self.drafted else 0.0,
            "acceptance_histogram": [self.passes[count] for count in range(self.longest + 1)] if steps else [],
            "num_spec_steps": steps,
            "num_accepted_draft_tokens": self.accepted,
            "num_draft_tokens": self.drafted,
            "num_spec_tokens": self.longest,
        }


@dataclass
class Answer:
    """The documents of one request.

    Attributes:
        model: name of the model in the documents.
        chat: whether the request is a chat, not a completion.
        prompt_tokens: tokens of all prompts.
        id: identifier of the answer.
        created: time of the request [s since 1970].
        completion_tokens: tokens generated so far, over all choices.
        drafting: figures of drafting, over all choices.
        reported: number of alternatives per token with log probabilities; None: no log probabilities.
        bytes_of: function that gives the bytes of a token's text, for log probabilities.
        counts_along: whether each event of a stream has the usage so far.

    """

    model: str
    chat: bool
    prompt_tokens: int
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    completion_tokens: int = 0
    drafting: DraftStatistics = field(default_factory=DraftStatistics)
    reported: int | None = None
    bytes_of: Callable[[int], bytes] = lambda _: b""
    counts_along: bool = False

    def __post_init__(self) -> None:
        self.id = self.id or ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    def count(self, piece: Piece) -> None:
        """Count what a pass brought."""
        self.completion_tokens += len(piece.tokens)
        self.drafting.add(piece)

    def usage(self) -> dict[str, Any]:
        """Numbers of prompt and generated tokens so far."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def whole(self, choices: Sequence[Sequence[Part]]) -> dict[str, Any]:
        """The answer in one document.

        Args:
            choices: the parts of each choice.
        """
        return {
            **self._head(
                "chat.completion" if self.chat else "text_completion",
                [self._choice(index, parts) for index, parts in enumerate(choices)],
            ),
            "usage": self.usage(),
            "metrics": {"speculative_decoding": self.drafting.document()},
        }

    def _choice(self, index: int, parts: Sequence[Part]) -> dict[str, Any]:
        text, finish = "".join(part.text for part in parts), parts[-1].finish if parts else ""
        logprobs = self._logprobs([token for part in parts for token in part.tokens], 0)
        if not self.chat:
            return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        calls = joined_calls([call for part in parts for call in part.calls])
        content = None if calls and not text.strip() else text
        message = {"role": "assistant", "content": content, "refusal": None, "tool_calls": calls or None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    async def events(self, index: int, parts: AsyncGenerator[Part, None]) -> AsyncGenerator[bytes, None]:
        """The events of one choice, while its text is written.

        Args:
            index: number of the choice.
            parts: parts of its text.
        """
        opened, characters = False, 0
        async with aclosing(parts) as each:
            async for part in each:
                if not opened:
                    yield self._opening(index)
                    opened = True
                for new in self._events_of(index, part, characters):
                    yield new
                characters += len(part.text)

    def _opening(self, index: int) -> bytes:
        """The first event of a choice, with the role in a chat; empty for a completion."""
        return self._event(index, {"role": "assistant", "content": ""}, None, None) if self.chat else b""

    def _events_of(self, index: int, part: Part, offset: int) -> list[bytes]:
        """The events of a part: new text or calls, and the finish reason in an event of its own.

        Args:
            index: number of the choice.
            part: part of the text that became final.
            offset: number of characters of the choice's text before the part.
        """
        events, logprobs, drafted = [], self._logprobs(part.tokens, offset), part.drafted
        for call in part.calls:
            function: dict[str, Any] = {"arguments": call.arguments}
            delta: dict[str, Any] = {"index": call.number, "function": function}
            if call.id:
                delta |= {"id": call.id, "type": "function", "function": {"name": call.name, **function}}
            events.append(self._event(index, {"tool_calls": [delta]}, None, None))
        if part.text or (logprobs is not None and part.tokens):
            events.append(self._event(index, {"content": part.text}, logprobs, None, drafted))
        if part.finish:
            events.append(self._event(index, {}, None, part.finish))
        return events

    def closing(self) -> bytes:
        """The event with the usage, after the last choice, for clients that asked for it."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion", [])
        metrics = {"speculative_decoding": self.drafting.document()}
        return event({**head, "usage": self.usage(), "metrics": metrics})

    def _logprobs(self, tokens: Sequence[Scored], offset: int) -> dict[str, Any] | None:
        if self.reported is None:
            return None
        if self.chat:
            return chat_logprobs(tokens, self.bytes_of)
        return completion_logprobs(tokens, self.bytes_of, offset, self.reported)

    def _event(
        self,
        index: int,
        delta: Mapping[str, Any],
        logprobs: Mapping[str, Any] | None,
        finish: str | None,
        drafted: str = "",
    ) -> bytes:
        said: dict[str, Any] = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}
        if drafted:
            choice |= {"drafted": True, "drafted_by": drafted}
        said = self._head("chat.completion.chunk" if self.chat else "text_completion", [choice])
        return event({**said, "usage": self.usage()} if self.counts_along else said)

    def _head(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def joined_calls(parts: Sequence[Call]) -> list[dict[str, Any]]:
    """Complete tool calls in OpenAI's shape, joined from their parts."""
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        if part.id:
            calls[part.number] = {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}
        calls[part.number]["function"]["arguments"] += part.arguments
    return list(calls.values())


def event(document: Mapping[str, Any]) -> bytes:
    """A document as a server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"
