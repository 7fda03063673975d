"""How fast does a device draft? Seconds per token, learned from the rounds that it drafted in."""

from multispin.checks import not_negative, positive
from multispin.estimation.forgetting import ForgettingMedian

SHORTEST_S = 1e-9  # a time that a coarse clock shows as zero counts as this


class DraftSpeedEstimator:
    """Seconds per drafted token, T^S (eq. 2 of arXiv 2606.04581): the forgotten median of seconds / drafted.

    A warm-up or a stall does not move it; a lasting change of speed does, within `half_life_rounds`.

    Args:
        prior_seconds_per_token: belief before anything is observed [s]; it counts as two rounds.
        half_life_rounds: rounds after which an observation counts half; default 8.0.

    """

    def __init__(self, prior_seconds_per_token: float, half_life_rounds: float = 8.0) -> None:
        positive("prior_seconds_per_token", prior_seconds_per_token)
        positive("half_life_rounds", half_life_rounds)
        self._median = ForgettingMedian(prior_seconds_per_token, half_life=half_life_rounds)

    def observe(self, drafted: int, seconds: float) -> None:
        """Learn from one draft; a draft without tokens changes nothing.

        Args:
            drafted: number of tokens that were drafted.
            seconds: time that they took in all [s]; below `SHORTEST_S` it counts as that.

        Raises:
            InputError: a value is negative or no number.
        """
        not_negative("drafted", drafted)
        not_negative("seconds", seconds)
        if drafted > 0:
            self._median.observe(max(seconds, SHORTEST_S) / drafted)

    @property
    def seconds_per_token(self) -> float:
        """The estimate of T^S in s."""
        return self._median.value
