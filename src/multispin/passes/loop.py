"""The loop of passes, without its clock and its sockets: ready → choose → verify → settle → deliver → learn.

`Passes` holds the sessions and decides. Its driver brings the time, the messages and a thread for `verify`.
The contract: call `advance` after every message and whenever the time of its last `Sleep` has come, and carry out its
step; pass the result of a `Verify` to `verified`. If no message comes in between, a `Send` may be carried out after the
next step has begun, so that the engine need not wait for it. A server does this with sockets (`edge.pass_loop`), a
simulation with a virtual clock (`simulation.site`), a test with `passes.local`.

A scheduler decides who rides in which pass. `Rounds` waits for all drafts of a round, as in the paper. In `Streams`
devices draft on meanwhile, and a session rides if it is worth the time.
"""

import secrets
from collections.abc import Callable, Sequence

from multispin.checks import with_article
from multispin.control.streams import Decide, choose
from multispin.passes.batches import masked_feed
from multispin.passes.controller import Controller
from multispin.passes.edge_drafts import EdgeDrafts
from multispin.passes.limits import Limits
from multispin.passes.rounds import Rounds
from multispin.passes.scheduler import Scheduler
from multispin.passes.seats import Seat, Seats
from multispin.passes.state import EdgeState
from multispin.passes.steps import Batch, DraftHere, EdgeDraft, Step
from multispin.passes.streams import Streams
from multispin.protocol import (
    Chunk,
    Close,
    Distribution,
    Downlink,
    Draft,
    EdgeSession,
    Hello,
    Open,
    ProtocolError,
    Resume,
    Uplink,
    Welcome,
    check_hello,
    check_version,
)
from multispin.speculation import (
    BatchDrafter,
    Engine,
    Failure,
    Finding,
    Grammars,
    bits_per_token,
    uplink_bits_per_rejection,
)


