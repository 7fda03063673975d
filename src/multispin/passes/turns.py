"""Whom the edge's own drafter is tried for: some sessions in turn, and once more those that had text to read.

A session that is tried seldom has much for the drafter to read first, and then the time that it took says nothing of
drafting. So it is tried again in the next pass, when that was read: else a first guess would be believed for ever.

Does not know when a trial is due or what it costs (`probing`).
"""

from collections.abc import Sequence


class Turns:
    """Whose turn it is.

    Attributes:
        under_way: sessions of the trial under way, empty if there is none.
        owed: sessions that are tried once more, empty if none are.

    """

    def __init__(self) -> None:
        self.under_way: frozenset[int] = frozenset()
        self.owed: frozenset[int] = frozenset()
        self._turn = 0

    def once_more(self, able: Sequence[int]) -> list[int]:
        """Begin the trial that is owed; returns those of the `able` sessions that it is for, none if none is owed."""
        return self._begun([session for session in able if session in self.owed])

    def next(self, able: Sequence[int], most: int) -> list[int]:
        """Begin a trial of other sessions; returns at most so many of the `able` ones, which must not be empty."""
        self._turn += 1
        first = self._turn % len(able)
        self.owed = frozenset()
        return self._begun([*able[first:], *able[:first]][:most])

    def drafted(self, timed: bool) -> None:
        """The trial under way is over; it is owed once more, but no third time, if what it took was not `timed`."""
        self.owed = frozenset() if timed or self.owed else self.under_way
        self.under_way = frozenset()

    def clear(self) -> None:
        """No trial is under way, and none is owed."""
        self.under_way = self.owed = frozenset()

    def _begun(self, sessions: list[int]) -> list[int]:
        self.under_way = frozenset(sessions)
        return sessions
