"""The device's half of a session: the text that it owns and the draft that it owes. No sockets, no clocks.

The device keeps prompt and committed tokens itself. After a lost connection it resumes; after a lost edge it opens
again from where it stood, anywhere else: nothing but time is lost. `device_stages` shows the stages and what leads
from one to another.

Everything that the edge says is checked here, as the edge checks everything that a device says: an edge that breaks
the protocol ends the request with one sentence.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from multispin.errors import InputError
from multispin.protocol.device_stages import (
    Away,
    DeviceStage,
    Drafted,
    Ended,
    Granted,
    Greeting,
    Resuming,
    Waiting,
    Welcomed,
    Work,
)
from multispin.protocol.device_stream import Streaming
from multispin.protocol.limits import MAX_FRAME_BYTES, PROTOCOL_VERSION
from multispin.protocol.messages import (
    Ask,
    Chunk,
    Commit,
    Distribution,
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
    Window,
    encode,
)
from multispin.protocol.progress import Progress, RefusedError, SessionGoneError
from multispin.protocol.request import Request
from multispin.protocol.thrift import Thrift
from multispin.speculation import (
    ID_RULES,
    DistributionFormat,
    Offer,
    Rule,
    SamplingParams,
    Score,
    TextStream,
    TruncatedDistribution,
    pack_distributions,
    pack_draft,
    resolve_down,
    unpack_ids,
    unpack_offer,
)

_WORK = (Waiting, Granted, Drafted, Streaming, Ended)
_GONE = frozenset({"unknown-session", "no-request", "ahead"})
"""Refusals of a Resume after which the device greets anew and opens from where it stands."""


class DeviceSession:
    """What a device keeps of its session.

    Attributes:
        hello: how this device introduces itself.
        welcome: the edge's answer; None while no edge knows this device.
        request: the present request; None before the first.
        committed: prompt and generated ids.
        text: the final text so far; empty without a tokenizer. Half a character, or what may be the beginning of a
            stop string, is not in it before it is decided.
        params: the sampling parameters in effect.
        stage: where the session stands.
        wasted: drafted tokens of the present request's stream that were never verified.

    Args:
        hello: how this device introduces itself.
        decode: text of token ids, by the target's tokenizer; needed for a text, and for stop strings.
        max_wasted_share: in a stream it drafts only so far ahead that no more than this share of its tokens is wasted;
            default 1, as far as the edge allows.

    """

    def __init__(
        self,
        hello: Hello,
        decode: Callable[[Sequence[int]], str] | None = None,
        max_wasted_share: float = 1.0,
    ) -> None:
        self.hello = hello
        self.welcome: Welcome | None = None
        self.request: Request | None = None
        self.committed: list[int] = []
        self.text = ""
        self.params = SamplingParams()
        self.stage: DeviceStage = Away()
        self._decode = decode
        self._form: DistributionFormat | None = None  # made when it is asked for
        self._stream: TextStream | None = None
        self._head: int | None = None  # found from an offer, not known to the edge yet
        self.wasted = 0
        self._wasted_seen = 0  # of them, those that the thrift has learned from
        self._thrift = Thrift(max_wasted_share)
        self._epoch = 0  # of the newest chain of drafted tokens

    # What stands --------------------------------------------------------------------------------------------------

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
    def form(self) -> DistributionFormat:
        """How this request's distributions are written; the edge's vocabulary bounds what they retain."""
        if self._form is None:
            self._form = self._requested().form(self._welcomed().vocabulary_size)
        return self._form

    @property
    def finish(self) -> str:
        """Why the text ended, "stop" or "length"; empty while it goes on."""
        work = self._work
        return work.finish if isinstance(work, Ended) else ""

    @property
    def grant(self) -> Grant | None:
        """The grant whose draft is still to be made, kept over a lost connection until the edge says otherwise."""
        work = self._work
        return work.grant if isinstance(work, Granted) else None

    @property
    def joined(self) -> bool:
        """Whether edge and device stand at the same place of an open request, on a connection that holds."""
        return isinstance(self.stage, _WORK)

    @property
    def wants_draft(self) -> bool:
        """Whether the open grant must be answered: with a draft, or at least with a token that the edge lacks."""
        stage = self.stage
        return isinstance(stage, Granted) and (stage.grant.length > 0 or self._head is not None)

    @property
    def over(self) -> bool:
        """Whether the token that the edge lacks ends the text, so that nothing is left to draft."""
        request = self.request
        return (
            self._head is not None
            and request is not None
            and (self._head in request.stop_ids or len(self.committed) - len(request.prompt) >= request.max_tokens)
        )

    # What the device does -----------------------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """Set the next request; `open` puts it on the wire."""
        if isinstance(self.stage, Waiting | Granted | Drafted | Streaming):
            raise ValueError("the request before is still open: let it end, or forget the edge")
        if request.stop_strings and self._decode is None:
            raise InputError("stop strings need a tokenizer on the device: there is none to look for them with")
        self.request, self._form, self._head = request, None, None
        self.committed, self.params = list(request.prompt), request.effective_params
        self.text, self._stream = "", None
        self.wasted = self._wasted_seen = 0
        if self._decode is not None:
            self._stream = TextStream(self._decode, request.stop_strings, request.min_tokens)
        self.stage = Welcomed() if isinstance(self.stage, Ended | Welcomed) else Away()

    def greet(self) -> Hello | Resume:
        """The first message on a new connection: a Resume if a request is open at the edge, else a Hello."""
        self.lose()
        work = self._work
        if self.welcome is not None and work is not None and not isinstance(work, Ended):
            self.stage = Resuming(work)
            return Resume(*(PROTOCOL_VERSION, self.welcome.resume_token, len(self.committed), self.hello.credential))
        self.forget_edge()
        self.stage = Greeting()
        return self.hello

    def open(self) -> Open:
        """The request as it stands; what was generated already counts as continued. InputError if it does not fit."""
        welcome, request = self._welcomed(), self._requested()
        if not isinstance(self.stage, Welcomed):
            raise ValueError("a request is opened after the edge's Welcome, and once")
        if request.seed_of_edge:  # from here on it is this request's seed, at whichever edge it goes on
            params = replace(request.params, seed=welcome.seed)
            request = self.request = replace(request, params=params, seed_of_edge=False)
            self.params = request.effective_params
        needed = len(request.prompt) + request.max_tokens
        if needed > welcome.max_length:
            raise InputError(
                f"{len(request.prompt)} prompt tokens and {request.max_tokens} to generate make {needed}, over this "
                f"edge's limit of {welcome.max_length}: shorten the prompt or ask for fewer tokens"
            )
        request.check_vocabulary(welcome.vocabulary_size)
        message = request.to_open(welcome.session, self.generated, welcome.vocabulary_size)
        size = len(encode(message))
        if size > MAX_FRAME_BYTES:
            raise InputError(
                f"a prompt of {len(self.committed)} tokens makes a message of {size} bytes, over the limit of "
                f"{MAX_FRAME_BYTES}: shorten it"
            )
        self.stage = Waiting()
        return message

    def answer(self, ids: Sequence[int], draft_s: float, distributions: Sequence[TruncatedDistribution] = ()) -> Draft:
        """The draft that answers the open grant.

        Without a connection it is kept, and `unsent` hands it out if the edge still waits for it then.

        Args:
            ids: drafted tokens, at most as many as were granted.
            draft_s: time that it took [s].
            distributions: the distributions that the tokens were drawn from, under the rejection rules.

        """
        grant = self.grant
        if grant is None:
            raise ValueError("no grant is open")
        if len(ids) > grant.length:
            raise ValueError(f"{len(ids)} tokens were drafted for a grant of {grant.length}")
        packed = pack_draft(ids, distributions, self.rule, self.form)
        draft_us = min(round(draft_s * 1e6), 2**32 - 1)
        message = Draft(self.session_number, grant.round, len(self.committed), len(ids), packed, draft_us, self._head)
        self._proceed(Drafted(message, tuple(ids), tuple(distributions), self.joined))
        return message

    def unsent(self) -> Draft | None:
        """The draft that the edge waits for and that this connection has not carried; it counts as sent from now on."""
        stage = self.stage
        if not isinstance(stage, Drafted) or stage.sent:
            return None
        self.stage = Drafted(stage.message, stage.ids, stage.distributions, True)
        return stage.message

    def distribution(self, ask: Ask) -> Distribution:
        """The distribution that the edge asks for; InputError if no token of that round was drawn from one."""
        stage = self.stage
        if (
            not isinstance(stage, Drafted)
            or stage.message.round != ask.round
            or ask.accepted >= len(stage.distributions)
        ):
            raise InputError(
                f"the edge asked for distribution {ask.accepted} of round {ask.round}, which was never drafted from"
            )
        return Distribution(
            ask.session, ask.round, ask.accepted, pack_distributions([stage.distributions[ask.accepted]], self.form)
        )

    def lose(self) -> None:
        """The connection is lost, at whatever stage; the text and what is under way are kept, but for a stream."""
        work = self._work
        if isinstance(work, Streaming):
            self.wasted += len(work.ids)
            work = Waiting()
        self.stage = Away(work)

    def forget_edge(self) -> None:
        """The session ends here: its edge is lost, or does not know it any more. The text is kept."""
        self.lose()
        self.welcome = self._head = self._form = None
        self.stage = Away(self._work if isinstance(self._work, Ended) else None)

    # Streams ------------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Number of the newest chain of drafted tokens; each has a greater one than those before."""
        return self._epoch

    @property
    def room_ahead(self) -> int:
        """Tokens that may be drafted ahead now, beside those that have been; 0 where the device does not stream."""
        stage, request = self.stage, self.request
        if not isinstance(stage, Streaming) or request is None:
            return 0
        left = request.max_tokens - (len(self.committed) - self.prompt_tokens)
        return stage.room(left, request.stop_ids, self._thrift.ahead)

    @property
    def ahead(self) -> list[int]:
        """The committed text and the drafted tokens that follow it: what the next token is drafted after."""
        stage = self.stage
        return [*self.committed, *stage.ids] if isinstance(stage, Streaming) else list(self.committed)

    def drafted(self, epoch: int, start: int, ids: Sequence[int], draft_s: float) -> None:
        """Take in tokens that were drafted ahead.

        Args:
            epoch: number of the chain that they continue, as it was when they were begun.
            start: position of the first of them: the length of `ahead` then.
            ids: the tokens; none where the drafter has nothing to say. An id outside the vocabulary ends them.
            draft_s: time that they took [s].

        """
        stage = self.stage
        if not isinstance(stage, Streaming) or stage.epoch != epoch:
            self.wasted += len(ids)
            return
        size = self._welcomed().vocabulary_size
        end = next((index for index, token in enumerate(ids) if not 0 <= token < size), len(ids))
        self.wasted += len(ids) - end + stage.take(start, ids[:end], draft_s, self.committed)
        # If the text has grown beyond these tokens meanwhile, there is something new to draft after.
        stage.stuck = (not ids or end < len(ids)) and start + end >= len(self.committed)

    def chunk(self) -> Chunk | None:
        """The next frame of the stream, if one is full or no more can be drafted; it counts as sent from now on."""
        stage = self.stage
        if not isinstance(stage, Streaming):
            return None
        return stage.chunk(len(self.committed), self.room_ahead > 0, self._welcomed().vocabulary_size)

    def _streamed(self, window: Window) -> None:
        """Begin to stream, or go on by another window."""
        stage = self.stage
        if not math.isfinite(window.bandwidth_hz):
            raise InputError(f"the edge granted a band of {window.bandwidth_hz} Hz")
        if isinstance(stage, Streaming):
            stage.window = window
        elif isinstance(stage, Waiting) and self.rule in ID_RULES:
            self._begin_chain(window)
        else:
            raise InputError("the edge sent a Window for a text that cannot stream now")

    def _begin_chain(self, window: Window) -> None:
        self._epoch += 1
        self.stage = Streaming(window, self._epoch)

    def _commit(self, commit: Commit) -> Progress:
        """Take in what a stream's pass has committed, and drop what was drafted if it says something else."""
        if commit.base < len(self.committed):  # a repeated answer: already known
            return Progress(finish=self.finish)
        stage, before = self.stage, self.wasted
        own, sent = (stage.ids, stage.sent) if isinstance(stage, Streaming) and stage.epoch == commit.epoch else ([], 0)
        if commit.base > len(self.committed) or not commit.accepted <= commit.verified <= sent:
            raise InputError(
                f"the edge accepted {commit.accepted} of {commit.verified} tokens at {commit.base} that were never sent"
            )
        tokens = [*own[: commit.accepted], *commit.ids]
        progress = self._advance(list(tokens), commit.verified, commit, commit.scores)
        if isinstance(stage, Streaming):
            drafted = len(stage.ids)
            followed = stage.follow(tokens) if self.stage is stage else None
            if followed is None:  # the text has ended, or says something else
                self.wasted += drafted - commit.verified
                if self.stage is stage:
                    self._begin_chain(stage.window)
            else:
                self.wasted += max(0, followed - commit.verified)
            self._thrift.observe(commit.verified, self.wasted - self._wasted_seen, stage.window.length)
        self._wasted_seen = self.wasted
        return progress._replace(wasted=self.wasted - before)

    # What the edge says -------------------------------------------------------------------------------------------

    def receive(self, message: Downlink) -> Progress:
        """Take in a message.

        Raises:
            SessionGoneError: the edge does not know the session that was to be resumed.
            RefusedError: the edge ended the session, and says why.
            InputError: the message makes no sense here.

        """
        stage = self.stage
        if isinstance(message, Commit) and isinstance(stage, Streaming):
            return self._commit(message)
        if isinstance(message, Verdict) and isinstance(stage, Drafted) and message.session == self.session_number:
            return self._verdict(message)  # as nearly always
        match message:
            case Error():
                if isinstance(stage, Resuming) and message.code in _GONE:
                    self.forget_edge()
                    raise SessionGoneError(message.code, message.sentence, message.retry_after_s)
                raise RefusedError(message.code, message.sentence, message.retry_after_s)
            case Welcome():
                self._welcome(message)
                return Progress()
            case Commit() if isinstance(stage, Streaming | Waiting):
                return self._commit(message)
            case Commit() if isinstance(stage, Ended):  # it was on its way when the text ended
                return Progress(finish=stage.finish)
            case Commit():
                raise InputError("the edge sent a Commit before it was due")
            case _ if self.welcome is None or message.session != self.welcome.session:
                raise InputError(f"the edge sent a {type(message).__name__} of session {message.session}, not ours")
            case Tail() if isinstance(stage, Resuming) and stage.welcomed:
                self.stage = stage.kept
                return self._tail(message)
            case _ if isinstance(stage, Ended):  # it was on its way when the text ended
                return Progress(finish=stage.finish)
            case _ if not isinstance(stage, _WORK):
                raise InputError(f"the edge sent a {type(message).__name__} before it was due")
            case Grant():
                self.stage = self._granted(message)
                return Progress()
            case Verdict():
                return self._verdict(message)
            case Tail():
                return self._tail(message)
            case Window():
                self._streamed(message)
                return Progress()
            case Ask():
                self.distribution(message)  # which can be found, or it makes no sense
                return Progress()

    def _welcome(self, welcome: Welcome) -> None:
        stage = self.stage
        if welcome.vocabulary_size < 1 or welcome.max_length < 1:
            raise InputError("the edge's Welcome names an empty vocabulary or no room for a text")
        if isinstance(stage, Greeting):
            self.stage = Welcomed()
        elif isinstance(stage, Resuming) and not stage.welcomed:
            before = self._welcomed()
            if (welcome.session, welcome.vocabulary_size) != (before.session, before.vocabulary_size):
                raise InputError("the edge resumed another session than ours")
            self.stage = Resuming(stage.kept, welcomed=True)
        else:
            raise InputError("the edge sent a Welcome in the middle of a session")
        self.welcome, self._form = welcome, None

    def _granted(self, grant: Grant) -> Work:
        """The stage after a grant: a draft that answers it already is sent, or sent again."""
        stage = self.stage
        if isinstance(stage, Streaming):
            raise InputError("the edge sent a Grant for a text that streams")
        if grant.session != self.session_number or not math.isfinite(grant.bandwidth_hz):
            raise InputError(f"the edge granted a band of {grant.bandwidth_hz} Hz to session {grant.session}")
        if isinstance(stage, Drafted) and self._fits(stage, grant):
            return Drafted(stage.message, stage.ids, stage.distributions, False)
        return Granted(grant)

    def _fits(self, drafted: Drafted, grant: Grant) -> bool:
        message = drafted.message
        return (message.round, message.base, message.head) == (
            grant.round,
            len(self.committed),
            self._head,
        ) and message.length <= grant.length

    def _verdict(self, verdict: Verdict) -> Progress:
        if verdict.base < len(self.committed):  # a repeated answer: already known
            return Progress(finish=self.finish)
        stage = self.stage
        if isinstance(stage, Streaming):
            raise InputError("the edge sent a Verdict for a text that streams")
        drafted: list[int] = []
        distributions: tuple[TruncatedDistribution, ...] = ()
        if isinstance(stage, Drafted) and stage.message.base == verdict.base:
            drafted, distributions = list(stage.ids), stage.distributions
        missing = bool(verdict.offer)  # then a drafted token was refused
        if verdict.base > len(self.committed) or verdict.accepted + missing > len(drafted):
            raise InputError(f"the edge accepted {verdict.accepted} tokens at {verdict.base} that were never sent")
        self._head = self._found(verdict, distributions) if verdict.offer else None
        newest = verdict.next_token if self._head is None else self._head
        return self._advance([*drafted[: verdict.accepted], newest], len(drafted), verdict, verdict.scores)

    def _found(self, verdict: Verdict, distributions: Sequence[TruncatedDistribution]) -> int:
        """The next token by the edge's offer and the distribution that the refused token was drawn from."""
        if verdict.accepted >= len(distributions):
            raise InputError("the edge made an offer for a draft without distributions")
        floor, rest_token = unpack_offer(verdict.offer, self.form)
        offer = Offer(verdict.accepted, verdict.base, floor, rest_token)
        return resolve_down(offer, distributions[verdict.accepted], self.params.seed)

    def _tail(self, tail: Tail) -> Progress:
        known = len(self.committed)
        if isinstance(self.stage, Streaming):
            raise InputError("the edge sent a Tail for a text that streams")
        if not self.prompt_tokens <= tail.base <= known:
            raise InputError(f"the edge sent a tail from {tail.base} to a text of {known} tokens")
        ids = unpack_ids(tail.ids, tail.count, self._welcomed().vocabulary_size)
        if tail.finish or tail.base + tail.count > known:  # the edge knows the token by now
            self._head = None
        return self._advance(ids[known - tail.base :], 0, tail, tail.scores[known - tail.base :])

    def _advance(
        self, tokens: list[int], drafted: int, message: Verdict | Tail | Commit, scores: tuple[Score, ...]
    ) -> Progress:
        """Commit tokens, and go to the stage that the message leads to."""
        request, size = self._requested(), self._welcomed().vocabulary_size
        known = len(self.committed) - self.prompt_tokens
        if known + len(tokens) > request.max_tokens:
            raise InputError(f"the edge sent more than the {request.max_tokens} tokens that were asked for")
        if tokens and max(tokens) >= size:
            raise InputError(f"the edge sent token {max(tokens)}, which is outside its vocabulary of {size}")
        if message.finish not in ("", "stop", "length"):
            raise InputError(f"the edge ended the text for a reason that is not known here: {message.finish!r}")
        if len(scores) != (len(tokens) if request.params.logprobs is not None else 0):
            raise InputError(f"the edge sent {len(scores)} log probabilities for {len(tokens)} tokens")
        self.committed += tokens
        finish, text = message.finish, ""
        if (stream := self._stream) is not None:
            text = stream.push(tokens)
            if stream.stopped:
                finish, tokens = "stop", tokens[: stream.tokens - known]
                del self.committed[self.prompt_tokens + stream.tokens :]
            text += stream.end() if finish else ""
            self.text += text
        self.stage = self._next(finish, None if isinstance(message, Commit) else message.grant)
        accepted = 0 if isinstance(message, Tail) else message.accepted
        kept = scores[: len(tokens)]
        return Progress(tuple(tokens), min(accepted, len(tokens)), drafted, finish, text, scores=kept)

    def _next(self, finish: str, grant: Grant | None) -> Work:
        stage = self.stage
        if finish:
            return Ended(finish)
        if grant is not None:
            return self._granted(grant)
        if isinstance(stage, Streaming):
            return stage
        # Without a new grant the edge still has the draft that it was sent, unless it has decided it.
        if isinstance(stage, Drafted) and stage.sent and stage.message.base == len(self.committed):
            return stage
        return Waiting()

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def _work(self) -> Work | None:
        """What is under way, whatever has become of the connection."""
        stage = self.stage
        if isinstance(stage, (Away, Resuming)):
            return stage.kept
        return stage if isinstance(stage, _WORK) else None

    def _proceed(self, work: Work) -> None:
        """Go on with what is under way, whatever has become of the connection."""
        stage = self.stage
        if isinstance(stage, Away):
            self.stage = Away(work)
        elif isinstance(stage, Resuming):
            self.stage = Resuming(work, stage.welcomed)
        else:
            self.stage = work

    def _requested(self) -> Request:
        if self.request is None:
            raise ValueError("no request has been begun")
        return self.request

    def _welcomed(self) -> Welcome:
        if self.welcome is None:
            raise ValueError("the edge has not welcomed this device yet")
        return self.welcome
