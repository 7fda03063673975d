"""Who may use the API: who shows a token where the edge asks for one, and no web page of another origin."""

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

from multispin.edge import CALLER, Access, Caller, TokenExpiredError, bearer
from multispin.gateway.answers import error_document
from multispin.protocol import ProtocolError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_ID = "X-Request-Id"
"""Header with the name of a request: the client's own if it is a harmless one, and always in the answer."""
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def guard(access: Access) -> Callable[[Handler], Handler]:
    """Wraps handlers so that they serve only those who may use them, and know who that is (`CALLER`).

    A page that the edge did not serve itself is refused (`Door.refuses`), since any page that a user opens could
    otherwise write texts on an edge on the user's own machine.

    Args:
        access: knows what clients send as `Authorization: Bearer …`.
    """

    def wrap(handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if why := access.door.refuses(request):
                return _refusal(403, why)
            address = access.door.address_of(request)
            try:
                holder = await access.admit(bearer(request), address, asyncio.get_running_loop().time())
            except ProtocolError as error:
                if error.code == "unauthorised":
                    sentence = "the API key is missing or wrong: send a token of this edge as a bearer token"
                    sentence = str(error) if isinstance(error, TokenExpiredError) else sentence
                    return _refusal(401, sentence, {"WWW-Authenticate": "Bearer"})
                return _refusal(429, str(error), {"Retry-After": str(math.ceil(error.retry_after_s))})
            asked = request.headers.get(REQUEST_ID, "")
            name = asked if _NAME.fullmatch(asked) else f"req-{secrets.token_hex(8)}"
            CALLER.set(Caller(holder, address, name))
            return await handler(request)

        return guarded

    return wrap


async def name_answer(_: web.Request, response: web.StreamResponse) -> None:
    """Put the name of the request into its answer."""
    caller = CALLER.get()
    if caller is not None:
        response.headers[REQUEST_ID] = caller.request


def _refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(error_document(status, sentence), status=status, headers=headers)
