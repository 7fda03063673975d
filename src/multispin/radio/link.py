"""An uplink of limited rate, as arithmetic: when has the last bit of a frame left?

No clock and no waiting in here. A device passes in the time and sleeps until the answer; a virtual clock jumps to it.
"""

import math

from multispin.checks import not_negative
from multispin.errors import InputError


class TokenBucket:
    """A first-in-first-out link that sends `rate_bits_per_s`, and up to `burst_bits` at once after a pause.

    One number is kept: credit minus backlog, in bits. It rises at the rate, up to the burst, and falls by the size of
    every frame; a frame has left when it is back at zero. A change of rate applies from that moment to all that is
    still queued. A departure time handed out earlier does not move by itself: `departure_s` gives the new one.

    Only drafts are meant to be paced. At rate 0 (a grant without a band) a frame with any bits never leaves, so
    control messages, and the empty draft of plain decoding, must not be reserved here, or must have size 0.

    Args:
        rate_bits_per_s: R = B·r [bit/s] (eq. 8 of arXiv 2606.04581); 0 for a link that is closed.
        burst_bits: credit that a silent link may save up [bit]; default 0, which paces every bit.

    """

    def __init__(self, rate_bits_per_s: float, burst_bits: float = 0.0) -> None:
        not_negative("burst_bits", burst_bits)
        self._rate_bits_per_s = not_negative("rate_bits_per_s", rate_bits_per_s)
        self._burst_bits = burst_bits
        self._level_bits = burst_bits
        self._now_s = -math.inf  # no time has passed yet: the first call sets the clock

    @property
    def rate_bits_per_s(self) -> float:
        """The present rate."""
        return self._rate_bits_per_s

    def set_rate(self, now_s: float, rate_bits_per_s: float) -> None:
        """Change the rate from `now_s` on; what is queued goes on at the new one.

        Args:
            now_s: present time [s], of the clock that `reserve` is given.
            rate_bits_per_s: the new rate R [bit/s]; 0 closes the link.

        Raises:
            InputError: the time is before the last one given, or the rate is negative.

        """
        rate = not_negative("rate_bits_per_s", rate_bits_per_s)
        self._advance(now_s)
        self._rate_bits_per_s = rate

    def reserve(self, now_s: float, size_bits: float) -> float:
        """Queue a frame.

        Args:
            now_s: present time [s], of any clock that never runs backwards.
            size_bits: size of the frame on the wire [bit].

        Returns:
            Time in s at which its last bit has left if the rate stays as it is; infinite at rate 0.

        """
        not_negative("size_bits", size_bits)
        self._advance(now_s)
        self._level_bits -= size_bits
        return self.departure_s(now_s)

    def departure_s(self, now_s: float) -> float:
        """Time at which everything queued so far has left, at the present rate; `now_s` if nothing waits.

        Args:
            now_s: present time [s], of the clock that `reserve` is given.

        Returns:
            Time in s, of the same clock; infinite at rate 0 if anything waits.

        """
        self._advance(now_s)
        if self._level_bits >= 0:
            return now_s
        if self._rate_bits_per_s == 0:
            return math.inf
        return now_s - self._level_bits / self._rate_bits_per_s

    def _advance(self, now_s: float) -> None:
        if not math.isfinite(now_s) or now_s < self._now_s:
            raise InputError(f"now_s = {now_s} is not a finite time >= {self._now_s}, the last one given")
        if self._now_s > -math.inf:
            earned_bits = self._rate_bits_per_s * (now_s - self._now_s)
            self._level_bits = min(self._burst_bits, self._level_bits + earned_bits)
        self._now_s = now_s
