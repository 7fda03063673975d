"""Counts the edge's own drafts for texts of HTTP clients: the protocol tells a device only of its own drafts."""

from collections import deque

from multispin.gateway.source import EDGE, Piece
from multispin.protocol import Progress
from multispin.protocol.events import Closed, Connected, EdgeEvent, Expired, Lost, Refused, Round, RoundDevice

KEPT_PASSES = 64
"""Passes of a text that wait for the message that tells of them."""


class DraftHistory:
    """Keeps, for each session of an HTTP client, what its last passes were; `tell` is a listener of the edge's events.

    An edge tells of a pass in the same step in which it queues the messages of that pass, so the pass is known here
    before any client has read its message.

    Args:
        name: how these sessions introduce themselves.

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
        """The pieces of a message: one for each pass that it tells of, with what the edge drafted for it."""
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
        if at != len(progress.tokens) or not found:  # the message tells of something else
            passes.clear()
            return [plain]
        found[-1] = found[-1]._replace(finish=progress.finish)
        return found
