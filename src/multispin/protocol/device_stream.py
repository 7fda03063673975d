"""A stream on the device: the tokens that it has drafted ahead of the committed text, and which of them are sent.

They form a chain, whose number is the epoch. The chain goes on while the text agrees with it. When the text differs,
the rest is dropped and the next chain begins, with a greater epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from multispin.protocol.messages import Chunk, Window
from multispin.protocol.thrift import Thrift
from multispin.speculation import pack_ids


@dataclass(slots=True, eq=False)
class DeviceStreaming:
    """The stage of a device that drafts on by itself.

    Attributes:
        window: window from the edge: how far the device may draft ahead, and its chunk.
        epoch: number of the chain.
        ids: tokens of the chain that follow the committed text.
        sent: number of these tokens that have been sent.
        spent_s: time spent drafting the unsent ones [s].
        stuck: whether the drafter had no token after them; it is asked again when the text goes on.

    """

    window: Window
    epoch: int
    ids: list[int] = field(default_factory=list)
    sent: int = 0
    spent_s: float = 0.0
    stuck: bool = False

    def room(self, left: int, stop_ids: Sequence[int], most: int | None = None) -> int:
        """Number of tokens that may be drafted now.

        Args:
            left: number of tokens that the text may still get; the edge adds the last one itself.
            stop_ids: ids that end the text, after which nothing is drafted.
            most: the device's own limit of tokens ahead; default its window.

        """
        if self.stuck or (self.ids and self.ids[-1] in stop_ids):
            return 0
        length = self.window.length if most is None else min(self.window.length, most)
        return max(0, min(length, left - 1) - len(self.ids))

    def take(self, start: int, ids: Sequence[int], draft_s: float, committed: Sequence[int]) -> int:
        """Take in drafted tokens that begin at position `start`; returns how many of them were wasted.

        The edge may have committed tokens at their positions meanwhile.
        """
        written = committed[start : start + len(ids)]
        if list(ids[: len(written)]) != list(written):
            return len(ids)
        self.ids += ids[len(written) :]
        self.spent_s += draft_s
        return len(written)

    def chunk(self, committed: int, more: bool, vocabulary_size: int) -> Chunk | None:
        """The next frame, if there is one; it counts as sent from now on. A window of 0 gives none.

        Args:
            committed: tokens of the committed text.
            more: whether more tokens can be drafted now, for which a frame that is not full waits.
            vocabulary_size: number of the target's token ids.

        """
        ids = self.ids[self.sent : self.sent + self.window.chunk]
        if not ids or not self.window.length or (more and len(ids) < self.window.chunk):
            return None
        spent_s = self.spent_s * len(ids) / (len(self.ids) - self.sent)
        start = committed + self.sent
        self.sent += len(ids)
        self.spent_s -= spent_s
        spent_us = min(round(spent_s * 1e6), 2**32 - 1)
        return Chunk(self.epoch, start, len(ids), pack_ids(ids, vocabulary_size), spent_us)

    def follow(self, tokens: Sequence[int]) -> int | None:
        """Follow the text, which has got `tokens`; returns how many were the chain's own, None if one differs."""
        written = min(len(self.ids), len(tokens))
        if self.ids[:written] != list(tokens[:written]):
            return None
        del self.ids[:written]
        self.sent = max(0, self.sent - written)
        self.stuck = False
        return written


class Chains:
    """The chains of a device, one after the other: their numbers and their wasted tokens.

    Attributes:
        epoch: number of the newest chain; numbers increase.
        wasted: drafted tokens of the present request that were never verified.

    Args:
        max_wasted_share: largest share of the tokens that may be wasted, 0 … 1; default 1, as far ahead as the edge
            allows.

    """

    def __init__(self, max_wasted_share: float = 1.0) -> None:
        self.epoch = 0
        self.wasted = 0
        self._seen = 0  # wasted tokens that the thrift has learned from
        self._thrift = Thrift(max_wasted_share)

    @property
    def rests(self) -> bool:
        """Whether nothing is drafted for now, because every distance ahead wastes too much."""
        return self._thrift.ahead == 0

    def begin_text(self) -> None:
        """Reset the counts for a new text."""
        self.wasted = self._seen = 0

    def begin(self, window: Window) -> DeviceStreaming:
        """Begin a chain."""
        self.epoch += 1
        return DeviceStreaming(window, self.epoch)

    def room(self, chain: DeviceStreaming, left: int, stop_ids: Sequence[int]) -> int:
        """Number of tokens that may be drafted now. Arguments: see `DeviceStreaming.room`."""
        return chain.room(left, stop_ids, self._thrift.ahead)

    def take(
        self,
        chain: DeviceStreaming,
        start: int,
        ids: Sequence[int],
        draft_s: float,
        committed: Sequence[int],
        vocabulary_size: int,
    ) -> None:
        """Take in tokens of a chain. An id outside the vocabulary ends them."""
        end = next((index for index, token in enumerate(ids) if not 0 <= token < vocabulary_size), len(ids))
        self.wasted += len(ids) - end + chain.take(start, ids[:end], draft_s, committed)
        # If the text has grown beyond these tokens meanwhile, the drafter has new text to go on from.
        chain.stuck = (not ids or end < len(ids)) and start + end >= len(committed)

    def follow(
        self, chain: DeviceStreaming, tokens: Sequence[int], verified: int, goes_on: bool
    ) -> DeviceStreaming | None:
        """Follow the text after a pass that has committed tokens.

        Args:
            chain: the chain so far.
            tokens: committed ids, prompt included.
            verified: number of the chain's tokens that the pass has verified.
            goes_on: whether the text goes on.

        Returns:
            The chain to go on with, the same or a new one; None at the end of the text.

        """
        drafted = len(chain.ids)
        followed = chain.follow(tokens) if goes_on else None
        self.wasted += drafted - verified if followed is None else max(0, followed - verified)
        self._thrift.observe(verified, self.wasted - self._seen, chain.window.length)
        if not goes_on:
            return None
        return chain if followed is not None else self.begin(chain.window)

    def look(self) -> None:
        """Let the thrift learn from what has been wasted so far."""
        self._seen = self.wasted
