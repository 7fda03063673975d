"""The device's half of a session: which texts it owns, which draft it owes. No sockets, no clocks.

The device keeps prompt and committed tokens itself. After a lost connection it resumes; after a lost edge it opens
again from where it stood, anywhere else: nothing but time is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from multispin.errors import InputError
from multispin.protocol.messages import (
    PROTOCOL_VERSION,
    Downlink,
    Draft,
    Error,
    Grant,
    Hello,
    Open,
    Resume,
    Tail,
    Verdict,
    Welcome,
)
from multispin.speculation import SamplingParams, pack_ids, unpack_ids


class RefusedError(InputError):
    """The edge ended the session; `code` is for programs, the message for people."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Progress:
    """What a message from the edge changed: new tokens, how many of them had been drafted, and the finish reason."""

    tokens: tuple[int, ...] = ()
    accepted: int = 0
    drafted: int = 0
    finish: str = ""


class DeviceSession:
    """What a device keeps of its session.

    Args:
        hello: how this device introduces itself.

    """

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.welcome: Welcome | None = None
        self.committed: list[int] = []
        self.prompt_tokens = 0
        self.params = SamplingParams()
        self.grant: Grant | None = None
        self.finish = ""
        self._max_tokens = 0
        self._seed_of_edge = False
        self._stop_ids: tuple[int, ...] = ()
        self._sent: tuple[int, list[int]] = (-1, [])  # base and ids of the draft under way

    @property
    def generated(self) -> list[int]:
        """The text so far, as ids."""
        return self.committed[self.prompt_tokens :]

    @property
    def session_number(self) -> int:
        """The session's number on the wire."""
        return self._welcomed().session

    def greet(self) -> Hello | Resume:
        """The first message on a connection: a resume if there is something to resume."""
        if self.welcome is not None and self.committed:
            return Resume(PROTOCOL_VERSION, self.welcome.resume_token, len(self.committed))
        return self.hello

    def forget_edge(self) -> None:
        """The edge does not know this session any more: greet anew, keep the text."""
        self.welcome = self.grant = None
        self._sent = (-1, [])

    def begin(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        max_tokens: int,
        stop_ids: Sequence[int] = (),
        seed_of_edge: bool = False,
    ) -> None:
        """Set the next request; `open` puts it on the wire, with the edge's seed if that is asked for."""
        self._seed_of_edge = seed_of_edge
        self.committed, self.prompt_tokens = list(prompt), len(prompt)
        self.params, self._max_tokens, self._stop_ids = params, max_tokens, tuple(stop_ids)
        self.grant, self.finish, self._sent = None, "", (-1, [])

    def open(self) -> Open:
        """The request as it stands; what was generated already counts as continued."""
        welcome = self._welcomed()
        if self._seed_of_edge:  # from here on it is this request's seed, at whichever edge it goes on
            self.params, self._seed_of_edge = replace(self.params, seed=welcome.seed), False
        params = self.params
        return Open(
            welcome.session,
            pack_ids(self.committed, welcome.vocabulary_size),
            len(self.committed),
            self._max_tokens,
            params.temperature,
            params.top_k,
            params.top_p,
            params.seed,
            self._stop_ids,
            len(self.committed) - self.prompt_tokens,
        )

    def answer(self, ids: Sequence[int], draft_s: float) -> Draft:
        """The draft that answers the open grant; it took `draft_s` seconds."""
        if self.grant is None:
            raise ValueError("no grant is open")
        grant, self.grant = self.grant, None
        welcome = self._welcomed()
        self._sent = (len(self.committed), list(ids))
        packed = pack_ids(ids, welcome.vocabulary_size)
        return Draft(
            welcome.session, grant.round, len(self.committed), len(ids), packed, min(round(draft_s * 1e6), 2**32 - 1)
        )

    def receive(self, message: Downlink) -> Progress:
        """Take in a message; RefusedError if the edge ended the session, InputError if it makes no sense."""
        match message:
            case Welcome():
                self.welcome = message
                return Progress()
            case Grant():
                self.grant = message
                return Progress()
            case Verdict():
                return self._verdict(message)
            case Tail():
                return self._tail(message)
            case Error():
                raise RefusedError(message.code, message.sentence)

    def _verdict(self, verdict: Verdict) -> Progress:
        if verdict.base < len(self.committed):  # a repeated answer: already known
            return Progress(finish=self.finish)
        base, sent = self._sent
        drafted = sent if base == verdict.base else []
        if verdict.base > len(self.committed) or verdict.accepted > len(drafted):
            raise InputError(f"the edge accepted {verdict.accepted} tokens at {verdict.base} that were never sent")
        return self._advance([*drafted[: verdict.accepted], verdict.next_token], len(drafted), verdict)

    def _tail(self, tail: Tail) -> Progress:
        if not self.prompt_tokens <= tail.base <= len(self.committed):
            raise InputError(f"the edge sent a tail from {tail.base} to a text of {len(self.committed)} tokens")
        ids = unpack_ids(tail.ids, tail.count, self._welcomed().vocabulary_size)
        return self._advance(ids[len(self.committed) - tail.base :], 0, tail)

    def _advance(self, tokens: list[int], drafted: int, message: Verdict | Tail) -> Progress:
        self.committed += tokens
        self.grant, self.finish = message.grant, message.finish
        accepted = message.accepted if isinstance(message, Verdict) else 0
        return Progress(tuple(tokens), accepted, drafted, message.finish)

    def _welcomed(self) -> Welcome:
        if self.welcome is None:
            raise ValueError("the edge has not welcomed this device yet")
        return self.welcome
