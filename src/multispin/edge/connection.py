"""One device's connection: its wire, and the messages that wait to be sent.

A message is sent at once if the connection has room. Otherwise it waits in a bounded queue that a writer empties, so
that a device that does not read cannot hold up the others.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from multispin.edge.access import Holder
from multispin.edge.door import MAX_MESSAGES_PER_S
from multispin.protocol import Downlink, Error, ProtocolError, encode

MAX_QUEUED_MESSAGES = 64
"""Most messages that may wait for a device that does not read. One more ends its connection."""
MAX_PINGS_PER_S = 10
"""WebSocket pings and pongs that a device may send in a second. Ordinary clients send far fewer."""
FLOOD_CLOSE_S = 0.1
"""A device that floods this edge has this long to read why it is disconnected [s]."""
MAX_UNSENT_BYTES = 2**16
"""A connection with this much unsent data has no room for more [bytes]."""


class Wire(Protocol):
    """Carries the frames of one connection: a WebSocket, or a queue inside this process."""

    @property
    def address(self) -> str:
        """Address of the other end; empty inside this process."""

    async def receive(self) -> bytes | None:
        """The next frame; None at the end of the connection. ProtocolError if it is not a binary frame."""

    def send_now(self, frame: bytes) -> bool:
        """Send one frame if none waits before it, and return whether it was sent. ConnectionError as for `send`."""

    async def send(self, frame: bytes) -> None:
        """Send one frame; ConnectionError if the connection has ended."""

    async def close(self, edge_stops: bool = False, floods: bool = False) -> None:
        """Close the connection. `edge_stops` tells the device so; after `floods` its goodbye is hardly waited for."""


class Counted:
    """Counts how often something happens within a second."""

    def __init__(self) -> None:
        self._second, self._count = 0, 0

    def more(self, now_s: float) -> int:
        """Count one more, and return the count of this second."""
        if int(now_s) != self._second:
            self._second, self._count = int(now_s), 0
        self._count += 1
        return self._count


class WebSocketWire:
    """A WebSocket as a `Wire`. It answers pings itself, so aiohttp's `autoping` must be off."""

    def __init__(self, socket: web.WebSocketResponse, address: str, transport: asyncio.Transport) -> None:
        self._socket, self.address, self._transport = socket, address, transport
        self._pings = Counted()

    async def receive(self) -> bytes | None:
        """The next binary message."""
        while (frame := await self._socket.receive()).type in (WSMsgType.PING, WSMsgType.PONG):
            if self._pings.more(asyncio.get_running_loop().time()) > MAX_PINGS_PER_S:
                raise ProtocolError("too-fast", f"over {MAX_PINGS_PER_S} pings in a second: send fewer")
            if frame.type is WSMsgType.PING:
                try:
                    await self._socket.pong(frame.data)
                except ConnectionError:
                    return None
        if frame.type is WSMsgType.TEXT:
            raise ProtocolError("bad-message", "this is a text frame: send every message in a binary WebSocket frame")
        data: bytes | None = frame.data if frame.type is WSMsgType.BINARY else None
        return data

    def send_now(self, frame: bytes) -> bool:
        """Send one binary message, unless much is still to be sent."""
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            return False
        sending = self._socket.send_bytes(frame)  # it writes first, then may wait for room
        try:
            sending.send(None)
        except StopIteration:
            return True
        sending.close()
        return True

    async def send(self, frame: bytes) -> None:
        """Send one binary message; waits while too much is unsent."""
        await self._socket.send_bytes(frame)

    async def close(self, edge_stops: bool = False, floods: bool = False) -> None:
        """Close with the code that says why, and read on until the other end says goodbye."""
        try:
            async with asyncio.timeout(FLOOD_CLOSE_S if floods else None):
                await self._socket.close(code=WSCloseCode.GOING_AWAY if edge_stops else WSCloseCode.OK)
        finally:
            # The other end's goodbye has armed the heartbeat again, whose timer would hold the connection for 22 s.
            getattr(self._socket, "_cancel_heartbeat", _nothing)()


def _nothing() -> None:
    """Do nothing."""


@dataclass(eq=False)
class Connection:
    """One device's connection.

    Attributes:
        wire: the wire that carries its frames.
        holder: holder of the token that was shown.
        max_messages_per_s: most unsolicited messages that the device may send in a second.
        request: name of the HTTP request that it serves; empty for a device's own.
        writer: the task that empties the queue; None before it runs.
        edge_stops: whether it is closed because the edge stops.
        floods: whether it is closed because its device sends too much, or frames that are no messages.

    """

    wire: Wire
    holder: Holder = field(default_factory=Holder)
    max_messages_per_s: int = MAX_MESSAGES_PER_S
    request: str = ""
    writer: "asyncio.Task[None] | None" = None
    edge_stops: bool = False
    floods: bool = False
    _queue: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    _writing: bool = False
    _closing: bool = False
    _messages: Counted = field(default_factory=Counted)

    def put(self, message: Downlink) -> None:
        """Send or queue a message. A full queue means that the device does not read, and ends the connection."""
        if self._closing:
            return
        frame = encode(message)
        try:
            if self._queue.empty() and not self._writing and self.wire.send_now(frame):
                return
        except ConnectionError:
            self.end()
            return
        if self._queue.qsize() >= MAX_QUEUED_MESSAGES:
            self.end(Error("too-slow", f"{MAX_QUEUED_MESSAGES} messages wait to be read, the limit: read faster"))
        else:
            self._queue.put_nowait(frame)

    def end(self, last: Error | None = None) -> None:
        """Close once everything queued is sent, and `last` after it."""
        if self._closing:
            return
        self._closing = True
        if last is not None:
            self._queue.put_nowait(encode(last))
        self._queue.put_nowait(None)

    async def write(self) -> None:
        """Send queued messages until told to close."""
        with contextlib.suppress(ConnectionError):
            while (frame := await self._queue.get()) is not None:
                self._writing = True
                await self.wire.send(frame)
                self._writing = False
        with contextlib.suppress(TimeoutError):
            await self.wire.close(self.edge_stops, self.floods)

    def count(self, now_s: float) -> None:
        """Refuse a device that sends too many unsolicited messages."""
        if self._messages.more(now_s) > self.max_messages_per_s:
            raise ProtocolError("too-fast", f"over {self.max_messages_per_s} messages a second that nobody asked for")
