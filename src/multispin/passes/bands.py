"""Bands of streams: each device's share of the uplink. This file knows nothing of windows, texts or messages.

The band is split by the best rates (`control.exact.fluid`) once they are known, and evenly before. It is split again
only if some share changes enough, because each change costs a message.
"""

from collections.abc import Collection, Mapping

SHARES = tuple(sorted({round(1.2**k) for k in range(60)}))
"""Numbers of devices for which an even split is made, so that it seldom changes as devices come and go."""
EVEN = 0.25
"""Part of the band that is split evenly. What is known of a device may be wrong or change, and a device without a band
teaches nothing."""
SPARE = 0.05
"""Part of the band that is kept for newcomers and for trials of devices that do not draft."""
LEAST_LENT = 0.005
"""Smallest spare share of the band of which anything is lent."""
BAND_CHANGE = 0.25
"""Relative change of a share from which on the band is split again."""


class Bands:
    """Everybody's share of the band.

    Args:
        bandwidth_hz: B, the whole band [Hz].

    """

    def __init__(self, bandwidth_hz: float) -> None:
        self._whole_hz = bandwidth_hz
        self._best: Mapping[int, float] | None = None  # B_k of the best rates at the last look [Hz]
        self._counted = 0  # devices that an even split is for
        self._of: dict[int, float] = {}
        self._lent: dict[int, float] = {}

    def of(self, session: int) -> float:
        """The share of a session's device [Hz]; 0 before it has one."""
        return self._lent.get(session) or self._of.get(session, 0.0)

    @property
    def spare_hz(self) -> float:
        """The unassigned part of the band [Hz]."""
        return max(0.0, self._whole_hz - sum(self._of.values()) - sum(self._lent.values()))

    def look(self, drafting: Collection[int], best: Mapping[int, float] | None, lends: bool = False) -> bool:
        """Give each of these sessions a share. Returns whether shares of others have changed.

        A device that has no text for a moment keeps its share until somebody needs it.

        Args:
            drafting: the sessions whose devices draft.
            best: B_k of the best rates, by session [Hz]; None while they are not known.
            lends: whether devices that do not draft wait for trials, and for a band to borrow; default no.

        """
        if best is None:
            return self._even(drafting)
        found, self._best = best is not self._best, best
        new = [session for session in drafting if session not in self._of]
        if found:
            target = self._target(drafting)
            nothing_spare = lends and self.spare_hz < LEAST_LENT * self._whole_hz
            if (
                new
                or nothing_spare
                or any(abs(hz - self._of[session]) > BAND_CHANGE * self._of[session] for session, hz in target.items())
            ):
                return self._split(target)
        elif new:
            even_hz = self._whole_hz / len(drafting)
            if self.spare_hz < 0.5 * even_hz * len(new):
                self._of = {session: self._of[session] for session in drafting if session in self._of}
            if self.spare_hz < 0.5 * even_hz * len(new):
                return self._split(self._target(drafting))
            share_hz = min(even_hz, self.spare_hz / len(new))
            self._of |= dict.fromkeys(new, share_hz)
        return False

    def lend(self, session: int) -> bool:
        """Lend half of the spare band to a device that does not draft, for a trial. Returns whether any is spare.

        Half is much where most devices rest: on a narrow band a device may pay with half of it, and not with less.
        """
        left_hz = self.spare_hz
        if left_hz < LEAST_LENT * self._whole_hz:
            return False
        self._lent[session] = 0.5 * left_hz
        return True

    def take_back(self, session: int) -> None:
        """Take back what was lent to a session: its trial is over."""
        self._lent.pop(session, None)

    def give_up(self, session: int) -> None:
        """Take back the share of a device that now drafts in trials only. The share may be lent for trials."""
        self._of.pop(session, None)

    def take_back_but_from(self, tried: Collection[int]) -> None:
        """Take back what was lent to sessions that are gone, keeping the loans of `tried`."""
        for session in [session for session in self._lent if session not in tried]:
            del self._lent[session]

    def _split(self, shares_hz: dict[int, float]) -> bool:
        """Split the band again; trials keep what is left of it. Returns True, since others' shares have changed."""
        self._of = shares_hz
        lent_hz, left_hz = sum(self._lent.values()), self._whole_hz - sum(shares_hz.values())
        if lent_hz > left_hz:
            self._lent = {session: hz * left_hz / lent_hz for session, hz in self._lent.items()}
        return True

    def _even(self, drafting: Collection[int]) -> bool:
        counted = next((share for share in SHARES if share >= len(drafting)), len(drafting))
        changed, self._counted = counted != self._counted, counted
        self._of = dict.fromkeys(drafting, self._whole_hz / max(1, counted))
        return changed

    def _target(self, drafting: Collection[int]) -> dict[int, float]:
        """The split by the best rates, partly even. A session without a rate counts like the others' mean."""
        if not drafting:
            return {}
        known = [hz for session in drafting if (hz := (self._best or {}).get(session)) is not None]
        mean_hz = sum(known) / len(known) if known else 0.0
        wished = {session: (self._best or {}).get(session, mean_hz) for session in drafting}
        total_hz, each = sum(wished.values()), 1.0 / len(drafting)
        shared_hz = (1.0 - SPARE) * self._whole_hz
        return {
            session: shared_hz * (EVEN * each + (1.0 - EVEN) * (hz / total_hz if total_hz > 0.0 else each))
            for session, hz in wished.items()
        }
