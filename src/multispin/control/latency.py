"""How long does a verification take? The one formula for T_ver, for planner, edge and simulation."""

from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from multispin.control.goodput import Floats


@overload
def verification_s(fixed_s: float, per_device_s: float, per_token_s: float, devices: float, tokens: float) -> float: ...
@overload
def verification_s(
    fixed_s: float, per_device_s: float, per_token_s: float, devices: float | Floats, tokens: Floats
) -> Floats: ...
def verification_s(
    fixed_s: float, per_device_s: float, per_token_s: float, devices: float | Floats, tokens: float | Floats
) -> float | Floats:
    """T_ver = fixed_s + K·per_device_s + n·per_token_s [s], n the tokens fed for K sessions in one pass.

    Example: 22.7 ms + 20 · 12.7 ms = 277 ms for 20 sessions on the paper's A100, however long their drafts. Neglects
    what depends on the lengths of the texts.

    Args:
        fixed_s: T_fix, time of any pass [s].
        per_device_s: T_lin, further time for each session in it [s].
        per_token_s: further time for each token fed [s].
        devices: K, a number or an array.
        tokens: n, see `tokens_of_pass`; a number or an array.

    Source: arXiv 2606.04581, eq. 7, which is the case per_token_s = 0.
    """
    return fixed_s + per_device_s * devices + per_token_s * tokens


@overload
def tokens_of_pass(devices: int, total: float, longest: float, padded: bool) -> float: ...
@overload
def tokens_of_pass(devices: int, total: Floats, longest: Floats, padded: bool) -> Floats: ...
def tokens_of_pass(devices: int, total: float | Floats, longest: float | Floats, padded: bool) -> float | Floats:
    """Tokens fed in one pass: every session feeds its draft and the token before it.

    Σ_k (L_k + 1) in a packed batch, K·(max L + 1) in a padded one.

    Args:
        devices: K, number of sessions.
        total: Σ_k L_k, drafted tokens of all sessions; a number or an array.
        longest: max L_k, tokens of the longest draft; a number or an array.
        padded: whether shorter drafts are padded to the longest one.

    """
    return devices * (longest + 1.0) if padded else total + devices


def fed_tokens(draft_lengths: ArrayLike, padded: bool) -> Floats:
    """Tokens fed to verify drafts of these lengths, [..., K] → [...]; see `tokens_of_pass`.

    Args:
        draft_lengths: L_k, one per session of the pass [tokens], [..., K].
        padded: whether shorter drafts are padded to the longest one.
    """
    length = np.asarray(draft_lengths, dtype=np.float64)
    total, longest = length.sum(axis=-1), length.max(axis=-1, initial=0.0)
    return np.asarray(tokens_of_pass(length.shape[-1], total, longest, padded))
