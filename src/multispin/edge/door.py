"""The door: which connections an edge lets in, before it knows who speaks.

What it bounds is the same for everybody at one edge: open connections, those that have not said anything useful yet,
and how quickly a credential can be guessed. Nothing here knows sessions.
"""

import asyncio
import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web

MAX_CONNECTIONS = 1024
"""Device connections at once. Beyond, a newcomer takes the place of the connection that has said nothing longest."""
GUESS_DELAY_S = 1.0
"""A wrong credential is answered after so long."""
LOG_PERIOD_S = 10.0
"""Wrong credentials are logged at most so often, with their number."""

log = logging.getLogger(__name__)


class FullError(Exception):
    """All connections are taken by devices that have greeted."""


class Door:
    """Counts connections and wrong credentials.

    Args:
        most: device connections at once; default `MAX_CONNECTIONS`.
        allowed_hosts: names under which web pages may reach this edge, beside addresses and "localhost".

    """

    def __init__(self, most: int = MAX_CONNECTIONS, allowed_hosts: Collection[str] = ()) -> None:
        self._most = most
        self._allowed_hosts = frozenset(name.lower() for name in allowed_hosts)
        self._greeted: set[int] = set()
        self._strangers: OrderedDict[int, Callable[[], None]] = OrderedDict()  # by when they came
        self._next = 0
        self._guesses, self._logged_at_s = 0, -LOG_PERIOD_S

    def enter(self, leave: Callable[[], None]) -> int:
        """Let a new connection in that has not greeted yet.

        Args:
            leave: ends the connection; called if a newcomer needs its place.

        Returns:
            A number for `greeted` and `gone`. FullError if nobody can be asked to leave.
        """
        if len(self._greeted) + len(self._strangers) >= self._most:
            if not self._strangers:
                raise FullError(f"this edge holds {self._most} connections, its limit")
            _, longest = self._strangers.popitem(last=False)
            longest()
        self._next += 1
        self._strangers[self._next] = leave
        return self._next

    def greeted(self, number: int) -> None:
        """The connection's device is known now: it keeps its place."""
        if self._strangers.pop(number, None) is None:
            raise FullError("this connection had to make room before it greeted")
        self._greeted.add(number)

    def gone(self, number: int) -> None:
        """The connection has ended."""
        self._greeted.discard(number)
        self._strangers.pop(number, None)

    async def guessed(self, now_s: float) -> None:
        """A wrong credential came: log it now and then, and let the guesser wait."""
        self._guesses += 1
        if now_s - self._logged_at_s >= LOG_PERIOD_S:
            log.warning("wrong credentials: %d in the last %.0f s", self._guesses, LOG_PERIOD_S)
            self._guesses, self._logged_at_s = 0, now_s
        await asyncio.sleep(GUESS_DELAY_S)

    def refuses(self, request: web.Request) -> str:
        """Why a web page may not use this edge; empty if it may, or if no web page asks.

        A browser names the origin of the page that asks. It must be the edge's own, and the edge must be addressed by a
        number or by a name that it knows: any page could otherwise reach an edge on its visitor's own machine.
        """
        origin = request.headers.get("Origin")
        if origin is None:
            return ""
        host = request.headers.get("Host", "")
        if urlsplit(origin).netloc.lower() != host.lower():
            return f"a page of the origin {origin[:200]!r} may not use this edge"
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if not (name in self._allowed_hosts or name == "localhost" or _is_address(name)):
            return f"this edge is not called {name[:200]!r}"
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
