"""Seats: the sessions at this edge, which of them have a slot of the engine, and who gets the next one.

This file knows slots, connections and times of loss, and nothing of drafts' contents, rounds or plans.
"""

import secrets
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from multispin.passes.limits import Limits, most_of_one
from multispin.passes.plans import DEVICE
from multispin.passes.rotation import Rotation
from multispin.protocol import DistributionAsked, EdgeSession, Grant, Granted, Idle, Pending, ProtocolError, Streaming
from multispin.speculation import Engine, Rule


@dataclass(eq=False)
class TrialDraft:
    """A draft that a device is asked for beside its text, which goes on meanwhile.

    The device gets no message until its draft has come, so that it does not abandon the draft.

    Attributes:
        grant: the grant that the device has.
        base: number of tokens committed at the request.
        asked_s: time of the request [s].
        ids: the draft; None until it has come. It is kept until the text shows how much of it was right.

    """

    grant: Grant
    base: int
    asked_s: float
    ids: Sequence[int] | None = None


MAKES_ROOM_AFTER_S = 1.0
"""Time without a request after which a session may have to make room for a newcomer [s]."""


@dataclass(eq=False, slots=True)
class Seat:
    """A session at this edge.

    Attributes:
        session: the edge's half of the conversation with the device.
        origin: whom it counts as: a token, or an address; empty if it counts as nobody.
        slot: the engine's slot that holds its text; None while it has none.
        connected: whether its device is there.
        lost_at_s: time at which the device was last lost [s].
        asked_at_s: time at which the edge last asked the device for something, or the device came back [s].
        planned_s: planned time from its grant to its draft's arrival [s]; 0 if unknown.
        let_go: round, planned time and time of the last grant that was taken back because its draft was late [s].
        answer_by_s: time until which a pass would wait for the distribution that it was last asked for [s].
        answers_late: whether its last distribution came after that.
        evicted: whether its text lost its slot to another request.
        heard_at_s: time of the device's last message, or at which its text was last seen growing [s].
        turn: number in the order in which texts got their slots; prompts are read in this order.
        drafter: its drafter until the next plan.
        to_draft: number of tokens that the edge's own drafter still has to draft for the next pass.
        trial: a draft that the device is asked for beside its text; None without one.

    """

    session: EdgeSession
    origin: str = ""
    slot: int | None = None
    connected: bool = True
    lost_at_s: float = 0.0
    asked_at_s: float = 0.0
    planned_s: float = 0.0
    let_go: tuple[int, float, float] | None = None
    answer_by_s: float = 0.0
    answers_late: bool = False
    evicted: bool = False
    heard_at_s: float = 0.0
    turn: int = 0
    drafter: str = DEVICE
    to_draft: int = 0
    trial: TrialDraft | None = None

    @property
    def held(self) -> bool:
        """Whether messages to the device are held back for now."""
        return self.trial is not None and self.trial.ids is None

    @property
    def band_hz(self) -> float:
        """Band that its device's drafts hold [Hz]."""
        grant = self.trial.grant if self.trial is not None and self.trial.ids is None else self.session.grant
        return grant.bandwidth_hz if grant is not None else 0.0

    @property
    def running(self) -> bool:
        """Whether it has a slot and an unfinished text."""
        request = self.session.request
        return self.slot is not None and request is not None and not request.finish

    @property
    def idle(self) -> bool:
        """Whether it has no unfinished text."""
        return self.session.request is None or bool(self.session.request.finish)

    @property
    def owes(self) -> bool:
        """Whether the edge waits for its draft or distribution."""
        return self.running and isinstance(self.session.stage, Granted | DistributionAsked)


