"""Expected tokens of a round, in closed form and as tables."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


def expected_tokens(acceptance_rate: ArrayLike, draft_length: ArrayLike) -> Floats:
    """Expected tokens that one device gets from a round, E[N] = (1 − α^(L+1)) / (1 − α).

    Counts the accepted prefix and the one token that the server adds (calibrated or bonus). Neglects any
    dependence of acceptance on the position. Example: α = 0.8, L = 4 gives 3.36 tokens.

    Args:
        acceptance_rate: α in [0, 1], any shape; α = 1 gives L + 1.
        draft_length: L ≥ 0 [tokens], real values allowed, broadcast against α.

    Source: arXiv 2606.04581, eq. 12.
    """
    alpha, length = np.broadcast_arrays(
        np.asarray(acceptance_rate, dtype=np.float64), np.asarray(draft_length, dtype=np.float64)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        # expm1 keeps the digits for α near 1, where 1 − α^(L+1) and 1 − α both vanish.
        ratio = -np.expm1((length + 1.0) * np.log(alpha)) / (1.0 - alpha)
    result: Floats = np.where(alpha >= 1.0, length + 1.0, np.where(alpha <= 0.0, 1.0, ratio))
    return result


def expected_tokens_table(conditional: Floats) -> Floats:
    """Expected tokens for every draft length, [L + 1, K]: row l is 1 + Σ_{j≤l} Π_{i≤j} p_i.

    The rows' differences are a survival curve, so they never grow: gains are concave in the length for any
    acceptance profile. With p constant this is `expected_tokens`.

    Args:
        conditional: p[j − 1, k], probability that position j of device k is accepted given those before, [L, K].
    """
    table = np.ones((conditional.shape[0] + 1, conditional.shape[1]))
    if conditional.shape[0]:
        np.cumsum(np.cumprod(conditional, axis=0), axis=0, out=table[1:])
        table[1:] += 1.0
    return table
