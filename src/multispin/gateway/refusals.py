"""What is wrong with a request, as an HTTP status and OpenAI's error document."""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from aiohttp import web

from multispin.device import EdgeAwayError
from multispin.edge.shares import FullHouseError
from multispin.errors import InputError
from multispin.protocol import RefusedError

ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
"""The `type` of an error by its HTTP status. Others are "invalid_request_error" below 500, else "server_error"."""
STATUS_OF_CODE: Mapping[str, int] = {"full": 429, "unauthorised": 401, "failed": 500, "shutdown": 503, "away": 503}
"""HTTP status by the code of the edge's refusal; 400 for all others."""

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Made = TypeVar("Made")


class BadRequestError(InputError):
    """A request that cannot be served as asked.

    Args:
        sentence: what is wrong, for people.
        param: field of the body that is wrong; default None.

    """

    def __init__(self, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.param = param


class StatusError(Exception):
    """A refusal with an HTTP status of its own.

    Args:
        status: HTTP status code, 400 … 599.
        sentence: what is wrong, for people.
        param: field of the body that is wrong; default None.
        code: name of the error for programs; default None: the status.

    """

    def __init__(self, status: int, sentence: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code


def named(make: Callable[[], Made], field: str | None = None, *others: str) -> Made:
    """The result of `make`. An InputError is of `field`, or of its own first word if in `others` or no field."""
    try:
        return make()
    except BadRequestError:
        raise
    except InputError as error:
        first = str(error).split(" ", 1)[0]
        raise BadRequestError(str(error), first if field is None or first in others else field) from None


def error_document(status: int, sentence: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape.

    Args:
        status: HTTP status code, 400 … 599.
        sentence: what is wrong and what to do, for people.
        param: field of the body that is wrong; default None.
        code: name of the error for programs; default None: the status.
    """
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code or status}}


def document_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and document of an error. Only errors that are meant for the client show their text."""
    match error:
        case StatusError():
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


def answering_errors(handler: Handler) -> Handler:
    """Wrap a handler so that errors before the answer begins become error documents."""

    async def answering(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (ConnectionError, web.HTTPException):
            raise
        except Exception as error:
            status, document = document_of(error)
            if status == 500:
                log.exception("a request failed")
            after_s = max(1.0, getattr(error, "retry_after_s", 0.0))
            headers = {"Retry-After": str(math.ceil(after_s))} if status in (429, 503) else {}
            return web.json_response(document, status=status, headers=headers)

    return answering
