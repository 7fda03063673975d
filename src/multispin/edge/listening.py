"""A server on a port, for as long as a block runs."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from multispin.errors import InputError

SHUTDOWN_TIMEOUT_S = 3.0
"""How long connections may take to say goodbye."""


def place_of(host: str, port: int) -> str:
    """HOST:PORT as it stands in an address: a host of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@asynccontextmanager
async def listening(application: web.Application, host: str = "127.0.0.1", port: int = 8765) -> AsyncIterator[int]:
    """Let devices and clients connect while the block runs; gives the port.

    Args:
        application: the web application of an edge (`EdgeServer.application`).
        host: address to listen on; default this machine only.
        port: 0 takes any free one; default 8765.

    Raises:
        InputError: the port cannot be had.

    """
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"port {port} on {host} is in use: choose another, or 0 for any that is free"
                ) from None
            raise InputError(f"cannot listen on {place_of(host, port)}: {error.strerror or error}") from None
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
