"""Block verification: how much of a draft stands, decided for the draft as a whole (Sun et al., arXiv 2403.10444).

Token-by-token rejection stops at the first token that its coin refuses. Block verification looks at the joint
probability of each prefix instead, so that a token which the target likes better than the drafter pays for an earlier
one which it likes less. It accepts at least as many tokens on average, from the same payload as `rejection`, and the
text follows the same distribution.

p(x) and q(x) are the target's and the drafter's distribution after the first i drafted tokens, x the (i+1)-th one:

    w_0 = 1,  w_{i+1} = min(1, w_i · p(x)/q(x))     weight of the prefix of i + 1 tokens
    r_i(x) = max(0, w_i · p(x) − q(x))              residual, R_i = Σ_x r_i(x)
    h_L = w_L,  h_i = R_i / (R_i + 1 − w_i)         chance that the prefix of i tokens stands, if no longer one does

h_i makes at least i tokens stand with probability w_i: it solves w_i = E[w_{i+1}] + (1 − E[w_{i+1}]) · h_i, where
E[w_{i+1}] = Σ_x min(w_i p(x), q(x)) = w_i − R_i. docs/losslessness.md has the rest of the proof.

It needs the whole of q at every drafted position. A payload with q(x) alone does not have that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from multispin.speculation.laws import TruncatedLaw

if TYPE_CHECKING:
    import torch


class Stop(NamedTuple):
    """One place where the accepted part of a draft may end.

    Attributes:
        accepted: number of leading drafted tokens that stand if it ends here.
        chance: probability that it ends here, given that it ends nowhere later.
        weights: [V] float64. The next token is drawn in proportion to them.
    """

    accepted: int
    chance: float
    weights: torch.Tensor


def block_stops(drafted: Sequence[int], laws: Sequence[TruncatedLaw], targets: torch.Tensor) -> Iterator[Stop]:
    """The places where a draft may end: the longest prefix first, the empty one (chance 1) last.

    Args:
        drafted: L token ids.
        laws: L draft distributions; token i was drawn from distribution i.
        targets: [L + 1, V] float64, the target's distributions at the drafted positions and after the last one.
    """
    import torch

    ratios = targets[range(len(drafted)), list(drafted)].tolist()
    prefix = [1.0]
    for law, token, probability in zip(laws, drafted, ratios, strict=True):
        prefix.append(min(1.0, prefix[-1] * probability * law.form.total / law.weight(token)))
    yield Stop(len(drafted), prefix[-1], targets[-1])
    for accepted in range(len(drafted) - 1, -1, -1):
        law, weight = laws[accepted], prefix[accepted]
        residual = weight * targets[accepted]
        residual[torch.from_numpy(law.ids).to(residual.device)] -= torch.from_numpy(law.weights / law.form.total).to(
            residual.device
        )
        residual.clamp_(min=0.0)
        left = float(residual.sum())
        chance = left / (left + 1.0 - weight) if weight < 1.0 else 1.0
        if left <= 0.0:  # only rounding leads here, where w·p ≤ q everywhere and yet no longer prefix stands
            residual = targets[accepted]
        yield Stop(accepted, chance, residual)
