"""The page `/dashboard` shows live who drafts for whom at this edge. Viewers get a small document twice a second.

A viewer that reads slowly gets fewer documents: each connection sends the newest state when it can, and queues nothing.
"""

import asyncio
import base64
import json
from collections.abc import Callable

from aiohttp import web

from multispin.edge import bearer
from multispin.edge.access import origin_of_caller
from multispin.edge.shares import FullHouseError, SharedPlaces
from multispin.web.board import Board
from multispin.web.files import STATIC, Handler, json_answer, serving
from multispin.web.headers import headers
from multispin.web.join import join_address

DASHBOARD = "/dashboard"
PERIOD_S = 0.5
"""Time between two documents for a viewer [s]."""
MAX_VIEWERS = 16
WRITE_TIMEOUT_S = 30.0
"""A viewer that takes no document for this long is disconnected [s]."""
_FILES = ("dashboard.css", "dashboard.js", "chart.js", "feed.js", "fetching.js", "icon.svg", "kept.js", "token.js")
_VENDORED = ("uPlot.iife.min.js", "uPlot.min.css")


class Dashboard:
    """The dashboard's page and its feed.

    Args:
        board: board with the state that is shown.
        picture: function that returns the QR code of an address as SVG; default none.
        period_s: time between two documents for a viewer [s]; default `PERIOD_S`.
        write_timeout_s: a viewer that takes no document for this long is disconnected [s]; default `WRITE_TIMEOUT_S`.
        max_share: share of the viewers' places that all others leave which one token or address may have; default 1.0.

    """

    def __init__(
        self,
        board: Board,
        picture: Callable[[str], str] = lambda _: "",
        period_s: float = PERIOD_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        max_share: float = 1.0,
    ) -> None:
        self._board, self._picture = board, picture
        self._period_s, self._write_timeout_s = period_s, write_timeout_s
        self._place, self._scheme = "", "http"
        self._places = SharedPlaces(MAX_VIEWERS, max_share)
        self._document, self._made_s = b"", -period_s
        self._stopping = asyncio.Event()

    @property
    def viewers(self) -> int:
        """Number of connected viewers."""
        return self._places.held

    def invite(self, place: str, scheme: str = "http") -> None:
        """Show the address of the page that drafts, once HOST:PORT is known."""
        self._place, self._scheme = place, scheme

    def add_routes(self, app: web.Application, guard: Callable[[Handler], Handler]) -> None:
        """Put the dashboard into an edge's web application.

        Args:
            app: web application of the edge.
            guard: wraps handlers that only callers with access to this edge may use.
        """
        app.router.add_get("/", _at_dashboard)
        app.router.add_get(DASHBOARD, serving(STATIC / "dashboard.html"))
        for name in _FILES:
            app.router.add_get(f"{DASHBOARD}/static/{name}", serving(STATIC / name))
        for name in _VENDORED:
            app.router.add_get(f"{DASHBOARD}/static/{name}", serving(STATIC / "vendor" / name))
        # Nothing is ever written to a HEAD request, so it could hold a viewer's place for ever.
        app.router.add_get(f"{DASHBOARD}/feed", guard(self._feed), allow_head=False)
        app.router.add_get(f"{DASHBOARD}/join", guard(self._join))
        app.on_shutdown.append(self._stop)

    async def _stop(self, _: web.Application) -> None:
        self._stopping.set()

    async def _join(self, request: web.Request) -> web.StreamResponse:
        """The address of the page that drafts, and a QR code with the viewer's own token."""
        if not self._place:
            return json_answer(request, {"address": "", "picture": ""})
        picture = self._picture(join_address(self._place, bearer(request), self._scheme))
        data = f"data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()}"
        return json_answer(request, {"address": join_address(self._place, scheme=self._scheme), "picture": data})

    async def _feed(self, request: web.Request) -> web.StreamResponse:
        """The state as server-sent events."""
        try:
            with self._places.place(origin_of_caller(), "viewers"):
                return await self._events(request)
        except FullHouseError as error:
            return json_answer(request, {"error": str(error)}, 429)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers(request), "Content-Type": "text/event-stream; charset=utf-8"})
        try:
            await response.prepare(request)
            while not self._stopping.is_set():
                async with asyncio.timeout(self._write_timeout_s):
                    await response.write(self._event())
                try:
                    await asyncio.wait_for(self._stopping.wait(), self._period_s)
                except TimeoutError:
                    continue
        except (TimeoutError, ConnectionError):
            request.protocol.force_close()
        return response

    def _event(self) -> bytes:
        """The newest document, which all viewers share."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._made_s >= self._period_s / 2:
            document = json.dumps(self._board.shown(now_s), separators=(",", ":"), allow_nan=False)
            self._document, self._made_s = f"data: {document}\n\n".encode(), now_s
        return self._document


async def _at_dashboard(_: web.Request) -> web.StreamResponse:
    """`/`: redirect a browser that opens an edge's bare address to the dashboard."""
    raise web.HTTPFound(DASHBOARD[1:])  # relative, since a proxy may have put a path before it
