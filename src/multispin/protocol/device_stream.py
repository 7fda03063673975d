"""A stream as the device sees it: the tokens that it has drafted ahead of the committed text, and which are sent.

They are a chain, numbered by its epoch. The chain goes on while the text agrees with it. When the text says something
else, what is left of it is dropped and the next chain begins, with a greater epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from multispin.protocol.messages import Chunk, Window
from multispin.speculation import pack_ids


@dataclass(slots=True, eq=False)
class Streaming:
    """The stage of a device that drafts on by itself.

    Attributes:
        window: how far.
        epoch: number of the chain.
        ids: its tokens that follow the committed text.
        sent: how many of them have been sent.
        spent_s: time spent drafting the others [s].
        stuck: whether the drafter had nothing to say after them; it is asked again when the text goes on.

    """

    window: Window
    epoch: int
    ids: list[int] = field(default_factory=list)
    sent: int = 0
    spent_s: float = 0.0
    stuck: bool = False

    def room(self, left: int, stop_ids: Sequence[int], most: int | None = None) -> int:
        """Tokens that may be drafted now.

        Args:
            left: tokens that the text may still grow by; the edge adds the last one itself.
            stop_ids: ids that end the text, so that nothing need be drafted after them.
            most: most tokens ahead by the device's own will; default as many as its window.

        """
        if self.stuck or (self.ids and self.ids[-1] in stop_ids):
            return 0
        length = self.window.length if most is None else min(self.window.length, most)
        return max(0, min(length, left - 1) - len(self.ids))

    def take(self, start: int, ids: Sequence[int], draft_s: float, committed: Sequence[int]) -> int:
        """Take in drafted tokens that begin at position `start`; returns how many of them were in vain.

        The edge may have written on at their places meanwhile.
        """
        written = committed[start : start + len(ids)]
        if list(ids[: len(written)]) != list(written):
            return len(ids)
        self.ids += ids[len(written) :]
        self.spent_s += draft_s
        return len(written)

    def chunk(self, committed: int, more: bool, vocabulary_size: int) -> Chunk | None:
        """The next frame, if there is one; it counts as sent from now on.

        Args:
            committed: tokens of the committed text.
            more: whether more tokens can be drafted now, so that a frame that is not full can wait for them.
            vocabulary_size: number of the target's token ids.

        """
        ids = self.ids[self.sent : self.sent + self.window.chunk]
        if not ids or (more and len(ids) < self.window.chunk):
            return None
        spent_s = self.spent_s * len(ids) / (len(self.ids) - self.sent)
        start = committed + self.sent
        self.sent += len(ids)
        self.spent_s -= spent_s
        spent_us = min(round(spent_s * 1e6), 2**32 - 1)
        return Chunk(self.epoch, start, len(ids), pack_ids(ids, vocabulary_size), spent_us)

    def follow(self, tokens: Sequence[int]) -> int | None:
        """The text has gone on by `tokens`: how many of its own they were; None if they say something else."""
        written = min(len(self.ids), len(tokens))
        if self.ids[:written] != list(tokens[:written]):
            return None
        del self.ids[:written]
        self.sent = max(0, self.sent - written)
        self.stuck = False
        return written
