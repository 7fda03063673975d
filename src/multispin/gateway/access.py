"""Access to the API: a token, if the edge asks for one, and no request from a web page of another origin."""

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Collection

from aiohttp import hdrs, web

from multispin.edge import CALLER, Access, Caller, TokenExpiredError, bearer
from multispin.edge.door import Door
from multispin.gateway.answers import error_document
from multispin.protocol import SESSION_PATH, ProtocolError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_ID = "X-Request-Id"
"""Header with the name of a request: the client's own if it is a harmless one, and always in the answer."""
_PATHS = ("/v1/", "/tokenize", "/detokenize", "/openapi.json")
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def guard(access: Access) -> Callable[[Handler], Handler]:
    """Wraps handlers so that they serve only those who may use them, and know who that is (`CALLER`).

    A page that the edge did not serve itself is refused (`Door.refuses`), since any page that a user opens could
    otherwise write texts on an edge on the user's own machine.

    Args:
        access: credentials that clients may send as `Authorization: Bearer …`.
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
            CALLER.set(Caller(holder, address, _name_of(request)))
            return await handler(request)

        return guarded

    return wrap


def is_of_api(request: web.Request) -> bool:
    """Whether a request is for the API, by its path; the address of the devices is not."""
    return request.path.startswith(_PATHS) and request.path != SESSION_PATH


async def no_such_path(request: web.Request) -> web.StreamResponse:
    """The handler of all paths and methods that are not served, for a route that is asked last.

    The API's are answered in OpenAI's shape, as all its errors are. This is no middleware: aiohttp remembers the
    applications that have any for as long as the process lives.
    """
    allowed, known = set[str](), set[str]()
    for resource in request.app.router.resources():
        allowed |= (await resource.resolve(request))[1]
        known.add(resource.canonical)
    allowed.discard(hdrs.METH_ANY)  # that is this handler's own route
    for meant in (f"/v1{request.path}", request.path.removeprefix("/v1")):
        if not allowed and meant in known:
            return _refusal(404, f"there is no {request.path} here, but {meant}: look at the client's base URL")
    if not is_of_api(request):
        raise web.HTTPMethodNotAllowed(request.method, allowed) if allowed else web.HTTPNotFound
    if not allowed:
        return _refusal(404, "there is no such path here: /openapi.json lists those that there are")
    named = ", ".join(sorted(allowed))
    return _refusal(405, f"{request.path} takes {named}, not {request.method}", {"Allow": named})


def let_pages_in(app: web.Application, door: Door, paths: Collection[str]) -> None:
    """Let browsers hand what the edge says to pages of the allowed origins (CORS). To be called before other routes.

    Args:
        app: the edge's web application.
        door: knows the allowed origins.
        paths: paths of the API.
    """

    async def may_ask(request: web.Request) -> web.StreamResponse:
        """Answer a browser's preflight request for a page of another origin; it carries no credential yet."""
        if not door.invited(request):
            return _refusal(403, door.refuses(request) or "only a browser asks this, for a page of another origin")
        asked = request.headers.get("Access-Control-Request-Headers", "")
        headers = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": asked}
        return web.Response(status=204, headers={**headers, "Access-Control-Max-Age": "600"})

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        if origin := door.invited(request):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = f"{REQUEST_ID}, Retry-After"
            response.headers.add("Vary", "Origin")

    for path in paths:
        app.router.add_route(hdrs.METH_OPTIONS, path, may_ask)
    app.on_response_prepare.append(tell)


async def name_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Put the name of the request into its answer, also where it was refused before anybody knew who asks."""
    caller = CALLER.get()
    if caller is not None:
        response.headers[REQUEST_ID] = caller.request
    elif is_of_api(request):
        response.headers[REQUEST_ID] = _name_of(request)


def _name_of(request: web.Request) -> str:
    asked = request.headers.get(REQUEST_ID, "")
    return asked if _NAME.fullmatch(asked) else f"req-{secrets.token_hex(8)}"


def _refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(error_document(status, sentence), status=status, headers=headers)
