"""HTTP headers of every file of a page: where it may load from, and how long a browser may keep it."""

import re
from collections.abc import Mapping

from aiohttp import web

FOR_A_YEAR = "private, max-age=31536000, immutable"
"""For files whose address names their content."""
ASK_AGAIN = "no-cache"

_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?")
"""What a policy can name; it has no words for an IPv6 address."""
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'"
)


def headers(request: web.Request, cache: str = ASK_AGAIN) -> Mapping[str, str]:
    """Headers of one answer.

    The policy lets a page load and reach its own edge and nothing else. The page is isolated from others
    (Cross-Origin-…-Policy), without which browsers give WebAssembly one thread only.

    Args:
        request: the request that is answered.
        cache: value of Cache-Control; default `ASK_AGAIN`.
    """
    host = request.headers.get("Host", "")
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""  # older browsers: 'self' names no ws:
    return {
        "Cache-Control": cache,
        "Content-Security-Policy": _POLICY + sockets,
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    }
