"""How often does the target accept a drafted token? The acceptance rate α of one device, learned round by round."""

import math

from multispin.checks import MOST, between, positive, whole, within

MOST_TOKENS = 2**31
"""Longest draft that `observe` takes; real ones are far shorter."""


class AcceptanceEstimator:
    """Posterior of the per-token acceptance rate α (eq. 4, 11 of arXiv 2606.04581).

    A round of L drafted tokens of which n are accepted shows n successes and, if n < L, one failure: min(n + 1, L)
    trials. What comes after the first rejection was never looked at, so n / L is *not* an estimate of α.

    Beta posterior: `_accepted` and `_rejected` count trials and are forgotten exponentially, so that a change of task
    is followed. One trial's worth of the prior is never forgotten, which keeps the estimate off 0 and 1.

    Args:
        prior_rate: mean of α before anything is observed; default 0.6.
        prior_trials: how many trials that is worth, at least 1; default 4.0.
        half_life_trials: trials after which an observation counts half; infinite forgets nothing; default 100.0.

    """

    def __init__(self, prior_rate: float = 0.6, prior_trials: float = 4.0, half_life_trials: float = 100.0) -> None:
        between("prior_rate", prior_rate, 0.0, 1.0)
        within("prior_trials", prior_trials, 1.0, MOST)
        if half_life_trials != math.inf:
            positive("half_life_trials", half_life_trials)
        self._prior_rate = prior_rate
        self._half_life_trials = half_life_trials
        self._accepted = prior_rate * (prior_trials - 1)
        self._rejected = (1 - prior_rate) * (prior_trials - 1)

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn from one round; a round without drafted tokens changes nothing.

        Args:
            drafted: L, tokens drafted and verified.
            accepted: n, how many of them were accepted; the calibrated or bonus token does not count.

        """
        whole("drafted", drafted, 0, MOST_TOKENS)
        whole("accepted", accepted, 0, drafted)
        trials = min(accepted + 1, drafted)
        kept = 0.5 ** (trials / self._half_life_trials)
        self._accepted = kept * self._accepted + accepted
        self._rejected = kept * self._rejected + (trials - accepted)

    @property
    def trials(self) -> float:
        """How many trials are remembered, what is left of the prior included."""
        return self._accepted + self._rejected

    @property
    def rate(self) -> float:
        """Posterior mean of α, strictly between 0 and 1."""
        accepted = self._accepted + self._prior_rate
        return accepted / (accepted + self._rejected + 1 - self._prior_rate)
