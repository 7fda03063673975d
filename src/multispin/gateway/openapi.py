"""The API as an OpenAPI document, made from the structures that check the bodies."""

from importlib.metadata import version
from typing import Any

import msgspec

from multispin.gateway.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from multispin.gateway.responses import ResponsesBody

PATHS = {
    "/v1/chat/completions": ("Continue a chat.", ChatBody),
    "/v1/completions": ("Continue texts or token ids.", CompletionBody),
    "/v1/responses": ("Answer an input, without memory of earlier ones.", ResponsesBody),
    "/tokenize": ("Token ids of a text or a chat.", TokenizeBody),
    "/detokenize": ("Text of token ids.", DetokenizeBody),
}
"""Purpose of each path, and the structure of its body."""
STATUSES = {
    400: "A field cannot be served as asked; the error names it.",
    401: "The API key is missing or wrong.",
    403: "The request comes from a web page of another origin.",
    404: "There is no model of this name.",
    413: "The body is too large.",
    429: "The edge is full, or the API key has used up its quota.",
    503: "No edge can be reached.",
}
"""Meaning of each status of a refusal."""


def openapi_document() -> dict[str, Any]:
    """The document that `/openapi.json` serves."""
    kinds = [kind for _, kind in PATHS.values()]
    bodies, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    refused = {
        str(status): {"description": sentence, "content": {"application/json": {"schema": _error()}}}
        for status, sentence in STATUSES.items()
    }
    answered = {
        "200": {
            "description": "The answer; server-sent events if `stream` is true.",
            "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {}}},
        }
    }
    posts = {
        path: {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
                "responses": {**answered, **refused},
            }
        }
        for (path, (summary, _)), body in zip(PATHS.items(), bodies, strict=True)
    }
    models = {"/v1/models": {"get": {"summary": "The one model.", "responses": {**answered, **refused}}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "multispin",
            "version": version("multispin"),
            "description": "OpenAI-compatible API of an edge.",
        },
        "paths": {**posts, **models},
        "components": {"schemas": components},
    }


def _error() -> dict[str, Any]:
    error = {"message": {"type": "string"}, "type": {"type": "string"}, "param": {}, "code": {}}
    inner = {"type": "object", "properties": error, "required": ["message", "type"]}
    return {"type": "object", "properties": {"error": inner}, "required": ["error"]}
