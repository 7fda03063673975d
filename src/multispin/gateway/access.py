"""Who may use the API: a bearer token where the edge asks for one, and no web page of another origin."""

import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from multispin.gateway.answers import error_document

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(credential: str) -> Callable[[Handler], Handler]:
    """Wraps handlers so that they serve only those who may use them.

    A browser sends the origin of the page that asks. A page that the edge did not serve itself is refused, since any
    page that a user opens could otherwise write texts on an edge on the user's own machine.

    Args:
        credential: what clients send as `Authorization: Bearer …`; empty lets everybody in.
    """

    def wrap(handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            origin = request.headers.get("Origin")
            if origin is not None and urlsplit(origin).netloc != request.headers.get("Host"):
                return _refusal(403, f"a page of the origin {origin[:200]} may not use this server")
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if credential and not (
                scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), credential.encode())
            ):
                return _refusal(401, "the API key is missing or wrong: send this edge's credential as a bearer token")
            return await handler(request)

        return guarded

    return wrap


def _refusal(status: int, sentence: str) -> web.Response:
    return web.json_response(error_document(status, sentence), status=status)
