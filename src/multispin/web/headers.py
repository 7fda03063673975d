"""HTTP headers of the pages' files: what a page may load, and how long a browser may keep it."""

import re
from collections.abc import Mapping

from aiohttp import web

FOR_A_YEAR = "private, max-age=31536000, immutable"
"""Cache-Control for files whose address contains a hash of their content."""
ASK_AGAIN = "no-cache"

_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?")
"""Hosts that a Content-Security-Policy can name, which excludes IPv6 addresses."""
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'"
)


def headers(request: web.Request, cache: str = ASK_AGAIN) -> Mapping[str, str]:
    """Headers of one answer.

    The policy lets a page load from and reach its own edge only. The Cross-Origin-…-Policy headers isolate it from
    other pages; otherwise browsers give WebAssembly only one thread.

    Args:
        request: the request that is answered.
        cache: value of Cache-Control; default `ASK_AGAIN`.
    """
    host = request.headers.get("Host", "")
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""  # not in older browsers' 'self'
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
