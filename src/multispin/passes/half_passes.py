"""Passes of half of those who would ride, so that the cost of a session is known apart from that of a pass.

If everybody rides in every pass, its duration shows only the sum of both costs. An edge that believes a session to cost
little then lets everybody ride for ever, and never learns that it costs much. So after many passes that were alike, one
goes without the riders that have the fewest tokens of their devices. They ride in the next one.

Does not know prices, texts or times.
"""

from collections.abc import Sequence, Set

from multispin.control.streams import Ride

FIRST_HALF_AFTER, LAST_HALF_AFTER = 3, 96
"""After 3 similar passes one has half of the riders. The next comes after twice as many, and so on up to 96: where
everybody rides in every pass, that costs half a percent."""
SHOWN_HALF_AFTER = 12
"""Passes that differ by themselves, as while the first prompts are read one after another, are as good: the first half
pass then comes after up to 12 similar ones. Of a short text it would be a good part."""
RIDERS_DIFFER = 0.25
"""If the number of riders differs from the usual one by at least this share, the pass shows both costs by itself."""
_MEMORY = 0.2


class HalfPasses:
    """Decides when a pass should go with half of its riders, from the numbers of riders of recent passes."""

    def __init__(self) -> None:
        self._usual = 0.0
        self._alike = 0
        self._most_alike = FIRST_HALF_AFTER
        self._tried = False  # the pass to come goes without some, or all of its riders had to ride

    def chosen(self, rides: Sequence[Ride], must: Set[int]) -> tuple[Ride, ...]:
        """The riders of the pass to come: all, or half of them if it is time for that.

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
        """This many sessions were in a pass."""
        self._usual = self._usual or count
        if self._tried or abs(count - self._usual) >= RIDERS_DIFFER * self._usual:
            if self._alike >= self._most_alike:
                self._most_alike = min(2 * self._most_alike, LAST_HALF_AFTER)
            elif self._most_alike < SHOWN_HALF_AFTER:  # it has shown something already
                self._most_alike *= 2
            self._alike, self._tried = 0, False
        else:
            self._alike += 1
        self._usual += _MEMORY * (count - self._usual)
