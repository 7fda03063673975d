"""Least goodputs per device: the shortest drafts that meet them all, or the best that is possible."""

import numpy as np

from multispin.control.goodput import Ints
from multispin.control.problem import Problem


def least_lengths(problem: Problem, fraction: float = 1.0) -> Ints | None:
    """Shortest lengths [K] with E[N_k] ≥ fraction · minimum_k · round time for all k, or None if there are none.

    A longer round asks for longer drafts, and longer drafts make a longer round: both maps are monotone, so starting
    from the shortest drafts and repeating climbs to their least common fixed point. Every feasible choice is at least
    as long for every device, so this also decides feasibility exactly.

    Args:
        problem: the scenario in numbers.
        fraction: share of its least goodput that each device gets; default 1.0.
    """
    need = problem.minimum_goodput * fraction * (1.0 - 1e-12)
    lengths = problem.shortest
    while True:
        wanted = (problem.tokens < need * float(problem.round_s(lengths))).sum(axis=0)
        if (wanted > problem.longest).any():
            return None
        raised = np.maximum(lengths, wanted)
        if (raised == lengths).all():
            return lengths
        lengths = raised


def best_fraction(problem: Problem) -> tuple[float, Ints]:
    """Largest common fraction of their minima that all devices can have, and lengths [K] that give it."""
    low, high = 0.0, 1.0
    lengths = problem.shortest
    for _ in range(60):
        middle = 0.5 * (low + high)
        found = least_lengths(problem, middle)
        if found is None:
            high = middle
        else:
            low, lengths = middle, found
    return low, lengths
