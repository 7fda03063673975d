"""The page `/device`: a browser that opens it becomes a device of this edge, with llama.cpp as WebAssembly.

The page and its programs are public. What it needs of the model (the drafter's file, the tokens' bytes, prompts as ids)
is served only to callers with access. The session itself asks for its credential like any other.
"""

import asyncio
import gzip
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web

from multispin.errors import InputError
from multispin.outside import check_keys
from multispin.protocol import PROTOCOL_VERSION
from multispin.web.files import STATIC, Handler, add_folder, client_folder, json_answer, serving, wllama_folder
from multispin.web.headers import FOR_A_YEAR, headers
from multispin.web.join import PAGE

MAX_PROMPT_BYTES = 2**18
"""Largest body of a prompt [bytes]."""
MAX_PAGE_MESSAGES = 1000

Guard = Callable[[Handler], Handler]


class PageTokens(Protocol):
    """The methods of the target's tokenizer that the page needs."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer, by which both ends check that their ids mean the same."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end a text."""

    @property
    def template(self) -> str:
        """Chat template; empty for a model that has none."""

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text."""

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a chat in the model's template."""


@dataclass(frozen=True)
class PageDrafter:
    """The model that the page drafts with.

    Attributes:
        name: name of the drafter, for people.
        path: GGUF file of the drafter.

    """

    name: str
    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise InputError(f"there is no GGUF file {self.path} for the page's drafter")


class _PageMessage(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str


class _PagePrompt(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[_PageMessage]


class DevicePage:
    """Serves the page that drafts, and what the page asks its edge for.

    Args:
        target: name of the target, for people.
        tokens: tokenizer of the target.
        table: bytes of all tokens (`models.token_table`).
        max_length: most tokens of a text, prompt included.
        drafter: drafter of the page.
        wllama: folder of the programs that run the drafter; default: that of the package multispin-wllama.

    Raises:
        InputError: the page's programs are not installed.

    """

    def __init__(
        self,
        target: str,
        tokens: PageTokens,
        table: bytes,
        max_length: int,
        drafter: PageDrafter,
        wllama: Path | None = None,
    ) -> None:
        self._target, self._tokens, self._max_length, self._drafter = target, tokens, max_length, drafter
        self._table, self._compressed_table = table, gzip.compress(table, mtime=0)
        self._wllama = wllama or wllama_folder()
        with drafter.path.open("rb") as file:
            self._sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    def add_routes(self, app: web.Application, guard: Guard) -> None:
        """Put the page into an edge's web application.

        Args:
            app: web application of the edge.
            guard: wraps handlers that only devices of this edge may use.
        """
        app.router.add_get(PAGE, serving(STATIC / "device.html"))
        add_folder(app, f"{PAGE}/static", STATIC)
        add_folder(app, f"{PAGE}/client", client_folder())
        add_folder(app, f"{PAGE}/wllama", self._wllama)
        app.router.add_get(f"{PAGE}/about", guard(self._about))
        app.router.add_get(f"{PAGE}/tokens", guard(self._token_table))
        app.router.add_get(f"{PAGE}/drafter/{self._sha256}.gguf", guard(serving(self._drafter.path, FOR_A_YEAR)))
        app.router.add_post(f"{PAGE}/prompt", guard(self._prompt))

    async def _about(self, request: web.Request) -> web.StreamResponse:
        return json_answer(
            request,
            {
                "version": PROTOCOL_VERSION,
                "target": self._target,
                "fingerprint": self._tokens.fingerprint,
                "stop_ids": list(self._tokens.stop_ids),
                "max_length": self._max_length,
                "drafter": {
                    "name": self._drafter.name,
                    "url": f"{PAGE}/drafter/{self._sha256}.gguf",
                    "bytes": self._drafter.path.stat().st_size,
                    "sha256": self._sha256,
                },
            },
        )

    async def _token_table(self, request: web.Request) -> web.StreamResponse:
        kind = {**headers(request), "Content-Type": "application/octet-stream", "Vary": "Accept-Encoding"}
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=self._table, headers=kind)
        return web.Response(body=self._compressed_table, headers={**kind, "Content-Encoding": "gzip"})

    async def _prompt(self, request: web.Request) -> web.StreamResponse:
        """Ids of a conversation. A model without a chat template gets the newest message as plain text."""
        if (request.content_length or 0) > MAX_PROMPT_BYTES:
            return json_answer(request, {"error": f"the prompt exceeds the limit of {MAX_PROMPT_BYTES} bytes"}, 413)
        try:
            messages = await self._messages(request)
            ids = await asyncio.to_thread(self._encode, messages)
        except InputError as error:
            return json_answer(request, {"error": str(error)}, 400)
        return json_answer(request, {"ids": ids})

    async def _messages(self, request: web.Request) -> list[dict[str, str]]:
        body = await request.content.read(MAX_PROMPT_BYTES + 1)
        while len(body) <= MAX_PROMPT_BYTES and not request.content.at_eof():
            body += await request.content.read(MAX_PROMPT_BYTES + 1 - len(body))
        try:
            check_keys(body)
            found = msgspec.json.decode(body[: MAX_PROMPT_BYTES + 1], type=_PagePrompt)
        except (InputError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"the body is not a prompt: {error}") from None
        if not 0 < len(found.messages) <= MAX_PAGE_MESSAGES:
            raise InputError(f"the prompt has {len(found.messages)} messages; it must have 1 … {MAX_PAGE_MESSAGES}")
        return [{"role": each.role, "content": each.content} for each in found.messages]

    def _encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        ids: Any = (
            self._tokens.encode_messages(messages)
            if self._tokens.template
            else self._tokens.encode(messages[-1]["content"])
        )
        if not ids:
            raise InputError("the prompt is empty")
        return [int(each) for each in ids]
