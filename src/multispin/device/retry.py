"""How long to wait before the next attempt, and when to give up."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from multispin.errors import InputError

MAX_PATIENCE_S = 7 * 86_400.0


@dataclass(frozen=True)
class Patience:
    """How long a device waits for a silent edge, and how long it tries to reach one.

    Attributes:
        at_first_s: longest time of trying while no edge has ever answered [s]; default 10, so that a wrong address is
            noticed soon.
        once_known_s: longest time without an edge after one has answered, since the text last grew [s]; default 300,
            long enough for an edge to restart and load its model.
        first_delay_s: delay after the first failure [s]; each further failure doubles it; default 0.1.
        longest_delay_s: longest delay [s]; default 5.0.
        silence_s: longest wait for a message about a text when the edge has to send one [s]; then the edge counts as
            lost; default 120.0. Pongs do not count. An edge whose passes go on also writes to devices that wait for a
            slot, so a long queue is no silence. During a longer pass the device connects again.
        greeting_s: longest wait for each answer to a greeting (Welcome, and Tail after a Resume) [s]; then the edge
            counts as lost; default 10.0.

    """

    at_first_s: float = 10.0
    once_known_s: float = 300.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0
    silence_s: float = 120.0
    greeting_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("at_first_s", "once_known_s", "first_delay_s", "longest_delay_s", "silence_s", "greeting_s"):
            value = getattr(self, name)
            if not 0.0 <= value <= MAX_PATIENCE_S:
                raise InputError(f"{name} = {value} is outside 0 … {MAX_PATIENCE_S:.0f}")


class Retries:
    """The delays between the attempts of one request.

    Delays double, and are random so that many devices do not come back at once. Only time without an edge counts. Only
    progress of the text resets the count; an answered greeting does not, since a device that is welcomed and dropped
    each time would go on for ever. Silence on an open connection counts too, until the same session hears that passes
    go on: then it was a long pass.

    Attributes:
        known: whether an edge has ever answered.

    Args:
        patience: how long to go on.
        chance: draws a number in 0 … 1; a delay is shortened by up to half at random; default `random.random`.

    """

    def __init__(self, patience: Patience, chance: Callable[[], float] = random.random) -> None:
        self.known = False
        self._patience, self._chance = patience, chance
        self._failures = 0
        self._away_s = 0.0  # before the present outage, since the text last grew
        self._silent_s = 0.0  # the part of it on open connections of the present session
        self._away_since_s: float | None = None

    @property
    def limit_s(self) -> float:
        """Longest time without an edge now [s]."""
        return self._patience.once_known_s if self.known else self._patience.at_first_s

    def delay_s(self, now_s: float, least_s: float = 0.0) -> float | None:
        """Time to wait before the next attempt [s]; None when it is time to give up.

        Args:
            now_s: present time of the device's clock [s].
            least_s: delay that the edge asked for [s]; up to a quarter is added, so that devices do not all come back
                at once; default 0.0.
        """
        if self._away_since_s is None:
            self._away_since_s = now_s
        left_s = self.limit_s - self._away_s - (now_s - self._away_since_s)
        if left_s <= 0.0:
            return None
        delay_s = self._patience.first_delay_s * 2.0 ** min(self._failures, 30)
        self._failures += 1
        chance = self._chance()
        delay_s = max(
            min(self._patience.longest_delay_s, delay_s) * (0.5 + 0.5 * chance), least_s * (1 + 0.25 * chance)
        )
        return min(left_s, delay_s)

    def welcomed(self, now_s: float) -> None:
        """Note that an edge has answered."""
        self.known = True
        if self._away_since_s is not None:
            self._away_s, self._away_since_s = self._away_s + now_s - self._away_since_s, None

    def silent_since(self, since_s: float, now_s: float) -> None:
        """Count the edge as away since then, although a connection was open; both times by the device's clock [s]."""
        if self._away_since_s is None:
            self._away_since_s = since_s
            self._silent_s += now_s - since_s

    def passes_go_on(self) -> None:
        """Take the silence back from the count: the edge was working."""
        self._away_s, self._silent_s = self._away_s - self._silent_s, 0.0

    def session_ended(self) -> None:
        """Note that the text goes on in another session, whose passes cannot explain the silence before it."""
        self._silent_s = 0.0

    def progressed(self) -> None:
        """Reset the count, since the text has grown."""
        self._failures, self._away_s, self._silent_s = 0, 0.0, 0.0
