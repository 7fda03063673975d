"""Addresses of edges, as people write them."""

from yarl import URL

from multispin.errors import InputError
from multispin.protocol import SESSION_PATH

MAX_PART_CHARACTERS = 63
"""Longest part of a host's name (RFC 1035)."""


def session_url(address: str) -> str:
    """The address of an edge's session endpoint.

    The path of the address is kept, so that an edge may stand behind one, and so is its query. InputError says what
    is wrong with an address that cannot be one.

    Example: "ws://[::1]:8765/" becomes "ws://[::1]:8765/v1/session".

    Args:
        address: what a person wrote, "ws://HOST:PORT" or "wss://HOST/PATH?QUERY".

    """
    try:
        url = URL(address.strip())
        port = url.port
    except ValueError:
        raise InputError(f"{address[:200]} is not an address of an edge: write ws://HOST:PORT") from None
    if url.scheme not in ("ws", "wss") or not is_host(url.raw_host or "") or not port:
        raise InputError(f"{address[:200]} is not an address of an edge: write ws://HOST:PORT")
    if url.fragment:
        raise InputError(f"{address} names a part of a page (#{url.fragment}), which an edge has not: leave it out")
    path = url.path.rstrip("/")
    if not path.endswith(SESSION_PATH):
        path += SESSION_PATH
    return str(url.with_path(path, keep_query=True))


def without_secrets(address: str) -> str:
    """An address as messages and logs show it: without a name, a password and a query, which may be credentials."""
    try:
        return str(URL(address).with_user(None).with_query(None))
    except ValueError:
        return address


def is_host(host: str) -> bool:
    """Whether this may be a host: an address, or a name without blanks none of whose parts is empty or too long."""
    if any(character.isspace() for character in host):
        return False
    return ":" in host or all(0 < len(part) <= MAX_PART_CHARACTERS for part in host.removesuffix(".").split("."))