class Seats:
    """All sessions of an edge, by number.

    Args:
        engine: holds the texts in its slots.
        limits: bounds of the edge.

    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._seats: dict[int, Seat] = {}
        self._waiting: deque[int] = deque()  # sessions with a request but no slot, the next one first
        self._turns = 0
        self._rotation = Rotation()
        # Slots in the current batch, which nobody else may get before its end.
        self._in_batch: frozenset[int] = frozenset()

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._seats.values())

    def __len__(self) -> int:
        return len(self._seats)

    def __getitem__(self, number: int) -> Seat:
        return self._seats[number]

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def get(self, number: int) -> Seat | None:
        """The seat of a session; None if it has ended."""
        return self._seats.get(number)

    def add(self, session: EdgeSession, now_s: float, origin: str = "") -> int | None:
        """Take in a new session; where there is no place for it, one that has asked for nothing for a while makes room.

        Args:
            session: the new session.
            now_s: present time of the edge's clock [s].
            origin: whom it counts as, for `Limits.max_share`; default empty: nobody.

        Returns:
            The number of the session that has to go, or None.

        Raises:
            ProtocolError: no session can make room.

        """
        idle, most = None, self._limits.max_sessions
        held = Counter(seat.origin for seat in self._seats.values())
        own_most = most_of_one(most, len(self._seats) - held[origin], self._limits.max_share)
        crowded = bool(origin) and held[origin] >= max(1, own_most)
        if crowded or len(self._seats) >= most:
            quiet = [
                seat for seat in self._seats.values()
                if seat.idle and seat.heard_at_s < now_s - MAKES_ROOM_AFTER_S and (not crowded or seat.origin == origin)
            ]  # fmt: skip
            if not quiet:
                sentence = f"this edge holds {most} sessions, its limit: try again later"
                if crowded:
                    sentence = (
                        f"{held[origin]} of this edge's {most} sessions come from here, the limit: try again later"
                    )
                raise ProtocolError("full", sentence)
            idle = max(quiet, key=lambda seat: (held[seat.origin], -seat.heard_at_s)).session.number
        self._seats[session.number] = Seat(session, origin, heard_at_s=now_s)
        return idle

    def find(self, resume_token: str) -> Seat:
        """The seat of a device that comes back; ProtocolError if its session is not kept."""
        wanted = resume_token.encode()
        for seat in self._seats.values():
            if secrets.compare_digest(seat.session.resume_token.encode(), wanted):
                return seat
        raise ProtocolError("unknown-session", "there is no session to resume: open the request again")

    def come_back(self, seat: Seat, now_s: float) -> None:
        """Note that a device is connected again. A text that lost its slot waits for one.

        Such a text comes before all that never had a slot, and after those that came back earlier.
        """
        seat.connected = True
        if not seat.owes:  # a device that must answer gains no time by reconnecting
            seat.asked_at_s = now_s
        seat.planned_s, seat.let_go = 0.0, None  # a draft delayed by a broken connection says nothing about others
        number, request = seat.session.number, seat.session.request
        if seat.slot is None and request and not request.finish and number not in self._waiting:
            self._waiting.insert(sum(self._seats[each].evicted for each in self._waiting), number)

    def remove(self, number: int) -> Seat | None:
        """End a session, and free its slot; None if it had ended."""
        seat = self._seats.pop(number, None)
        if seat is not None:
            if number in self._waiting:
                self._waiting.remove(number)
            self.release(seat)
        return seat

    def check_room(self, seat: Seat) -> None:
        """ProtocolError if no further request may wait, or none of the seat's origin; one that has a free slot may."""
        most = self._limits.max_waiting
        if len(self._waiting) >= most + self._free_slots():
            raise ProtocolError("full", f"{most} requests wait already, the limit: try again later")
        if not seat.origin:
            return
        others = sum(self._seats[number].origin != seat.origin for number in self._waiting)
        own = sum(each.origin == seat.origin and not each.idle for each in self._seats.values())
        if own >= self._engine.slots + most_of_one(most, others, self._limits.max_share):
            raise ProtocolError("full", f"{own} requests from here are served or wait, the limit: try again later")

    def wait(self, seat: Seat) -> None:
        """Let a new request wait for a slot."""
        seat.evicted = False
        self._waiting.append(seat.session.number)

    def fill(self) -> None:
        """Give free slots to requests whose device is there.

        Texts that lost their slot come first, then those whose origin has the fewest slots, then those whose origin got
        none for longest, and then who has waited longest. Where no slot is free, an origin without any gets one of the
        origin that has most (`_make_way`).
        """
        if not self._waiting:
            return
        free = self._free_slots()
        held = Counter(seat.origin for seat in self._seats.values() if seat.origin and seat.slot is not None)
        waiting = [self._seats[number] for number in self._waiting if self._seats[number].connected]
        while waiting and (free > 0 or self._make_way(waiting, held)):
            seat = min(
                waiting,
                key=lambda seat: (not seat.evicted or free < 1, held[seat.origin], self._rotation.last(seat.origin)),
            )
            self._rotation.served(seat.origin)
            waiting.remove(seat)
            self._waiting.remove(seat.session.number)
            held[seat.origin] += bool(seat.origin)
            free = max(0, free - 1)
            self._turns += 1
            seat.slot, seat.evicted, seat.turn = self._engine.open(), False, self._turns

    def _make_way(self, waiting: Sequence[Seat], held: Counter[str]) -> bool:
        """Take a slot from the origin that has most, if one that waits has none; whether one was free to be taken.

        The text is the newest that no device drafts for, so that nobody draws anything ahead of it. It waits for its
        next slot before all others, and is read again then.
        """
        most = max(held.values(), default=0)
        if most < 2 or all(not seat.origin or held[seat.origin] for seat in waiting):
            return False
        able = [
            seat
            for seat in self._seats.values()
            if held[seat.origin] == most and seat.running and not seat.session.hello.drafts
            and seat.slot not in self._in_batch and isinstance(seat.session.stage, Idle | Streaming)
            and seat.trial is None and not seat.to_draft
        ]  # fmt: skip
        if not able:
            return False
        seat = max(able, key=lambda seat: seat.turn)
        held[seat.origin] -= 1
        self._take_away(seat)
        self._waiting.appendleft(seat.session.number)
        return True

    def _take_away(self, seat: Seat) -> None:
        """Take the slot from a text that is not done."""
        seat.session.withdraw()
        seat.evicted = True
        self.release(seat)

    def release(self, seat: Seat) -> None:
        """Free a slot, now or when the batch that uses it is done."""
        if seat.slot is not None and seat.slot not in self._in_batch:
            self._engine.close(seat.slot)
        seat.slot = None

    def evict(self, now_s: float) -> None:
        """Take slots from sessions that have been lost for a while, as many as others wait for, longest lost first.

        No decision is lost by this: a refused draft whose distribution is outstanding keeps its slot, and so does every
        text under `rejection-down`, since the device may have a token that the edge does not have.
        """
        wanted = sum(self._seats[number].connected for number in self._waiting)
        wanted -= self._engine.slots - len(self._held())
        if wanted <= 0:
            return
        lost = [seat for seat in self._seats.values() if self._may_lose_its_slot(seat, now_s)]
        for seat in sorted(lost, key=lambda seat: seat.lost_at_s)[:wanted]:
            self._take_away(seat)

    def lost_for_good(self, now_s: float) -> list[int]:
        """Sessions whose device has been lost, has not answered, or has made no request, for too long."""
        limits = self._limits
        for seat in self._seats.values():
            if not seat.idle:  # a device need not send anything while its text is written
                seat.heard_at_s = now_s
        return [
            number
            for number, seat in self._seats.items()
            if (not seat.connected and now_s - seat.lost_at_s > limits.resume_grace_s)
            or (seat.connected and seat.owes and now_s - seat.asked_at_s > limits.draft_timeout_s)
            or (seat.idle and now_s - seat.heard_at_s > limits.idle_timeout_s)
        ]

    def waiting_for_a_pass(self) -> list[Seat]:
        """Seats of connected devices for which the pass under way writes nothing.

        They have no slot, their prompt is being read, or their draft waits for those of others.
        """
        waiting = [self._seats[number] for number in self._waiting]
        for seat in self._seats.values():
            stage = seat.session.stage
            reads = isinstance(stage, Idle | Streaming) and self.unread(seat)
            if reads or (isinstance(stage, Pending) and seat.slot not in self._in_batch and seat.trial is None):
                waiting.append(seat)
        return [seat for seat in waiting if seat.connected]

    def begin_batch(self, slots: Iterable[int]) -> None:
        """Note that a batch uses these slots from now on."""
        self._in_batch = frozenset(slots)

    def end_batch(self) -> None:
        """Note that the batch is done, and close the slots that were freed meanwhile."""
        held = self._held()
        for slot in sorted(self._in_batch):
            if slot not in held:
                self._engine.close(slot)
        self._in_batch = frozenset()

    def unread(self, seat: Seat) -> int:
        """Number of committed tokens but the newest that are not yet in the cache."""
        request, slot = seat.session.request, seat.slot
        if slot is None or request is None or request.finish:
            return 0
        unread = len(request.committed) - 1 - self._engine.cached(slot)
        return unread if unread > 0 else 0

    def _free_slots(self) -> int:
        return self._engine.slots - len(self._held() | self._in_batch)

    def _held(self) -> set[int]:
        return {seat.slot for seat in self._seats.values() if seat.slot is not None}

    def _may_lose_its_slot(self, seat: Seat, now_s: float) -> bool:
        session = seat.session
        return (
            not seat.connected
            and seat.slot is not None
            and seat.slot not in self._in_batch
            and not isinstance(session.stage, DistributionAsked)
            and (session.request is None or session.request.rule is not Rule.REJECTION_DOWN)
            and now_s - seat.lost_at_s > self._limits.slot_grace_s
        )
