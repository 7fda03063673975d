"""The devices of an edge: which connection speaks for which session, from its greeting to its end."""

import asyncio
import contextlib
from collections.abc import Callable

from multispin.edge.access import Access, Caller, Holder
from multispin.edge.account import Account
from multispin.edge.audience import Audience
from multispin.edge.connection import Connection, Wire
from multispin.edge.door import FullError
from multispin.edge.pass_loop import PassLoop
from multispin.errors import InputError
from multispin.passes import EXPIRY_PERIOD_S, Passes
from multispin.protocol import (
    Chunk,
    Downlink,
    Draft,
    EdgeSession,
    Error,
    Hello,
    Open,
    ProtocolError,
    Resume,
    Uplink,
    decode_uplink,
    websocket_frame_bytes,
)
from multispin.protocol.events import Closed, Connected, EdgeEvent, Expired, Lost, Refused
from multispin.protocol.limits import CLOSE_TIMEOUT_S

HELLO_TIMEOUT_S = 10.0
"""A connection must send its Hello or Resume within this time."""
FLOODS = "too-fast", "bad-message", "hello-first"
"""Codes of errors after which a connection may go on sending much that nobody needs."""


class Devices:
    """Connections, and the sessions that they speak for.

    Args:
        passes: sessions and passes of this edge.
        loop: runs the passes; it is woken when a message changes anything.
        account: turns what happens to texts into events.
        audience: listeners that are told of the events.
        access: knows who may use this edge, and bounds connections.
        come_back_s: devices are told to come back this long after this edge stops [s].

    """

    def __init__(
        self, passes: Passes, loop: PassLoop, account: Account, audience: Audience, access: Access, come_back_s: float
    ) -> None:
        self._passes, self._loop, self._account, self._audience = passes, loop, account, audience
        self._access, self._door = access, access.door
        self._come_back_s = come_back_s
        self._connections: dict[int, Connection] = {}  # of connected sessions
        self._holders: dict[int, Holder] = {}  # of sessions, connected or not
        self._open: set[Connection] = set()  # greeted or not
        self._left = asyncio.Event()  # a connection has ended
        self._stopping = False  # new connections are refused

    def __len__(self) -> int:
        """Open connections, greeted or not."""
        return len(self._open)

    @property
    def stopping(self) -> bool:
        """Whether new connections are refused."""
        return self._stopping

    # What a pass brings ---------------------------------------------------------------------------------------------

    def send(self, number: int, message: Downlink) -> None:
        """Send a message to the device of a session, if it is connected; an Error ends the session."""
        connection = self._connections.get(number)
        if isinstance(message, Error):
            self._audience.tell(self._account.gone(number, "error", self._now_s()))
            if connection is not None:
                del self._connections[number]
                connection.end(message)
                self._audience.tell(Refused(number, "", message.sentence))
        elif connection is not None:
            connection.put(message)

    def spend(self, number: int, tokens: int, now_s: float) -> None:
        """Count tokens of a session's text against its holder's quota."""
        if (holder := self._holders.get(number)) is not None:  # even if the device was lost during the pass
            holder.spend(tokens, now_s)

    # The end --------------------------------------------------------------------------------------------------------

    async def send_away(self, texts_s: float) -> None:
        """Refuse new connections, send the devices away, and give HTTP clients' sessions this long to end [s].

        A device has its text and can go on at another edge, so it is told at once. An HTTP client has only its answer.
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

    async def hang_up(self) -> None:
        """Close every connection. Devices keep their texts and go on elsewhere."""
        for connection in self._open:
            self._send_away(connection)
        writers = [connection.writer for connection in self._open if connection.writer is not None]
        if writers:
            await asyncio.wait(writers, timeout=CLOSE_TIMEOUT_S)
        await asyncio.gather(*(connection.wire.close(edge_stops=True) for connection in self._open))

    def _send_away(self, connection: Connection) -> None:
        """Tell the other end when to come back, and close."""
        last = self._goodbye()
        connection.edge_stops = True
        connection.end(Error(last.code, str(last), last.retry_after_s))

    def _goodbye(self) -> ProtocolError:
        return ProtocolError(
            "shutdown",
            f"this edge is stopping: connect to another edge, or to this one again in {self._come_back_s:.0f} s",
            retry_after_s=self._come_back_s,
        )

    async def let_go(self) -> None:
        """End sessions that were lost or silent for too long, or whose token ended. Checks periodically, for ever."""
        while True:
            await asyncio.sleep(EXPIRY_PERIOD_S)
            names = {number: session.hello.name for number, session in self._passes.sessions.items()}
            for number in self._passes.expire(self._now_s()):
                self._audience.tell(self._account.gone(number, "abort", self._now_s()))
                self._audience.tell(Expired(number, names[number]))
                if (connection := self._connections.pop(number, None)) is not None:
                    connection.end(Error("timeout", "this device was silent for too long: connect again"))
            await self._let_go_of_the_revoked()
            self._loop.wake()

    async def _let_go_of_the_revoked(self) -> None:
        """Read the tokens again if they have changed, and end the sessions of those that are revoked or expired."""
        await asyncio.to_thread(self._access.reload)
        for number, holder in list(self._holders.items()):
            if self._passes.session(number) is None:
                del self._holders[number]
                holder.sessions.discard(number)
            elif why := self._access.why_gone(holder):
                connection = self._connections.get(number)
                if connection is not None:
                    connection.end(Error("unauthorised", f"the token of this session {why}"))
                    self._leave(number, f"its token {why}")
                else:
                    self._give_up(number)

    # A conversation -------------------------------------------------------------------------------------------------

    async def converse(
        self, wire: Wire, caller: Caller | None = None, on_greeting: Callable[[], None] | None = None
    ) -> None:
        """Serve one connection, from its greeting to its end.

        Args:
            wire: connection to a device, just opened.
            caller: holder of its token, if known already; default None: its first message must show a credential.
            on_greeting: called when it is known who speaks; default nothing.

        """
        connection = Connection(wire, max_messages_per_s=self._door.max_messages_per_s)
        self._open.add(connection)
        connection.writer = writer = asyncio.create_task(connection.write())
        number, place = None, None
        try:
            taken = Error("full", "another connection took this place before a Hello came: connect again")
            place = self._door.enter(lambda: connection.end(taken), wire.address)
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                message = decode_uplink(await _first(wire))
            if self._stopping:
                raise self._goodbye()
            if caller is None:
                secret = message.credential if isinstance(message, Hello | Resume) else ""
                caller = Caller(await self._access.admit(secret, wire.address, self._now_s()), wire.address)
            connection.holder, connection.request = caller.holder, caller.request
            self._door.greeted(place)  # a connection that had to make room may not take over or end a session
            if on_greeting is not None:
                on_greeting()
            self._make_room(message, caller.holder)
            number, answers = self._passes.connect(message, self._now_s(), caller.origin)
            self._holders[number] = caller.holder
            caller.holder.sessions.add(number)
            self._take_over(number, connection, answers)
            await self._receive(number, connection)
        except TimeoutError:
            connection.end(Error("timeout", f"no Hello came within {HELLO_TIMEOUT_S:.0f} s: send it at once"))
        except FullError as error:
            connection.end(Error("full", str(error)))
        except InputError as error:
            code, after_s = (
                (error.code, error.retry_after_s) if isinstance(error, ProtocolError) else ("bad-message", 0.0)
            )
            connection.floods = code in FLOODS
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
        """Refuse to resume another holder's session, and a new one over the token's limit (a lost one is ended)."""
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
            self._give_up(min(lost))
        elif len(holder.sessions) >= most:
            raise ProtocolError(
                "full", f"this token has {most} sessions, its limit: close one, or try again later", retry_after_s=1.0
            )

    def _take_over(self, number: int, connection: Connection, answers: list[Downlink]) -> None:
        """Give this connection to the session, and close its older one, which may be half open."""
        older = self._connections.pop(number, None)
        if older is not None:
            older.end()
        self._connections[number] = connection
        for answer in answers:
            connection.put(answer)
        session = self._passes.session(number)
        assert session is not None
        hello = session.hello
        self._audience.tell(Connected(number, hello.name, hello.drafter, older is not None))
        self._loop.wake()

    async def _receive(self, number: int, connection: Connection) -> None:
        """Hand every message to the edge until the connection ends."""
        session = self._passes.session(number)
        assert session is not None
        while (frame := await connection.wire.receive()) is not None:
            if self._connections.get(number) is not connection:  # a newer connection has taken the session over
                return
            wire_bytes = websocket_frame_bytes(len(frame), masked=True)
            match decode_uplink(frame):
                case Chunk() | Draft() as message:  # nearly all messages
                    self._drafted(session, connection, message, wire_bytes)
                case message:
                    if not await self._told(number, connection, message, wire_bytes):
                        return

    def _drafted(self, session: EdgeSession, connection: Connection, message: Chunk | Draft, wire_bytes: int) -> None:
        """Take what a device drafted."""
        now_s = self._now_s()
        if not session.awaits(message):  # what the edge asked for may come as fast as it likes
            connection.count(now_s)
        for answer in self._passes.receive(session.number, message, wire_bytes, now_s):
            connection.put(answer)
        if session.request is not None and session.request.finish:
            self._audience.tell(self._account.finished(session.number, now_s))
        if not self._passes.waits(now_s):
            self._loop.wake()

    async def _told(self, number: int, connection: Connection, message: Uplink, wire_bytes: int) -> bool:
        """Take a message that is no draft. Returns whether the conversation goes on."""
        now_s = self._now_s()
        if isinstance(message, Open) and message.grammar and self._passes.grammars is not None:
            with contextlib.suppress(InputError):  # opening the request reports it again, at once
                await asyncio.to_thread(self._passes.grammars.matcher, message.grammar)
        session = self._passes.session(number)
        if session is None or not session.awaits(message):
            connection.count(now_s)
        if isinstance(message, Open):
            connection.holder.check_text(message.prompt_tokens, now_s)
        for answer in self._passes.receive(number, message, wire_bytes, now_s):
            connection.put(answer)
        self._audience.tell(self._note(number, message, connection, now_s))
        self._loop.wake()
        if self._passes.session(number) is not None:
            return True
        self._connections.pop(number, None)  # the message was Close
        self._audience.tell(self._account.gone(number, "abort", now_s))
        self._audience.tell(Closed(number))
        return False

    def _note(self, number: int, message: Uplink, connection: Connection, now_s: float) -> EdgeEvent | None:
        """Record an accepted message, and return its event, if it has one."""
        if isinstance(message, Open):
            connection.holder.spend(message.prompt_tokens, now_s)
            return self._account.opened(number, connection.request, now_s)
        return self._account.finished(number, now_s)

    def _lose(self, number: int) -> None:
        """Note that a session's connection has broken. The session may be resumed."""
        del self._connections[number]
        session = self._passes.session(number)
        if session is not None:
            self._passes.disconnect(number, self._now_s())
            self._audience.tell(Lost(number, session.hello.name))
        else:
            self._audience.tell(Refused(number, "", "it had opened no request, and made room for another device"))
        self._loop.wake()

    def _give_up(self, number: int) -> None:
        """End a session that has lost its device before its time to come back is over."""
        session = self._passes.session(number)
        self._passes.leave(number)
        self._audience.tell(self._account.gone(number, "abort", self._now_s()))
        if session is not None:
            self._audience.tell(Expired(number, session.hello.name))

    def _leave(self, number: int, why: str) -> None:
        """End a session because of its device's error or of its token."""
        del self._connections[number]
        session = self._passes.session(number)
        name = session.hello.name if session else ""
        self._passes.leave(number)
        self._audience.tell(self._account.gone(number, "abort", self._now_s()))
        self._audience.tell(Refused(number, name, why))
        self._loop.wake()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


async def _first(wire: Wire) -> bytes:
    """The first frame of a connection."""
    frame = None
    with contextlib.suppress(ProtocolError):
        frame = await wire.receive()
    if frame is None:
        raise ProtocolError("hello-first", "the first message must be a binary Hello or Resume")
    return frame
