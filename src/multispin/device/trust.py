"""Whose certificates a device trusts."""

import ssl
from pathlib import Path

from multispin.errors import InputError


def trusting(authority: Path | None) -> ssl.SSLContext | None:
    """What a device trusts: the usual authorities and this one, a PEM file; None: the usual ones only."""
    if authority is None:
        return None
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError:
        raise InputError(f"{authority} holds no certificate in PEM form") from None
    except OSError as error:
        raise InputError(f"{authority} cannot be read: {error.strerror or error}") from None
    return context
