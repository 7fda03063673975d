"""Counts the edge's own drafts for texts of HTTP clients, since the protocol reports only a device's own drafts."""

from collections import deque

from multispin.gateway.source import EDGE, Piece
from multispin.protocol import Progress
from multispin.protocol.events import Closed, Connected, EdgeEvent, Expired, Lost, Refused, Round, RoundDevice

KEPT_PASSES = 64
"""Most passes of a text that may wait for the message that reports them."""


class DraftHistory:
    """Keeps the last passes of each session of an HTTP client; `tell` is a listener to the edge's events.

    An edge sends the event of a pass in the same step in which it queues the messages of that pass. So the pass is
    known here before any client reads its message.

    Args:
        name: name in the Hello of these sessions.

    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._passes: dict[int, deque[RoundDevice]] = {}

    def tell(self, event: EdgeEvent) -> None:
        """Take in an event."""
        match event:
            case Round():
                for row in event.devices:
                    if (passes := self._passes.get(row.session)) is not None:
                        passes.append(row)
            case Connected() if event.name == self._name:
                self._passes[event.session] = deque(maxlen=KEPT_PASSES)
            case Closed() | Expired() | Lost() | Refused():
                self._passes.pop(event.session, None)

    def pieces(self, session: int, progress: Progress) -> list[Piece]:
        """The pieces of a message: one for each pass that it reports, with the edge's drafts for it."""
        plain = Piece(progress.tokens, progress.drafted, progress.accepted, progress.finish, progress.scores)
        passes, found, at = self._passes.get(session), list[Piece](), 0
        if not passes or progress.drafted:
            return [plain]
        while passes and at < len(progress.tokens):
            row = passes.popleft()
            part = slice(at, at + row.tokens)
            by = EDGE if row.drafter == EDGE else ""
            drafted, accepted = (row.drafted, min(row.accepted, row.tokens)) if by else (0, 0)
            found.append(Piece(progress.tokens[part], drafted, accepted, "", progress.scores[part], by))
            at += row.tokens
        if at != len(progress.tokens) or not found:  # the message does not report these passes
            passes.clear()
            return [plain]
        found[-1] = found[-1]._replace(finish=progress.finish)
        return found
