"""A stream on the edge: the drafted tokens that wait for verification, and their chain.

A device that streams drafts on by itself. Its tokens form a *chain*, and each chain has a number, the *epoch*. A chain
is alive as long as the text agrees with all of its tokens that have come. The first token that differs kills it: its
later tokens are dropped, and the device begins a greater epoch as soon as it learns of the difference. Both ends make
the same comparison, so no further message is needed.

Every token that comes is counted once. It is *accepted* (verified, and it stands), *rejected* (verified, and it does
not stand) or *wasted* (never verified: its chain died first, or the edge had committed the same token itself).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from multispin.protocol.messages import Chunk, Commit, Window
from multispin.protocol.running_request import ProtocolError, RunningRequest
from multispin.speculation import Outcome

MOST_RESTARTS = 64
"""Most chains that a device may begin without a new message; each message to it allows one more."""


class Comparison(NamedTuple):
    """Drafted tokens whose positions are committed by now, compared with the text to learn about the drafter.

    Attributes:
        compared: number of the tokens, from the first undecided one on, that could be compared with the text.
        equal: number of these tokens, from the first on, that are equal to the text's.

    """

    compared: int = 0
    equal: int = 0

    @property
    def contradicted(self) -> bool:
        """Whether a token differs from the text's."""
        return self.equal < self.compared


class Arrival(NamedTuple):
    """The result of taking in a chunk.

    Attributes:
        begins: whether the chunk is the first of its chain.
        comparison: its tokens whose positions are committed already, compared with the text.

    """

    begins: bool = False
    comparison: Comparison = Comparison()


_BEGINS, _GOES_ON = Arrival(begins=True), Arrival()


@dataclass(slots=True)
class StreamCounts:
    """Counts of a session's streamed tokens, by their fate.

    Attributes:
        received: number of tokens that came.
        accepted: number of tokens that were verified and stand.
        rejected: number of tokens that were verified and do not stand.
        wasted: number of tokens that were never verified.

    """

    received: int = 0
    accepted: int = 0
    rejected: int = 0
    wasted: int = 0


@dataclass(slots=True, eq=False)
class Riding:
    """The tokens of a session in the current pass.

    Attributes:
        ids: drafted tokens, without the committed token before them.
        own: number of first tokens that the device drafted; the edge's own drafter made the others.
        known: whether the device still holds its tokens, so that the message need only say how many stand.

    """

    ids: tuple[int, ...]
    own: int
    known: bool


@dataclass(slots=True, eq=False)
class Streaming:
    """The stage of a session whose device drafts on by itself.

    Attributes:
        window: the last Window sent to the device.
        epoch: number of the newest chain received.
        counts: fates of the streamed tokens.
        longest: longest window of this text so far [tokens]; more tokens are never on their way.
        alive: whether the text agrees with the chain so far.
        pending: the chain's tokens after the committed text, those in the current pass included.
        received: position after the last received token.
        riding: the session's part of the current pass; None if it is not in it.
        late: number of tokens of dead chains that may still be on their way.
        restarts: number of chains that the device may still begin; each message to it allows one more.

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
        """Take another window for the device."""
        self._told()
        self.window, self.longest = window, max(self.longest, window.length)

    def expects(self, message: Chunk, committed: int) -> bool:
        """Whether an honest device may send this. The window bounds what it sends."""
        if message.epoch > self.epoch:
            ended = not self.alive or committed > self.received  # then nothing of it is pending
            return ended and self.restarts > 0
        if self.alive and message.epoch == self.epoch:
            return True
        return message.length <= self.late

    def receive(self, message: Chunk, ids: Sequence[int], committed: Sequence[int]) -> Arrival:
        """Take in a Chunk; ProtocolError if no honest device can have sent it."""
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
            raise ProtocolError("gap", f"a Chunk starts at {message.start}, but the last one ended at {self.received}")
        if message.start > end:
            raise ProtocolError("gap", f"a Chunk starts at {message.start}, but the text and its drafts end at {end}")
        self.received = message.start + len(ids)
        if self.received - len(committed) > self.longest:
            raise ProtocolError(
                "too-many", f"{self.received - len(committed)} tokens ahead exceed the window of {self.longest}"
            )
        if message.start >= len(committed):  # the usual case
            self.pending += ids
            return _BEGINS if begins else _GOES_ON
        written = committed[message.start : self.received]
        comparison = comparison_of(ids, written)
        self.counts.wasted += len(written)
        self.pending += ids[len(written) :]
        if comparison.contradicted:
            self.kill()
        return Arrival(begins, comparison)

    def take(self, count: int, added: Sequence[int] = ()) -> tuple[int, ...]:
        """Tokens for the next pass: the first `count` pending ones or all, and then the edge's own drafts.

        The edge's drafts must continue exactly these tokens of the device.
        """
        own = self.pending[:count]
        self.riding = Riding((*own, *added), len(own), known=self.alive)
        return self.riding.ids

    def settle(self, outcome: Outcome, request: RunningRequest) -> tuple[Commit, Comparison]:
        """Commit the result of the pass. Returns the message for the device, and what this shows of its drafter."""
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
        comparison = comparison_of(self.pending, written)
        counted = riding.own if riding.known else 0  # pending tokens that count as accepted or rejected
        self.riding = None
        if request.finish or comparison.contradicted:
            self.counts.wasted -= counted
            self.kill()
        else:
            self.counts.wasted += max(0, comparison.compared - counted)
            del self.pending[: comparison.compared]
        verified, accepted = (riding.own, own_stand) if riding.known else (0, 0)
        scores = request.scores(base, len(request.committed))
        commit = Commit(base, self.epoch, verified, accepted, tuple(written[accepted:]), request.finish, scores)
        return commit, comparison

    def _told(self) -> None:
        """Note a message to the device, after which it may begin another chain."""
        self.restarts = min(self.restarts + 1, MOST_RESTARTS)

    def abandon(self) -> None:
        """End the chain; its tokens in the current pass are not decided either."""
        self.kill()
        if self.riding is not None:
            self.counts.wasted += self.riding.own
            self.riding = None

    def kill(self) -> None:
        """End the chain, and drop its pending tokens; those in the current pass are still decided."""
        riding = self.riding
        if riding is not None and riding.known:
            self.counts.wasted -= riding.own
            riding.known = False
        self.counts.wasted += len(self.pending)
        self.pending.clear()
        self.alive, self.late = False, max(self.longest, 1)


def comparison_of(ids: Sequence[int], written: Sequence[int]) -> Comparison:
    """Compare drafted tokens with the text from the first one's position on."""
    compared = min(len(ids), len(written))
    for index in range(compared):
        if ids[index] != written[index]:
            return Comparison(compared, index)
    return Comparison(compared, compared)
