"""Occasional passes without the edge's drafts, so that the cost of a token can be told from the cost of a pass.

If the edge drafts equally many tokens in every pass, durations show only the sum of both costs. An edge that
overestimates the cost of a token would then make short drafts for ever, and never learn the true cost.

This file knows nothing of sessions, prices or times.
"""

FIRST_BARE_AFTER, LAST_BARE_AFTER = 8, 128
"""After 8 similar passes one has no drafts of the edge. The next comes after twice as many, and so on up to 128."""
TOKENS_DIFFER = 0.25
"""Relative change in the number of drafted tokens, from one pass to the next, that shows both costs."""


class BarePasses:
    """Decides when a pass should go without drafts of the edge, from the drafts of recent passes."""

    def __init__(self) -> None:
        self._drafted = 0
        self._alike = 0
        self._most_alike = FIRST_BARE_AFTER

    def due(self, drafted: int) -> bool:
        """Whether the next pass should go without the edge's drafts. Call this once for each pass.

        Args:
            drafted: number of tokens that the edge would draft for it.

        """
        if not drafted or abs(drafted - self._drafted) >= TOKENS_DIFFER * self._drafted:
            self._alike = 0
        self._drafted = drafted
        self._alike += 1
        if self._alike <= self._most_alike:
            return False
        self._alike, self._most_alike = 0, min(2 * self._most_alike, LAST_BARE_AFTER)
        return True
