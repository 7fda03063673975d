"""The door: which connections an edge admits before it knows who speaks.

It bounds the open connections, those that have not greeted yet, and how quickly a credential can be guessed. It knows
nothing of sessions.
"""

import asyncio
import ipaddress
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web

from multispin.edge.crowd import Crowd
from multispin.edge.tally import LOG_PERIOD_S, Tally
from multispin.errors import InputError
from multispin.protocol import ProtocolError

MAX_CONNECTIONS = 1024
"""Most device connections at once. A further one replaces the connection that has gone ungreeted for longest."""
MAX_PER_ADDRESS = 256
"""Most device connections at once from one address."""
GUESS_DELAY_S = 1.0
"""A wrong credential is answered after this time [s]. Until then no further one from its address is checked."""
MAX_GUESS_WAIT_S = 10.0
"""A credential that would wait longer than this to be checked is refused at once."""
MAX_MESSAGES_PER_S = 200
"""Most unsolicited messages that a device may send in a second."""
MAX_GUESSERS = 10_000
"""Most addresses whose wrong credentials are remembered. The one that guessed longest ago is forgotten first."""
_BROWSERS = "Mozilla/"
"""The beginning of every browser's User-Agent."""

log = logging.getLogger(__name__)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class FullError(Exception):
    """All connections are taken by devices that have greeted."""


