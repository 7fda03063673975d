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

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multispin.speculation.distributions import TruncatedDistribution, residual

if TYPE_CHECKING:
    import torch


class Stop(NamedTuple):
    """One place where the accepted part of a draft may end.

    Attributes:
        accepted: number of leading drafted tokens that stand if it ends here.
        chance: probability that it ends here, given that it ends nowhere later.
        weights: computes [V] float64 weights; the next token is drawn in proportion to them.
    """

    accepted: int
    chance: float
    weights: Callable[[], torch.Tensor]


def block_stops(
    drafted: Sequence[int],
    distributions: Sequence[TruncatedDistribution],
    target: Callable[[int], torch.Tensor],
    chance_of: Callable[[int], float] | None = None,
    shares_of: Callable[[int], NDArray[np.float64]] | None = None,
) -> Iterator[Stop]:
    """The places where a draft may end: the longest prefix first, the empty one (chance 1) last.

    Prefixes that cannot stand, because the target gives one of their tokens the probability 0, are left out.

    Args:
        drafted: the L drafted token ids.
        distributions: L draft distributions; token i was drawn from distribution i.
        target: target(i) computes the target's distribution, [V] float64, after the first i drafted tokens, i = 0 … L.
        chance_of: chance_of(i) is what that distribution gives to drafted token i; by default it is read from it.
        shares_of: shares_of(i) is what it gives to the ids of distribution i, [n]; by default it is read from it.
    """
    rows: list[torch.Tensor] = []
    prefix = [1.0]
    for distribution, token in zip(distributions, drafted, strict=True):
        rows.append(target(len(rows)))
        chance = float(rows[-1][token]) if chance_of is None else chance_of(len(rows) - 1)
        prefix.append(min(1.0, prefix[-1] * chance * distribution.form.total / distribution.weight(token)))
        if prefix[-1] == 0.0:
            break
    else:
        yield Stop(len(drafted), prefix[-1], partial(target, len(drafted)))
    for accepted in range(len(rows) - 1, -1, -1):
        weight, row, distribution = prefix[accepted], rows[accepted], distributions[accepted]
        shares = row.cpu().numpy()[distribution.ids] if shares_of is None else shares_of(accepted)
        total = distribution.form.total
        left = max(0.0, weight - float(np.minimum(weight * total * shares, distribution.weights).sum()) / total)
        chance = left / (left + 1.0 - weight) if weight < 1.0 else 1.0
        yield Stop(accepted, chance, partial(residual, row, distribution, weight))
