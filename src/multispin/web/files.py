"""The static files of the pages: their folders, and handlers that serve them."""

import mimetypes
from collections.abc import Awaitable, Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from aiohttp import web

from multispin.errors import InputError
from multispin.web.headers import ASK_AGAIN, headers

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATIC = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".wasm": "application/wasm", ".svg": "image/svg+xml"}
"""Content types that browsers insist on; some systems have others for these names."""
_TEXTS = ("text/", "image/svg")


def client_folder() -> Path:
    """Folder of the JavaScript client: beside the pages in an installed package, clients/js in a clone."""
    installed = STATIC / "client"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "clients" / "js" / "src"


def wllama_folder() -> Path:
    """Folder of the package multispin-wllama; InputError if it is not installed or its files were never fetched."""
    spec = find_spec("multispin_wllama")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    if folder is None or not (folder / "single-thread.wasm").is_file():
        raise InputError(
            "a page that drafts needs llama.cpp in WebAssembly: run `make web` in a clone of multispin (it needs npm)"
        )
    return folder


def add_folder(app: web.Application, prefix: str, folder: Path) -> None:
    """Serve each file that is now in a folder as PREFIX/NAME."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".py":
            app.router.add_get(f"{prefix}/{path.name}", serving(path))


def serving(path: Path, cache: str = ASK_AGAIN) -> Handler:
    """A handler that serves one file."""
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if kind.startswith(_TEXTS):
        kind += "; charset=utf-8"

    async def serve(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path, headers={**headers(request, cache), "Content-Type": kind})

    return serve


def json_answer(request: web.Request, document: Mapping[str, object], status: int = 200) -> web.Response:
    """A JSON document with the headers of a page's files."""
    return web.json_response(document, status=status, headers=headers(request))
