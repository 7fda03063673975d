"""Decides which devices in streams are worth their uplink and energy. The others rest, and are tried now and then.

A device pays while its tokens are at least the share `LEAST_SHARE` of its text. This covers everything that may be
wrong with it: tokens that are rejected, that come too late, or that are not worth a verification. A device that does
not pay gets a window of 0. A *trial* is a chain: the device gets a window, and the trial ends with the first accepted
token (then the device drafts on), with the end of the chain, or when nothing came in time. A trial of t seconds is
followed by 5 t to 50 t without one (`probing`). So trials take at most a fiftieth of a session's time in the long run,
nobody waits for them, and a device that has become useful is found again within 51 t.

This file knows nothing of windows, bands or messages.
"""

import math
from dataclasses import dataclass

from multispin.passes.probing import Probes

LEAST_SHARE = 0.03
"""Least share of a device's own tokens in its text with which it pays …"""
ENOUGH = 64.0
"""… counted over about this many latest tokens of text. It is not judged before it has had as many."""
LATE = 2.0
"""Multiple of its expected time after which a trial without tokens ends …"""
SLACK_S = 0.5
"""… and time that is added to that [s]."""


@dataclass(slots=True)
class _KnownDevice:
    """What is known of one device.

    Attributes:
        rests: whether it drafts in trials only.
        own: number of its own tokens in its text lately.
        text: number of its text's tokens since it began to draft.
        until_s: time at which its trial ends without an answer [s]; None without a trial.

    """

    rests: bool = False
    own: float = 0.0
    text: float = 0.0
    until_s: float | None = None


class Paying:
    """The devices of all sessions, by number."""

    def __init__(self) -> None:
        self._accounts: dict[int, _KnownDevice] = {}
        self._probes = Probes()

    def rests(self, session: int) -> bool:
        """Whether a device drafts in trials only."""
        account = self._accounts.get(session)
        return account is not None and account.rests

    def tried(self, session: int) -> bool:
        """Whether it is being tried."""
        account = self._accounts.get(session)
        return account is not None and account.until_s is not None

    def settled(self, session: int, own: int, text: int, now_s: float) -> bool:
        """Learn from a verified pass of its text. Returns whether the device begins to rest, or to draft again.

        Args:
            session: number of the session.
            own: number of accepted tokens of the device.
            text: number of committed tokens.
            now_s: present time of the driver's clock [s].

        """
        account = self._accounts.get(session)
        if account is None:
            account = self._accounts[session] = _KnownDevice()
        if account.rests:
            if not own or account.until_s is None:
                return False
            self._probes.end(session, now_s)
            self._accounts[session] = _KnownDevice()
            return True
        account.own = account.own * math.exp(-text / ENOUGH) + own
        account.text += text
        account.rests = account.text >= ENOUGH and account.own < LEAST_SHARE * ENOUGH
        return account.rests

    def due(self, session: int, now_s: float) -> bool:
        """Whether a device that rests may be tried now."""
        account = self._accounts.get(session)
        return account is not None and account.rests and account.until_s is None and self._probes.due(session, now_s)

    def begin(self, session: int, expected_s: float, now_s: float) -> None:
        """Begin a trial, whose draft is expected within `expected_s`."""
        self._probes.begin(session, now_s)
        self._accounts[session].until_s = now_s + LATE * expected_s + SLACK_S

    def late(self, session: int, now_s: float) -> bool:
        """Whether the time for its trial is over."""
        account = self._accounts.get(session)
        return account is not None and account.until_s is not None and now_s >= account.until_s

    def end(self, session: int, now_s: float) -> None:
        """End its trial without a result."""
        account = self._accounts.get(session)
        if account is not None and account.until_s is not None:
            account.until_s = None
            self._probes.end(session, now_s)

    def leave(self, session: int) -> None:
        """Forget a session."""
        self._accounts.pop(session, None)
        self._probes.leave(session)
