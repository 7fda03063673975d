"""The OpenAI-compatible HTTP API over a `TextSource`.

Chats and completions, whole or streamed, are sessions like any other: what serves them decides who drafts. Errors come
as HTTP statuses with OpenAI's error document; once a stream has begun, as an event in the stream.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from aiohttp import web

from multispin.device import EdgeAwayError
from multispin.errors import InputError
from multispin.gateway.access import Handler, name_answer
from multispin.gateway.answers import DONE, Answer, error_document, event
from multispin.gateway.bodies import (
    DEFAULT_COMPLETION_TOKENS,
    MAX_BODY_BYTES,
    BadRequestError,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    Sampling,
    TokenizeBody,
    read_body,
)
from multispin.gateway.source import TextSource, Words
from multispin.protocol import RefusedError, Request
from multispin.speculation import derive_seed
from multispin.speculation.text import TextStream

MAX_REQUESTS = 256
"""Requests that are served or wait at once; one more is told to come back later."""
MAX_QUEUED_EVENTS = 64
"""Events of one stream that wait for a client to read them; then its texts pause."""
WATCH_PERIOD_S = 1.0
"""How often a request that is not streamed looks whether its client is still there."""

STATUS_OF_CODE: Mapping[str, int] = {"full": 429, "unauthorised": 401, "failed": 500, "shutdown": 503, "away": 503}
"""HTTP status for a refusal of the edge by its code; 400 for all others."""

log = logging.getLogger(__name__)

Body = TypeVar("Body", bound=Sampling)


class Gateway:
    """The handlers of the API.

    Args:
        source: writes the texts.
        words: text to token ids and back.
        model: name under which clients ask for the model.
        created: seconds since 1970 that `/v1/models` reports; default 0.

    """

    def __init__(self, source: TextSource, words: Words, model: str, created: int = 0) -> None:
        self._source, self._words, self._model, self._created = source, words, model, created
        self._serving = 0

    def add_routes(self, app: web.Application, guard: Callable[[Handler], Handler] = lambda handler: handler) -> None:
        """Put the API into a web application.

        Args:
            app: the application.
            guard: wraps each handler, for example with a check of credentials.
        """
        app.on_response_prepare.append(name_answer)
        for method, path, handler in (
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/completions", self.complete),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{model:.+}", self.one_model),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
        ):
            app.router.add_route(method, path, guard(_answering_errors(handler)))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`/v1/chat/completions`."""
        body = await self._body(request, ChatBody)
        if body.add_generation_prompt is False:
            raise BadRequestError("add_generation_prompt = false is not supported", "add_generation_prompt")
        messages, variables = body.conversation(), body.chat_template_kwargs or {}
        prompt = await asyncio.to_thread(self._words.encode_messages, messages, variables)
        return await self._answer(request, body, True, [prompt], body.most_tokens)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """`/v1/completions`."""
        body = await self._body(request, CompletionBody)
        given = body.prompts()
        prompts = [
            await asyncio.to_thread(self._words.encode, each) if isinstance(each, str) else list(each) for each in given
        ]
        limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        return await self._answer(request, body, False, prompts, limit)

    async def models(self, _: web.Request) -> web.StreamResponse:
        """`/v1/models`: the one model."""
        return web.json_response({"object": "list", "data": [self._card()]})

    async def one_model(self, request: web.Request) -> web.StreamResponse:
        """`/v1/models/NAME`."""
        self._check_model(request.match_info["model"])
        return web.json_response(self._card())

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """`/tokenize`: the token ids of a text or a chat."""
        body = await self._body(request, TokenizeBody)
        if (body.prompt is None) == (body.messages is None):
            raise BadRequestError("tokenize takes either prompt or messages", "prompt")
        if body.prompt is not None:
            ids = await asyncio.to_thread(self._words.encode, body.prompt)
        else:
            messages = [message.plain() for message in body.messages or ()]
            ids = await asyncio.to_thread(self._words.encode_messages, messages, {})
        return web.json_response(
            {"count": len(ids), "max_model_len": self._source.max_length, "tokens": ids, "token_strs": None}
        )

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        """`/detokenize`: the text of token ids."""
        body = await self._body(request, DetokenizeBody)
        self._check_ids(body.tokens, "tokens")
        return web.json_response({"prompt": await asyncio.to_thread(self._words.decode, body.tokens)})

    # One request --------------------------------------------------------------------------------------------------

    async def _body(self, request: web.Request, kind: type[Any]) -> Any:
        raw = await request.content.read(MAX_BODY_BYTES + 1) if request.can_read_body else b""
        while len(raw) <= MAX_BODY_BYTES and not request.content.at_eof():
            raw += await request.content.read(MAX_BODY_BYTES + 1 - len(raw))
        if len(raw) > MAX_BODY_BYTES:
            raise _StatusError(413, f"the body is over the limit of {MAX_BODY_BYTES} bytes")
        body = read_body(raw, kind)
        if body.model:
            self._check_model(body.model)
        return body

    async def _answer(
        self, request: web.Request, body: Sampling, chat: bool, prompts: Sequence[Sequence[int]], limit: int | None
    ) -> web.StreamResponse:
        requests = self._requests(body, prompts, limit)
        if self._serving >= MAX_REQUESTS:
            raise _StatusError(429, f"{MAX_REQUESTS} requests are being served, the limit: try again later")
        answer = Answer(self._model, chat, sum(map(len, prompts)))
        self._serving += 1
        try:
            if body.stream:
                usage = body.stream_options is not None and body.stream_options.include_usage
                return await self._streamed(request, answer, requests, usage)
            return web.json_response(await self._whole(request, answer, requests))
        finally:
            self._serving -= 1

    def _requests(self, body: Sampling, prompts: Sequence[Sequence[int]], limit: int | None) -> list[Request]:
        """One session's request for each choice of each prompt."""
        if limit is not None and limit < 1:
            raise BadRequestError(f"max_tokens = {limit} is below 1", "max_tokens")
        count, found = body.choices, []
        params = body.params(secrets.randbits(63))
        for prompt in prompts:
            self._check_ids(prompt, "prompt")
            room = self._source.max_length - len(prompt)
            if room < 1 or (limit is not None and limit > room):
                asked = "at least one token" if limit is None else f"{limit} tokens"
                raise BadRequestError(
                    f"the prompt has {len(prompt)} tokens and {asked} are to be generated, over the model's context of "
                    f"{self._source.max_length}: shorten the prompt or ask for fewer tokens",
                    "messages" if isinstance(body, ChatBody) else "prompt",
                )
            found += [
                Request(
                    tuple(prompt),
                    replace(params, seed=derive_seed(params.seed, choice) if choice else params.seed),
                    room if limit is None else limit,
                    body.min_tokens or 0,
                    body.stop_ids(self._words.stop_ids),
                    body.stop_strings,
                )
                for choice in range(count)
            ]
        for each in found:
            each.check_vocabulary(self._words.size)
        return found

    async def _whole(self, request: web.Request, answer: Answer, requests: Sequence[Request]) -> dict[str, Any]:
        """All texts, when all are finished; given up when the client has gone."""

        async def write(each: Request) -> tuple[str, str]:
            text, reason = "", ""
            async for new, finish in self._texts(answer, each):
                text, reason = text + new, finish
            return text, reason

        writing = asyncio.gather(*map(write, requests))
        try:
            while not writing.done():
                await asyncio.wait([writing], timeout=WATCH_PERIOD_S)
                if request.transport is None or request.transport.is_closing():
                    raise ConnectionResetError("the client has gone")
            return answer.whole(await writing)
        finally:
            writing.cancel()

    async def _streamed(
        self, request: web.Request, answer: Answer, requests: Sequence[Request], usage: bool
    ) -> web.StreamResponse:
        """All texts while they are written, as server-sent events."""
        events: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(MAX_QUEUED_EVENTS)

        async def write(index: int, each: Request) -> None:
            try:
                opened = False
                async for new, finish in self._texts(answer, each):
                    if not opened:
                        await events.put(answer.opening(index))
                        opened = True
                    if new:
                        await events.put(answer.piece(index, new))
                    if finish:
                        await events.put(answer.piece(index, "", finish))
                await events.put(None)
            except Exception as error:
                await events.put(error)

        tasks = [asyncio.create_task(write(index, each)) for index, each in enumerate(requests)]
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        left = len(tasks)
        try:
            while left:
                item = await events.get()
                if isinstance(item, Exception):
                    if not response.prepared:
                        raise item
                    status, document = _document_of(item)
                    log.log(logging.ERROR if status >= 500 else logging.INFO, "a stream ends early: %s", item)
                    await response.write(event(document))
                    break
                if item is None:
                    left -= 1
                elif item:
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(item)
            if not response.prepared:
                await response.prepare(request)
            if usage and not left:
                await response.write(answer.closing())
            await response.write(DONE)
            await response.write_eof()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return response

    async def _texts(self, answer: Answer, request: Request) -> AsyncGenerator[tuple[str, str], None]:
        """New final text and, with the last one, the finish reason."""
        stream = TextStream(self._words.decode, request.stop_strings, request.min_tokens)
        async with aclosing(self._source.write(request)) as pieces:
            async for piece in pieces:
                answer.count(piece)
                new = stream.push(piece.tokens)
                if piece.finish:
                    new += stream.end()
                yield new, piece.finish

    def _check_model(self, name: str) -> None:
        if name != self._model:
            raise _StatusError(
                404, f"the model {name!r} does not exist here: ask for {self._model!r}", "model", "model_not_found"
            )

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        if not ids:
            raise BadRequestError(f"{param} is empty", param)
        if min(ids) < 0 or max(ids) >= self._words.size:
            raise BadRequestError(f"a token id of {param} is outside 0 … {self._words.size - 1}", param)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "multispin",
            "max_model_len": self._source.max_length,
        }


class _StatusError(Exception):
    """A refusal with an HTTP status of its own."""

    def __init__(self, status: int, sentence: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code


def _document_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and document for what went wrong; only errors that are meant for the client show their text."""
    match error:
        case _StatusError():
            return error.status, error_document(error.status, str(error), error.param, error.code)
        case BadRequestError():
            return 400, error_document(400, str(error), error.param)
        case RefusedError():
            status = STATUS_OF_CODE.get(error.code, 400)
            return status, error_document(status, str(error), code=error.code)
        case EdgeAwayError():
            return 503, error_document(503, str(error))
        case InputError():
            return 400, error_document(400, str(error))
        case _:
            return 500, error_document(500, "the server failed at this request; its log says why")


def _answering_errors(handler: Handler) -> Handler:
    """The handler, with everything that goes wrong before the answer begins as an error document."""

    async def answering(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (ConnectionError, web.HTTPException):
            raise
        except Exception as error:
            status, document = _document_of(error)
            if status == 500:
                log.exception("a request failed")
            after_s = max(1.0, getattr(error, "retry_after_s", 0.0))
            headers = {"Retry-After": str(math.ceil(after_s))} if status in (429, 503) else {}
            return web.json_response(document, status=status, headers=headers)

    return answering
