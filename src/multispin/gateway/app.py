"""The OpenAI-compatible HTTP API over a `TextSource`.

Chats and completions, whole or streamed, are sessions like any other; the `TextSource` decides who drafts. Errors are
HTTP statuses with OpenAI's error document, or an event once a stream has begun.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from typing import Any, TypeVar

from aiohttp import hdrs, web

from multispin.device import EdgeAwayError
from multispin.edge.access import origin_of_caller
from multispin.edge.door import Door
from multispin.edge.shares import FullHouseError, SharedPlaces
from multispin.errors import InputError
from multispin.gateway.access import Handler, let_pages_in, name_answer, no_such_path
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
    plain_conversation,
    read_body,
)
from multispin.gateway.formats import grammar_of_schema
from multispin.gateway.openapi import openapi_document
from multispin.gateway.parts import Part, parts_of
from multispin.gateway.responses import ResponseAnswer, ResponsesBody
from multispin.gateway.source import TextSource, Words
from multispin.gateway.tools import ToolUse, plain_messages
from multispin.protocol import RefusedError, Request
from multispin.speculation import Grammars, derive_seed

MAX_REQUESTS = 256
"""Most requests that are served or wait at once; further ones are refused with 429."""
MAX_QUEUED_EVENTS = 64
"""Most events of one stream that wait for its client; then its texts pause."""
WATCH_PERIOD_S = 0.25
"""Time between two checks whether a request's client is still there [s]."""

