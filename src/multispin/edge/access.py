"""Who may use an edge, and how much one token may use.

An edge knows tokens, not people: whoever shows a token has its rights. An edge without credentials treats everybody as
one holder without limits.
"""

import hmac
import logging
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from aiohttp import web

from multispin.edge.door import Door
from multispin.edge.tokens import AccessToken, TokenFile, token_digest
from multispin.errors import InputError
from multispin.protocol import ProtocolError

log = logging.getLogger(__name__)

MINUTE_S = 60.0
REVOKED, EXPIRED = "was revoked", "has expired"


@dataclass(eq=False)
class Holder:
    """Whoever shows one token.

    Attributes:
        name: name of the token's holder; empty for the shared credential and for an edge that asks for none.
        token: the token's entry in the file; None: no limits.
        sessions: numbers of its sessions. Ended ones are removed at the next check.
        left: tokens that it may still use this minute; below 0 after a long prompt.
        counted_s: time at which `left` was right [s].

    """

    name: str = ""
    token: AccessToken | None = None
    sessions: set[int] = field(default_factory=set)
    left: float = 0.0
    counted_s: float | None = None

    def refill(self, now_s: float) -> None:
        """Refill the quota for the time that has passed, up to one minute's tokens."""
        if self.token is None or not self.token.tokens_per_minute:
            return
        rate = self.token.tokens_per_minute
        if self.counted_s is None:
            self.left = float(rate)
        else:
            self.left = min(rate, self.left + (now_s - self.counted_s) * rate / MINUTE_S)
        self.counted_s = now_s

    def check_text(self, prompt_tokens: int, now_s: float) -> None:
        """Refuse a request that exceeds a limit of the token or its quota of the minute."""
        if self.token is None:
            return
        most = self.token.max_prompt_tokens
        if most and prompt_tokens > most:
            raise ProtocolError(
                "too-long", f"the prompt has {prompt_tokens} tokens, over the limit of {most} that this token has"
            )
        self.refill(now_s)
        rate = self.token.tokens_per_minute
        if rate and self.left <= 0.0:
            after_s = (1.0 - self.left) * MINUTE_S / rate
            raise ProtocolError(
                "full",
                f"this token has used its {rate} tokens for this minute: try again in {after_s:.0f} s",
                retry_after_s=min(after_s, 3600.0),
            )

    def spend(self, tokens: int, now_s: float) -> None:
        """Count tokens of a prompt or of a text."""
        if self.token is not None and self.token.tokens_per_minute:
            self.refill(now_s)
            self.left -= tokens


class TokenExpiredError(ProtocolError):
    """The token that was shown is no longer valid."""


class Caller(NamedTuple):
    """The holder of the token behind an HTTP request or a connection.

    Attributes:
        holder: holder of the token that was shown.
        address: network address that it came from.
        request: identifier of the HTTP request; empty for a device's connection.

    """

    holder: Holder
    address: str = ""
    request: str = ""

    @property
    def origin(self) -> str:
        """Whom this counts as: its token, or where none of a file was shown its address; empty inside this process."""
        return self.address if self.holder.token is None else self.holder.token.sha256


CALLER: ContextVar[Caller | None] = ContextVar("multispin_caller", default=None)
"""The caller of the HTTP request served in this context. The session that it opens belongs to this caller."""


def origin_of_caller() -> str:
    """Whom the HTTP request that is being served counts as (`Caller.origin`); empty if none is."""
    caller = CALLER.get()
    return "" if caller is None else caller.origin


def bearer(request: web.Request) -> str:
    """The bearer token of a request; empty if it shows none."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


class Access:
    """Knows credentials and tokens.

    Args:
        credential: secret that everybody may show; default empty: none.
        tokens: file of tokens; default none. It is read here, and InputError says what is wrong with it.
        door: bounds of connections and of wrong credentials; default `Door()`.

    """

    def __init__(self, credential: str = "", tokens: TokenFile | None = None, door: Door | None = None) -> None:
        self.door = door or Door()
        self._credential = credential
        self._file = tokens
        self._everybody = Holder()
        self._holders: dict[str, Holder] = {}  # by the hash of the token
        self._complained = ""
        if tokens is not None:
            self._apply(tokens.read_if_changed() or [])

    @property
    def asks(self) -> bool:
        """Whether callers must show a credential."""
        return bool(self._credential) or self._file is not None

    async def admit(self, secret: str, address: str, now_s: float) -> Holder:
        """The holder of a secret.

        A token from the file is admitted at once. Any other secret waits if a wrong one just came from its address.

        Args:
            secret: the secret that was shown; empty if none was.
            address: network address that it came from.
            now_s: present time of the edge's clock [s].

        Raises:
            TokenExpiredError: the secret is a token that has expired.
            ProtocolError: the secret is unknown, or too many wrong ones come from this address.

        """
        if not self.asks:
            return self._everybody
        if (holder := self._holders.get(token_digest(secret))) is not None:
            if holder.token is not None and holder.token.has_expired():
                raise TokenExpiredError(
                    "unauthorised", f"the token {EXPIRED}: ask the operator of this edge for another"
                )
            return holder
        if secret and self._credential:
            await self.door.wait_turn(address, now_s)
            if hmac.compare_digest(secret.encode("utf-8", "surrogatepass"), self._credential.encode()):
                return self._everybody
        if secret:
            await self.door.guessed(address, now_s)
        raise ProtocolError("unauthorised", "the credential is missing or wrong: send the one that this edge asks for")

    def reload(self) -> None:
        """Read the file of tokens again if it has changed. If it cannot be read, the tokens read before stay valid."""
        if self._file is None:
            return
        try:
            tokens = self._file.read_if_changed()
        except InputError as error:
            if str(error) != self._complained:
                log.error("%s; the tokens read before stay valid", error)
            self._complained = str(error)
            return
        self._complained = ""
        if tokens is not None:
            self._apply(tokens)
            log.info("%d tokens were read from %s", len(tokens), self._file.path)

    def why_gone(self, holder: Holder) -> str:
        """Why a holder's token has ended: it "was revoked" or "has expired"; empty while the token is valid."""
        if holder.token is None:
            return ""
        if self._holders.get(holder.token.sha256) is not holder:
            return REVOKED
        return EXPIRED if holder.token.has_expired() else ""

    def _apply(self, tokens: list[AccessToken]) -> None:
        holders: dict[str, Holder] = {}
        for each in tokens:
            holder = self._holders.get(each.sha256) or Holder()
            if holder.token is not None and holder.token.tokens_per_minute != each.tokens_per_minute:
                holder.counted_s = None
            holder.name, holder.token = each.name, each
            holders[each.sha256] = holder
        self._holders = holders  # one assignment: `reload` runs in a thread beside the event loop
