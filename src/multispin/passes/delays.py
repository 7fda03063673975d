"""How long the next pass of streams has been waited for, and how much longer one that is worth its time may be put off.

This file knows nothing of sessions, prices or messages.
"""

from multispin.control.streams import Go, Wait

MOST_WAIT = 0.15
"""Longest delay of a pass that is worth its time, as a share of the usual time of a pass …"""
MOST_WAIT_FOR_ALL = 0.6
"""… which grows up to this share, the more of the present sessions it waits for."""


class Delays:
    """The waits before the next pass."""

    def __init__(self) -> None:
        self._waits_s: float | None = None  # time since which waiting has been better than a pass [s]
        self._put_off_s: float | None = None  # time since which a pass that is worth its time is put off [s] …
        self._until_s = 0.0  # … and until which it may be, for those that it waited for at first [s]

    def patience(self, now_s: float, pass_s: float) -> tuple[float, float]:
        """How long a pass may still be put off for the sake of a few, and of all: `patience_s`, … of `choose` [s].

        Args:
            now_s: present time of the driver's clock [s].
            pass_s: usual time of a pass [s].

        """
        if self._put_off_s is None:
            return MOST_WAIT * pass_s, MOST_WAIT_FOR_ALL * pass_s
        waited_s = now_s - self._put_off_s
        for_few_s, for_all_s = (share * pass_s - waited_s for share in (MOST_WAIT, MOST_WAIT_FOR_ALL))
        return max(for_few_s, self._until_s - now_s), for_all_s  # some have come meanwhile, so fewer are awaited

    def decided(self, decision: Go | Wait, anybody: bool, now_s: float) -> float:
        """Note a decision. Returns how long the pass that begins now was waited for; 0 if none begins [s].

        Args:
            decision: the decision.
            anybody: whether there is anybody who could ride.
            now_s: present time of the driver's clock [s].

        """
        if isinstance(decision, Go):
            waited_s = 0.0 if self._waits_s is None else now_s - self._waits_s
            self._waits_s = self._put_off_s = None
            return waited_s
        if self._waits_s is None or not anybody:
            self._waits_s = now_s if anybody else None
        if decision.puts_off:
            self._put_off_s = now_s if self._put_off_s is None else self._put_off_s
            self._until_s = now_s + decision.for_s
        return 0.0