STATUS_OF_CODE: Mapping[str, int] = {"full": 429, "unauthorised": 401, "failed": 500, "shutdown": 503, "away": 503}
"""HTTP status by the code of the edge's refusal; 400 for all others."""

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Gateway:
    """The handlers of the API.

    Args:
        source: source of the texts.
        words: turns text into token ids and back.
        model: name by which clients ask for the model.
        created: time that `/v1/models` reports for the model [s since 1970]; default 0.
        grammars: compiles the output formats of requests, so that a wrong one is refused at once; by default the edge
            refuses it when it opens the text.
        max_share: share of the requests that all others leave which one token, or one address, may have; default 1.0.

    """

    def __init__(
        self,
        source: TextSource,
        words: Words,
        model: str,
        created: int = 0,
        grammars: Grammars | None = None,
        max_share: float = 1.0,
    ) -> None:
        self._grammars = grammars
        self._source, self._words, self._model, self._created = source, words, model, created
        self._places = SharedPlaces(MAX_REQUESTS, max_share)

    def add_routes(
        self,
        app: web.Application,
        guard: Callable[[Handler], Handler] = lambda handler: handler,
        door: Door | None = None,
    ) -> None:
        """Put the API into a web application.

        Args:
            app: web application of the edge.
            guard: wraps each handler, for example with a check of credentials; default nothing.
            door: knows which pages of other origins may use the API; default: none.
        """
        app.on_response_prepare.append(name_answer)
        routes = (
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/completions", self.complete),
            ("POST", "/v1/responses", self.respond),
            ("GET", "/openapi.json", self.describe),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{model:.+}", self.one_model),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
        )
        if door is not None and door.invites:
            let_pages_in(app, door, [path for _, path, _ in routes])
        for method, path, handler in routes:
            app.router.add_route(method, path, guard(_answering_errors(handler)))
        app.router.add_route(hdrs.METH_ANY, "/{path:.*}", no_such_path)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`/v1/chat/completions`."""
        body = await self._body(request, ChatBody)
        use = body.tool_use()
        prompt = await self._prompt(
            body.conversation(), body.variables, use, body.add_generation_prompt is not False,
            body.add_special_tokens is True,
        )  # fmt: skip
        requests = await self._requests(body, [prompt], body.most_tokens, await self._form(body, use))
        answer = self._begun(body, True, len(prompt))
        return await self._answer(request, body, answer, requests, use is not None)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """`/v1/completions`."""
        body = await self._body(request, CompletionBody)
        given = body.prompts()
        special = body.add_special_tokens is not False
        prompts = [
            await asyncio.to_thread(self._words.encode, each, special) if isinstance(each, str) else list(each)
            for each in given
        ]
        limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        requests = await self._requests(body, prompts, limit, await self._form(body))
        return await self._answer(request, body, self._begun(body, False, sum(map(len, prompts))), requests)

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """`/v1/responses`, without memory of earlier ones."""
        body = await self._body(request, ResponsesBody)
        use = body.tool_use()
        prompt = await self._prompt(body.conversation(), body.variables, use)
        (text,) = await self._requests(body, [prompt], body.max_output_tokens, await self._form(body, use))
        answer = ResponseAnswer(self._model, body, len(prompt), self._words.token_bytes)
        with self._place():
            parts = parts_of(self._source, self._words, text, answer.count, use is not None)
            if not body.stream:
                await self._watched(request, answer.take_all(parts))
                return web.json_response(answer.document())
            return await self._sent(request, [answer.events(parts)], lambda: b"")

    async def describe(self, _: web.Request) -> web.StreamResponse:
        """`/openapi.json`: the API, for tools."""
        return web.json_response(openapi_document())

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
            raise BadRequestError("/tokenize takes either prompt or messages, not both or none", "prompt")
        if body.prompt is not None:
            ids = await asyncio.to_thread(self._words.encode, body.prompt, body.add_special_tokens is not False)
        else:
            ids = await self._prompt(
                plain_conversation(body.messages or ()), body.chat_template_kwargs or {}, body.tool_use(),
                body.add_generation_prompt is not False, body.add_special_tokens is True,
            )  # fmt: skip
        return web.json_response(
            {"count": len(ids), "max_model_len": self._source.max_length, "tokens": ids, "token_strs": None}
        )

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        """`/detokenize`: the text of token ids, with the names of special tokens as a template writes them."""
        body = await self._body(request, DetokenizeBody)
        self._check_ids(body.tokens, "tokens")
        return web.json_response({"prompt": await asyncio.to_thread(self._words.decode, body.tokens, True)})

    # One request --------------------------------------------------------------------------------------------------

    async def _body(self, request: web.Request, kind: type[Any]) -> Any:
        if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise _StatusError(415, "this server reads no compressed bodies: send the body without Content-Encoding")
        try:
            raw = await request.content.read(MAX_BODY_BYTES + 1) if request.can_read_body else b""
            while len(raw) <= MAX_BODY_BYTES and not request.content.at_eof():
                raw += await request.content.read(MAX_BODY_BYTES + 1 - len(raw))
        except web.RequestPayloadError:
            raise BadRequestError("the body does not follow its Transfer-Encoding") from None
        if len(raw) > MAX_BODY_BYTES:
            raise _StatusError(413, f"the body exceeds the limit of {MAX_BODY_BYTES} bytes")
        body = await asyncio.to_thread(read_body, raw, kind)  # two megabytes of small objects take a fifth of a second
        if body.model:
            self._check_model(body.model)
        return body

    async def _prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        use: ToolUse | None,
        answered: bool = True,
        special_tokens: bool = False,
    ) -> list[int]:
        """Token ids of a chat, with its tools, in the model's template."""
        tools = None if use is None else [tool.document() for tool in use.tools]
        if not self._words.knows_tools:
            messages, tools = plain_messages(messages, use), None
        encode = self._words.encode_messages
        return await asyncio.to_thread(encode, messages, variables, tools, answered, special_tokens)

    async def _form(self, body: Sampling, use: ToolUse | None = None) -> str:
        """The grammar of a text, compiled so that a wrong one is refused at once; empty: any text."""
        grammar, field = (
            (grammar_of_schema(body.form_schema()), body.form_field) if use is None else (use.grammar(), "tools")
        )
        if grammar and self._grammars is not None:
            try:
                await asyncio.to_thread(self._grammars.matcher, grammar)
            except InputError as error:
                raise BadRequestError(str(error), field) from None
        return grammar

    def _place(self) -> AbstractContextManager[None]:
        """Count a request while it is served; FullHouseError if there are too many."""
        return self._places.place(origin_of_caller(), "requests")

    async def _answer(
        self,
        request: web.Request,
        body: Sampling,
        answer: Answer,
        requests: Sequence[Request],
        with_tools: bool = False,
    ) -> web.StreamResponse:
        split = bool(body.stream and body.mark_drafted)
        texts = [parts_of(self._source, self._words, each, answer.count, with_tools, split) for each in requests]
        with self._place():
            if not body.stream:
                choices = await self._watched(request, _together(texts))
                return web.json_response(answer.whole(choices))
            last = (lambda: answer.closing() + DONE) if body.reports_usage else (lambda: DONE)
            return await self._sent(request, [_chunks(answer, k, text) for k, text in enumerate(texts)], last)

    def _begun(self, body: Sampling, chat: bool, prompt_tokens: int) -> Answer:
        options = body.stream_options
        return Answer(
            self._model,
            chat,
            prompt_tokens,
            reported=body.reported,
            bytes_of=self._words.token_bytes,
            counts_along=body.reports_usage and options is not None and options.continuous_usage_stats,
        )

    async def _requests(
        self, body: Sampling, prompts: Sequence[Sequence[int]], limit: int | None, grammar: str
    ) -> list[Request]:
        """One session's request for each choice of each prompt."""
        if limit is not None and limit < 1:
            raise BadRequestError(f"{body.limit_field} = {limit} is below 1", body.limit_field)
        if limit is not None and (body.min_tokens or 0) > limit:
            sentence = f"min_tokens = {body.min_tokens} is above {body.limit_field} = {limit}"
            raise BadRequestError(sentence, "min_tokens")
        count, found = body.choices, []
        params = body.params(secrets.randbits(63), grammar)
        self._check_ids(body.stop_token_ids or (), "stop_token_ids")
        self._check_ids([token for token, _ in params.logit_bias], "logit_bias")
        for prompt in prompts:
            if not prompt:
                raise BadRequestError(f"{body.prompt_field} is empty", body.prompt_field)
            self._check_ids(prompt, body.prompt_field)
            room = self._source.max_length - len(prompt)
            if room < 1 or (limit is not None and limit > room):
                asked = "at least one token" if limit is None else f"{limit} tokens"
                raise BadRequestError(
                    f"the prompt has {len(prompt)} tokens and the request asks for {asked}, but the model's context is "
                    f"{self._source.max_length} tokens: shorten the prompt or ask for fewer tokens",
                    body.prompt_field,
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

    async def _watched(self, request: web.Request, writing: Awaitable[Result]) -> Result:
        """Wait for the finished text; abandon it if the client has gone."""
        task, left = asyncio.ensure_future(writing), asyncio.create_task(_left(request))
        try:
            await asyncio.wait([task, left], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ConnectionResetError("the client has gone")
            return await task
        finally:
            await _ended([task, left])

    async def _sent(
        self, request: web.Request, texts: Sequence[AsyncGenerator[bytes, None]], last: Callable[[], bytes]
    ) -> web.StreamResponse:
        """Send all texts while they are written, as server-sent events.

        Args:
            request: the client's request.
            texts: the events of each text.
            last: function that makes the last events when all texts are finished.
        """
        events: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(MAX_QUEUED_EVENTS)

        async def write(text: AsyncGenerator[bytes, None]) -> None:
            try:
                async with aclosing(text) as each:
                    async for new in each:
                        await events.put(new)
                await events.put(None)
            except Exception as error:
                await events.put(error)

        async def watch() -> None:  # a text without news for a while would not notice that its client has gone
            await _left(request)
            await events.put(ConnectionResetError("the client has gone"))

        tasks = [asyncio.create_task(write(text)) for text in texts]
        watching = asyncio.create_task(watch())
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        left = len(tasks)
        try:
            while left:
                item = await events.get()
                if isinstance(item, Exception):
                    if not response.prepared or isinstance(item, ConnectionError):
                        raise item
                    status, document = _document_of(item)
                    log.log(logging.ERROR if status == 500 else logging.INFO, "a stream ended early: %s", item)
                    await response.write(event(document) + DONE)
                    break
                if item is None:
                    left -= 1
                elif item:
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(item)
            if not response.prepared:
                await response.prepare(request)
            if not left:
                await response.write(last())
            await response.write_eof()
        finally:
            await _ended([*tasks, watching])
        return response

    def _check_model(self, name: str) -> None:
        if name != self._model:
            raise _StatusError(
                404, f"there is no model {name!r} here: ask for {self._model!r}", "model", "model_not_found"
            )

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self._words.size):
            raise BadRequestError(f"{param} has a token id outside 0 … {self._words.size - 1}", param)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "multispin",
            "max_model_len": self._source.max_length,
        }


