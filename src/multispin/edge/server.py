"""The edge as a server: real clock, real sockets, one thread for the engine.

Each device holds one WebSocket (binary frames, compression off) at `/v1/session`; `/healthz` and `/readyz` answer
for load balancers. One task runs the rounds; plans that take long are made in a thread, and the last one serves
meanwhile. Each connection has a bounded queue and a writer of its own, so a device that does not read cannot hold up
the others.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from multispin.edge.access import Access, Caller, Holder, bearer
from multispin.edge.account import Account
from multispin.edge.audience import Audience
from multispin.edge.door import FullError
from multispin.edge.metrics import Counts
from multispin.errors import InputError
from multispin.passes import EXPIRY_PERIOD_S, Batch, DraftHere, Passes, Send, Sleep, Verify
from multispin.protocol import (
    MAX_FRAME_BYTES,
    SESSION_PATH,
    Chunk,
    Downlink,
    Draft,
    Error,
    Hello,
    Open,
    ProtocolError,
    Resume,
    Uplink,
    decode_uplink,
    encode,
    websocket_frame_bytes,
)
from multispin.protocol.events import (
    Closed,
    Connected,
    EdgeEvent,
    Ended,
    Expired,
    Lost,
    Refused,
)
from multispin.speculation import Failure, Finding

HELLO_TIMEOUT_S = 10.0
HEARTBEAT_S = 15.0
CLOSE_TIMEOUT_S = 2.0
COME_BACK_S = 10.0
MAX_ENGINE_FAULTS = 3
"""So many faults of the engine in a row end the edge; fewer end the sessions of their passes."""
FINISH_TIMEOUT_S = 10.0
"""An edge that is told to stop waits so long for the pass under way."""
FINISH_TEXTS_S = 10.0
"""Before that, texts of HTTP clients, which can go on nowhere else, have so long to end."""
MAX_QUEUED_MESSAGES = 64
MAX_MESSAGES_PER_S = 200

log = logging.getLogger(__name__)


class Wire(Protocol):
    """What carries the frames of one connection: a WebSocket, or a queue inside this process."""

    @property
    def address(self) -> str:
        """Where its other end is; empty inside this process."""

    async def receive(self) -> bytes | None:
        """The next frame; None at the end of the connection. ProtocolError for what is no binary frame."""

    async def send(self, frame: bytes) -> None:
        """Send one frame; ConnectionError if that is not possible any more."""

    async def close(self, edge_stops: bool = False) -> None:
        """Close the connection; a device is told if the edge itself stops."""


class _WebSocketWire:
    """A WebSocket as a `Wire`."""

    def __init__(self, socket: web.WebSocketResponse, address: str) -> None:
        self._socket, self.address = socket, address

    async def receive(self) -> bytes | None:
        frame = await self._socket.receive()
        if frame.type is WSMsgType.TEXT:
            raise ProtocolError("bad-message", "only binary frames are spoken here")
        data: bytes | None = frame.data if frame.type is WSMsgType.BINARY else None
        return data

    async def send(self, frame: bytes) -> None:
        await self._socket.send_bytes(frame)

    async def close(self, edge_stops: bool = False) -> None:
        await self._socket.close(code=WSCloseCode.GOING_AWAY if edge_stops else WSCloseCode.OK)


@dataclass(eq=False)
class _Connection:
    """One device's connection, and the messages on their way to it."""

    wire: Wire
    queue: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(MAX_QUEUED_MESSAGES))
    writer: "asyncio.Task[None] | None" = None
    closing: bool = False
    edge_stops: bool = False
    received: int = 0
    second: int = 0
    holder: Holder = field(default_factory=Holder)
    request: str = ""

    def put(self, message: Downlink) -> None:
        """Queue a message; a full queue means a device that does not read, and ends the connection."""
        if self.closing:
            return
        if self.queue.full():
            self.end(Error("too-slow", f"{MAX_QUEUED_MESSAGES} messages wait for this device to read them"))
        else:
            self.queue.put_nowait(encode(message))

    def end(self, last: Error | None = None) -> None:
        """Close once everything queued is sent; where there is no room for `last`, what waits gives way."""
        if self.closing:
            return
        self.closing = True
        while self.queue.qsize() > MAX_QUEUED_MESSAGES - 2:
            self.queue.get_nowait()
        if last is not None:
            self.queue.put_nowait(encode(last))
        self.queue.put_nowait(None)

    async def write(self) -> None:
        """Send queued messages until told to close."""
        with contextlib.suppress(ConnectionError):
            while (frame := await self.queue.get()) is not None:
                await self.wire.send(frame)
        await self.wire.close(self.edge_stops)

    def count(self, now_s: float) -> None:
        """Refuse a device that sends too many messages which nobody asked for."""
        if int(now_s) != self.second:
            self.second, self.received = int(now_s), 0
        self.received += 1
        if self.received > MAX_MESSAGES_PER_S:
            raise ProtocolError("too-fast", f"over {MAX_MESSAGES_PER_S} messages in a second that answer nothing")


