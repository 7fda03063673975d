"""Passes without drafts of the edge now and then, so that the cost of a token is known apart from that of a pass.

If the edge's drafter drafts as many tokens for everybody in every pass, durations show only the sum of both costs. An
edge that believes a token to cost much then goes on with short drafts for ever, and never learns that it costs little.

Does not know sessions, prices or times.
"""

FIRST_BARE_AFTER, LAST_BARE_AFTER = 8, 128
"""After 8 similar passes one has no drafts of the edge. The next comes after twice as many, and so on up to 128."""
TOKENS_DIFFER = 0.25
"""If the number of drafted tokens differs from that of the pass before by at least this share, both costs show."""


class BarePasses:
    """Decides when a pass should go without drafts of the edge, from the drafts of recent passes."""

    def __init__(self) -> None:
        self._drafted = 0
        self._alike = 0
        self._most_alike = FIRST_BARE_AFTER

    def due(self, drafted: int) -> bool:
        """Whether the pass to come should go without drafts of the edge. To be asked once for each pass.

        Args:
            drafted: tokens that the edge would draft for it [tokens].

        """
        if not drafted or abs(drafted - self._drafted) >= TOKENS_DIFFER * self._drafted:
            self._alike = 0
        self._drafted = drafted
        self._alike += 1
        if self._alike <= self._most_alike:
            return False
        self._alike, self._most_alike = 0, min(2 * self._most_alike, LAST_BARE_AFTER)
        return True
