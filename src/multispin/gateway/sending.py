"""Sending answers to clients that may leave or read slowly: whole, or as server-sent events while texts are written."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from aiohttp import web

from multispin.gateway.answers import DONE, event
from multispin.gateway.parts import Part
from multispin.gateway.refusals import document_of

MAX_QUEUED_EVENTS = 64
"""Most events of one stream that wait for its client; then its texts pause."""
WATCH_PERIOD_S = 0.25
"""Time between two checks whether a request's client is still there [s]."""

log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def watched(request: web.Request, writing: Awaitable[Result]) -> Result:
    """Wait for the finished text; abandon it if the client has gone."""
    task, left = asyncio.ensure_future(writing), asyncio.create_task(_left(request))
    try:
        await asyncio.wait([task, left], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionResetError("the client has gone")
        return await task
    finally:
        await _ended([task, left])


async def sent(
    request: web.Request, texts: Sequence[AsyncGenerator[bytes, None]], last: Callable[[], bytes]
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
                status, document = document_of(item)
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


async def _left(request: web.Request) -> None:
    """Return when the client of a request has gone."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(WATCH_PERIOD_S)


async def gathered(texts: Sequence[AsyncGenerator[Part, None]]) -> list[list[Part]]:
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
