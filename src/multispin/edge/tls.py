"""TLS: an edge's certificate, loaded again when it is renewed."""

import asyncio
import logging
import ssl
from pathlib import Path

from multispin.errors import InputError
from multispin.outside import check_file

RENEWAL_PERIOD_S = 60.0
"""Time between two checks whether the certificate was renewed [s]."""

MAX_PEM_BYTES = 2**20
"""Largest file of certificates or of a key [bytes]; usual ones have a few kilobytes."""

log = logging.getLogger(__name__)


class Certificate:
    """A certificate with its chain and its private key, in PEM files.

    Args:
        certificate: file of the certificate and its chain, the edge's own first.
        key: file of its private key; default None: it is in the same file.

    Raises:
        InputError: the files cannot be used.

    """

    def __init__(self, certificate: Path, key: Path | None = None) -> None:
        self._certificate, self._key = certificate, key
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._load()

    async def renew(self, period_s: float = RENEWAL_PERIOD_S) -> None:
        """Load the files again whenever they change, for ever. If they cannot be used, the old certificate stays.

        Args:
            period_s: time between two checks [s]; default `RENEWAL_PERIOD_S`.
        """
        seen = self._mark()
        while True:
            await asyncio.sleep(period_s)
            now = self._mark()
            if now != seen:
                seen = now
                try:
                    self._load()
                    log.info("the certificate %s was read again", self._certificate)
                except (InputError, OSError) as error:  # the files may be half written at this moment
                    log.error("%s; the certificate read before stays in use", error)

    def _load(self) -> None:
        for file in (self._certificate, self._key):
            if file is not None:
                check_file(file, MAX_PEM_BYTES)
        try:
            # OpenSSL loads a certificate before it finds that the key does not match, and has then lost the old key.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
                # Without a password, OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self._certificate, self._key, password=lambda: "")
        except ssl.SSLError as error:
            key = self._key or self._certificate
            with key.open("rb") as text:
                encrypted = b"ENCRYPTED" in text.read(MAX_PEM_BYTES)
            if encrypted:
                raise InputError(
                    f"the key in {key} is encrypted: run `openssl pkey -in {key} -out plain.pem`"
                ) from None
            if error.reason == "KEY_VALUES_MISMATCH":
                raise InputError(f"the key in {key} does not fit the certificate in {self._certificate}") from None
            raise InputError(f"{self._certificate} and {key} are not a certificate and its key in PEM format") from None

    def _mark(self) -> list[tuple[int, int]]:
        marks = []
        for file in (self._certificate, self._key or self._certificate):
            try:
                found = file.stat()
                marks.append((found.st_mtime_ns, found.st_size))
            except OSError:
                marks.append((0, 0))
        return marks
