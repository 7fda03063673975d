"""Which devices of streams are worth their uplink and energy. The others rest, and are tried again now and then.

A device pays while its tokens make up a share of its text of at least `LEAST_SHARE`. That counts all that may be wrong
with it at once: tokens that are refused, that come too late, or that are not worth a verification. Who does not pay is
told a window of 0. A *trial* is a chain: the device is told a window, and the trial ends with the first of its tokens
that stands (then it drafts on), with the end of the chain, or when nothing came in time. A trial that took t seconds is
followed by 5 t to 50 t without one (`probing`). So trials take at most a fiftieth of a session's time in the long run,
nobody waits for them, and a device that has become useful is found again within 51 t.

Does not know windows, bands or messages.
"""

import math
from dataclasses import dataclass

from multispin.passes.probing import Probes

LEAST_SHARE = 0.03
"""A device pays if this much of its text are tokens of its own …"""
ENOUGH = 64.0
"""… of about this many tokens of text, the latest ones; it is not judged before there were as many [tokens]."""
LATE = 2.0
"""A trial ends if nothing has arrived after this many times its expected time …"""
SLACK_S = 0.5
"""… and this much longer [s]."""


@dataclass(slots=True)
class _KnownDevice:
    """The known state of one device.

    Attributes:
        rests: whether it drafts in trials only.
        own: tokens of its own in its text lately.
        text: tokens of its text since it began to draft.
        until_s: time at which its trial ends without an answer [s]; None if there is no trial.

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
        """Whether a trial of it is under way."""
        account = self._accounts.get(session)
        return account is not None and account.until_s is not None

    def settled(self, session: int, own: int, text: int, now_s: float) -> bool:
        """Learn from a verified pass of its text. Returns whether the device begins to rest, or to draft again.

        Args:
            session: number of the session.
            own: tokens of the device that stand.
            text: all that were committed.
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
