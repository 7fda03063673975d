"""Reads addresses of edges as people write them."""

from yarl import URL

from multispin.errors import InputError
from multispin.protocol import SESSION_PATH

MAX_PART_CHARACTERS = 63
"""Longest part of a host's name (RFC 1035)."""


def session_url(address: str) -> str:
    """The address of an edge's session endpoint.

    The path and the query of the address are kept, since a reverse proxy may need them. InputError for a wrong address.

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
        raise InputError(f"{address} ends in #{url.fragment}, which an address of an edge cannot have: leave it out")
    path = url.path.rstrip("/")
    if not path.endswith(SESSION_PATH):
        path += SESSION_PATH
    return str(url.with_path(path, keep_query=True))


def without_secrets(address: str) -> str:
    """An address for messages and logs: without user, password and query, which may be secret."""
    try:
        return str(URL(address).with_user(None).with_query(None))
    except ValueError:
        return address


def is_host(host: str) -> bool:
    """Whether this may be a host: an IP address, or a name without blanks and without empty or too long parts."""
    if any(character.isspace() for character in host):
        return False
    return ":" in host or all(0 < len(part) <= MAX_PART_CHARACTERS for part in host.removesuffix(".").split("."))
