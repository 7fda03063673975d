"""The proxy between a device and its edge, from the environment."""

import contextlib
import ipaddress
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from multispin.device.address import is_host
from multispin.errors import InputError


def proxy_of(address: str) -> URL | None:
    """The proxy through which an address is reached; None: it is reached directly.

    HTTP_PROXY is for ws:// addresses, HTTPS_PROXY for wss:// ones, and ALL_PROXY for either if its own is not set.
    NO_PROXY lists hosts, with or without a port, and networks such as 10.0.0.0/8 that are reached directly.

    Args:
        address: an address of an edge, "ws://HOST:PORT/PATH" or "wss://…".

    Raises:
        InputError: the proxy does not speak HTTP (SOCKS, for example), or its address is malformed.

    """
    url = URL(address)
    if not url.host or _is_exempt(url.host, url.port or 0):
        return None
    named, scheme = getproxies(), "https" if url.scheme in ("wss", "https") else "http"
    name = scheme if scheme in named else "all"
    if name not in named:
        return None
    remedy = f"write http://HOST:PORT there, or add {url.host} to NO_PROXY to reach the edge without a proxy"
    try:
        proxy = URL(named[name] if "://" in named[name] else f"http://{named[name]}")
        makes_sense = (is_host(proxy.raw_host or "") and bool(proxy.port)) or proxy.scheme != "http"
    except ValueError:
        makes_sense = False
    if not makes_sense:
        raise InputError(f"{name.upper()}_PROXY is not the address of a proxy: {remedy}")
    if proxy.scheme != "http":
        raise InputError(f"{name.upper()}_PROXY names a {proxy.scheme} proxy, which a device cannot use: {remedy}")
    return proxy


def _is_exempt(host: str, port: int) -> bool:
    """Whether NO_PROXY lists a host. urllib supports neither networks nor addresses in brackets."""
    if proxy_bypass(f"{host}:{port}"):
        return True
    for entry in getproxies().get("no", "").split(","):
        name, _, at = entry.strip().removeprefix("[").partition("]")
        with contextlib.suppress(ValueError):  # a name
            if at in ("", f":{port}") and ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
    return False


def proxy_shown(proxy: URL) -> str:
    """HOST:PORT of a proxy for messages, without the password that its address may hold."""
    host = proxy.host or ""
    return f"[{host}]:{proxy.port}" if ":" in host else f"{host}:{proxy.port}"
