"""The device's half of a session: which texts it owns, which draft it owes. No sockets, no clocks.

The device keeps prompt and committed tokens itself. After a lost connection it resumes; after a lost edge it opens
again from where it stood, anywhere else: nothing but time is lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from multispin.errors import InputError
from multispin.protocol.messages import (
    PROTOCOL_VERSION,
    Ask,
    Downlink,
    Draft,
    Error,
    Grant,
    Hello,
    Law,
    Open,
    Resume,
    Tail,
    Verdict,
    Welcome,
)
from multispin.protocol.request import Request
from multispin.speculation import (
    LawFormat,
    Offer,
    Rule,
    SamplingParams,
    StopStrings,
    TruncatedLaw,
    pack_draft,
    pack_laws,
    resolve_down,
    unpack_ids,
    unpack_offer,
)


class RefusedError(InputError):
    """The edge ended the session; `code` is for programs, the message for people."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class _Sent(NamedTuple):
    """The draft under way: kept until it is decided, as a refusal is finished from its laws."""

    base: int
    round: int
    ids: tuple[int, ...]
    laws: tuple[TruncatedLaw, ...]


class Progress(NamedTuple):
    """What a message from the edge changed: new tokens, how many of them had been drafted, and the finish reason."""

    tokens: tuple[int, ...] = ()
    accepted: int = 0
    drafted: int = 0
    finish: str = ""


