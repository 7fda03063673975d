"""The edge's half of a session: what one device may say next, and what it is owed. No sockets, no clocks.

The edge is the truth for committed tokens. A draft that answers a round already decided gets the same verdict once
more; a draft whose base is stale gets the tokens that it is missing; whatever else does not fit ends this session
and no other.

Under the rejection rules a round may end in two steps. `rejection-up`: the first refused token's law is asked for,
and the verdict follows it. `rejection-down`: the verdict carries an offer, the device finds the next token, and that
token is committed when the device names it at the head of its next draft. In both, what a draft met once is kept
until it is decided: no draft is verified twice.
"""

import hmac
import math
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from multispin.errors import InputError
from multispin.protocol.messages import (
    PROTOCOL_VERSION,
    Ask,
    Draft,
    Grant,
    Hello,
    Law,
    Open,
    Tail,
    Verdict,
    longest_draft,
)
from multispin.speculation import (
    Evidence,
    Finding,
    LawFormat,
    Offer,
    Outcome,
    Rejection,
    Rule,
    SamplingParams,
    pack_ids,
    pack_offer,
    possible_after,
    resolve_up,
    rule_for,
    unpack_draft,
    unpack_ids,
    unpack_laws,
)


class ProtocolError(InputError):
    """A device broke the protocol or a limit; `code` is for programs, the message for people."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class RunningRequest:
    """One prompt on its way to becoming a text.

    Attributes:
        committed: prompt and generated ids; the only truth.
        prompt_tokens: how many of them the user gave.
        finish: empty while it goes on, else "stop" or "length".
        rule: by which its drafts are accepted.
        form: how laws are written under the rejection rules.
        longest_draft: that a frame holds under its rule.
        params: its sampling law.

    """

    def __init__(
        self, message: Open, vocabulary_size: int, max_length: int, rules: Collection[Rule] = frozenset(Rule)
    ) -> None:
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
        self.stop_ids = frozenset(message.stop_ids)
        self.params = SamplingParams(
            message.temperature, message.top_k, message.top_p, message.seed, message.logit_bias
        ).with_min_tokens(message.stop_ids, self.prompt_tokens, message.min_tokens)
        self.params.check_vocabulary(vocabulary_size)
        self.rule = rule_for(self.params, message.rule)
        if self.rule not in rules:
            raise ProtocolError(
                "rule",
                f"this edge cannot verify by {self.rule}, only by {', '.join(sorted(rules))}: choose with --rule",
            )
        self.form = LawFormat(vocabulary_size, min(message.retained, vocabulary_size), message.probability_bits)
        self.longest_draft = longest_draft(self.rule, self.form)
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

    def commit(self, tokens: Sequence[int]) -> int:
        """Append tokens, cut after the first stop id or at the token limit; returns how many were kept."""
        kept = list(tokens[: self.remaining])
        for index, token in enumerate(kept):
            if token in self.stop_ids:
                kept, self.finish = kept[: index + 1], "stop"
                break
        self.committed += kept
        if not self.finish and self.remaining == 0:
            self.finish = "length"
        return len(kept)


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
        self.request: RunningRequest | None = None
        self.grant: Grant | None = None
        self.draft: list[int] | None = None
        self.evidence: Evidence | None = None  # that came with it
        self.rejection: Rejection | None = None  # `rejection-up`: whose law has been asked for
        self.offer: Offer | None = None  # `rejection-down`: whose token the device has not named yet
        self._vocabulary_size = vocabulary_size
        self._last_verdict: Verdict | None = None

    def open(self, message: Open, max_length: int, rules: Collection[Rule] = frozenset(Rule)) -> RunningRequest:
        """Begin a request; the one before must have ended."""
        self.check_number(message.session)
        if self.request is not None and not self.request.finish:
            raise ProtocolError("busy", "this session is still generating: close it or wait for its end")
        self.request = RunningRequest(message, self._vocabulary_size, max_length, rules)
        self.grant = self.draft = self.evidence = self.rejection = self.offer = self._last_verdict = None
        return self.request

    @property
    def room(self) -> int:
        """Longest draft that still makes sense: one token comes after it, and a frame must hold it."""
        request = self.request
        if request is None:
            return 0
        left = request.remaining - (self.offer is not None) - 1
        return max(0, min(left, request.longest_draft))

    @property
    def owes_draft(self) -> bool:
        """Whether a draft is granted and has not come."""
        return self.grant is not None and self.draft is None

    def give(self, round_number: int, length: int, bandwidth_hz: float) -> Grant:
        """Grant a draft; a grant of length 0 is answered on the spot by an empty draft, unless a token is owed."""
        self.grant = Grant(self.number, round_number, length, bandwidth_hz)
        if length == 0 and self.offer is None:
            self._take_draft(b"", 0)
        return self.grant

    def withdraw(self) -> None:
        """Take back the grant: a draft that comes for it all the same is answered by what is committed."""
        self.grant = self.draft = self.evidence = None

    def receive(self, message: Draft) -> list[Verdict | Tail | Ask]:
        """Take in a draft: nothing if it will be verified, else the answer that it gets at once."""
        self.check_number(message.session)
        request = self.request
        if request is None:
            raise ProtocolError("no-request", "a draft came before any request was opened")
        length = len(request.committed) + (self.offer is not None)
        if message.base > length:
            raise ProtocolError("ahead", f"a draft starts at {message.base}, but {length} tokens are committed")
        if self._last_verdict is not None and message.round == self._last_verdict.round:
            return [self._last_verdict]
        if message.base < length or self.grant is None or message.round != self.grant.round:
            return self.catch_up(message.base)
        if self.draft is not None:
            return self._asks()
        if message.length > self.grant.length:
            raise ProtocolError(
                "too-many", f"a draft of {message.length} tokens came for a grant of {self.grant.length}"
            )
        if self.offer is not None or message.head is not None:
            self._commit_head(message.head)
            if request.finish:
                self.grant = None
                return [self.tail(len(request.committed))]
        self._take_draft(message.payload, message.length)
        return []

    def settle(self, finding: Finding) -> Verdict | Ask:
        """Commit what was found of the draft at hand: its verdict, without a grant yet, or what is to be asked."""
        request, draft = self.request, self.draft
        if request is None or self.grant is None or draft is None:
            raise ValueError(f"session {self.number} has no draft to settle")
        accepted = draft[: finding.accepted]
        if isinstance(finding, Outcome):
            return self._decide([*accepted, finding.next_token])
        if request.stop_ids.intersection(accepted):  # the text ends before the refused token
            return self._decide(accepted)
        if isinstance(finding, Rejection):
            self.rejection = finding
            return Ask(self.number, self.grant.round, finding.accepted)
        self.offer = finding
        return self._decide(accepted, pack_offer(finding.floor, finding.rest_token))

    def receive_law(self, message: Law) -> Verdict:
        """Take in the law that was asked for; the same law for a round just decided gets its verdict once more."""
        self.check_number(message.session)
        rejection, verdict = self.rejection, self._last_verdict
        if rejection is None or self.grant is None or self.draft is None or self.request is None:
            if verdict is not None and message.round == verdict.round:
                return verdict
            raise ProtocolError("unexpected", f"a law for round {message.round} came, but none was asked for")
        if (message.round, message.accepted) != (self.grant.round, rejection.accepted):
            raise ProtocolError(
                "unexpected",
                f"a law for token {message.accepted} of round {message.round} came; asked was for "
                f"{rejection.accepted} of {self.grant.round}",
            )
        (law,) = unpack_laws(message.law, 1, self.request.form)
        outcome = resolve_up(rejection, law)
        self.rejection = None
        return self._decide([*self.draft[: outcome.accepted], outcome.next_token])

    def attach(self, verdict: Verdict, grant: Grant) -> Verdict:
        """The verdict with the next round's grant in it, remembered as this round's answer."""
        self._last_verdict = replace(verdict, grant=grant)
        return self._last_verdict

    def catch_up(self, base: int) -> list[Verdict | Tail | Ask]:
        """What a device needs that knows `base` tokens: what is committed, and what waits for its answer."""
        verdict = self._last_verdict
        if self.offer is None or verdict is None or self.request is None:
            return [self.tail(base), *self._asks()]
        if base == len(self.request.committed) + 1:  # it has found the token, but not named it yet
            return [Tail(self.number, base, b"", 0, "", self.grant)]
        grantless = replace(self.tail(base, verdict.base), grant=None)
        return [grantless, replace(verdict, grant=self.grant)]

    def tail(self, base: int, end: int | None = None) -> Tail:
        """Everything committed from `base` on (up to `end`), and the grant that is open."""
        request = self.request
        if request is None:
            raise ProtocolError("no-request", "this session has no request to go on with: open one")
        end = len(request.committed) if end is None else end
        if not request.prompt_tokens <= base <= end:
            raise ProtocolError(
                "ahead", f"{base} tokens are not between the prompt's {request.prompt_tokens} and what is committed"
            )
        ids = request.committed[base:end]
        open_grant = self.grant if self.draft is None else None
        packed = pack_ids(ids, self._vocabulary_size)
        return Tail(self.number, base, packed, len(ids), request.finish, open_grant)

    def check_number(self, number: int) -> None:
        """Refuse a message that names another session than the connection's own."""
        if number != self.number:
            raise ProtocolError("wrong-session", f"a message for session {number} came on session {self.number}")

    def _take_draft(self, payload: bytes, length: int) -> None:
        """Keep a draft for verification; InputError if its payload is not what its rule puts on the air."""
        request = self.request
        assert request is not None
        base, seed = len(request.committed), request.params.seed
        self.draft, self.evidence = unpack_draft(payload, length, request.rule, request.form, seed, base)

    def _commit_head(self, head: int | None) -> None:
        """Commit the token that the device found from the last offer, if an honest device can have found it."""
        offer, request = self.offer, self.request
        assert request is not None
        if head is None or offer is None:
            raise ProtocolError("bad-head", "a draft must name the token found from an offer, and only that")
        if not possible_after(offer, head):
            raise ProtocolError("bad-head", f"token {head} cannot have been found from the offer")
        self.offer = None
        request.commit([head])

    def _decide(self, tokens: Sequence[int], offer: bytes = b"") -> Verdict:
        """Commit the tokens of the draft at hand and make its verdict; with an offer the last one is still to come."""
        request, grant = self.request, self.grant
        assert request is not None
        assert grant is not None
        base = len(request.committed)
        kept = request.commit(tokens)
        accepted, newest = (kept, 0) if offer else (kept - 1, request.committed[-1])
        verdict = Verdict(self.number, grant.round, base, accepted, newest, request.finish, None, offer)
        self.grant = self.draft = self.evidence = None
        self._last_verdict = verdict
        return verdict

    def _asks(self) -> list[Verdict | Tail | Ask]:
        """The question that waits for an answer, if there is one."""
        if self.rejection is None or self.grant is None:
            return []
        return [Ask(self.number, self.grant.round, self.rejection.accepted)]


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
