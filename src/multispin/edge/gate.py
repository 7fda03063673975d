"""The gate: bounds what a TCP connection may occupy, whatever it says.

A connection counts from the moment that it is accepted, its TLS handshake included. Requests that stay half, bodies
that stop coming and readers that stop reading are ended after a named time. Where there is no room for a newcomer, or
none for its address, a connection makes room that has had nothing to be served (`Crowd`). Nothing here knows what is
said.
"""

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import cast

from aiohttp import web

from multispin.edge.arriving import REQUEST_S, Arriving
from multispin.edge.crowd import Crowd
from multispin.edge.door import MAX_PER_ADDRESS, Network

MAX_OPEN = 4096
"""Most TCP connections at once, if there are enough file descriptors."""
RESERVED_DESCRIPTORS = 64
"""File descriptors that connections leave to the model, to files and to the log."""
REQUEST_TIMEOUT_S = 10.0
"""The head of the first request must be complete within this time."""
BODY_TIMEOUT_S = 30.0
"""The body of a request must be complete within this time after its head."""
STALL_TIMEOUT_S = 60.0
"""A client that reads nothing for this long while data waits for it is disconnected."""
CLIENT_GONE = 499
"""HTTP status of an answer whose client has gone, as nginx has it."""
HANDSHAKE_TIMEOUT_S = 10.0
"""A TLS handshake must be complete within this time."""
_SAID_NOTHING, _SAYS, _ASKED, _ANSWERED = range(4)
"""How far a connection has come for which nothing is being served: to its opening, its first byte, the whole head of a
request, an answer."""