class DeviceSession:
    """What a device keeps of its session.

    Args:
        hello: how this device introduces itself.
        decode: text of token ids, by the target's tokenizer; needed for requests with stop strings only.

    """

    def __init__(self, hello: Hello, decode: Callable[[Sequence[int]], str] | None = None) -> None:
        self.hello = hello
        self.welcome: Welcome | None = None
        self.request: Request | None = None
        self.committed: list[int] = []
        self.params = SamplingParams()
        self.grant: Grant | None = None
        self.finish = ""
        self._decode = decode
        self._form: LawFormat | None = None  # made when it is asked for
        self._stops: StopStrings | None = None
        self._sent: _Sent | None = None
        self._head: int | None = None  # found from an offer, not known to the edge yet

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the present request's prompt."""
        return len(self.request.prompt) if self.request is not None else 0

    @property
    def rule(self) -> Rule:
        """The present request's acceptance rule."""
        return self._requested().acceptance_rule

    @property
    def generated(self) -> list[int]:
        """The text so far, as ids."""
        return self.committed[self.prompt_tokens :]

    @property
    def session_number(self) -> int:
        """The session's number on the wire."""
        return self._welcomed().session

    @property
    def form(self) -> LawFormat:
        """How this request's laws are written; the edge's vocabulary bounds what they retain."""
        if self._form is None:
            self._form = self._requested().form(self._welcomed().vocabulary_size)
        return self._form

    @property
    def wants_draft(self) -> bool:
        """Whether the open grant must be answered: with a draft, or at least with a token that the edge lacks."""
        return self.grant is not None and (self.grant.length > 0 or self._head is not None)

    @property
    def over(self) -> bool:
        """Whether the token that the edge lacks ends the text, so that nothing is left to draft."""
        request = self.request
        return (
            self._head is not None
            and request is not None
            and (self._head in request.stop_ids or len(self.committed) - len(request.prompt) >= request.max_tokens)
        )

    def greet(self) -> Hello | Resume:
        """The first message on a connection: a resume if there is something to resume."""
        if self.welcome is not None and self.committed:
            return Resume(PROTOCOL_VERSION, self.welcome.resume_token, len(self.committed))
        return self.hello

    def forget_edge(self) -> None:
        """The edge does not know this session any more: greet anew, keep the text."""
        self.welcome = self.grant = None
        self._sent = self._head = None

    def begin(self, request: Request) -> None:
        """Set the next request; `open` puts it on the wire."""
        if request.stop_strings and self._decode is None:
            raise InputError("stop strings need a tokenizer on the device: there is none to look for them with")
        self.request = request
        self.committed, self.params = list(request.prompt), request.effective_params
        self._stops = None
        if request.stop_strings and self._decode is not None:
            self._stops = StopStrings(request.stop_strings, self._decode, request.min_tokens)
        self.grant, self.finish, self._sent, self._head, self._form = None, "", None, None, None

    def open(self) -> Open:
        """The request as it stands; what was generated already counts as continued."""
        welcome, request = self._welcomed(), self._requested()
        if request.seed_of_edge:  # from here on it is this request's seed, at whichever edge it goes on
            params = replace(request.params, seed=welcome.seed)
            request = self.request = replace(request, params=params, seed_of_edge=False)
            self.params = request.effective_params
        return request.to_open(welcome.session, self.generated, welcome.vocabulary_size)

    def answer(self, ids: Sequence[int], draft_s: float, laws: Sequence[TruncatedLaw] = ()) -> Draft:
        """The draft that answers the open grant; it took `draft_s` seconds, and its tokens were drawn from `laws`."""
        if self.grant is None:
            raise ValueError("no grant is open")
        grant, self.grant = self.grant, None
        base = len(self.committed)
        self._sent = _Sent(base, grant.round, tuple(ids), tuple(laws))
        packed = pack_draft(ids, laws, self.rule, self.form)
        draft_us = min(round(draft_s * 1e6), 2**32 - 1)
        return Draft(self.session_number, grant.round, base, len(ids), packed, draft_us, self._head)

    def law(self, ask: Ask) -> Law:
        """The law that the edge asks for; InputError if no token of that round was drawn from one."""
        sent = self._sent
        if sent is None or sent.round != ask.round or ask.accepted >= len(sent.laws):
            raise InputError(
                f"the edge asked for law {ask.accepted} of round {ask.round}, which was never drafted from"
            )
        return Law(ask.session, ask.round, ask.accepted, pack_laws([sent.laws[ask.accepted]], self.form))

    def receive(self, message: Downlink) -> Progress:
        """Take in a message; RefusedError if the edge ended the session, InputError if it makes no sense."""
        match message:
            case Welcome():
                self.welcome, self._form = message, None
                return Progress()
            case Grant():
                self.grant = message
                return Progress()
            case Verdict():
                return self._verdict(message)
            case Tail():
                return self._tail(message)
            case Ask():  # `law` answers it
                return Progress()
            case Error():
                raise RefusedError(message.code, message.sentence)

    def _verdict(self, verdict: Verdict) -> Progress:
        if verdict.base < len(self.committed):  # a repeated answer: already known
            return Progress(finish=self.finish)
        sent = self._sent
        drafted = list(sent.ids) if sent is not None and sent.base == verdict.base else []
        missing = bool(verdict.offer)  # then a drafted token was refused
        if verdict.base > len(self.committed) or verdict.accepted + missing > len(drafted):
            raise InputError(f"the edge accepted {verdict.accepted} tokens at {verdict.base} that were never sent")
        self._head = self._found(verdict) if verdict.offer else None
        newest = verdict.next_token if self._head is None else self._head
        return self._advance([*drafted[: verdict.accepted], newest], len(drafted), verdict)

    def _found(self, verdict: Verdict) -> int:
        """The next token by the edge's offer and the law that the refused token was drawn from."""
        sent = self._sent
        if sent is None or verdict.accepted >= len(sent.laws):
            raise InputError("the edge made an offer for a draft without laws")
        floor, rest_token = unpack_offer(verdict.offer, self.form)
        offer = Offer(verdict.accepted, verdict.base, floor, rest_token)
        return resolve_down(offer, sent.laws[verdict.accepted], self.params.seed)

    def _tail(self, tail: Tail) -> Progress:
        if not self.prompt_tokens <= tail.base <= len(self.committed):
            raise InputError(f"the edge sent a tail from {tail.base} to a text of {len(self.committed)} tokens")
        ids = unpack_ids(tail.ids, tail.count, self._welcomed().vocabulary_size)
        if tail.finish or tail.base + tail.count > len(self.committed):  # the edge knows the token by now
            self._head = None
        return self._advance(ids[len(self.committed) - tail.base :], 0, tail)

    def _advance(self, tokens: list[int], drafted: int, message: Verdict | Tail) -> Progress:
        known = len(self.committed) - self.prompt_tokens
        self.committed += tokens
        self.grant, self.finish = message.grant, message.finish
        end = self._stops.end(self.generated, known) if self._stops is not None else None
        if end is not None:
            tokens, self.grant, self.finish = tokens[: end - known], None, "stop"
            del self.committed[self.prompt_tokens + end :]
        accepted = message.accepted if isinstance(message, Verdict) else 0
        return Progress(tuple(tokens), min(accepted, len(tokens)), drafted, self.finish)

    def _requested(self) -> Request:
        if self.request is None:
            raise ValueError("no request has been begun")
        return self.request

    def _welcomed(self) -> Welcome:
        if self.welcome is None:
            raise ValueError("the edge has not welcomed this device yet")
        return self.welcome
