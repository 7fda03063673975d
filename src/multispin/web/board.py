"""The dashboard's state: an edge as it is now, made from its events in bounded memory. No sockets, no clock."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from multispin.outside import one_line
from multispin.protocol.events import (
    WHO_DRAFTS,
    Closed,
    Connected,
    EdgeEvent,
    Ended,
    Expired,
    Lost,
    Opened,
    Refused,
    Round,
)

MAX_SESSIONS = 4096
"""Most sessions that are remembered; the one that has been silent longest is forgotten first."""
MAX_SHOWN = 64
"""Most sessions that are shown: those whose text grew last."""
HISTORY_S = 300
"""Rates are kept for this long [s]."""
MAX_PASSES = 200
PASSES_S = 12.0
"""Length of the timeline of passes [s]."""
SHARE_PASSES = 16
"""Passes over which a session's band is averaged: in mode `mixture` each plan grants only a few devices a band."""
BY_PASSES = 16
"""Last passes of a text that decide who is shown as its drafter: in streams some passes come before a draft."""
LEAST_DRAFTED = 0.25
"""Least passes among these with drafts; with fewer, nobody is shown as the text's drafter."""


@dataclass
class _Session:
    """One session on the dashboard; `granted` is the length of its device's last grant or window [tokens]."""

    name: str
    drafter: str = ""
    state: str = "connected"
    drafters: deque[str] = field(default_factory=lambda: deque(maxlen=BY_PASSES))
    length: int = 0
    granted: int = 0
    bands_hz: deque[float] = field(default_factory=lambda: deque(maxlen=SHARE_PASSES))
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    acceptance_rate: float | None = None
    writing: bool = False

    @property
    def by(self) -> str:
        """Who has drafted for its text lately."""
        found = Counter(by for by in self.drafters if by != "nobody").most_common(1)
        return found[0][0] if found and found[0][1] >= LEAST_DRAFTED * len(self.drafters) else "nobody"

    @property
    def bandwidth_hz(self) -> float:
        """Mean of its latest granted bands [Hz]."""
        return sum(self.bands_hz) / max(1, len(self.bands_hz))


@dataclass
class _Second:
    """Sums over one second."""

    second: int
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0


class Board:
    """Follows an edge's events; `shown` is what a viewer sees.

    Args:
        target: name of the edge's target.

    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._sessions: OrderedDict[int, _Session] = OrderedDict()  # the latest event's session is last
        self._seconds: deque[_Second] = deque(maxlen=HISTORY_S)
        self._passes: deque[dict[str, Any]] = deque(maxlen=MAX_PASSES)

    def tell(self, event: EdgeEvent) -> None:
        """Take in an event."""
        match event:
            case Connected():
                session = self._session(event.session, event.name)
                session.drafter, session.state = one_line(event.drafter), "connected"
            case Lost():
                self._session(event.session, event.name).state = "away"
            case Closed() | Expired() | Refused():
                self._sessions.pop(event.session, None)
            case Opened():
                session = self._session(event.session, event.name)
                session.writing, session.tokens, session.drafted, session.accepted = True, 0, 0, 0
                session.drafters.clear()
            case Round():
                self._round(event)
            case Ended() if event.session in self._sessions:
                self._sessions[event.session].writing = False

    def shown(self, now_s: float) -> dict[str, Any]:
        """The state as JSON values.

        Args:
            now_s: the edge's clock [s].
        """
        sessions = list(self._sessions.items())
        shown = sessions[-MAX_SHOWN:]
        return {
            "target": self._target,
            "now_s": now_s,
            "sessions": [
                {
                    "session": number,
                    "bandwidth_hz": each.bandwidth_hz,
                    "by": each.by,
                    **{name: getattr(each, name) for name in _FIELDS},
                }
                for number, each in sorted(shown)
            ],
            "all": {
                "sessions": len(sessions),
                "writing": sum(each.writing for _, each in sessions),
                "bandwidth_hz": sum(each.bandwidth_hz for _, each in sessions),
            },
            "seconds": [[each.second, each.tokens, each.drafted, each.accepted] for each in self._seconds],
            "passes": [each for each in self._passes if each["end_s"] > now_s - PASSES_S],
        }

    def _session(self, number: int, name: str) -> _Session:
        session = self._sessions.get(number)
        if session is None:
            session = self._sessions[number] = _Session(one_line(name))
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(number)
        return session

    def _round(self, event: Round) -> None:
        for device in event.devices:
            session = self._session(device.session, device.name)
            by = device.drafter or "nobody"
            session.drafters.append(by)
            session.drafted += device.drafted
            session.accepted += device.accepted
            session.tokens += device.tokens
            if device.drafter == "device" and isfinite(device.acceptance_rate):
                session.acceptance_rate = device.acceptance_rate
            elif device.drafted:  # the estimates are of its device, not of the edge's drafter
                session.acceptance_rate = session.accepted / session.drafted
            if by == "edge" or (by == "nobody" and event.planned_pass_s is None):
                session.length = device.drafted  # its device has no grant, and the edge chooses the length
            else:  # in a stream the window stays, although no draft came in time for this pass
                session.length = session.granted
            session.writing = True
        granted = {grant.session: grant.bandwidth_hz for grant in event.grants}
        for grant in event.grants:
            session = self._session(grant.session, grant.name)
            session.length = session.granted = grant.length
        for number in {*granted, *(each.session for each in event.devices)} & self._sessions.keys():
            bands_hz = self._sessions[number].bands_hz
            # A stream's window holds until the next one; a grant is for one round only.
            before_hz = bands_hz[-1] if event.planned_pass_s is not None and bands_hz else 0.0
            bands_hz.append(granted.get(number, before_hz))
        second = self._second(int(event.time_s))
        second.tokens += sum(each.tokens for each in event.devices)
        second.drafted += sum(each.drafted for each in event.devices)
        second.accepted += sum(each.accepted for each in event.devices)
        self._passes.append(
            {
                "number": event.round,
                "begin_s": event.time_s - event.verify_s,
                "end_s": event.time_s,
                "prompt_tokens": event.prompt_tokens,
                "texts": {by: sum(each.drafter == by for each in event.devices) for by in WHO_DRAFTS},
                "tokens": sum(each.tokens for each in event.devices),
            }
        )

    def _second(self, second: int) -> _Second:
        """Sums over this second, after zeros for the seconds without events before it."""
        newest = self._seconds[-1].second if self._seconds else second - 1
        for missing in range(max(newest + 1, second - HISTORY_S + 1), second + 1):
            self._seconds.append(_Second(missing))
        return self._seconds[-1]


_FIELDS = tuple(name for name in _Session.__dataclass_fields__ if name not in ("bands_hz", "drafters", "granted"))
