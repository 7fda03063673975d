"""The edge's half of a session, without sockets and clocks: what one device may send next, and what it gets.

The edge alone decides which tokens are committed. A draft for a round that is already decided gets the same verdict
again. A draft with a stale base gets the tokens that it is missing. Anything else that does not fit ends this session
and no other.

Under the rejection rules a round may end in two steps. `rejection-up`: the edge asks for the first refused token's
distribution, and the verdict follows it. `rejection-down`: the verdict carries an offer, the device finds the next
token, and that token is committed when the device names it at the start of its next draft. In both, the result of a
verification is kept until the draft is decided, so no draft is verified twice.

In streams, the session is `Streaming` while its text is written (`edge_stream`).
"""

import math
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from multispin.protocol.edge_stream import Arrival, Comparison, StreamCounts, Streaming
from multispin.protocol.limits import MAX_SCORED_TAIL, PROTOCOL_VERSION
from multispin.protocol.messages import (
    Ask,
    Chunk,
    Commit,
    Distribution,
    Draft,
    Grant,
    Hello,
    Open,
    Tail,
    Uplink,
    Verdict,
    Window,
)
from multispin.protocol.running_request import ProtocolError, RunningRequest, admit
from multispin.protocol.stages import DistributionAsked, Granted, Idle, Pending, Stage
from multispin.speculation import (
    Evidence,
    Finding,
    Grammars,
    Offer,
    Outcome,
    Rejection,
    Rule,
    Score,
    TruncatedDistribution,
    pack_ids,
    pack_offer,
    possible_after,
    resolve_up,
    unpack_distributions,
    unpack_draft,
    unpack_ids,
)

_SHOWN_CHARACTERS = 200  # most characters of a target's name in a message
_MAY_OWE = Idle, Granted
"""Stages in which the device may still have to name the token of an offer."""
_WITHOUT_GRANT = Idle, Streaming
"""Stages in which no verdict is outstanding."""