async def _left(request: web.Request) -> None:
    """Return when the client of a request has gone."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(WATCH_PERIOD_S)


async def _together(texts: Sequence[AsyncGenerator[Part, None]]) -> list[list[Part]]:
    """All parts of all texts. If one fails, the others are abandoned."""
    tasks = [asyncio.create_task(_all(text)) for text in texts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _ended(tasks)


async def _ended(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    """Cancel tasks, and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _all(parts: AsyncGenerator[Part, None]) -> list[Part]:
    """All parts of a text."""
    async with aclosing(parts) as each:
        return [part async for part in each]


async def _chunks(answer: Answer, index: int, parts: AsyncGenerator[Part, None]) -> AsyncGenerator[bytes, None]:
    """The events of one choice of a streamed chat or completion."""
    opened, characters = False, 0
    async with aclosing(parts) as each:
        async for part in each:
            if not opened:
                yield answer.opening(index)
                opened = True
            for new in answer.parts(index, part, characters):
                yield new
            characters += len(part.text)


class _StatusError(Exception):
    """A refusal with an HTTP status of its own."""

    def __init__(self, status: int, sentence: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code


def _document_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and document of an error. Only errors that are meant for the client show their text."""
    match error:
        case _StatusError():
            return error.status, error_document(error.status, str(error), error.param, error.code)
        case FullHouseError():
            return 429, error_document(429, str(error))
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
            return 500, error_document(500, "the server failed in this request; its log says why")


def _answering_errors(handler: Handler) -> Handler:
    """Wrap a handler so that errors before the answer begins become error documents."""

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
