"""The edge's server: its web application, its counts, and how it stops.

Each device holds one WebSocket (binary frames, compression off) at `/v1/session`; `/healthz` and `/readyz` answer
for load balancers. `edge.devices` speaks with the devices, `edge.pass_loop` runs the passes.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, cast

from aiohttp import web

from multispin.edge.access import Access, Caller, bearer
from multispin.edge.account import Account, Counts
from multispin.edge.audience import Audience, log_text
from multispin.edge.connection import WebSocketWire, Wire
from multispin.edge.devices import Devices
from multispin.edge.gate import Guarded
from multispin.edge.pass_loop import PassLoop
from multispin.passes import Passes
from multispin.protocol import MAX_FRAME_BYTES, SESSION_PATH, ProtocolError
from multispin.protocol.events import EdgeEvent
from multispin.protocol.limits import CLOSE_TIMEOUT_S, FINISH_TEXTS_S, HEARTBEAT_S

COME_BACK_S = 10.0
FINISH_TIMEOUT_S = 10.0
"""An edge that is told to stop waits this long for the running pass [s]."""


class EdgeServer:
    """Drives `Passes` with a clock, sockets, a thread for the engine and one for plans.

    Attributes:
        audience: listeners to all events.
        access: check of who may use this edge.

    Args:
        passes: sessions and passes of this edge.
        on_event: called with every event; must not block. Add further listeners to `audience`. Default: no listener.
        access: knows who may use this edge, and bounds connections; default: everybody may.
        come_back_s: devices are told to come back this long after this edge stops [s]; default 10.
        planning: executor with one thread for plans, shut down when this edge ends; default a new one.

    """

    def __init__(
        self,
        passes: Passes,
        on_event: Callable[[EdgeEvent], None] = lambda _: None,
        access: Access | None = None,
        come_back_s: float = COME_BACK_S,
        planning: Executor | None = None,
    ) -> None:
        self._passes = passes
        self.audience = Audience(on_event, log_text)
        self.access = access or Access()
        self._door = self.access.door
        self._account = Account(passes)
        self._loop = PassLoop(passes, self._account, self.audience, planning)
        self._devices = Devices(passes, self._loop, self._account, self.audience, self.access, come_back_s)
        self._running: asyncio.Task[None] | None = None
        self._failed = asyncio.Event()
        self._why: BaseException | None = None

    def application(self) -> web.Application:
        """The web application, with the loop of passes as its background task."""
        app = web.Application()
        app.router.add_get(SESSION_PATH, self._session)
        app.router.add_get("/health", self._health)
        app.router.add_get("/healthz", alive)
        app.router.add_get("/readyz", self._ready)
        app.cleanup_ctx.append(self._background)
        app.on_shutdown.append(self._hang_up)
        return app

    async def _background(self, _: web.Application) -> Any:
        self._running = asyncio.create_task(self._loop.run(self._devices))
        tasks = [self._running, asyncio.create_task(self._devices.let_go())]
        for task in tasks:
            task.add_done_callback(self._note_failure)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop.close()
        self._door.close()

    async def _hang_up(self, _: web.Application) -> None:
        await self._devices.hang_up()

    def counts(self) -> Counts:
        """This edge's present counts."""
        waiting = self._passes.waiting
        return Counts(
            running=max(0, self._account.open_texts - waiting),
            waiting=waiting,
            sessions=self._passes.sessions.keys(),
            connections=len(self._devices),
            slots=self._passes.engine.slots,
            price_tokens_per_s=self._passes.price_tokens_per_s,
            wrong_credentials=self._door.guesses,
            failed_listeners=self.audience.failures,
        )

    def origin_of(self, number: int) -> str:
        """Whom a session counts as: a token, or an address; empty if it has ended."""
        return self._passes.origin_of(number)

    async def finish(self, texts_s: float = FINISH_TEXTS_S) -> None:
        """Refuse new connections, send the devices away, and let HTTP clients' texts and the last pass end.

        Args:
            texts_s: longest time for the texts of HTTP clients [s]; default `FINISH_TEXTS_S`. The last pass then has
                `FINISH_TIMEOUT_S`.

        """
        await self._devices.send_away(texts_s)
        self._loop.end()
        if self._running is not None:
            await asyncio.wait([self._running], timeout=FINISH_TIMEOUT_S)

    async def failure(self) -> BaseException:
        """Wait until the loop of passes fails, for example out of memory, and return the exception."""
        await self._failed.wait()
        assert self._why is not None
        return self._why

    def _note_failure(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (why := task.exception()) is not None:
            self._why = why
            self._failed.set()

    async def converse(self, wire: Wire, caller: Caller | None = None) -> None:
        """Serve one connection, from its greeting to its end.

        Args:
            wire: connection to a device, just opened.
            caller: holder of its token, if known already; default None: its first message must show a credential.

        """
        await self._devices.converse(wire, caller)

    # Routes -------------------------------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        """`/health`: this process answers. Callers with a valid credential also get the edge's load."""
        if self.access.asks:
            now_s = asyncio.get_running_loop().time()
            try:
                await self.access.admit(bearer(request), self._door.address_of(request), now_s)
            except ProtocolError:
                return await alive(request)
        engine = self._passes.engine
        return web.json_response(
            {"status": "ok", "sessions": len(self._passes.sessions), "slots": engine.slots, "round": self._passes.round}
        )

    async def _ready(self, _: web.Request) -> web.Response:
        """`/readyz`: requests are served. The engine is loaded before the port is open."""
        status = "stopping" if self._devices.stopping else "failed" if self._failed.is_set() else "ok"
        return web.json_response({"status": status}, status=200 if status == "ok" else 503)

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        """`/v1/session`: a device."""
        if why := self._door.refuses(request):
            raise web.HTTPForbidden(text=f"{why}\n")
        address, caller = self._door.address_of(request), None
        if self.access.asks and (secret := bearer(request)):
            now_s = asyncio.get_running_loop().time()
            try:
                caller = Caller(await self.access.admit(secret, address, now_s), address)
            except ProtocolError as error:
                headers = {"WWW-Authenticate": "Bearer"}
                raise web.HTTPUnauthorized(text=f"{error}\n", headers=headers) from None
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=MAX_FRAME_BYTES + 1, heartbeat=HEARTBEAT_S, timeout=CLOSE_TIMEOUT_S,
            autoping=False,
        )  # fmt: skip
        await socket.prepare(request)
        transport = cast(asyncio.Transport, request.transport)  # `prepare` fails without a transport
        guarded = transport.get_protocol()
        on_greeting = guarded.served if isinstance(guarded, Guarded) else None
        await self._devices.converse(WebSocketWire(socket, address, transport), caller, on_greeting)
        return socket


async def alive(_: web.Request) -> web.Response:
    """`/healthz`: this process answers."""
    return web.json_response({"status": "ok"})
