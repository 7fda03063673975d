"""How long to wait before the next attempt: doubling delays, up to a limit, a bounded number of times."""


class Backoff:
    """Delays of 0.1, 0.2, 0.4 … s, at most `longest_s`; at most `attempts` in a row.

    Args:
        attempts: in a row before it gives up.
        first_s: first delay.
        longest_s: longest delay.

    """

    def __init__(self, attempts: int, first_s: float = 0.1, longest_s: float = 5.0) -> None:
        self._attempts, self._first_s, self._longest_s = attempts, first_s, longest_s
        self._failed = 0

    def next_delay_s(self) -> float | None:
        """The delay after one more failure; None when it is time to give up."""
        if self._failed >= self._attempts:
            return None
        self._failed += 1
        return min(self._longest_s, self._first_s * 2.0 ** (self._failed - 1))

    def reset(self, attempts: int) -> None:
        """Forget earlier failures, after a success, and allow `attempts` from now on."""
        self._failed, self._attempts = 0, attempts
