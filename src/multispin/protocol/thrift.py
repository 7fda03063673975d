"""Thrift: how far ahead a device drafts in a stream, so that it wastes little energy.

A token far ahead is often wasted, since any token before it may be rejected first. A token just ahead is often wasted,
too, since the current pass of the edge commits the same position. So some distance in between wastes least. If even
that wastes too much, the device rests.
"""

from multispin.checks import within

DISTANCES = (63, 32, 16, 12, 8, 6, 4, 3)
"""Distances to try [tokens ahead], the greatest first."""
LOOK_EVERY_TOKENS = 16
"""Number of decided tokens after which the distance is chosen again."""
REMEMBERED = 0.8
"""Factor by which a distance's older observations are weighted at each new choice."""
REST_COMMITS = 32
"""Number of commits for which the device drafts nothing if every distance wastes too much …"""
LONGEST_REST_COMMITS = 1024
"""… and the most: the number doubles each time that this happens again, and halves after each better choice."""


class Thrift:
    """Chooses how far ahead to draft from what was wasted so far.

    Attributes:
        ahead: most tokens ahead of the committed text; None: as many as the edge allows.

    Args:
        max_wasted_share: largest share of the drafted tokens that may be wasted (never verified), 0 … 1; default 1, no
            bound.

    """

    def __init__(self, max_wasted_share: float = 1.0) -> None:
        self._most = within("max_wasted_share", max_wasted_share, 0.0, 1.0)
        self.ahead: int | None = None if max_wasted_share >= 1.0 else DISTANCES[0]
        self._seen = dict.fromkeys(DISTANCES, (0.0, 0.0))  # decided tokens, and wasted ones among them
        self._decided = self._wasted = self._rest = 0
        self._next_rest = REST_COMMITS

    def observe(self, verified: int, wasted: int, window: int) -> None:
        """Learn from a commit.

        Args:
            verified: number of drafted tokens that were verified.
            wasted: number of drafted tokens that never will be.
            window: most tokens ahead that the edge allows.

        """
        if self.ahead is None:
            return
        if self.ahead == 0:
            self._rest -= 1
            if self._rest <= 0:  # try the best one again; what it wasted long ago no longer counts
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
        """Distances that are different within this window."""
        least = min((each for each in DISTANCES if each >= window), default=DISTANCES[0])
        return [each for each in DISTANCES if each <= least]

    def _share(self, distance: int) -> float:
        """Observed share of wasted tokens; 0 before any observation."""
        decided, wasted = self._seen[distance]
        return wasted / decided if decided else 0.0
