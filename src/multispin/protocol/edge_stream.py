"""A stream as the edge sees it: which drafted tokens wait for a verification, and which chain they belong to.

A device that streams drafts on by itself. Its tokens form a *chain*, and each chain has a number, the *epoch*. A chain
is alive as long as the text agrees with every token of it that has come. The first token that differs kills it: what
comes of it later is dropped, and the device begins a greater epoch as soon as it hears of the difference. Both ends
find that by the same comparison, so that nothing more has to be said.

Every token that comes is counted once. It is *accepted* (verified, and it stands), *rejected* (verified, and it does
not) or *wasted* (never verified: its chain died before, or the edge had written the same token itself).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from multispin.protocol.messages import Chunk, Commit, Window
from multispin.protocol.running_request import ProtocolError, RunningRequest
from multispin.speculation import Outcome

MOST_RESTARTS = 64
"""Chains that a device may begin in a row, after it has been told as many things."""


class Trials(NamedTuple):
    """Drafted tokens whose place in the text is written: what they show of the drafter.

    Attributes:
        compared: tokens of a chain, from its first undecided one on, that could be compared with the text.
        equal: how many of them, from the first, are the text's.

    """

    compared: int = 0
    equal: int = 0


class Arrival(NamedTuple):
    """The result of taking in a chunk.

    Attributes:
        begins: whether it is the first of its chain.
        trials: outcomes of drafted tokens, from which the drafter is learned.

    """

    begins: bool = False
    trials: Trials = Trials()


_BEGINS, _GOES_ON = Arrival(begins=True), Arrival()


@dataclass(slots=True)
class StreamCounts:
    """Counts of a session's streamed tokens, by their fate.

    Attributes:
        received: number of tokens that came.
        accepted: were verified and stand.
        rejected: were verified and do not stand.
        wasted: number of tokens that were never verified.

    """

    received: int = 0
    accepted: int = 0
    rejected: int = 0
    wasted: int = 0


@dataclass(slots=True, eq=False)
class Riding:
    """The tokens of a session in the pass under way.

    Attributes:
        ids: drafted tokens, without the committed one before them.
        own: how many of them, from the first, are the device's; the edge's own drafter made the others.
        known: whether the device still holds its own, so that it need only be told how many stand.

    """

    ids: tuple[int, ...]
    own: int
    known: bool


@dataclass(slots=True, eq=False)
class Streaming:
    """The stage of a session whose device drafts on by itself.

    Attributes:
        window: the window that the device was last told [tokens].
        epoch: number of the newest chain that has been seen.
        counts: counts of what became of its tokens.
        longest: longest window that this text has had [tokens]; more is never on its way.
        alive: whether the text agrees with the chain so far.
        pending: its tokens that follow the committed text, those in the pass under way included.
        received: position behind its last token that came.
        riding: its part of the current pass; None if it is not in it.
        late: tokens of dead chains that may still be on their way.
        restarts: chains that the device may begin: it begins one at most for each thing that it is told.

    """

    window: Window
    epoch: int
    counts: StreamCounts
    longest: int = 0
    alive: bool = False
    pending: list[int] = field(default_factory=list)
    received: int = 0
    riding: Riding | None = None
    late: int = 0
    restarts: int = 1

    def change(self, window: Window) -> None:
        """The device is told another window."""
        self._told()
        self.window, self.longest = window, max(self.longest, window.length)

    def expects(self, message: Chunk, committed: int) -> bool:
        """Whether an honest device may be sending this; what it sends unasked is bounded by the window."""
        if message.epoch > self.epoch:
            ended = not self.alive or (not self.pending and committed > self.received)
            return ended and self.restarts > 0
        if self.alive and message.epoch == self.epoch:
            return True
        return message.length <= self.late

    def receive(self, message: Chunk, ids: Sequence[int], committed: Sequence[int]) -> Arrival:
        """Take in a chunk; ProtocolError if no honest device can have sent it."""
        self.counts.received += len(ids)
        begins = message.epoch > self.epoch
        if begins:
            self.kill()
            self.restarts = max(0, self.restarts - 1)
            self.epoch, self.alive, self.received = message.epoch, True, message.start
        elif message.epoch < self.epoch or not self.alive:
            self.late = max(0, self.late - len(ids))
            self.counts.wasted += len(ids)
            return _GOES_ON
        end = len(committed) + len(self.pending)
        if message.start < self.received:
            raise ProtocolError("gap", f"a chunk starts at {message.start}, but the last one ended at {self.received}")
        if message.start > end:
            raise ProtocolError("gap", f"a chunk starts at {message.start}, but the text and its drafts end at {end}")
        self.received = message.start + len(ids)
        if self.received - len(committed) > self.longest:
            raise ProtocolError(
                "too-many", f"{self.received - len(committed)} tokens ahead is over the window of {self.longest}"
            )
        if message.start >= len(committed):  # as nearly always
            self.pending += ids
            return _BEGINS if begins else _GOES_ON
        written = committed[message.start : self.received]
        trials = _compare(ids, written)
        self.counts.wasted += len(written)
        self.pending += ids[len(written) :]
        if trials.equal < trials.compared:
            self.kill()
        return Arrival(begins, trials)

    def take(self, count: int, added: Sequence[int] = ()) -> tuple[int, ...]:
        """Tokens of the next pass: the first `count` pending ones, or all, and the edge's own drafts after them.

        The edge's tokens must follow just as many of the device's.
        """
        own = self.pending[:count]
        self.riding = Riding((*own, *added), len(own), known=self.alive)
        return self.riding.ids

    def settle(self, outcome: Outcome, request: RunningRequest) -> tuple[Commit, Trials]:
        """Commit what was found of the tokens in the pass; what the device is told, and what the text shows of it."""
        riding = self.riding
        if riding is None:
            raise ValueError("nothing of this session is in a pass")
        self._told()
        base = len(request.committed)
        stand = min(
            outcome.accepted, request.commit([*riding.ids[: outcome.accepted], outcome.next_token], outcome.scores)
        )
        written = request.committed[base:]
        own_stand = min(stand, riding.own)
        self.counts.accepted += own_stand
        self.counts.rejected += riding.own - own_stand
        trials = _compare(self.pending, written)
        counted = riding.own if riding.known else 0  # of the pending ones, as accepted or rejected
        self.riding = None
        if request.finish or trials.equal < trials.compared:
            self.counts.wasted -= counted
            self.kill()
        else:
            self.counts.wasted += max(0, trials.compared - counted)
            del self.pending[: trials.compared]
        verified, accepted = (riding.own, own_stand) if riding.known else (0, 0)
        scores = request.scores(base, len(request.committed))
        commit = Commit(base, self.epoch, verified, accepted, tuple(written[accepted:]), request.finish, scores)
        return commit, trials

    def _told(self) -> None:
        """Whatever the device is told may make it begin another chain."""
        self.restarts = min(self.restarts + 1, MOST_RESTARTS)

    def abandon(self) -> None:
        """The chain ends here, and what is in the pass is not decided either."""
        self.kill()
        if self.riding is not None:
            self.counts.wasted += self.riding.own
            self.riding = None

    def kill(self) -> None:
        """The chain ends here, and what is pending of it is dropped; what is in the pass is still decided."""
        riding = self.riding
        if riding is not None and riding.known:
            self.counts.wasted -= riding.own
            riding.known = False
        self.counts.wasted += len(self.pending)
        self.pending.clear()
        self.alive, self.late = False, max(self.longest, 1)


def _compare(ids: Sequence[int], written: Sequence[int]) -> Trials:
    """Drafted tokens beside what was written at their places."""
    compared = min(len(ids), len(written))
    for index in range(compared):
        if ids[index] != written[index]:
            return Trials(compared, index)
    return Trials(compared, compared)