log = logging.getLogger(__name__)
RawHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Gate:
    """Counts TCP connections, and ends those that hold up others.

    Attributes:
        refused: number of connections that found no room.
        request_timeout_s: time until the head of a first request is complete [s].
        stall_timeout_s: how long a client may not read what is sent [s].

    Args:
        most: most connections at once; default: what the file descriptors allow, at most `MAX_OPEN`.
        most_per_address: most connections at once from one address; default `MAX_PER_ADDRESS`.
        proxies: networks whose addresses are not bounded, since each speaks for many clients; by default none.
        request_timeout_s: time until the head of a first request is complete [s]; default `REQUEST_TIMEOUT_S`.
        body_timeout_s: time from a request's head to the end of its body [s]; default `BODY_TIMEOUT_S`.
        stall_timeout_s: how long a client may not read what is sent [s]; default `STALL_TIMEOUT_S`.

    """

    def __init__(
        self,
        most: int = 0,
        most_per_address: int = MAX_PER_ADDRESS,
        proxies: Collection[Network] = (),
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        body_timeout_s: float = BODY_TIMEOUT_S,
        stall_timeout_s: float = STALL_TIMEOUT_S,
    ) -> None:
        self.refused = 0
        self.request_timeout_s, self.stall_timeout_s = request_timeout_s, stall_timeout_s
        self._body_timeout_s = body_timeout_s
        self._most = most or min(MAX_OPEN, descriptors() - RESERVED_DESCRIPTORS)
        self._most_per_address = most_per_address
        self._proxies = tuple(proxies)
        self._addresses: Counter[str] = Counter()
        self._open = 0
        self._silent: Crowd[Guarded] = Crowd()  # without a complete request
        self._guarded: dict[asyncio.BaseTransport, Guarded] = {}

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return self._open

    @property
    def silent(self) -> int:
        """Connections for which no complete request is being served."""
        return len(self._silent)

    def enter(self, host: str) -> str | None:
        """Admit a connection.

        Args:
            host: address of its other end.

        Returns:
            A name for `leave`; None if there is no room.
        """
        name = self._name(host)
        crowded = name if name and self._addresses[name] >= self._most_per_address else None
        if (crowded is not None or self._open >= self._most) and not self._make_room(crowded):
            self.refused += 1
            return None
        self._open += 1
        self._addresses[name] += 1
        return name

    def leave(self, name: str) -> None:
        """Free the place of an ended connection."""
        self._open -= 1
        self._addresses[name] -= 1
        if not self._addresses[name]:
            del self._addresses[name]

    def guard(self, inner: asyncio.Protocol, name: str, give_up: Callable[[], object]) -> "Guarded":
        """Watch over a connection that was let in.

        Args:
            inner: protocol that serves it.
            name: name from `enter`.
            give_up: ends the connection while it is being made.
        """
        return Guarded(inner, self, name, give_up)

    def around(self, handler: RawHandler) -> RawHandler:
        """Wrap the handler of all requests, so that each request is counted and its body has a time limit.

        This is no middleware, since aiohttp keeps applications with middlewares for as long as the process lives.
        """

        async def guarded_handler(request: web.BaseRequest) -> web.StreamResponse:
            guarded = self._guarded.get(request.transport) if request.transport is not None else None
            if guarded is not None:
                guarded.asked()
                if request.headers.get("Upgrade", "").lower() != "websocket":  # that is served from its greeting on
                    request.content.on_eof(guarded.served)
            waiting = None
            if not request.content.is_eof():
                waiting = asyncio.get_running_loop().call_later(
                    self._body_timeout_s, _too_late, request, self._body_timeout_s
                )
            try:
                return await handler(request)
            except ConnectionResetError:  # the client has gone: there is nobody to answer and nothing to log
                return web.Response(status=CLIENT_GONE)
            finally:
                if waiting is not None:
                    waiting.cancel()
                if guarded is not None:
                    guarded.answered()

        return guarded_handler

    def _make_room(self, name: str | None) -> bool:
        """Hang up on a connection, one from this address if any, for which nothing is being served."""
        if (first := self._silent.first(name)) is None:
            return False
        first.hang_up()
        return True

    def _name(self, host: str) -> str:
        """The name under which an address is counted; empty for a trusted proxy."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return "unknown"
        address = getattr(address, "ipv4_mapped", None) or address
        if any(address in network for network in self._proxies):
            return ""
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, 64), strict=False).network_address)
        return str(address)


class Guarded(asyncio.Protocol):
    """A protocol that passes everything on to another one, and keeps the time limits of its connection.

    Attributes:
        made: whether the connection has been made, its TLS handshake included.
        name: under which name its address is counted.

    """

    def __init__(self, inner: asyncio.Protocol, gate: Gate, name: str, give_up: Callable[[], object]) -> None:
        self.made, self.name = False, name
        self._inner, self._gate, self._give_up = inner, gate, give_up
        gate._silent.add(self, name, _SAID_NOTHING)
        self._heard = False
        self._arriving = Arriving(inner)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def hear(self) -> None:
        """Note that the first bytes have come."""
        self._heard = True
        self._gate._silent.add(self, self.name, _SAYS)

    def asked(self) -> None:
        """Note that the head of a request has come."""
        self._arriving.charge(REQUEST_S)
        self._gate._silent.add(self, self.name, _ASKED)
        if self._timer is not None:
            self._timer.cancel()

    def served(self) -> None:
        """Note that a request is complete. Until it is answered, no other connection takes this one's place."""
        self._gate._silent.remove(self)

    def answered(self) -> None:
        """Note that the request is answered. From now on the connection may have to make room again."""
        if self._transport in self._gate._guarded:
            self._gate._silent.add(self, self.name, _ANSWERED)

    def hang_up(self) -> None:
        """End the connection at once."""
        self._gate._silent.remove(self)
        if self._transport is not None:
            self._transport.abort()
        else:
            self._give_up()

    def gone(self) -> None:
        """The connection has ended, or was never made."""
        self._gate._silent.remove(self)
        self._gate.leave(self.name)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the new connection."""
        self.made, self._transport = True, cast(asyncio.Transport, transport)  # uvloop's has no base class
        self._arriving.over(self._transport)
        self._gate._guarded[transport] = self
        self._timer = asyncio.get_running_loop().call_later(self._gate.request_timeout_s, self.hang_up)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass arrived data on."""
        if not self._heard:
            self.hear()
        self._arriving.take(data)

    def eof_received(self) -> bool | None:
        """Pass on that the other end sends no more."""
        self._arriving.end()
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Start the time limit for a client that does not read."""
        self._stall = asyncio.get_running_loop().call_later(self._gate.stall_timeout_s, self.hang_up)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Stop the time limit: the client reads again."""
        if self._stall is not None:
            self._stall.cancel()
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop all time limits and pass the end on."""
        self._arriving.drop()
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()
        if self._transport is not None:
            self._gate._guarded.pop(self._transport, None)
        self.gone()
        self._inner.connection_lost(error)


def descriptors() -> int:
    """How many files and sockets this process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_OPEN + RESERVED_DESCRIPTORS
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_OPEN + RESERVED_DESCRIPTORS if most == resource.RLIM_INFINITY else max(most, RESERVED_DESCRIPTORS + 1)


def raise_descriptors() -> None:
    """Raise this process's limit of open files to what an edge can use, as far as the system allows."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN + RESERVED_DESCRIPTORS
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _too_late(request: web.BaseRequest, timeout_s: float) -> None:
    if not request.content.is_eof():
        text = f"the body of the request was not complete within {timeout_s:.0f} s: send it again\n"
        request.content.set_exception(web.HTTPRequestTimeout(text=text, headers={"Connection": "close"}))