class Door:
    """Counts connections and wrong credentials.

    Attributes:
        guesses: number of wrong credentials so far.
        max_messages_per_s: most unsolicited messages from one device [1/s].

    Args:
        most: most device connections at once; default `MAX_CONNECTIONS`.
        allowed_hosts: names under which web pages may reach this edge, beside addresses and "localhost"; by default
            none.
        most_per_address: most device connections at once from one address; default `MAX_PER_ADDRESS`.
        proxies: networks whose `X-Forwarded-For` is believed; default none.
        guess_delay_s: delay after a wrong credential [s]; default `GUESS_DELAY_S`.
        max_guessers: most addresses whose wrong credentials are remembered; default `MAX_GUESSERS`.
        max_messages_per_s: most unsolicited messages from one device [1/s]; default `MAX_MESSAGES_PER_S`.
        allowed_origins: other servers whose web pages may use this edge, as `read_origin` gives them; by default none.

    """

    def __init__(
        self,
        most: int = MAX_CONNECTIONS,
        allowed_hosts: Collection[str] = (),
        most_per_address: int = MAX_PER_ADDRESS,
        proxies: Collection[Network] = (),
        guess_delay_s: float = GUESS_DELAY_S,
        max_guessers: int = MAX_GUESSERS,
        max_messages_per_s: int = MAX_MESSAGES_PER_S,
        allowed_origins: Collection[str] = (),
    ) -> None:
        self.max_messages_per_s = max_messages_per_s
        self._most = most
        self._guess_delay_s, self._max_guessers = guess_delay_s, max_guessers
        self._most_per_address = most_per_address
        self._proxies = tuple(proxies)
        self._addresses: Counter[str] = Counter()  # of open connections
        self._address_of: dict[int, str] = {}
        self._free_s: OrderedDict[str, float] = OrderedDict()  # when the next guess from an address is checked
        self._allowed_hosts = frozenset(name.lower() for name in allowed_hosts)
        self._allowed_origins = frozenset(allowed_origins)
        self._greeted: set[int] = set()
        self._strangers: dict[int, Callable[[], None]] = {}  # how each ungreeted connection is ended
        self._crowd: Crowd[int] = Crowd()  # the same
        self._next = 0
        self.guesses = 0  # wrong credentials ever
        self._tally = Tally(
            lambda guesses: log.warning("wrong credentials: %d in the last %.0f s", guesses, LOG_PERIOD_S)
        )

    @property
    def invites(self) -> bool:
        """Whether web pages of other origins may use this edge."""
        return bool(self._allowed_origins)

    @property
    def guessers(self) -> int:
        """Number of addresses whose wrong credentials are remembered."""
        return len(self._free_s)

    def enter(self, leave: Callable[[], None], address: str = "") -> int:
        """Admit a new connection, which has not greeted yet.

        Args:
            leave: ends the connection; called if a newcomer needs its place.
            address: where it comes from; default empty: from inside this process, which is not counted.

        Returns:
            A number for `greeted` and `gone`.

        Raises:
            FullError: all places are taken, and no ungreeted connection can be asked to leave.

        """
        if address and self._addresses[address] >= self._most_per_address:
            if (first := self._crowd.first(address)) is None:
                raise FullError(
                    f"{self._most_per_address} connections come from {address}, the limit for one address: close one"
                )
            self._send_away(first)
        elif len(self._greeted) + len(self._strangers) >= self._most:
            if (first := self._crowd.first()) is None:
                raise FullError(f"this edge holds {self._most} connections, its limit: try again later")
            self._send_away(first)
        self._next += 1
        self._strangers[self._next] = leave
        self._crowd.add(self._next, address)
        if address:
            self._addresses[address] += 1
            self._address_of[self._next] = address
        return self._next

    def greeted(self, number: int) -> None:
        """Keep a connection's place, now that its device has greeted; FullError if it had to make room before."""
        if self._strangers.pop(number, None) is None:
            raise FullError("this connection had to make room before it greeted")
        self._crowd.remove(number)
        self._greeted.add(number)

    def gone(self, number: int) -> None:
        """Free the place of an ended connection."""
        self._greeted.discard(number)
        self._strangers.pop(number, None)
        self._crowd.remove(number)
        self._forget_address(number)

    def _send_away(self, number: int) -> None:
        """Give the place of a connection that has not greeted to a newcomer."""
        leave = self._strangers.pop(number)
        self._crowd.remove(number)
        self._forget_address(number)
        leave()

    def _forget_address(self, number: int) -> None:
        if (address := self._address_of.pop(number, None)) is not None:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]

    async def wait_turn(self, address: str, now_s: float) -> None:
        """Wait until a credential from this address may be checked: no time, unless a wrong one came just before.

        Raises:
            ProtocolError: so many wait that this one would wait longer than `MAX_GUESS_WAIT_S`.

        """
        wait_s = self._free_s.get(address, now_s) - now_s
        if wait_s > MAX_GUESS_WAIT_S:
            raise ProtocolError(
                "too-fast",
                f"too many wrong credentials came from this address: try again in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )
        if wait_s > 0.0:
            self._free_s[address] += self._guess_delay_s
            await asyncio.sleep(wait_s)

    async def guessed(self, address: str, now_s: float) -> None:
        """Count a wrong credential, log it at most every `LOG_PERIOD_S`, and delay its answer."""
        self._free_s[address] = max(now_s, self._free_s.pop(address, now_s)) + self._guess_delay_s
        while len(self._free_s) > self._max_guessers:
            self._free_s.popitem(last=False)
        self.guesses += 1
        self._tally.add()
        await asyncio.sleep(self._guess_delay_s)

    def close(self) -> None:
        """Log the wrong credentials that no line has told: the edge ends."""
        self._tally.close()

    def address_of(self, request: web.Request) -> str:
        """The address that a request comes from: the peer's, or the one that a trusted proxy names.

        Of an IPv6 address only the first 64 bits count, since one machine can use every address of such a network.
        """
        address = _read_address(request.remote or "")
        # Some proxies add a header line of their own below the client's: all lines together are one list.
        forwarded = [part.strip() for part in ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")]
        while address is not None and any(address in network for network in self._proxies) and forwarded:
            further = _read_address(forwarded.pop())
            if further is None:
                break
            address = further
        if isinstance(address, ipaddress.IPv6Address):
            return f"{ipaddress.ip_network((address, 64), strict=False).network_address}/64"
        return str(address or "unknown")

    def invited(self, request: web.Request) -> str:
        """The origin of the requesting page if it is an allowed one; else empty."""
        origin = request.headers.get("Origin", "")
        return origin if origin.lower() in self._allowed_origins else ""

    def refuses(self, request: web.Request) -> str:
        """Why the requesting web page may not use this edge; empty if it may, or if no web page asks.

        A browser names the origin of the page that asks. It must be the edge's own, and the edge must be addressed by
        an IP address or a name that it knows; otherwise any page could reach an edge on its visitor's own machine. A
        GET to the page's own server carries no origin. Such a request is recognised by the browser's User-Agent.
        """
        origin = request.headers.get("Origin")
        from_browser = origin is not None or request.headers.get("User-Agent", "").startswith(_BROWSERS)
        if not from_browser or self.invited(request):
            return ""
        host = request.headers.get("Host", "")
        try:
            own = origin is None or urlsplit(origin).netloc.lower() == host.lower()
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            own, name = False, ""
        if not own:
            return f"a page of the origin {str(origin)[:200]!r} may not use this edge: allow it with --allowed-origin"
        if not (name in self._allowed_hosts or name == "localhost" or _is_address(name)):
            return f"this edge does not know the host name {name[:200]!r}: allow it with --allowed-host"
        return ""


def read_origin(text: str) -> str:
    """Check an origin of web pages, such as https://chat.example; InputError if it is none."""
    try:
        split = urlsplit(text.lower().removesuffix("/"))
        whole = f"{split.scheme}://{split.netloc}" == split.geturl() and split.port != 0
    except ValueError:
        whole = False
    if not whole or not split.scheme or not split.hostname or "@" in split.netloc:
        raise InputError(f"{text!r} is no origin of web pages: give one like https://chat.example")
    return split.geturl()


def read_network(text: str) -> Network:
    """Read a network or an address, such as "10.0.0.0/8" or "::1"; InputError if it is neither."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise InputError(f"{text!r} is no address and no network: give one like 127.0.0.1 or 10.0.0.0/8") from None


def _read_address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_address(name: str) -> bool:
    return _read_address(name) is not None
