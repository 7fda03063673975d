"""Checks who may use the API: a token if the edge asks for one, and no web page of another origin."""

import asyncio
import math
import re
import secrets
from collections.abc import Callable, Collection

from aiohttp import hdrs, web

from multispin.checks import shown
from multispin.edge import CALLER, Access, Caller, TokenExpiredError, bearer
from multispin.edge.door import Door
from multispin.gateway.refusals import Handler, error_document
from multispin.protocol import SESSION_PATH, ProtocolError

REQUEST_ID = "X-Request-Id"
"""Header with the name of a request: the client's own name if it is harmless. Every answer has it."""
_PATHS = ("/v1/", "/tokenize", "/detokenize", "/openapi.json")
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def guard(access: Access) -> Callable[[Handler], Handler]:
    """Wrap handlers so that they serve only callers with access, and know the caller (`CALLER`).

    A page that the edge did not serve itself is refused (`Door.refuses`). Otherwise any page that a user opens could
    have texts written by an edge on the user's own machine.

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
    """Whether the path of a request belongs to the API; the devices' endpoint does not."""
    return request.path.startswith(_PATHS) and request.path != SESSION_PATH


async def no_such_path(request: web.Request) -> web.StreamResponse:
    """The handler of all paths and methods that are not served; its route must come last.

    Below the API's paths the error is a document in OpenAI's shape. This is no middleware, since aiohttp keeps
    applications with middlewares for as long as the process lives.
    """
    allowed, known = set[str](), set[str]()
    for resource in request.app.router.resources():
        allowed |= (await resource.resolve(request))[1]
        known.add(resource.canonical)
    allowed.discard(hdrs.METH_ANY)  # this handler's own route
    tidy = f"/{'/'.join(filter(None, request.path.split('/')))}"  # a base URL that ends in a slash makes two of them
    for meant in (tidy, f"/v1{tidy}", tidy.removeprefix("/v1")):
        if not allowed and meant in known:
            return _refusal(404, f"there is no {request.path} here, but {meant}: correct the client's base URL")
    if not is_of_api(request):
        raise web.HTTPMethodNotAllowed(request.method, allowed) if allowed else web.HTTPNotFound
    if not allowed:
        return _refusal(404, f"there is no path {shown(request.path, 200)} here: /openapi.json lists the paths")
    named = ", ".join(sorted(allowed))
    return _refusal(405, f"{request.path} takes {named}, not {request.method}", {"Allow": named})


def let_pages_in(app: web.Application, door: Door, paths: Collection[str]) -> None:
    """Let pages of the allowed origins read the API's answers (CORS). Call this before other routes are added.

    Args:
        app: the edge's web application.
        door: knows the allowed origins.
        paths: paths of the API.
    """

    async def may_ask(request: web.Request) -> web.StreamResponse:
        """Answer a browser's preflight request for a page of another origin; it carries no credential yet."""
        if not door.invited(request):
            return _refusal(403, door.refuses(request) or "only a browser sends this, for a page of another origin")
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
    """Put the name of the request into its answer, even if it was refused before the caller was known."""
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
