"""The interface between a device and what carries its messages to an edge, and its implementations.

A link carries whole frames and does not look into them. Times come from the event loop, so that the same links work
with a virtual clock.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

import aiohttp
from yarl import URL

from multispin.device.address import without_secrets
from multispin.device.proxy import proxy_of, proxy_shown
from multispin.errors import InputError
from multispin.protocol import MAX_FRAME_BYTES, websocket_frame_bytes
from multispin.protocol.limits import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S, HEARTBEAT_S
from multispin.radio import TokenBucket

MAX_FRAMES_UNDER_WAY = 64
"""Most frames that an in-memory link holds in one direction; then the sender waits."""


class UntrustedError(InputError):
    """No authority that this device trusts has signed the edge's certificate."""


class LinkLostError(Exception):
    """There is no connection, or it has ended; the message says why. A new connection may succeed."""


class Link(Protocol):
    """Carries frames between a device and an edge, over one connection at a time."""

    async def connect(self, url: str) -> None:
        """Open a new connection to the edge at `url`; an open one is closed first.

        Raises:
            LinkLostError: the edge cannot be reached now.
            InputError: the edge can never be reached with this address.

        """

    async def send(self, frame: bytes) -> None:
        """Send one frame, and wait until the link can take the next. LinkLostError if there is no connection."""

    async def receive(self) -> bytes:
        """The next frame from the edge. LinkLostError at the end of the connection."""

    async def close(self) -> None:
        """Close the connection, if one is open."""

    def granted(self, bandwidth_hz: float) -> None:
        """Note the bandwidth that the edge grants for the next frames; only an emulated radio uses it."""


