"""A first-order target and drafter over five tokens, and the test whether texts follow a distribution.

Every text has three tokens. Chi-square of the joint counts and of each position against the exact distribution: what is
correct fails one test in 10,000 random seeds.
"""

import numpy as np
import torch
from scipy import stats

V, TEXT = 5, 3
FALSE_ALARM = 1e-4
TARGET = torch.tensor(
    [
        [1.2, 0.4, -0.3, 0.9, -2.5],
        [0.1, 1.5, 0.8, -0.6, -3.0],
        [-0.4, 0.2, 1.1, 0.6, -2.0],
        [0.9, -0.2, 0.3, 1.3, -2.8],
        [0.0, 0.5, 1.0, 0.2, -1.9],
    ]
)
"""Next-token logits by the newest token."""
DRAFTER = TARGET * 0.8 + torch.tensor([0.3, -0.6, 0.7, -0.5, 1.5])


def joint_distribution(start, following):
    """Probability of every text after the token `start`; `following` has a row of probabilities for each token."""
    distribution = following[start]
    for _ in range(TEXT - 1):
        distribution = distribution[..., None] * following
    return distribution


def p_values(texts, joint):
    """Chi-square of the joint distribution and of each position; cells that expect fewer than 5 texts are pooled."""
    seen = np.zeros_like(joint)
    np.add.at(seen, tuple(np.array(texts).T), 1)
    if seen[joint == 0].any():
        return [0.0]
    values = []
    for keep in (None, *range(TEXT)):
        axes = () if keep is None else tuple(axis for axis in range(TEXT) if axis != keep)
        expected, counts = (joint * len(texts)).sum(axis=axes).ravel(), seen.sum(axis=axes).ravel()
        few = expected < 5
        expected = np.append(expected[~few], expected[few].sum())
        counts = np.append(counts[~few], counts[few].sum())
        values.append(stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue)
    return values


def follow(texts, joint):
    """Whether texts follow a distribution, but for one false alarm in 10,000."""
    return min(p_values(texts, joint)) > FALSE_ALARM / (TEXT + 1)
