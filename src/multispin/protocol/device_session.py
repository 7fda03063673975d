"""The device's half of a session, without sockets and clocks: its actions, and the messages that it takes.

The device keeps prompt and committed tokens itself (`device_text`). After a lost connection it resumes. After a lost
edge it opens the text again at any other one, from where it stood: only time is lost. `device_stages` has the stages
and their transitions, `device_standing` what follows from them, `device_stream` the tokens that are drafted ahead.

Every message of the edge is checked here, as the edge checks every message of a device. If an edge breaks the protocol,
the request ends with one sentence.
"""

import math
from collections.abc import Sequence

from msgspec.structs import replace

from multispin.checks import with_article
from multispin.errors import InputError
from multispin.protocol.device_stages import (
    AT_WORK,
    Complete,
    Disconnected,
    DraftDue,
    Drafted,
    Greeting,
    Resuming,
    Waiting,
    Welcomed,
    Work,
    found_from_offer,
)
from multispin.protocol.device_standing import DeviceStanding
from multispin.protocol.device_stream import DeviceStreaming
from multispin.protocol.limits import MAX_FRAME_BYTES, MAX_MESSAGES_WITHOUT_TOKENS, PROTOCOL_VERSION
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
from multispin.speculation import (
    ID_RULES,
    Score,
    TruncatedDistribution,
    pack_draft,
    unpack_ids,
)

_GONE = frozenset({"unknown-session", "no-request", "ahead"})
"""Codes of refusals of a Resume after which the device greets again and opens the text from where it stands."""