class Passes:
    """Sessions, slots and passes of one edge.

    Attributes:
        engine: verification engine that runs the target model.
        controller: controller that plans every round.
        limits: bounds of this edge.

    Args:
        engine: verification engine that runs the target model.
        controller: controller that plans every round.
        fingerprint: fingerprint of the target's tokenizer; a device with another one is refused.
        limits: bounds of this edge; default `Limits()`.
        seed: default noise seed handed to devices; default 0.
        new_token: function that makes resume tokens; by default random ones.
        edge_drafter: the edge's own drafter; default none.
        grammars: compiles the grammars of requests; by default a request with one is refused.
        decide: decides in streams who rides in a pass; default `control.streams.choose`.
        target: name of the target, for the message to a device with another tokenizer; default empty.

    """

    def __init__(
        self,
        engine: Engine,
        controller: Controller,
        fingerprint: str,
        limits: Limits | None = None,
        seed: int = 0,
        new_token: Callable[[], str] = lambda: secrets.token_urlsafe(16),
        edge_drafter: BatchDrafter | None = None,
        grammars: Grammars | None = None,
        decide: Decide = choose,
        target: str = "",
    ) -> None:
        self.engine = engine
        self.grammars = grammars
        self.controller = controller
        self.limits = limits or Limits()
        self._fingerprint, self._target = fingerprint, target
        self._seed = seed
        self._new_token = new_token
        self._seats = Seats(engine, self.limits)
        self._state = EdgeState(engine, controller, self.limits, self._seats)
        self._last_number = 0
        self._word_s = 0.0  # time of the last messages to waiting devices [s]
        self._edge_drafts = EdgeDrafts(self._state, edge_drafter) if edge_drafter is not None else None
        self._scheduler: Scheduler
        if controller.settings.streams:
            self._scheduler = Streams(self._state, self._edge_drafts, decide)
        else:
            self._scheduler = Rounds(self._state, self._edge_drafts)

    # What a driver needs ------------------------------------------------------------------------------------------

    def advance(self, now_s: float) -> Step:
        """The driver's next step: sleep, verify a batch, or send messages. Call it again afterwards."""
        return self._scheduler.advance(now_s)

    def waits(self, now_s: float) -> bool:
        """Whether `advance` would return Sleep. This is cheap enough to call after every message."""
        return self._scheduler.waits(now_s)

    def verify(self, batch: Batch) -> list[Finding | Failure | None]:
        """Run a batch. Slow; may run in another thread while messages come in."""
        feeds = [job.feed if job.matcher is None else masked_feed(job) for job in batch.jobs]
        able = [feed for feed in feeds if not isinstance(feed, Failure)]
        found = iter(self.engine.verify(able) if able else ())
        return [feed if isinstance(feed, Failure) else next(found) for feed in feeds]

    def draft(self, step: DraftHere) -> list[EdgeDraft]:
        """Run the edge's own drafter. Slow; may run in another thread, the same as `verify`."""
        assert self._edge_drafts is not None
        return self._edge_drafts.draft(step)

    def drafted(self, step: DraftHere, drafts: Sequence[EdgeDraft], draft_s: float, now_s: float) -> None:
        """Take the drafts of the edge's own drafter, one per ask; `draft_s` is their time [s]."""
        self._scheduler.drafted(step, drafts, draft_s, now_s)

    def verified(
        self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float, now_s: float
    ) -> None:
        """Take the findings of a batch, one per job; `verify_s` is the time of its verification [s].

        A Failure ends its own session only, with the reason; the pass goes on with the others. Every
        `Limits.word_period_s` each waiting device gets a message that only shows that passes go on.
        """
        if not all(isinstance(finding, Failure) for finding in findings):  # a failed pass is not timed
            self.controller.beliefs.observe_verification(len(batch.jobs), batch.tokens, verify_s)
        self._scheduler.verified(batch, findings, verify_s, now_s)
        if now_s - self._word_s >= self.limits.word_period_s:
            self._word_s = now_s
            for seat in self._seats.waiting_for_a_pass():
                self._state.tell(seat.session.number, seat.session.word())

    @property
    def round(self) -> int:
        """Number of the current round."""
        return self._scheduler.number

    @property
    def price_tokens_per_s(self) -> float:
        """Price of time that decisions use [tokens/s]; 0 while unknown."""
        return self._scheduler.price_tokens_per_s

    @property
    def late_tokens(self) -> int:
        """Number of drafted tokens that came too late to be verified."""
        return self._state.late_tokens

    @property
    def deadline_s(self) -> float:
        """Time at which the current round goes on without missing drafts [s]; 0 in streams."""
        return self._scheduler.deadline_s

    @property
    def sessions(self) -> dict[int, EdgeSession]:
        """All sessions by number, lost ones included."""
        return {seat.session.number: seat.session for seat in self._seats}

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._seats.waiting

    def session(self, number: int) -> EdgeSession | None:
        """One session; None if it has ended."""
        seat = self._seats.get(number)
        return None if seat is None else seat.session

    def origin_of(self, number: int) -> str:
        """Whom a session counts as, for `Limits.max_share`; empty if it counts as nobody or has ended."""
        seat = self._seats.get(number)
        return "" if seat is None else seat.origin

    # Messages -----------------------------------------------------------------------------------------------------

    def connect(self, message: Uplink, now_s: float, origin: str = "") -> tuple[int, list[Downlink]]:
        """Take the first message of a connection: a Hello or a Resume.

        Args:
            message: the message.
            now_s: present time of the edge's clock [s].
            origin: whom a new session counts as, for `Limits.max_share`; default empty: nobody.

        Returns:
            The session's number and the answers.

        Raises:
            ProtocolError: the connection is refused.

        """
        match message:
            case Hello():
                check_hello(message, self._fingerprint, self._target)
                number = self._last_number + 1
                session = EdgeSession(
                    number, self._new_token(), message, self.engine.vocabulary_size, self.limits.scored_tail
                )
                idle = self._seats.add(session, now_s, origin)
                if idle is not None:
                    self.leave(idle)
                self._last_number = number
                profile = message.profile
                self.controller.beliefs.join(number, profile.seconds_per_token, profile.spectral_efficiency)
                return number, [self._welcome(session)]
            case Resume():
                check_version(message.version)
                seat = self._seats.find(message.resume_token)
                missing = seat.session.catch_up(message.length)
                self._seats.come_back(seat, now_s)
                self._scheduler.came_back(seat)
                return seat.session.number, [self._welcome(seat.session), *missing]
        raise ProtocolError("hello-first", "the first message must be a Hello or a Resume")

    def find(self, resume_token: str) -> int:
        """The number of the session that a token resumes; ProtocolError if it is not kept."""
        return self._seats.find(resume_token).session.number

    def receive(self, number: int, message: Uplink, frame_bytes: int, now_s: float) -> list[Downlink]:
        """Take a further message of a session, whose frame had this many bytes. Returns the immediate answers.

        Raises:
            ProtocolError: the message breaks the protocol, or the session has ended. The caller ends the session.
            InputError: a request cannot be served. The caller ends the session.

        """
        seat = self._seats.get(number)
        if seat is None:
            raise ProtocolError("unknown-session", "this session has ended: send Hello and Open again")
        seat.heard_at_s = now_s
        match message:
            case Chunk() | Draft() | Distribution():
                return self._scheduler.receive(seat, message, frame_bytes, now_s)
            case Open():
                return self._open(seat, message)
            case Close():
                seat.session.check_number(message.session)
                self.leave(number)
            case _:
                raise ProtocolError("unexpected", f"{with_article(message)} came in the middle of a session")
        return []

    def disconnect(self, number: int, now_s: float) -> None:
        """Note that a device's connection is lost. Its session is kept for a while."""
        seat = self._seats.get(number)
        if seat is not None:
            seat.connected, seat.lost_at_s, seat.trial = False, now_s, None
            self.controller.chooser.probes.break_off(number, now_s)

    def leave(self, number: int) -> None:
        """End a session, and free its slot and its band."""
        self._state.leave(number)

    def expire(self, now_s: float) -> list[int]:
        """End the sessions whose device has been lost, or has not answered, for too long. Returns their numbers.

        Of lost devices that may still come back, some give their slots to waiting requests.
        """
        gone = self._seats.lost_for_good(now_s)
        for number in gone:
            self.leave(number)
        self._seats.evict(now_s)
        return gone

    def _welcome(self, session: EdgeSession) -> Welcome:
        return Welcome(
            session.number,
            session.resume_token,
            self._seed,
            self.engine.vocabulary_size,
            self.engine.max_length,
            self.limits.resume_grace_s,
        )

    def _open(self, seat: Seat, message: Open) -> list[Downlink]:
        self._seats.check_room(seat)
        request = seat.session.open(
            message, self.engine.max_length, self.engine.rules, self.engine.lacks, self.grammars
        )
        seat.trial = None
        beliefs, number = self.controller.beliefs, seat.session.number
        if request.ids_only:
            beliefs.charge(number)
        else:
            bits = bits_per_token(request.rule, request.form)
            beliefs.charge(number, bits, uplink_bits_per_rejection(request.rule, request.form))
        self.controller.chooser.probes.renew(number)
        if request.finish:  # continued from another edge, and already complete
            return [seat.session.tail(len(request.committed))]
        self._seats.wait(seat)
        return []
