"""Serves a web application on a port while a block runs."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from multispin.edge.gate import HANDSHAKE_TIMEOUT_S, Gate
from multispin.edge.tally import LOG_PERIOD_S, Tally
from multispin.errors import InputError

SHUTDOWN_TIMEOUT_S = 3.0
"""Time that connections have to close when the server ends."""
KEEP_ALIVE_S = 75.0
"""A connection without a complete request is closed after this time."""
BACKLOG = 4096
"""Most connections that may wait to be accepted while the server is busy; the system may allow fewer. It drops the
first packet of any client beyond that, which tries again only 1 s later, then 3, 7 and 15 s later."""
PAUSE_S = 1.0
"""A server that lacks file descriptors or memory for a connection accepts none for this time."""
MAX_QUOTED_CHARACTERS = 200
"""Most characters of a complaint about a request that are logged."""

log = logging.getLogger(__name__)


def place_of(host: str, port: int) -> str:
    """HOST:PORT as in a URL: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def check_free(host: str, port: int) -> None:
    """Check that a server could listen on this address, before a model is loaded; InputError if not.

    Args:
        host: address to listen on.
        port: port to listen on; 0 is always free.
    """
    for each in await _bound(host, port):
        each.close()


class _Complaints(logging.LoggerAdapter[logging.Logger]):
    """The web server's log. Malformed requests are counted and logged every few seconds: a peer can send millions."""

    def __init__(self) -> None:
        super().__init__(log)
        self._last = ""
        self.malformed = Tally(
            lambda requests: log.info("%d requests were not HTTP; the last one: %s", requests, self._last)
        )

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message of the web server; only count it if it is about a malformed request."""
        error = kwargs.get("exc_info")
        if not isinstance(error, BaseException):
            error = sys.exception() if error else None
        if not isinstance(error, HttpProcessingError | web.RequestPayloadError | web.HTTPRequestTimeout):
            super().log(level, msg, *args, **kwargs)
            return
        self._last = str(error)[:MAX_QUOTED_CHARACTERS]
        self.malformed.add()


@asynccontextmanager
async def listening(
    application: web.Application,
    host: str = "127.0.0.1",
    port: int = 8765,
    gate: Gate | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Let devices and clients connect while the block runs. Yields the port.

    Args:
        application: the web application of an edge (`EdgeServer.application`).
        host: address to listen on; default this machine only.
        port: 0 takes any free one; default 8765.
        gate: bounds of the connections; default a new `Gate()`.
        tls: TLS settings of the connections; default none, no TLS.

    Raises:
        InputError: the server cannot listen on this address.

    """
    gate, complaints = gate or Gate(), _Complaints()
    runner = web.AppRunner(
        application, access_log=None, logger=complaints, shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        keepalive_timeout=KEEP_ALIVE_S,
        auto_decompress=False,  # a kilobyte can become a megabyte, even in a body that nobody reads
    )  # fmt: skip
    await runner.setup()
    assert runner.server is not None
    runner.server.request_handler = gate.around(runner.server.request_handler)
    sockets: list[socket.socket] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        sockets = await _bound(host, port)
        tasks = [asyncio.create_task(_accept(each, runner, gate, tls)) for each in sockets]
        yield int(sockets[0].getsockname()[1])
    finally:
        for each, task in zip(sockets, tasks, strict=False):
            with contextlib.suppress(NotImplementedError):  # Windows
                # Otherwise asyncio could accept a connection now for a task that is already cancelled.
                asyncio.get_running_loop().remove_reader(each)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in sockets:
            each.close()
        await runner.cleanup()
        complaints.malformed.close()


async def _bound(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of a host."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    try:
        flags = socket.AI_PASSIVE
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            each = socket.socket(family, kind, protocol)
            sockets.append(each)
            if os.name == "posix":
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = port or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)
            each.bind((address[0], taken, *address[2:]))
            each.listen(BACKLOG)
            each.setblocking(False)
    except UnicodeError:
        raise InputError(f"cannot listen on {place_of(host, port)}: the host name is not known here") from None
    except OSError as error:
        for each in sockets:
            each.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} on {host} is in use: choose another port, or 0 for any free one") from None
        raise InputError(f"cannot listen on {place_of(host, port)}: {error.strerror or error}") from None
    return sockets


async def _accept(listener: socket.socket, runner: web.AppRunner, gate: Gate, tls: ssl.SSLContext | None) -> None:
    """Accept connections for ever. When file descriptors run out, pause before the next try."""
    loop = asyncio.get_running_loop()
    greetings: set[asyncio.Task[None]] = set()
    logged_at_s = -LOG_PERIOD_S
    try:
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno == errno.ECONNABORTED:  # the client has hung up already
                    continue
                if loop.time() - logged_at_s >= LOG_PERIOD_S:
                    log.warning("no connection can be accepted for now: %s", error.strerror)
                    logged_at_s = loop.time()
                await asyncio.sleep(PAUSE_S)
                continue
            if (name := gate.enter(str(address[0]))) is None:
                connection.close()
                continue
            greeting = asyncio.create_task(_greet(connection, name, runner, gate, tls))
            greetings.add(greeting)
            greeting.add_done_callback(greetings.discard)
            # Connections that wait in the system's queue are accepted without a break. Of a crowd all but the first few
            # would be refused, since none of those could make room yet, and everybody else would wait.
            await asyncio.sleep(0)
    finally:
        for greeting in greetings:
            greeting.cancel()


async def _greet(
    connection: socket.socket, name: str, runner: web.AppRunner, gate: Gate, tls: ssl.SSLContext | None
) -> None:
    """Hand a connection to the web server, after its TLS handshake if TLS is on."""
    assert runner.server is not None
    this = asyncio.current_task()
    assert this is not None
    guarded = gate.guard(runner.server(), name, this.cancel)
    try:
        if tls is not None:
            await _first_byte(connection, gate.request_timeout_s)
            guarded.hear()
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: guarded, connection, ssl=tls, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if tls is not None else None
        )
    except (OSError, TimeoutError):  # the peer hung up, or did not speak TLS
        pass
    finally:
        if not guarded.made:
            connection.close()
            guarded.gone()


async def _first_byte(connection: socket.socket, timeout_s: float) -> None:
    """Wait until something can be read; TimeoutError after `timeout_s` [s]."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(connection, came.set)
    except NotImplementedError:  # Windows
        return
    try:
        async with asyncio.timeout(timeout_s):
            await came.wait()
    finally:
        loop.remove_reader(connection)