class DeviceSession(DeviceStanding):
    """A device's side of its session: its actions and the messages that it takes. Arguments: see `DeviceStanding`."""

    # What the device does -----------------------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """Set the next request; `open` sends it."""
        if isinstance(self.stage, Waiting | DraftDue | Drafted | DeviceStreaming):
            raise ValueError("the previous request is still open: let it end, or call forget_edge")
        self._text.begin(request)
        self._chains.begin_text()
        self._form = self._head = None
        self._without_tokens = 0
        self.stage = Welcomed() if isinstance(self.stage, Complete | Welcomed) else Disconnected()

    def greet(self) -> Hello | Resume:
        """The first message on a new connection: a Resume if a request is open at the edge, else a Hello."""
        self.lose()
        work = self._work
        if self.welcome is not None and work is not None and not isinstance(work, Complete):
            self.stage = Resuming(work)
            return Resume(*(PROTOCOL_VERSION, self.welcome.resume_token, len(self.committed), self.hello.credential))
        self.forget_edge()
        self.stage = Greeting()
        return self.hello

    def open(self) -> Open:
        """The Open for the request; tokens generated already count as continued. InputError if it does not fit."""
        welcome = self._welcomed()
        if not isinstance(self.stage, Welcomed):
            raise ValueError("open needs the edge's Welcome, and can be called once")
        self._text.take_seed(welcome.seed)
        request = self._text.requested
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
                f"a prompt of {len(self.committed)} tokens makes a message of {size} bytes; the limit is "
                f"{MAX_FRAME_BYTES}: shorten the prompt"
            )
        self.stage = Waiting()
        return message

    def answer(self, ids: Sequence[int], draft_s: float, distributions: Sequence[TruncatedDistribution] = ()) -> Draft:
        """The draft that answers the open grant.

        Without a connection it is kept, and `unsent` returns it later if the edge still waits for it.

        Args:
            ids: drafted tokens, at most as many as were granted.
            draft_s: time spent drafting [s].
            distributions: [len(ids)] distributions that the tokens were drawn from, under the rejection rules;
                default none.

        """
        stage, grant = self.stage, self.grant
        if grant is None:
            raise ValueError("no grant is open")
        if len(ids) > grant.length:
            raise ValueError(f"{len(ids)} tokens were drafted for a grant of {grant.length} tokens")
        packed = pack_draft(ids, distributions, self.rule, self.form)
        draft_us = min(round(draft_s * 1e6), 2**32 - 1)
        base = len(self._text.committed)
        message = Draft(grant.session, grant.round, base, len(ids), packed, draft_us, self._head)
        drafted = Drafted(message, tuple(ids), tuple(distributions), self.joined)
        self.stage = replace(stage, kept=drafted) if isinstance(stage, (Disconnected, Resuming)) else drafted
        return message

    def unsent(self) -> Draft | None:
        """The draft that the edge waits for and that was not sent on this connection; it counts as sent from now on."""
        stage = self.stage
        if not isinstance(stage, Drafted) or stage.sent:
            return None
        self.stage = stage.marked(sent=True)
        return stage.message

    def distribution(self, ask: Ask) -> Distribution:
        """The distribution that the edge asks for; InputError if there is none for that token and round."""
        stage = self.stage
        found = stage.asked_for(ask, self.form) if isinstance(stage, Drafted) else None
        if found is None:
            raise InputError(
                f"the edge asked for distribution {ask.accepted} of round {ask.round}, from which nothing was drafted"
            )
        return found

    def lose(self) -> None:
        """Note that the connection is lost, at any stage. The text and an open draft are kept, but not a stream."""
        work = self._work
        if isinstance(work, DeviceStreaming):
            self._chains.wasted += len(work.ids)
            work = Waiting()
        self.stage = Disconnected(work)

    def forget_edge(self) -> None:
        """End the session, because its edge is lost or no longer knows it. The text is kept."""
        self.lose()
        self.welcome = self._head = self._form = None
        self.stage = Disconnected(self._work if isinstance(self._work, Complete) else None)

    # Streams ------------------------------------------------------------------------------------------------------

    def drafted(self, epoch: int, start: int, ids: Sequence[int], draft_s: float) -> None:
        """Take in tokens that were drafted ahead.

        Args:
            epoch: number of the chain when drafting began.
            start: position of the first token: the length of `ahead` when drafting began.
            ids: the tokens; empty if the drafter had none. An id outside the vocabulary ends them.
            draft_s: time spent drafting [s].

        """
        stage = self.stage
        if isinstance(stage, DeviceStreaming) and stage.epoch == epoch:
            self._chains.take(stage, start, ids, draft_s, self.committed, self._welcomed().vocabulary_size)
        else:
            self._chains.wasted += len(ids)

    def chunk(self) -> Chunk | None:
        """The stream's next frame, if it is full or no more can be drafted; it counts as sent from now on."""
        stage = self.stage
        if not isinstance(stage, DeviceStreaming):
            return None
        return stage.chunk(len(self.committed), self.room_ahead > 0, self._welcomed().vocabulary_size)

    def _streamed(self, window: Window) -> None:
        """Begin to stream, or change the window."""
        stage = self.stage
        if not math.isfinite(window.bandwidth_hz):
            raise InputError(f"the edge granted a band of {window.bandwidth_hz} Hz")
        if isinstance(stage, DeviceStreaming):
            stage.window = window
        elif isinstance(stage, Waiting) and self.rule in ID_RULES:
            self.stage = self._chains.begin(window)
        else:
            raise InputError("the edge sent a Window for a text that cannot stream now")

    def _commit(self, commit: Commit) -> Progress:
        """Take in what a stream's pass has committed, and drop drafted tokens that differ from it."""
        if commit.base < len(self.committed):  # a repeated answer: already known
            return Progress(finish=self.finish)
        stage, before = self.stage, self.wasted
        own, sent = (
            (stage.ids, stage.sent) if isinstance(stage, DeviceStreaming) and stage.epoch == commit.epoch else ([], 0)
        )
        if commit.base > len(self.committed) or not commit.accepted <= commit.verified <= sent:
            raise InputError(
                f"the edge accepted {commit.accepted} of {commit.verified} tokens at {commit.base} that were never sent"
            )
        tokens = [*own[: commit.accepted], *commit.ids]
        progress = self._advance(list(tokens), commit.verified, commit, commit.scores)
        if isinstance(stage, DeviceStreaming):
            following = self._chains.follow(stage, tokens, commit.verified, self.stage is stage)
            self.stage = self.stage if following is None else following
        self._chains.look()
        return progress._replace(wasted=self.wasted - before)

    # What the edge says -------------------------------------------------------------------------------------------

    def tells_of_passes(self, message: Downlink) -> bool:
        """Whether a message, not yet taken, is unsolicited, which shows that the edge's passes go on.

        An answer to a Resume shows nothing, since it needs no pass.
        """
        match message:
            case Grant():
                return True
            case Tail():
                return self.joined
            case Window():
                return isinstance(self.stage, DeviceStreaming)
        return False

    def receive(self, message: Downlink) -> Progress:
        """Take in a message.

        Raises:
            SessionGoneError: the edge does not know the session to be resumed.
            RefusedError: the edge ended the session; the message has its reason.
            InputError: the message is not allowed here, or too many have come since the text last grew.

        """
        progress = self._take(message)
        self._without_tokens = 0 if progress.tokens else self._without_tokens + 1
        if self._without_tokens > MAX_MESSAGES_WITHOUT_TOKENS and not progress.finish:
            raise InputError(
                f"the edge has sent {MAX_MESSAGES_WITHOUT_TOKENS} messages without a new token of this text: restart "
                "it, or give another address"
            )
        return progress

    def _take(self, message: Downlink) -> Progress:
        stage = self.stage  # the first two cases are the frequent ones
        if isinstance(stage, Drafted) and isinstance(message, Verdict) and message.session == stage.message.session:
            return self._verdict(message)
        if isinstance(stage, DeviceStreaming) and isinstance(message, Commit):
            return self._commit(message)
        match message:
            case Error():
                if isinstance(stage, Resuming) and message.code in _GONE:
                    self.forget_edge()
                    raise SessionGoneError(message.code, message.sentence, message.retry_after_s)
                raise RefusedError(message.code, message.sentence, message.retry_after_s)
            case Welcome():
                self._welcome(message)
                return Progress()
            case Commit() if isinstance(stage, DeviceStreaming | Waiting):
                return self._commit(message)
            case Commit() if isinstance(stage, Complete):  # it was on its way when the text ended
                return Progress(finish=stage.finish)
            case Commit():
                raise InputError("the edge sent a Commit, which is not allowed at this stage")
            case _ if self.welcome is None or message.session != self.welcome.session:
                raise InputError(f"the edge sent {with_article(message)} of session {message.session}, not ours")
            case Tail() if isinstance(stage, Resuming) and stage.welcomed:
                self.stage = stage.kept
                return self._tail(message)
            case _ if isinstance(stage, Complete):  # it was on its way when the text ended
                return Progress(finish=stage.finish)
            case _ if not isinstance(stage, AT_WORK):
                raise InputError(f"the edge sent {with_article(message)}, which is not allowed at this stage")
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
                self.distribution(message)  # raises if there is none
                return Progress()

    def _welcome(self, welcome: Welcome) -> None:
        stage = self.stage
        if welcome.vocabulary_size < 1 or welcome.max_length < 1:
            raise InputError("the edge's Welcome has an empty vocabulary or no room for a text")
        if isinstance(stage, Greeting):
            self.stage = Welcomed()
        elif isinstance(stage, Resuming) and not stage.welcomed:
            before = self._welcomed()
            if (welcome.session, welcome.vocabulary_size) != (before.session, before.vocabulary_size):
                raise InputError("the edge resumed another session than this device's")
            self.stage = Resuming(stage.kept, welcomed=True)
        else:
            raise InputError("the edge sent a Welcome in the middle of a session")
        self.welcome, self._form = welcome, None

    def _granted(self, grant: Grant) -> Work:
        """The stage after a grant. If a draft for it exists already, it is sent (again)."""
        stage = self.stage
        if isinstance(stage, DeviceStreaming):
            raise InputError("the edge sent a Grant for a text that streams")
        if grant.session != self.session_number or not math.isfinite(grant.bandwidth_hz):
            raise InputError(f"the edge granted a band of {grant.bandwidth_hz} Hz to session {grant.session}")
        if isinstance(stage, Drafted) and stage.answers(grant, len(self._text.committed), self._head):
            return stage.marked(sent=False)
        return DraftDue(grant)

    def _verdict(self, verdict: Verdict) -> Progress:
        known, stage = len(self._text.committed), self.stage
        if verdict.base < known:  # a repeated answer, already known
            return Progress(finish=self.finish)
        if isinstance(stage, DeviceStreaming):
            raise InputError("the edge sent a Verdict for a text that streams")
        drafted: tuple[int, ...] = ()
        distributions: tuple[TruncatedDistribution, ...] = ()
        if isinstance(stage, Drafted) and stage.message.base == verdict.base:
            drafted, distributions = stage.ids, stage.distributions
        missing = bool(verdict.offer)  # an offer means that a drafted token was rejected
        if verdict.base > known or verdict.accepted + missing > len(drafted):
            raise InputError(f"the edge accepted {verdict.accepted} tokens at {verdict.base} that were never sent")
        self._head = found_from_offer(verdict, distributions, self.form, self.params.seed) if verdict.offer else None
        newest = verdict.next_token if self._head is None else self._head
        return self._advance([*drafted[: verdict.accepted], newest], len(drafted), verdict, verdict.scores)

    def _tail(self, tail: Tail) -> Progress:
        known = len(self.committed)
        if isinstance(self.stage, DeviceStreaming):
            raise InputError("the edge sent a Tail for a text that streams")
        if not self.prompt_tokens <= tail.base <= known:
            raise InputError(f"the edge sent a Tail from position {tail.base} for a text of {known} tokens")
        ids = unpack_ids(tail.ids, tail.count, self._welcomed().vocabulary_size)
        if tail.finish or tail.base + tail.count > known:  # the edge has the token by now
            self._head = None
        return self._advance(ids[known - tail.base :], 0, tail, tail.scores[known - tail.base :])

    def _advance(
        self, tokens: list[int], drafted: int, message: Verdict | Tail | Commit, scores: tuple[Score, ...]
    ) -> Progress:
        """Commit tokens, and go to the stage that the message leads to."""
        accepted = 0 if isinstance(message, Tail) else message.accepted
        vocabulary_size = self._welcomed().vocabulary_size
        progress = self._text.grow(tokens, accepted, drafted, message.finish, scores, vocabulary_size)
        self.stage = self._next(progress.finish, None if isinstance(message, Commit) else message.grant)
        return progress

    def _next(self, finish: str, grant: Grant | None) -> Work:
        stage = self.stage
        if finish:
            return Complete(finish)
        if grant is not None:
            return self._granted(grant)
        if isinstance(stage, DeviceStreaming):
            return stage
        # Without a new grant the edge still holds the sent draft, unless it has decided it.
        if isinstance(stage, Drafted) and stage.sent and stage.message.base == len(self.committed):
            return stage
        return Waiting()
