"""The acceptance rules: which drafted tokens stand, and which token follows them.

`greedy` and `coupled` are one rule at temperature 0 and above. The edge emits its own token at every drafted position,
from its own logits and the noise that belongs to (seed, position, token). A drafted token is accepted while it is the
same. So the text is the target's own for that seed, whatever was drafted: a function of (seed, target) alone. A device
that draws its draft with the same noise (`sampling.draw` on its own logits) is accepted with probability at least
(1−TV)/(1+TV) (Daliri, Musco, Suresh, arXiv 2408.07978).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from multispin.speculation.sampling import SamplingParams, draw
from multispin.speculation.scoring import Score

if TYPE_CHECKING:
    import torch


class Outcome(NamedTuple):
    """The decision of a verification: the first `accepted` drafted tokens stand, and `next_token` follows them.

    `scores` are those of all these tokens, in order, where the request wants log probabilities.
    """

    accepted: int
    next_token: int
    scores: tuple[Score, ...] = ()


def accept_matching(drafted: Sequence[int], emitted: Sequence[int]) -> Outcome:
    """Keep the drafted prefix that equals what the target emitted, and the target's token after it.

    Args:
        drafted: the L drafted token ids.
        emitted: L + 1 token ids: the target's own token at each drafted position and after the last one.
    """
    accepted = 0
    while accepted < len(drafted) and drafted[accepted] == emitted[accepted]:
        accepted += 1
    return Outcome(accepted, emitted[accepted])


def verify_draft(drafted: Sequence[int], logits: torch.Tensor, base: int, params: SamplingParams) -> Outcome:
    """Apply the rule `greedy` (temperature 0) or `coupled` to one draft.

    Args:
        drafted: L token ids for the absolute positions base … base+L−1.
        logits: [L + 1, V] of the target, row i for the token at position base + i.
        base: number of tokens committed (prompt included) when the draft began.
        params: the request's sampling parameters and seed.
    """
    emitted = draw(logits, list(range(base, base + len(drafted) + 1)), params)
    return accept_matching(drafted, emitted)
