"""The certificates that a device trusts."""

import ssl
from pathlib import Path

from multispin.errors import InputError
from multispin.outside import check_file

MAX_BYTES = 2**24
"""Largest file of authorities; a system's bundle has a quarter of a megabyte."""


def trusting(authority: Path | None) -> ssl.SSLContext | None:
    """The authorities that a device trusts: the usual ones and this one, a PEM file; None: the usual ones only."""
    if authority is None:
        return None
    check_file(authority, MAX_BYTES)
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError:
        raise InputError(f"{authority} holds no certificate in PEM form") from None
    return context
