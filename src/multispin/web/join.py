"""The address of the page that drafts, for phones, and its QR code."""

import io
import socket
from urllib.parse import quote

from multispin.errors import require

PAGE = "/device"
_WHITE_ON_BLACK, _AS_BEFORE = "\x1b[97;40m", "\x1b[0m"


def join_address(place: str, token: str = "", scheme: str = "http") -> str:
    """Address of the page that drafts.

    Args:
        place: HOST:PORT of the edge, or the address of its proxy, such as https://edge.example.org.
        token: credential to join with; it stands behind #, which browsers never send; default none.
        scheme: "https" if the edge uses TLS; default "http".

    """
    base = place.rstrip("/") if "://" in place else f"{scheme}://{place}"
    return f"{base}{PAGE}" + (f"#token={quote(token, safe='')}" if token else "")


def join_code(address: str) -> str:
    """A QR code of an address for any terminal, light or dark. `click.echo` removes the colours for a file."""
    require("segno")
    import segno

    text = io.StringIO()
    segno.make(address, error="l").terminal(out=text, border=1, compact=True)
    # In the colours of a dark terminal it would be light on dark, which many scanners cannot read.
    return "\n".join(f"{_WHITE_ON_BLACK}{line}{_AS_BEFORE}" for line in text.getvalue().splitlines())


def join_picture(address: str) -> str:
    """A QR code of an address as SVG, dark on light in any colour scheme of the page."""
    require("segno")
    import segno

    text = io.BytesIO()
    segno.make(address, error="m").save(text, kind="svg", scale=4, border=3, dark="#000", light="#fff", xmldecl=False)
    return text.getvalue().decode()


def own_addresses(host: str) -> list[str]:
    """Addresses by which other machines reach a server that listens on `host`; empty if they cannot."""
    if host not in ("0.0.0.0", "::", ""):
        return [] if host in ("127.0.0.1", "::1", "localhost") else [host]
    found = []
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((far, 9))  # sends nothing; it only finds the address that a packet would leave from
            except OSError:
                continue
            address = probe.getsockname()[0]
            if not address.startswith(("127.", "::1", "fe80")):
                found.append(address)
    return found