class EdgeSession:
    """The state that the edge keeps of one device.

    Attributes:
        number: the session's number on the wire.
        resume_token: secret that a reconnecting device shows.
        hello: the device's greeting, already accepted by `check_hello`.
        request: the text that is being generated; None before the first one.
        stage: stage of the next draft (not granted, granted, pending or refused), or that the device streams.
        counts: fates of the streamed tokens, over all texts.

    Args:
        number: the session's number on the wire.
        resume_token: secret that a reconnecting device shows.
        hello: the device's greeting, already accepted by `check_hello`.
        vocabulary_size: number of the target's token ids.
        scored_tail: most tokens in a Tail with log probabilities; default `MAX_SCORED_TAIL`, which fit a frame.

    """

    def __init__(
        self,
        number: int,
        resume_token: str,
        hello: Hello,
        vocabulary_size: int,
        scored_tail: int = MAX_SCORED_TAIL,
    ) -> None:
        self.number = number
        self.resume_token = resume_token
        self.hello = hello
        self.request: RunningRequest | None = None
        self.stage: Stage = Idle()
        self._vocabulary_size = vocabulary_size
        self._scored_tail = scored_tail
        self._last_verdict: Verdict | None = None  # answers a repeated draft or distribution
        self.counts = StreamCounts()
        self._epoch = 0  # of the newest chain in any stream of this session
        self._late = 0  # tokens of an ended text that may still be on their way

    def open(
        self,
        message: Open,
        max_length: int,
        rules: Collection[Rule] = frozenset(Rule),
        lacks: Collection[str] = frozenset(),
        grammars: Grammars | None = None,
    ) -> RunningRequest:
        """Begin a request; the previous one must have ended."""
        self.check_number(message.session)
        if self.request is not None and not self.request.finish:
            raise ProtocolError("busy", "this session still generates a text: wait for its end, or close the session")
        self.request = admit(message, self._vocabulary_size, max_length, rules, lacks, grammars)
        self.stage, self._last_verdict = Idle(), None
        return self.request

    @property
    def room(self) -> int:
        """Longest useful draft [tokens]: one more token comes after it, and it must fit a frame."""
        request, stage = self.request, self.stage
        if request is None:
            return 0
        left = request.remaining - 1
        if isinstance(stage, _MAY_OWE) and stage.offer is not None:
            left -= 1
        return 0 if left < 0 else min(left, request.longest_draft)

    @property
    def grant(self) -> Grant | None:
        """The grant whose verdict is outstanding."""
        stage = self.stage
        return None if isinstance(stage, _WITHOUT_GRANT) else stage.grant

    @property
    def offer(self) -> Offer | None:
        """The offer whose token the device has not yet named (`rejection-down`)."""
        stage = self.stage
        return stage.offer if isinstance(stage, _MAY_OWE) else None

    def give(self, round_number: int, length: int, bandwidth_hz: float) -> Grant:
        """Grant a draft. A grant of length 0 counts as answered at once, unless a token must be named."""
        grant = Grant(self.number, round_number, length, bandwidth_hz)
        offer = self.offer
        self.stage = self._pending(grant, b"", 0) if length == 0 and offer is None else Granted(grant, offer)
        return grant

    def withdraw(self) -> None:
        """Take back the grant. A draft that still comes for it is answered with what is committed."""
        if isinstance(self.stage, Streaming):
            self._end_stream(self.stage)
        else:
            self.stage = Idle(self.offer)

    def awaits(self, message: Uplink) -> bool:
        """Whether a message answers what this session was granted or asked for. Each answer is awaited once."""
        request, stage = self.request, self.stage
        match message:
            case Chunk():
                if isinstance(stage, Streaming) and request is not None:
                    return stage.expects(message, len(request.committed))
                return message.length <= self._late
            case Draft() if isinstance(stage, Granted) and request is not None:
                place = len(request.committed) + (stage.offer is not None)
                return message.round == stage.grant.round and message.base == place
            case Distribution() if isinstance(stage, DistributionAsked):
                return message.round == stage.grant.round
        return False

    # Streams --------------------------------------------------------------------------------------------------------

    def stream(self, length: int, chunk: int, bandwidth_hz: float) -> Window:
        """Let the device draft on by itself, or change how far ahead. Returns the message for it.

        Args:
            length: most tokens ahead of the committed text, 0 … `MAX_DRAFT_LENGTH`.
            chunk: number of tokens in one frame, 1 … `MAX_DRAFT_LENGTH`.
            bandwidth_hz: band for the frames [Hz].

        """
        window = Window(self.number, length, chunk, bandwidth_hz)
        if not isinstance(self.stage, Streaming):
            if not isinstance(self.stage, Idle) or self.offer is not None:
                raise ValueError(f"session {self.number} has an undecided draft, so it cannot stream now")
            self.stage = Streaming(window, self._epoch, self.counts)
        self.stage.change(window)
        return window

    def receive_chunk(self, message: Chunk) -> Arrival:
        """Take in tokens of a stream; InputError if they are malformed or no honest device can have sent them."""
        request, stage = self.request, self.stage
        if request is None:
            raise ProtocolError("no-request", "a Chunk came before any request was opened")
        ids = unpack_ids(message.ids, message.length, self._vocabulary_size)
        if isinstance(stage, Streaming):
            return stage.receive(message, ids, request.committed)
        if not request.finish:
            raise ProtocolError("unexpected", "a Chunk came, but this text does not stream: send Drafts for Grants")
        self._late = max(0, self._late - len(ids))  # the chunk was on its way when the text ended
        self.counts.received += len(ids)
        self.counts.wasted += len(ids)
        return Arrival()

    def settle_stream(self, outcome: Outcome) -> tuple[Commit, Comparison]:
        """Commit the result of the pass. Returns the message for the device, and what this shows of its drafter."""
        request, stage = self.request, self.stage
        if request is None or not isinstance(stage, Streaming):
            raise ValueError(f"session {self.number} does not stream")
        commit, comparison = stage.settle(outcome, request)
        if request.finish:
            self._end_stream(stage)
        return commit, comparison

    def end(self) -> None:
        """End the session: tokens drafted ahead will not be decided."""
        if isinstance(self.stage, Streaming):
            self.stage.abandon()

    def _end_stream(self, stage: Streaming) -> None:
        """End the stream with its text or its slot; the next one begins with a greater epoch."""
        stage.kill()
        self._epoch, self._late, self.stage = stage.epoch, stage.longest * (1 + stage.restarts), Idle()

    # Drafts in grants -----------------------------------------------------------------------------------------------

    def draft_here(self, ids: Sequence[int], distributions: Sequence[TruncatedDistribution] = ()) -> None:
        """Replace the pending empty draft by one of the edge's own drafter.

        Args:
            ids: ids of the drafted tokens.
            distributions: [len(ids)] distributions that the tokens were drawn from, under the rejection rules; default
                none. Since all of them are here, the draft is decided at once under each of these rules, and the text
                follows the same distribution.

        """
        request, stage = self.request, self.stage
        if request is None or not isinstance(stage, Pending) or len(stage.draft):
            raise ValueError(f"session {self.number} has no empty draft to fill")
        evidence = Evidence(Rule.REJECTION, request.form, distributions=tuple(distributions)) if distributions else None
        self.stage = Pending(stage.grant, list(ids), evidence) if ids else stage

    def receive(self, message: Draft) -> list[Verdict | Tail | Ask | Window]:
        """Take in a draft. Returns nothing if it will be verified, else its immediate answer."""
        self.check_number(message.session)
        request, stage, offer = self.request, self.stage, self.offer
        if request is None:
            raise ProtocolError("no-request", "a Draft came before any request was opened")
        length = len(request.committed) + (offer is not None)
        if message.base > length:
            raise ProtocolError("ahead", f"a Draft starts at {message.base}, but only {length} tokens are committed")
        awaited = isinstance(stage, Granted) and message.round == stage.grant.round
        if self._last_verdict is not None and message.round == self._last_verdict.round and not awaited:
            return [self._last_verdict]
        if isinstance(stage, Streaming):
            raise ProtocolError("unexpected", "a Draft came, but this text is written in a stream: send Chunks")
        if message.base < length or isinstance(stage, Idle) or message.round != stage.grant.round:
            return self.catch_up(message.base)
        if not isinstance(stage, Granted):
            return self._asks()
        if message.length > stage.grant.length:
            raise ProtocolError(
                "too-many", f"a Draft of {message.length} tokens came for a grant of {stage.grant.length}"
            )
        if offer is not None or message.head is not None:
            self._commit_head(request, offer, message.head)
            self.stage = Idle() if request.finish else Granted(stage.grant)
            if request.finish:
                return [self.tail(len(request.committed))]
        self.stage = self._pending(stage.grant, message.payload, message.length)
        return []

    def glance(self, message: Draft, grant: Grant) -> Sequence[int]:
        """The ids of a probe's draft, which is not part of the text; this changes nothing in the session."""
        self.check_number(message.session)
        if message.length > grant.length:
            raise ProtocolError("too-many", f"a Draft of {message.length} tokens came for a grant of {grant.length}")
        return self._pending(grant, message.payload, message.length).draft

    def settle(self, finding: Finding) -> Verdict | Ask:
        """Commit the result for the pending draft. Returns its verdict, without a grant yet, or an Ask."""
        request, stage = self.request, self.stage
        if request is None or not isinstance(stage, Pending):
            raise ValueError(f"session {self.number} has no draft to settle")
        grant, accepted = stage.grant, stage.draft[: finding.accepted]
        if isinstance(finding, Outcome):
            return self._decide(request, grant, [*accepted, finding.next_token], scores=finding.scores)
        if request.stop_ids.intersection(accepted):  # the text ends before the rejected token
            return self._decide(request, grant, accepted)
        if isinstance(finding, Rejection):
            self.stage = DistributionAsked(grant, stage.draft, finding)
            return Ask(self.number, grant.round, finding.accepted)
        return self._decide(request, grant, accepted, finding)

    def receive_distribution(self, message: Distribution) -> Verdict:
        """Take in the distribution that was asked for. For a round just decided, the same verdict is repeated."""
        self.check_number(message.session)
        request, stage, verdict = self.request, self.stage, self._last_verdict
        if request is None or not isinstance(stage, DistributionAsked):
            if verdict is not None and message.round == verdict.round:
                return verdict
            raise ProtocolError("unexpected", f"a Distribution for round {message.round} came, but none was asked for")
        grant, rejection = stage.grant, stage.rejection
        if (message.round, message.accepted) != (grant.round, rejection.accepted):
            raise ProtocolError(
                "unexpected",
                f"a Distribution for token {message.accepted} of round {message.round} came, but the edge "
                f"asked for token {rejection.accepted} of round {grant.round}",
            )
        (distribution,) = unpack_distributions(message.distribution, 1, request.form)
        outcome = resolve_up(rejection, distribution)
        return self._decide(request, grant, [*stage.draft[: outcome.accepted], outcome.next_token])

    def attach(self, verdict: Verdict, grant: Grant) -> Verdict:
        """The verdict with the next round's grant, remembered as this round's answer."""
        self._last_verdict = replace(verdict, grant=grant)
        return self._last_verdict

    def catch_up(self, base: int) -> list[Verdict | Tail | Ask | Window]:
        """The messages for a device that knows `base` tokens: the committed ones after them, and what is still open."""
        if isinstance(self.stage, Streaming):  # a new connection begins another chain
            self.stage.kill()
            return [*self._tails(base), *([self.stage.window] if self.hello.drafts else [])]
        verdict = self._last_verdict
        if self.offer is None or verdict is None or self.request is None:
            return [*self._tails(base), *self._asks()]
        if base == len(self.request.committed) + 1:  # it has found the token, but not yet named it
            return [Tail(self.number, base, b"", 0, "", self.grant)]
        grantless = replace(self.tail(base, verdict.base), grant=None)
        return [grantless, replace(verdict, grant=self.grant)]

    def tail(self, base: int, end: int | None = None) -> Tail:
        """Everything committed from `base` on (up to `end`), with the open grant."""
        request = self.request
        if request is None:
            raise ProtocolError("no-request", "this session has no request to go on with: open one")
        end = len(request.committed) if end is None else end
        if not request.prompt_tokens <= base <= end:
            raise ProtocolError(
                "ahead", f"{base} tokens are not between the prompt's {request.prompt_tokens} and the committed {end}"
            )
        ids = request.committed[base:end]
        packed = pack_ids(ids, self._vocabulary_size)
        open_grant = self.stage.grant if isinstance(self.stage, Granted) else None
        scores = request.scores(base, end)
        return Tail(self.number, base, packed, len(ids), request.finish, open_grant, scores)

    def word(self) -> Tail | Window:
        """A message without news, for a device that waits: a Tail without ids, or its window again."""
        request, stage = self.request, self.stage
        if isinstance(stage, Streaming) and self.hello.drafts:
            return stage.window
        return self.tail(0 if request is None else len(request.committed))

    def _tails(self, base: int) -> list[Tail]:
        """Everything committed from `base` on, in as many messages as the log probabilities need."""
        request, parts = self.request, list[Tail]()
        while request is not None and request.params.logprobs is not None:
            end = base + self._scored_tail
            if end >= len(request.committed):
                break
            parts.append(replace(self.tail(base, end), finish="", grant=None))
            base = end
        return [*parts, self.tail(base)]

    def check_number(self, number: int) -> None:
        """Refuse a message for another session than the connection's own."""
        if number != self.number:
            raise ProtocolError("wrong-session", f"a message for session {number} came on session {self.number}")

    def _pending(self, grant: Grant, payload: bytes, length: int) -> Pending:
        """A draft that awaits verification; InputError if its payload does not fit its rule."""
        request = self.request
        assert request is not None
        base, seed = len(request.committed), request.params.seed
        return Pending(grant, *unpack_draft(payload, length, request.rule, request.form, seed, base))

    def _commit_head(self, request: RunningRequest, offer: Offer | None, head: int | None) -> None:
        """Commit the token that the device found from the last offer; ProtocolError if no honest device can find it."""
        if head is None or offer is None:
            raise ProtocolError("bad-head", "a Draft must name the token found from an offer, and only that")
        if not possible_after(offer, head):
            raise ProtocolError("bad-head", f"the head {head} cannot be found from the offer")
        request.commit([head])

    def _decide(
        self,
        request: RunningRequest,
        grant: Grant,
        tokens: Sequence[int],
        offer: Offer | None = None,
        scores: Sequence[Score] = (),
    ) -> Verdict:
        """Commit the tokens of a draft, and make its verdict. With an offer the last token is still to come."""
        base = len(request.committed)
        kept = request.commit(tokens, scores)
        accepted, newest = (kept - 1, request.committed[-1]) if offer is None else (kept, 0)
        packed = b"" if offer is None else pack_offer(offer.floor, offer.rest_token)
        verdict = Verdict(
            self.number, grant.round, base, accepted, newest, request.finish, None, packed, tuple(scores[:kept])
        )
        self.stage, self._last_verdict = Idle(offer), verdict
        return verdict

    def _asks(self) -> list[Verdict | Tail | Ask | Window]:
        """The Ask that waits for an answer, if there is one."""
        stage = self.stage
        if not isinstance(stage, DistributionAsked):
            return []
        return [Ask(self.number, stage.grant.round, stage.rejection.accepted)]


def check_hello(hello: Hello, fingerprint: str, target: str = "") -> None:
    """Refuse a greeting with another protocol version, another tokenizer or a profile that is not finite.

    Args:
        hello: Hello message of the device.
        fingerprint: fingerprint of the target's tokenizer.
        target: name of the target, for the message about another tokenizer; default empty.

    """
    check_version(hello.version)
    if hello.fingerprint != fingerprint:
        name = f" {target[:_SHOWN_CHARACTERS]}" if target else ""
        raise ProtocolError(
            "tokenizer-mismatch",
            f"the device's tokenizer ({hello.fingerprint}) is not that of the edge's target{name} "
            f"({fingerprint}): start the device with the edge's target, and draft "
            "with a model of its family",
        )
    if not all(math.isfinite(value) for value in (hello.profile.seconds_per_token, hello.profile.spectral_efficiency)):
        raise ProtocolError("bad-profile", "the device's profile has a number that is not finite")


def check_version(version: int) -> None:
    """Refuse another protocol version."""
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            "version",
            f"the device has protocol version {version} and this edge {PROTOCOL_VERSION}: update the older one",
        )
