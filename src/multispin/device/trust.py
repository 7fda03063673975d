"""The certificates that a device trusts."""

import ssl
from pathlib import Path

from multispin.errors import InputError
from multispin.outside import check_file

MAX_BYTES = 2**24
"""Largest file of authorities [bytes]; an operating system's has about 250 kB."""


def trusting(authority: Path | None) -> ssl.SSLContext | None:
    """TLS settings that trust the usual authorities and those in this PEM file; None for None: only the usual ones."""
    if authority is None:
        return None
    check_file(authority, MAX_BYTES)
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError:
        raise InputError(f"{authority} holds no certificate in PEM format") from None
    return context
