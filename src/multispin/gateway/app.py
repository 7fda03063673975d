"""The OpenAI-compatible HTTP API over a `TextSource`.

Chats and completions, whole or streamed, are sessions like any other; the `TextSource` decides who drafts. Errors are
HTTP statuses with OpenAI's error document, or an event once a stream has begun.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from aiohttp import hdrs, web

from multispin.checks import shown
from multispin.edge.access import origin_of_caller
from multispin.edge.door import Door
from multispin.edge.shares import SharedPlaces
from multispin.errors import InputError
from multispin.gateway.access import let_pages_in, name_answer, no_such_path
from multispin.gateway.answers import DONE, Answer
from multispin.gateway.bodies import (
    DEFAULT_COMPLETION_TOKENS,
    MAX_BODY_BYTES,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    Sampling,
    TokenizeBody,
    read_body,
)
from multispin.gateway.formats import grammar_of_schema
from multispin.gateway.messages import plain_conversation
from multispin.gateway.openapi import openapi_document
from multispin.gateway.parts import parts_of
from multispin.gateway.refusals import BadRequestError, Handler, StatusError, answering_errors
from multispin.gateway.responses import ResponseAnswer, ResponsesBody
from multispin.gateway.sending import gathered, sent, watched
from multispin.gateway.source import TextSource, Words
from multispin.gateway.tools import ToolUse, plain_messages
from multispin.protocol import Request
from multispin.speculation import Grammars, derive_seed

MAX_REQUESTS = 256
"""Most requests that are served or wait at once; further ones are refused with 429."""


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
            app.router.add_route(method, path, guard(answering_errors(handler)))
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
                await watched(request, answer.take_all(parts))
                return web.json_response(answer.document())
            return await sent(request, [answer.events(parts)], lambda: b"")

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
            raise StatusError(415, "this server reads no compressed bodies: send the body without Content-Encoding")
        try:
            raw = await request.content.read(MAX_BODY_BYTES + 1) if request.can_read_body else b""
            while len(raw) <= MAX_BODY_BYTES and not request.content.at_eof():
                raw += await request.content.read(MAX_BODY_BYTES + 1 - len(raw))
        except web.RequestPayloadError:
            raise BadRequestError("the body does not follow its Transfer-Encoding") from None
        if len(raw) > MAX_BODY_BYTES:
            raise StatusError(413, f"the body exceeds the limit of {MAX_BODY_BYTES} bytes")
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
                choices = await watched(request, gathered(texts))
                return web.json_response(answer.whole(choices))
            last = (lambda: answer.closing() + DONE) if body.reports_usage else (lambda: DONE)
            return await sent(request, [answer.events(k, text) for k, text in enumerate(texts)], last)

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

    def _check_model(self, name: str) -> None:
        if name != self._model:
            raise StatusError(
                404, f"there is no model {shown(name)} here: ask for {self._model!r}", "model", "model_not_found"
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