class WebSocketLink:
    """A WebSocket, through the proxy that the environment names, if any (`proxy_of`).

    Args:
        tls: authorities that are trusted at a wss:// address (`trusting`); default: the usual ones.
        connect_timeout_s: longest wait for a connection [s]; default `CONNECT_TIMEOUT_S`.
        heartbeat_s: time between two pings [s]; default `HEARTBEAT_S`. The connection counts as lost if no pong comes
            within half of it.

    """

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._tls = tls
        self._connect_timeout_s, self._heartbeat_s = connect_timeout_s, heartbeat_s
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def connect(self, url: str) -> None:
        """Open a WebSocket at a ws:// or wss:// address."""
        await self.close()
        proxy: URL | None = None
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        try:
            proxy = proxy_of(url)
            async with asyncio.timeout(self._connect_timeout_s):
                self._socket = await self._http.ws_connect(
                    _http_address(url),
                    proxy=proxy,
                    ssl=True if self._tls is None else self._tls,
                    compress=0,
                    max_msg_size=MAX_FRAME_BYTES + 1,  # aiohttp refuses what reaches its limit
                    heartbeat=self._heartbeat_s,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
                )
        except TimeoutError:
            raise LinkLostError(f"no answer within {self._connect_timeout_s:.0f} s{_by_way(proxy)}") from None
        except aiohttp.TooManyRedirects:
            raise LinkLostError("this address redirects in a circle") from None
        except (aiohttp.WSServerHandshakeError, aiohttp.ClientHttpProxyError) as error:
            if error.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                raise LinkLostError("the proxy asks for a password: write http://NAME:PASSWORD@HOST:PORT") from None
            raise LinkLostError(
                f"there is no edge at this address: HTTP status {error.status}{_by_way(proxy)}"
            ) from None
        except aiohttp.ClientConnectorCertificateError as error:
            why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
            raise UntrustedError(
                f"the certificate of {without_secrets(url)} is not trusted: {why}; give the authority that signed it"
            ) from None
        except (ValueError, aiohttp.NonHttpUrlClientError) as error:  # a URL without a host, for example
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{without_secrets(url)} is not an address of an edge (write ws://HOST:PORT): {error}"
            ) from None
        except aiohttp.ClientConnectorSSLError:
            raise LinkLostError("the edge speaks no TLS at this address: write ws:// instead of wss://") from None
        except aiohttp.ClientConnectorError as error:
            if proxy is not None:
                raise LinkLostError(
                    f"the proxy {proxy_shown(proxy)} of the environment does not answer: {os_reason(error.os_error)}"
                ) from None
            raise LinkLostError(os_reason(error.os_error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise LinkLostError(str(error) or type(error).__name__) from None
        finally:
            if self._socket is None:
                await self.close()

    async def send(self, frame: bytes) -> None:
        """Send one binary message."""
        if self._socket is None:
            raise LinkLostError("there is no connection")
        try:
            await self._socket.send_bytes(frame)
        except (aiohttp.ClientError, OSError) as error:
            raise LinkLostError(str(error) or type(error).__name__) from None

    async def receive(self) -> bytes:
        """The next binary message; InputError for text and for a frame over the limit, which no edge sends."""
        socket = self._socket  # `close` may run at the same time
        if socket is None:
            raise LinkLostError("there is no connection")
        try:
            frame = await socket.receive()
        except (aiohttp.ClientError, OSError) as error:  # aiohttp failed to answer a ping or a close frame
            raise LinkLostError(str(error) or type(error).__name__) from None
        if frame.type is aiohttp.WSMsgType.BINARY:
            data: bytes = frame.data
            return data
        if frame.type is aiohttp.WSMsgType.TEXT:
            raise InputError("the server sent a frame that is not binary: is this a Multi-SPIN edge?")
        if isinstance(frame.data, aiohttp.WebSocketError) and frame.data.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
            raise InputError(f"the server sent a frame over the limit of {MAX_FRAME_BYTES} bytes: is this an edge?")
        if frame.type is aiohttp.WSMsgType.ERROR:  # a missing pong, a malformed frame, or a broken connection
            raise LinkLostError(f"the connection broke: {frame.data or type(frame.data).__name__}")
        raise LinkLostError(f"the edge closed the connection with code {socket.close_code}")

    async def close(self) -> None:
        """Close the WebSocket, waiting at most `CLOSE_TIMEOUT_S` for the other end."""
        socket, http = self._socket, self._http
        self._socket = self._http = None
        try:
            if socket is not None:
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    await socket.close()
        finally:  # even if the goodbye is cancelled
            # The other end's goodbye has started the heartbeat again, whose timer would hold the connection for 22 s.
            getattr(socket, "_cancel_heartbeat", _nothing)()
            if http is not None:
                await http.close()

    def granted(self, bandwidth_hz: float) -> None:
        """Do nothing: a real network has its own way of sharing."""


def _nothing() -> None:
    """Do nothing."""


def _http_address(url: str) -> URL:
    """The address with a scheme that proxies know, and an IPv6 zone as sockets write it (RFC 6874)."""
    address = URL("http" + url.removeprefix("ws") if url.startswith(("ws://", "wss://")) else url)
    return address.with_host(address.host.replace("%25", "%")) if address.host and ":" in address.host else address


def _by_way(proxy: URL | None) -> str:
    return "" if proxy is None else f", through the proxy {proxy_shown(proxy)} of the environment"


def os_reason(error: OSError) -> str:
    """The operating system's message, without the library's words around it."""
    if isinstance(error, socket.gaierror) or not error.errno or error.errno < 0:
        return error.strerror or str(error)
    return os.strerror(error.errno)


class ShapedLink:
    """A link whose uplink is paced like an emulated radio: granted bandwidth times spectral efficiency.

    Frames before a connection's first grant (the greeting, the request) are not paced.

    Args:
        link: link that carries the frames.
        spectral_efficiency: spectral efficiency of the emulated uplink [bit/s/Hz], above 0.

    """

    def __init__(self, link: Link, spectral_efficiency: float) -> None:
        self._link = link
        self._spectral_efficiency = spectral_efficiency
        self._bucket: TokenBucket | None = None

    async def connect(self, url: str) -> None:
        """Open a connection of the link underneath."""
        self._bucket = None
        await self._link.connect(url)

    async def send(self, frame: bytes) -> None:
        """Send a frame, delayed until its last bit has left the emulated radio."""
        if self._bucket is not None:
            now_s = asyncio.get_running_loop().time()
            departure_s = self._bucket.reserve(now_s, 8 * websocket_frame_bytes(len(frame), masked=True))
            await asyncio.sleep(departure_s - now_s)
        await self._link.send(frame)

    async def receive(self) -> bytes:
        """The next frame; the downlink is not paced."""
        return await self._link.receive()

    async def close(self) -> None:
        """Close the link underneath."""
        await self._link.close()

    def granted(self, bandwidth_hz: float) -> None:
        """Pace the next frames for this bandwidth. A bandwidth of 0 keeps the rate before it."""
        if bandwidth_hz > 0:
            rate_bits_per_s = bandwidth_hz * self._spectral_efficiency
            if self._bucket is None:
                self._bucket = TokenBucket(rate_bits_per_s)
            else:
                self._bucket.set_rate(asyncio.get_running_loop().time(), rate_bits_per_s)


class DelayedLink:
    """A link whose frames are delayed in each direction, whatever their number.

    Args:
        link: link that carries the frames.
        delay_s: additional one-way delay of a frame [s], above 0.

    """

    def __init__(self, link: Link, delay_s: float) -> None:
        self._link = link
        self._delay_s = delay_s
        self._sent: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_FRAMES_UNDER_WAY)
        self._arrived: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_FRAMES_UNDER_WAY)
        self._carriers: list[asyncio.Task[None]] = []

    async def connect(self, url: str) -> None:
        """Open a connection of the link underneath."""
        await self.close()
        await self._link.connect(url)
        self._sent = asyncio.Queue(MAX_FRAMES_UNDER_WAY)
        self._arrived = asyncio.Queue(MAX_FRAMES_UNDER_WAY)
        self._carriers = [asyncio.create_task(self._carry_up()), asyncio.create_task(self._carry_down())]

    async def send(self, frame: bytes) -> None:
        """Send a frame; waits only while too many are on their way."""
        self._check()
        await self._sent.put((asyncio.get_running_loop().time() + self._delay_s, frame))

    async def receive(self) -> bytes:
        """The next frame after its delay; LinkLostError once the connection underneath is lost."""
        self._check()
        ready = asyncio.ensure_future(self._arrived.get())
        try:
            await asyncio.wait([ready, *self._carriers], return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                self._check()
            ready_s, frame = ready.result()
        finally:
            ready.cancel()
        await asyncio.sleep(ready_s - asyncio.get_running_loop().time())
        return frame

    async def close(self) -> None:
        """Send the frames that are on their way, then close the link underneath."""
        carriers, self._carriers = self._carriers, []
        try:
            if carriers and not carriers[0].done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await self._sent.join()
        finally:  # even if the goodbye is cancelled
            for carrier in carriers:
                carrier.cancel()
            await asyncio.gather(*carriers, return_exceptions=True)
            await self._link.close()

    def granted(self, bandwidth_hz: float) -> None:
        """Pass the bandwidth on to the link underneath."""
        self._link.granted(bandwidth_hz)

    def _check(self) -> None:
        """Raise the exception that ended a carrying task, if any."""
        if not self._carriers:
            raise LinkLostError("there is no connection")
        for carrier in self._carriers:
            if carrier.done():
                carrier.result()

    async def _carry_up(self) -> None:
        while True:
            due_s, frame = await self._sent.get()
            await asyncio.sleep(due_s - asyncio.get_running_loop().time())
            await self._link.send(frame)
            self._sent.task_done()

    async def _carry_down(self) -> None:
        while True:
            frame = await self._link.receive()
            await self._arrived.put((asyncio.get_running_loop().time() + self._delay_s, frame))


class MemoryEnd:
    """One end of a connection inside one process; `memory_pair` makes both."""

    def __init__(self) -> None:
        self._arrived: deque[bytes | None] = deque()  # None: the other end is closed
        self._waiting: set[asyncio.Future[None]] = set()  # wait for any change here
        self._broken = False
        self.peer = self

    def send_now(self, frame: bytes) -> bool:
        """Send one frame unless too many are on their way; returns whether it was sent."""
        if self._broken:
            raise LinkLostError("the connection broke")
        if len(self.peer._arrived) >= MAX_FRAMES_UNDER_WAY:
            return False
        self.peer._put(frame)
        return True

    async def send(self, frame: bytes) -> None:
        """Send one frame; waits while too many are on their way."""
        while not self.send_now(frame):
            await _change(self, self.peer)

    async def receive(self) -> bytes:
        """The next frame; LinkLostError at the end of the connection."""
        while not (self._arrived or self._broken):
            await _change(self)
        if self._broken:
            raise LinkLostError("the connection broke")
        frame = self._arrived.popleft()
        self._tell()
        if frame is None:
            self._break()
            raise LinkLostError("the edge closed the connection")
        return frame

    async def close(self) -> None:
        """Close the connection. Frames that were sent before still arrive."""
        if not self._broken:
            self._break()
            self.peer._put(None)

    def cut(self) -> None:
        """Break the connection. Frames on their way are lost, in both directions."""
        self._break()
        self.peer._break()

    def _put(self, frame: bytes | None) -> None:
        self._arrived.append(frame)
        self._tell()

    def _break(self) -> None:
        self._broken = True
        self._tell()

    def _tell(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)


async def _change(*ends: MemoryEnd) -> None:
    """Wait until anything changes at one of these ends."""
    waiting = asyncio.get_running_loop().create_future()
    for end in ends:
        end._waiting.add(waiting)
    try:
        await waiting
    finally:
        for end in ends:
            end._waiting.discard(waiting)


def memory_pair() -> tuple[MemoryEnd, MemoryEnd]:
    """Both ends of a new connection inside this process."""
    here, there = MemoryEnd(), MemoryEnd()
    here.peer, there.peer = there, here
    return here, there


class MemoryLink:
    """A link to an edge inside this process, for tests and for the edge's own sessions.

    Args:
        accept: function that gets the address and the edge's end of every new connection; it raises LinkLostError
            to refuse one.

    """

    def __init__(self, accept: Callable[[str, MemoryEnd], None]) -> None:
        self._accept = accept
        self._end: MemoryEnd | None = None

    async def connect(self, url: str) -> None:
        """Open a new connection. The edge gets its end at once."""
        await self.close()
        here, there = memory_pair()
        self._accept(url, there)
        self._end = here

    async def send(self, frame: bytes) -> None:
        """Send one frame."""
        await self._open_end().send(frame)

    async def receive(self) -> bytes:
        """The next frame."""
        return await self._open_end().receive()

    async def close(self) -> None:
        """Close the connection, if one is open."""
        if self._end is not None:
            end, self._end = self._end, None
            await end.close()

    def granted(self, bandwidth_hz: float) -> None:
        """Do nothing: memory needs no bandwidth."""

    def _open_end(self) -> MemoryEnd:
        if self._end is None:
            raise LinkLostError("there is no connection")
        return self._end
