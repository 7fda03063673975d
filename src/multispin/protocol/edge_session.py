"""The edge's half of a session: what one device may say next, and what it is owed. No sockets, no clocks.

The edge is the truth for committed tokens. A draft that answers a round already decided gets the same verdict once
more; a draft whose base is stale gets the tokens that it is missing; whatever else does not fit ends this session
and no other.
"""

import hmac
import math
from collections.abc import Sequence

from multispin.errors import InputError
from multispin.protocol.messages import PROTOCOL_VERSION, Draft, Grant, Hello, Open, Tail, Verdict
from multispin.speculation import Outcome, SamplingParams, pack_ids, unpack_ids


class ProtocolError(InputError):
    """A device broke the protocol or a limit; `code` is for programs, the message for people."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Request:
    """One prompt on its way to becoming a text.

    Attributes:
        committed: prompt and generated ids; the only truth.
        prompt_tokens: how many of them the user gave.
        finish: empty while it goes on, else "stop" or "length".

    """

    def __init__(self, message: Open, vocabulary_size: int, max_length: int) -> None:
        """Check a request at the door; ProtocolError says what it asked too much."""
        needed = message.prompt_tokens - message.continued + message.max_tokens
        if message.continued >= min(message.prompt_tokens, message.max_tokens + 1):
            raise ProtocolError("bad-request", f"continued = {message.continued} leaves no prompt or no room")
        if needed > max_length:
            raise ProtocolError(
                "too-long",
                f"{message.prompt_tokens - message.continued} prompt tokens and {message.max_tokens} to generate make "
                f"{needed}, over this edge's limit of {max_length}: shorten the prompt or ask for fewer tokens",
            )
        self.committed = unpack_ids(message.prompt, message.prompt_tokens, vocabulary_size)
        self.prompt_tokens = message.prompt_tokens - message.continued
        self.max_tokens = message.max_tokens
        self.params = SamplingParams(message.temperature, message.top_k, message.top_p, message.seed)
        self.stop_ids = frozenset(message.stop_ids)
        generated = self.committed[self.prompt_tokens :]
        self.finish = ""
        if generated and generated[-1] in self.stop_ids:
            self.finish = "stop"
        elif len(generated) >= self.max_tokens:
            self.finish = "length"

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.committed) - self.prompt_tokens

    @property
    def remaining(self) -> int:
        """Tokens that may still be generated."""
        return self.max_tokens - self.generated

    def settle(self, drafted: Sequence[int], outcome: Outcome) -> Outcome:
        """Commit what a verification decided, cut at the first stop id or at the token limit."""
        tokens = [*drafted[: outcome.accepted], outcome.next_token][: self.remaining]
        for index, token in enumerate(tokens):
            if token in self.stop_ids:
                tokens, self.finish = tokens[: index + 1], "stop"
                break
        self.committed += tokens
        if not self.finish and self.remaining == 0:
            self.finish = "length"
        return Outcome(len(tokens) - 1, tokens[-1])


class EdgeSession:
    """What the edge keeps of one device.

    Args:
        number: the session's number on the wire.
        resume_token: a secret that a reconnecting device shows.
        hello: the device's greeting, already accepted by `check_hello`.
        vocabulary_size: of the target.

    """

    def __init__(self, number: int, resume_token: str, hello: Hello, vocabulary_size: int) -> None:
        self.number = number
        self.resume_token = resume_token
        self.hello = hello
        self.request: Request | None = None
        self.grant: Grant | None = None
        self.draft: list[int] | None = None
        self._vocabulary_size = vocabulary_size
        self._last_verdict: Verdict | None = None

    def open(self, message: Open, max_length: int) -> Request:
        """Begin a request; the one before must have ended."""
        self.check_number(message.session)
        if self.request is not None and not self.request.finish:
            raise ProtocolError("busy", "this session is still generating: close it or wait for its end")
        self.request = Request(message, self._vocabulary_size, max_length)
        self.grant = self.draft = self._last_verdict = None
        return self.request

    def give(self, round_number: int, length: int, bandwidth_hz: float) -> Grant:
        """Grant a draft; a grant of length 0 is answered on the spot by an empty draft."""
        self.grant = Grant(self.number, round_number, length, bandwidth_hz)
        self.draft = [] if length == 0 else None
        return self.grant

    def receive(self, message: Draft) -> Verdict | Tail | None:
        """Take in a draft: None if it will be verified, else the answer that it gets at once."""
        self.check_number(message.session)
        request = self.request
        if request is None:
            raise ProtocolError("no-request", "a draft came before any request was opened")
        if message.base > len(request.committed):
            raise ProtocolError(
                "ahead", f"a draft starts at {message.base}, but {len(request.committed)} tokens are committed"
            )
        if self._last_verdict is not None and message.round == self._last_verdict.round:
            return self._last_verdict
        if message.base < len(request.committed) or self.grant is None or message.round != self.grant.round:
            return self.tail(message.base)
        if self.draft is not None:
            return None
        if message.length > self.grant.length:
            raise ProtocolError(
                "too-many", f"a draft of {message.length} tokens came for a grant of {self.grant.length}"
            )
        self.draft = unpack_ids(message.ids, message.length, self._vocabulary_size)
        return None

    def settle(self, outcome: Outcome) -> Verdict:
        """Commit the outcome of the draft at hand and make its verdict, which carries no grant yet."""
        if self.request is None or self.grant is None or self.draft is None:
            raise ValueError(f"session {self.number} has no draft to settle")
        base = len(self.request.committed)
        kept = self.request.settle(self.draft, outcome)
        self._last_verdict = Verdict(
            self.number, self.grant.round, base, kept.accepted, kept.next_token, self.request.finish
        )
        self.grant = self.draft = None
        return self._last_verdict

    def attach(self, verdict: Verdict, grant: Grant) -> Verdict:
        """The verdict with the next round's grant in it, remembered as this round's answer."""
        self._last_verdict = Verdict(
            verdict.session,
            verdict.round,
            verdict.base,
            verdict.accepted,
            verdict.next_token,
            verdict.finish,
            grant,
        )
        return self._last_verdict

    def tail(self, base: int) -> Tail:
        """Everything committed from `base` on, and the grant that is open."""
        request = self.request
        if request is None:
            raise ProtocolError("no-request", "this session has no request to go on with: open one")
        if not request.prompt_tokens <= base <= len(request.committed):
            raise ProtocolError(
                "ahead", f"{base} tokens are not between the prompt's {request.prompt_tokens} and what is committed"
            )
        ids = request.committed[base:]
        open_grant = self.grant if self.draft is None else None
        packed = pack_ids(ids, self._vocabulary_size)
        return Tail(self.number, base, packed, len(ids), request.finish, open_grant)

    def check_number(self, number: int) -> None:
        """Refuse a message that names another session than the connection's own."""
        if number != self.number:
            raise ProtocolError("wrong-session", f"a message for session {number} came on session {self.number}")


def check_hello(hello: Hello, fingerprint: str, credential: str) -> None:
    """Refuse a greeting that cannot work: another protocol, another tokenizer, no credential, an odd profile."""
    check_version(hello.version)
    if credential and not hmac.compare_digest(hello.credential.encode(), credential.encode()):
        raise ProtocolError("unauthorised", "the credential is missing or wrong: start the device with --credential")
    if hello.fingerprint != fingerprint:
        raise ProtocolError(
            "tokenizer-mismatch",
            f"the drafter's tokenizer {hello.fingerprint} is not the target's {fingerprint}: "
            "draft with a model of the target's family",
        )
    if not all(math.isfinite(value) for value in (hello.profile.seconds_per_token, hello.profile.spectral_efficiency)):
        raise ProtocolError("bad-profile", "the device profile holds a number that is not finite")


def check_version(version: int) -> None:
    """Refuse another protocol version."""
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            "version",
            f"protocol version {version} is not this edge's {PROTOCOL_VERSION}: install the same multispin on both",
        )
