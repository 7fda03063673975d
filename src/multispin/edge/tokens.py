"""A file of bearer tokens: who may use an edge, and how much.

A token is 256 random bits, and the file keeps its SHA-256. A slow hash such as scrypt would add nothing: it protects
passwords that people choose, but nobody can guess 256 random bits. A fast hash also makes wrong tokens cheap: each
costs the edge a microsecond, not a tenth of a second.
"""

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from multispin.checks import shown
from multispin.errors import InputError
from multispin.outside import check_keys

MAX_CREDENTIALS = 10_000
MAX_TOKEN_FILE_BYTES = 8 * 2**20
PREFIX = "msp_"
"""The beginning of every token, so that people and secret scanners recognise it."""

Limit = Annotated[int, Meta(ge=0, le=10**9)]


class AccessToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One token's entry in the file.

    Attributes:
        id: short name for `multispin token revoke`; not secret.
        name: whose it is, as the operator wrote it.
        sha256: SHA-256 of the token, hexadecimal.
        created: time at which it was made, ISO 8601.
        max_sessions: most sessions at once; 0 (default): no limit.
        tokens_per_minute: most prompt and generated tokens per minute; 0 (default): no limit.
        max_prompt_tokens: most tokens of a prompt; 0 (default): no limit.
        expires: time at which it expires, with a time zone; None (default): never.

    """

    id: Annotated[str, Meta(min_length=1, max_length=32, pattern="^[0-9A-Za-z_-]+$")]
    name: Annotated[str, Meta(max_length=80)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    created: Annotated[str, Meta(max_length=40)]
    max_sessions: Limit = 0
    tokens_per_minute: Limit = 0
    max_prompt_tokens: Limit = 0
    expires: Annotated[datetime, Meta(tz=True)] | None = None

    def has_expired(self) -> bool:
        """Whether the token is no longer valid."""
        return self.expires is not None and datetime.now(UTC) >= self.expires


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: Annotated[list[AccessToken], Meta(max_length=MAX_CREDENTIALS)]


def token_digest(secret: str) -> str:
    """The SHA-256 of a token, which the file keeps."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class TokenFile:
    """A file of tokens that only its owner may read.

    Args:
        path: file of the tokens.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None

    def read(self) -> list[AccessToken]:
        """All tokens; InputError says what is wrong with the file."""
        return self._read()[0]

    def read_if_changed(self) -> list[AccessToken] | None:
        """All tokens if the file has changed since the last call, else None; InputError as for `read`."""
        with self._errors():
            now = _mark(self.path.stat())
        if now == self._seen:
            return None
        self._seen = now
        tokens, self._seen = self._read()
        return tokens

    def add(
        self,
        name: str,
        max_sessions: int = 0,
        tokens_per_minute: int = 0,
        max_prompt_tokens: int = 0,
        expires: datetime | None = None,
    ) -> str:
        """Make a token and add it to the file, which is created if missing. The arguments are those of `AccessToken`.

        Returns:
            The token. It is stored nowhere.
        """
        secret = PREFIX + secrets.token_urlsafe(32)
        new = AccessToken(
            *(secrets.token_hex(4), name, token_digest(secret), datetime.now(UTC).isoformat(timespec="seconds")),
            *(max_sessions, tokens_per_minute, max_prompt_tokens, expires),
        )

        def change(tokens: list[AccessToken]) -> list[AccessToken]:
            if len(tokens) >= MAX_CREDENTIALS:
                raise InputError(f"{self.path} has {MAX_CREDENTIALS} tokens, the limit: run `multispin token revoke`")
            return [*tokens, new]

        self._change(change)
        return secret

    def revoke(self, wanted: str) -> AccessToken:
        """Remove the token with this id or, if only one has it, this name; InputError if there is none."""
        removed: list[AccessToken] = []

        def change(tokens: list[AccessToken]) -> list[AccessToken]:
            found = [each for each in tokens if each.id == wanted] or [each for each in tokens if each.name == wanted]
            if len(found) != 1:
                many = f"{len(found)} tokens have the name" if found else "no token has the id or name"
                raise InputError(f"{many} {shown(wanted, 100)}: see `multispin token list` for the ids")
            removed.extend(found)
            return [each for each in tokens if each is not found[0]]

        self._change(change)
        return removed[0]

    def _change(self, change: Callable[[list[AccessToken]], list[AccessToken]]) -> None:
        """Replace the file as a whole, so that no reader ever sees half of it. The file keeps its owner.

        A symbolic link stays a link, since an edge that reads the file by its other name must see the change.
        """
        with self._errors():
            path = Path(os.path.realpath(self.path))
        if not path.parent.is_dir():
            raise InputError(f"there is no folder {self.path.parent} for the file of tokens: make it first")
        with self._errors(), self._locked(path.parent):
            before = path.stat() if path.exists() else None
            tokens = change(self.read() if before is not None else [])
            text = msgspec.json.format(msgspec.json.encode(_File(tokens)), indent=1)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(text + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                if before is not None and os.name == "posix":
                    os.chown(name, before.st_uid, before.st_gid)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Lock the file, so that commands that change it at the same time do so one after the other."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read(self) -> tuple[list[AccessToken], tuple[int, ...]]:
        with self._errors():
            # Without O_NONBLOCK, opening a named pipe would wait for ever.
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
            with os.fdopen(handle, "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise InputError(f"{self.path} is not an ordinary file")
                if os.name == "posix" and found.st_mode & 0o077:
                    raise InputError(f"{self.path} can be read by others: run `chmod 600 {self.path}`")
                text = file.read(MAX_TOKEN_FILE_BYTES + 1)
        if len(text) > MAX_TOKEN_FILE_BYTES:
            raise InputError(f"{self.path} is longer than {MAX_TOKEN_FILE_BYTES} bytes, the limit")
        try:
            check_keys(text)
            tokens = msgspec.json.decode(text, type=_File).tokens
        except (InputError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{self.path} is no file of tokens: {error}") from None
        _check(tokens, self.path)
        return tokens, _mark(found)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = "cannot be used" if not isinstance(error, FileNotFoundError) else "is not there"
            hint = ": make it with `multispin token add NAME`" if isinstance(error, FileNotFoundError) else ""
            reason = "" if hint else f": {error.strerror or error}"
            raise InputError(f"the file of tokens {self.path} {what}{hint}{reason}") from None


def _check(tokens: Sequence[AccessToken], path: Path) -> None:
    for what in ("id", "sha256"):
        values = [getattr(each, what) for each in tokens]
        if len(set(values)) < len(values):
            raise InputError(f"{path} has the same {what} twice")
    for each in tokens:
        try:
            each.expires and each.expires.astimezone(UTC)
        except OverflowError:
            raise InputError(f"{path}: the token {each.id} expires beyond the year 9999") from None


def _mark(found: os.stat_result) -> tuple[int, ...]:
    """The part of a file's status that changes when the file is written again."""
    with contextlib.suppress(AttributeError):
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode
    return found.st_mtime_ns, found.st_size