class EdgeServer:
    """Drives `Passes` with a clock, sockets, a thread for the engine and one for plans.

    Attributes:
        audience: who is told of everything that happens.
        access: who may use this edge.

    Args:
        passes: sessions and passes of this edge.
        on_event: called with everything that happens; must not block. `audience` tells further listeners.
        access: knows who may use this edge, and bounds connections; default: everybody may.
        come_back_s: devices are told to come back so long after this edge stops [s]; default 10.

    """

    def __init__(
        self,
        passes: Passes,
        on_event: Callable[[EdgeEvent], None] = lambda _: None,
        access: Access | None = None,
        come_back_s: float = COME_BACK_S,
    ) -> None:
        self._passes = passes
        self.audience = Audience(on_event)
        self._account = Account(passes)
        self._connections: dict[int, _Connection] = {}
        self._holders: dict[int, Holder] = {}  # of sessions, connected or not
        self.access = access or Access()
        self._door = self.access.door
        self._come_back_s = come_back_s
        self._open: set[_Connection] = set()  # greeted or not
        self._wake = asyncio.Event()
        self._failed = asyncio.Event()
        self._why: BaseException | None = None
        self._stopping = False  # nobody new is taken
        self._ending = False  # the pass under way is the last one
        self._left = asyncio.Event()  # a connection has ended
        self._faults = 0  # of the engine, one after the other
        self._loop: asyncio.Task[None] | None = None
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._planning_thread = ThreadPoolExecutor(1, thread_name_prefix="planning")
        passes.controller.plan_in(self._planning_thread)

    def application(self) -> web.Application:
        """The web application, with the round loop as its background task."""
        app = web.Application()
        app.router.add_get(SESSION_PATH, self._session)
        app.router.add_get("/health", self._health)
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        app.cleanup_ctx.append(self._background)
        app.on_shutdown.append(self._hang_up)
        return app

    async def _background(self, _: web.Application) -> Any:
        self._loop = asyncio.create_task(self._run())
        tasks = [self._loop, asyncio.create_task(self._expire())]
        for task in tasks:
            task.add_done_callback(self._note_failure)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for thread in (self._engine_thread, self._planning_thread):
            thread.shutdown(wait=True, cancel_futures=True)

    def counts(self) -> Counts:
        """What this edge counts at the moment."""
        waiting = self._passes.waiting
        return Counts(
            running=max(0, self._account.open_texts - waiting),
            waiting=waiting,
            sessions=self._passes.sessions.keys(),
            connections=len(self._open),
            slots=self._passes.engine.slots,
            price_tokens_per_s=self._passes.price_tokens_per_s,
            wrong_credentials=self._door.guesses,
            failed_listeners=self.audience.failures,
        )

    async def finish(self, texts_s: float = FINISH_TEXTS_S) -> None:
        """Take no new connection, send the devices away, and let the texts of HTTP clients and the last pass end.

        A device has its text and goes on at another edge, so it is told at once. An HTTP client has nothing but its
        answer.

        Args:
            texts_s: texts of HTTP clients have so long to end [s]; the last pass then has `FINISH_TIMEOUT_S`.

        """
        self._stopping = True
        for connection in self._open:
            if connection.wire.address:
                self._send_away(connection)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(texts_s):
                while any(not connection.wire.address for connection in self._open):
                    self._left.clear()
                    await self._left.wait()
        self._ending = True
        self._wake.set()
        if self._loop is not None:
            await asyncio.wait([self._loop], timeout=FINISH_TIMEOUT_S)

    async def failure(self) -> BaseException:
        """Wait until the round loop fails, if it ever does (an engine out of memory, say), and return why."""
        await self._failed.wait()
        assert self._why is not None
        return self._why

    def _note_failure(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (why := task.exception()) is not None:
            self._why = why
            self._failed.set()

    async def _hang_up(self, _: web.Application) -> None:
        """Close every connection; devices keep their texts and go on elsewhere."""
        for connection in self._open:
            self._send_away(connection)
        writers = [connection.writer for connection in self._open if connection.writer is not None]
        if writers:
            await asyncio.wait(writers, timeout=CLOSE_TIMEOUT_S)
        await asyncio.gather(*(connection.wire.close(edge_stops=True) for connection in self._open))

    def _send_away(self, connection: _Connection) -> None:
        """Tell the other end when to come back, and close."""
        last = self._goodbye()
        connection.edge_stops = True
        connection.end(Error(last.code, str(last), last.retry_after_s))

    def _goodbye(self) -> ProtocolError:
        return ProtocolError(
            "shutdown",
            f"this edge is stopping: try another one, or this one again in {self._come_back_s:.0f} s",
            retry_after_s=self._come_back_s,
        )

    # The passes ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Do what the passes ask for, until this edge ends and no pass is under way."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            match self._passes.advance(loop.time()):
                case Sleep(until_s):
                    if self._ending:
                        return
                    await self._sleep(until_s)
                case DraftHere() as step:
                    began_s = loop.time()
                    drafts = await loop.run_in_executor(self._engine_thread, self._passes.draft, step)
                    self._passes.drafted(step, drafts, loop.time() - began_s, loop.time())
                case Verify(batch):
                    began_s = loop.time()
                    self._account.batch(batch, began_s)
                    findings = await self._verify(batch)
                    self._passes.verified(batch, findings, loop.time() - began_s, loop.time())
                case Send(messages, report):
                    for number, message in messages:
                        self._send(number, message)
                    if report is not None:
                        self.audience.tell(self._account.round(report, loop.time()))
                        for number, tokens in zip(report.members, report.delivered, strict=True):
                            self._tell(self._account.finished(number, loop.time()))
                            if (connection := self._connections.get(number)) is not None:
                                connection.holder.spend(tokens, loop.time())
                        if self._ending:
                            return

    async def _sleep(self, until_s: float | None) -> None:
        """Wait for a message, or until this time of the loop's clock [s]."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                await self._wake.wait()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_PERIOD_S)
            names = {number: session.hello.name for number, session in self._passes.sessions.items()}
            for number in self._passes.expire(asyncio.get_running_loop().time()):
                self._tell(self._account.gone(number, "abort", self._now_s()))
                self.audience.tell(Expired(number, names[number]))
                if (connection := self._connections.pop(number, None)) is not None:
                    connection.end(Error("timeout", "this device was silent for too long"))
            await self._let_go_of_the_revoked()
            self._wake.set()

    async def _let_go_of_the_revoked(self) -> None:
        """Read the tokens again if they have changed, and end the sessions of those that are revoked or expired."""
        await asyncio.to_thread(self.access.reload)
        for number, holder in list(self._holders.items()):
            if self._passes.session(number) is None:
                del self._holders[number]
                holder.sessions.discard(number)
            elif why := self.access.why_gone(holder):
                connection = self._connections.get(number)
                if connection is not None:
                    connection.end(Error("unauthorised", f"the token of this session {why}"))
                    self._leave(number, f"its token {why}")
                else:
                    self._passes.leave(number)

    # Connections --------------------------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        """`/health`: this process answers; who may use this edge is told how much it has to do, too."""
        if self.access.asks:
            try:
                await self.access.admit(bearer(request), self._door.address_of(request), self._now_s())
            except ProtocolError:
                return await self._alive(request)
        engine = self._passes.engine
        return web.json_response(
            {"status": "ok", "sessions": len(self._passes.sessions), "slots": engine.slots, "round": self._passes.round}
        )

    async def _alive(self, _: web.Request) -> web.Response:
        """`/healthz`: this process answers."""
        return web.json_response({"status": "ok"})

    async def _ready(self, _: web.Request) -> web.Response:
        """`/readyz`: requests are served. The engine is loaded before anybody can connect."""
        status = "stopping" if self._stopping else "failed" if self._failed.is_set() else "ok"
        return web.json_response({"status": status}, status=200 if status == "ok" else 503)

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        if why := self._door.refuses(request):
            raise web.HTTPForbidden(text=f"{why}\n")
        address, caller = self._door.address_of(request), None
        if self.access.asks and (secret := bearer(request)):
            try:
                caller = Caller(await self.access.admit(secret, address, self._now_s()), address)
            except ProtocolError as error:
                headers = {"WWW-Authenticate": "Bearer"}
                raise web.HTTPUnauthorized(text=f"{error}\n", headers=headers) from None
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=MAX_FRAME_BYTES + 1, heartbeat=HEARTBEAT_S, timeout=CLOSE_TIMEOUT_S
        )
        await socket.prepare(request)
        await self.converse(_WebSocketWire(socket, address), caller)
        return socket

    async def converse(self, wire: Wire, caller: Caller | None = None) -> None:
        """Serve one connection, from its greeting to its end.

        Args:
            wire: connection to a device, just opened.
            caller: who stands behind it, if that is known already; else its first message must show a credential.
        """
        connection = _Connection(wire)
        self._open.add(connection)
        connection.writer = writer = asyncio.create_task(connection.write())
        number, place = None, None
        try:
            place = self._door.enter(
                lambda: connection.end(Error("full", "somebody else took this place: greet sooner")), wire.address
            )
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                message = decode_uplink(await self._first(wire))
            if self._stopping:
                raise self._goodbye()
            if caller is None:
                secret = message.credential if isinstance(message, Hello | Resume) else ""
                caller = Caller(await self.access.admit(secret, wire.address, self._now_s()), wire.address)
            connection.holder, connection.request = caller.holder, caller.request
            self._make_room(message, caller.holder)
            number, answers = self._passes.connect(message, self._now_s())
            self._holders[number] = caller.holder
            caller.holder.sessions.add(number)
            self._door.greeted(place)
            self._take_over(number, connection, answers)
            await self._receive(number, connection)
        except TimeoutError:
            connection.end(Error("timeout", f"no Hello came within {HELLO_TIMEOUT_S:.0f} s"))
        except FullError as error:
            connection.end(Error("full", str(error)))
            if number is not None:
                self._passes.leave(number)
        except InputError as error:
            code, after_s = (
                (error.code, error.retry_after_s) if isinstance(error, ProtocolError) else ("bad-message", 0.0)
            )
            connection.end(Error(code, str(error), after_s))
            if number is not None and self._connections.get(number) is connection:
                self._leave(number, str(error))
        finally:
            self._open.discard(connection)
            self._left.set()
            if place is not None:
                self._door.gone(place)
            connection.end()
            if number is not None and self._connections.get(number) is connection:
                self._lose(number)
            await asyncio.wait([writer], timeout=HELLO_TIMEOUT_S)
            writer.cancel()

    def _make_room(self, message: Uplink, holder: Holder) -> None:
        """Refuse a session that is another holder's, or one too many of its own; one that has lost its device goes."""
        if isinstance(message, Resume):
            if self._holders.get(self._passes.find(message.resume_token)) is not holder:
                raise ProtocolError("unknown-session", "there is no session to resume: open the request again")
            return
        most = holder.token.max_sessions if holder.token is not None else 0
        if not most:
            return
        holder.sessions = {number for number in holder.sessions if self._passes.session(number) is not None}
        lost = [number for number in holder.sessions if number not in self._connections]
        if len(holder.sessions) >= most and lost:
            self._tell(self._account.gone(min(lost), "abort", self._now_s()))
            self._passes.leave(min(lost))
        elif len(holder.sessions) >= most:
            raise ProtocolError("full", f"this token has {most} sessions, its limit", retry_after_s=1.0)

    async def _first(self, wire: Wire) -> bytes:
        """The first frame of a connection."""
        frame = None
        with contextlib.suppress(ProtocolError):
            frame = await wire.receive()
        if frame is None:
            raise ProtocolError("hello-first", "the first message must be a binary Hello or Resume")
        return frame

    async def _receive(self, number: int, connection: _Connection) -> None:
        """Hand every message to the edge until the connection ends."""
        while (frame := await connection.wire.receive()) is not None:
            if self._connections.get(number) is not connection:  # overtaken by a newer one, which has been told all
                return
            now_s = self._now_s()
            message = decode_uplink(frame)
            if isinstance(message, Open) and message.grammar and self._passes.grammars is not None:
                with contextlib.suppress(InputError):  # said when the request is opened, at once
                    await asyncio.to_thread(self._passes.grammars.matcher, message.grammar)
            session = self._passes.session(number)
            if session is None or not session.awaits(message):  # what the edge asked for is no noise, however fast
                connection.count(now_s)
            if isinstance(message, Open):
                connection.holder.check_text(message.prompt_tokens, now_s)
            wire_bytes = websocket_frame_bytes(len(frame), masked=True)
            for answer in self._passes.receive(number, message, wire_bytes, now_s):
                connection.put(answer)
            if isinstance(message, Draft | Chunk) and session is not None:  # as nearly always
                if session.request is not None and session.request.finish:
                    self._tell(self._account.finished(number, now_s))
                if not self._passes.waits(now_s):
                    self._wake.set()
                continue
            self._tell(self._note(number, message, connection, now_s))
            self._wake.set()
            if self._passes.session(number) is None:  # it said Close
                self._connections.pop(number, None)
                self._tell(self._account.gone(number, "abort", now_s))
                self.audience.tell(Closed(number))
                return

    def _note(self, number: int, message: Uplink, connection: _Connection, now_s: float) -> EdgeEvent | None:
        """What a message that was taken means for the session's text."""
        if isinstance(message, Open):
            connection.holder.spend(message.prompt_tokens, now_s)
            return self._account.opened(number, connection.request, now_s)
        return self._account.finished(number, now_s)

    def _tell(self, event: EdgeEvent | None) -> None:
        """Tell an event, if there is one; the end of a text is a line of the log."""
        if event is None:
            return
        self.audience.tell(event)
        if isinstance(event, Ended):
            log.info(
                *("%s: %d tokens in %.2f s (%s)", event.name, event.tokens, event.seconds, event.finish),
                extra={
                    "session": event.session, "device": event.name, "request": event.request or None,
                    "finish": event.finish, "prompt_tokens": event.prompt_tokens, "tokens": event.tokens,
                    "first_token_s": event.first_token_s, "seconds": event.seconds,
                },
            )  # fmt: skip

    def _take_over(self, number: int, connection: _Connection, answers: list[Downlink]) -> None:
        """Make this connection the session's own; an older one, half open perhaps, is closed."""
        older = self._connections.pop(number, None)
        if older is not None:
            older.end()
        self._connections[number] = connection
        for answer in answers:
            connection.put(answer)
        hello = self._passes.sessions[number].hello
        self.audience.tell(Connected(number, hello.name, hello.drafter, older is not None))
        self._wake.set()

    def _lose(self, number: int) -> None:
        del self._connections[number]
        session = self._passes.session(number)
        if session is not None:
            self._passes.disconnect(number, self._now_s())
            self.audience.tell(Lost(number, session.hello.name))
        self._wake.set()

    def _leave(self, number: int, why: str) -> None:
        del self._connections[number]
        session = self._passes.session(number)
        name = session.hello.name if session else ""
        self._passes.leave(number)
        self._tell(self._account.gone(number, "abort", self._now_s()))
        self.audience.tell(Refused(number, name, why))
        self._wake.set()

    async def _verify(self, batch: Batch) -> Sequence[Finding | Failure | None]:
        """Verify in the engine's thread; a fault of the engine ends the sessions of its pass, unless it repeats."""
        loop = asyncio.get_running_loop()
        try:
            findings = await loop.run_in_executor(self._engine_thread, self._passes.verify, batch)
        except Exception:
            self._faults += 1
            if self._faults >= MAX_ENGINE_FAULTS:
                raise
            log.exception("the engine failed at a pass of %d sessions", len(batch.jobs))
            return [Failure("the engine failed at this pass: open the request again")] * len(batch.jobs)
        self._faults = 0
        return findings

    def _send(self, number: int, message: Downlink) -> None:
        if isinstance(message, Error):  # the session has ended
            self._tell(self._account.gone(number, "error", self._now_s()))
        connection = self._connections.get(number)
        if connection is None:
            return
        if isinstance(message, Error):
            del self._connections[number]
            connection.end(message)
            self.audience.tell(Refused(number, "", message.sentence))
        else:
            connection.put(message)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()
