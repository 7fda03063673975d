"""Occasional passes with half of the riders, so that the cost of a session can be told from the cost of a pass.

If everybody rides in every pass, its duration shows only the sum of both costs. An edge that underestimates the cost of
a session would let everybody ride for ever, and never learn the true cost. So after many similar passes, one goes
without the riders that have the fewest tokens of their devices. They ride in the next one.

This file knows nothing of prices, texts or times.
"""

from collections.abc import Sequence, Set

from multispin.control.streams import Ride

FIRST_HALF_AFTER, LAST_HALF_AFTER = 3, 96
"""After 3 similar passes one has half of the riders. The next comes after twice as many, and so on up to 96: where
everybody rides in every pass, that costs half a percent."""
SHOWN_HALF_AFTER = 12
"""If passes differ by themselves, for example while the first prompts are read, they show the costs, too. Then the
first half pass comes only after up to 12 similar ones, since it delays short texts."""
RIDERS_DIFFER = 0.25
"""Relative difference from the usual number of riders at which a pass shows both costs by itself."""
_MEMORY = 0.2


class HalfPasses:
    """Decides when a pass should go with half of its riders, from the numbers of riders of recent passes."""

    def __init__(self) -> None:
        self._usual = 0.0
        self._alike = 0
        self._most_alike = FIRST_HALF_AFTER
        self._tried = False  # the next pass goes without some riders, or all of them had to ride

    def chosen(self, rides: Sequence[Ride], must: Set[int]) -> tuple[Ride, ...]:
        """The riders of the next pass: all, or half of them if that is due.

        Args:
            rides: rides of the pass, as `choose` decided.
            must: sessions that ride in any case.

        """
        if self._alike < self._most_alike or len(rides) < 2:
            return tuple(rides)
        self._tried = True
        spared = sorted((ride for ride in rides if ride.session not in must), key=lambda ride: ride.device_tokens)
        left_out = {ride.session for ride in spared[: len(rides) // 2]}
        return tuple(ride for ride in rides if ride.session not in left_out)

    def rode(self, count: int) -> None:
        """Note a pass with this many sessions."""
        self._usual = self._usual or count
        if self._tried or abs(count - self._usual) >= RIDERS_DIFFER * self._usual:
            if self._alike >= self._most_alike:
                self._most_alike = min(2 * self._most_alike, LAST_HALF_AFTER)
            elif self._most_alike < SHOWN_HALF_AFTER:  # passes have differed already
                self._most_alike *= 2
            self._alike, self._tried = 0, False
        else:
            self._alike += 1
        self._usual += _MEMORY * (count - self._usual)
