"""Thrift: how far ahead a device drafts in a stream, by the price of its energy.

A token far ahead is wasted often, since any token before it may be contradicted first. One just ahead is wasted often
too, since the edge writes the same place in the pass under way. So some distance between wastes least, and where even
that wastes too much the device rests.
"""

from multispin.checks import within

DISTANCES = (63, 32, 16, 12, 8, 6, 4, 3)
"""Tokens ahead that are tried, the greatest first."""
LOOK_EVERY_TOKENS = 16
"""The distance is chosen again whenever this many tokens have been decided."""
REMEMBERED = 0.8
"""Share of what was seen of a distance that still counts after another look."""
REST_COMMITS = 32
"""If every distance wastes too much, the device drafts nothing for this many commits …"""
LONGEST_REST_COMMITS = 1024
"""… and for twice as many each time that it is so again, up to this. After each look that is better they are halved."""


class Thrift:
    """Drafts as far ahead as wastes no more than a bound, as far as it has been seen.

    Attributes:
        ahead: most tokens ahead of the committed text; None: as many as the edge allows.

    Args:
        max_wasted_share: most of the drafted tokens that may be wasted, 0 … 1; default 1, no bound. Wasted are those
            that were never verified.

    """

    def __init__(self, max_wasted_share: float = 1.0) -> None:
        self._most = within("max_wasted_share", max_wasted_share, 0.0, 1.0)
        self.ahead: int | None = None if max_wasted_share >= 1.0 else DISTANCES[0]
        self._seen = dict.fromkeys(DISTANCES, (0.0, 0.0))  # decided, and wasted of them
        self._decided = self._wasted = self._rest = 0
        self._next_rest = REST_COMMITS

    def observe(self, verified: int, wasted: int, window: int) -> None:
        """Learn what a commit has decided.

        Args:
            verified: drafted tokens that were verified.
            wasted: drafted tokens that never will be.
            window: most tokens ahead that the edge allows.

        """
        if self.ahead is None:
            return
        if self.ahead == 0:
            self._rest -= 1
            if self._rest <= 0:  # the best of all is tried again, and what it wasted long ago does not count
                self.ahead = min(self._within(window), key=self._share)
                self._seen[self.ahead] = 0.0, 0.0
            return
        self._decided += verified + wasted
        self._wasted += wasted
        if self._decided < LOOK_EVERY_TOKENS:
            return
        decided, lost = self._seen[self.ahead]
        self._seen[self.ahead] = REMEMBERED * decided + self._decided, REMEMBERED * lost + self._wasted
        self._decided = self._wasted = 0
        self.ahead = next((each for each in self._within(window) if self._share(each) <= self._most), 0)
        if self.ahead:
            self._next_rest = max(self._next_rest // 2, REST_COMMITS)
        else:
            self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, LONGEST_REST_COMMITS)

    def _within(self, window: int) -> list[int]:
        """Distances that differ from each other in this window."""
        least = min((each for each in DISTANCES if each >= window), default=DISTANCES[0])
        return [each for each in DISTANCES if each <= least]

    def _share(self, distance: int) -> float:
        """Share of wasted tokens, as far as it was seen; 0 before."""
        decided, wasted = self._seen[distance]
        return wasted / decided if decided else 0.0
