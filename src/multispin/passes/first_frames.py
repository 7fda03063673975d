"""First frames of streams: how long would a pass wait best for the devices that begin again?

After most passes most devices begin again. A pass that waits for their first frames wants short ones. A pass that does
not wait wants long ones, which save bits on a narrow band. This file knows nothing of windows, sessions or times.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from multispin.control.goodput import Floats
from multispin.passes.beliefs import View

_TRIED = 48
"""Most times that are compared with one another."""


class FirstFrame(NamedTuple):
    """When the first frame of a device comes that begins again: `fixed_s` + l `token_s` for l tokens.

    Attributes:
        acceptance_rate: α of its tokens.
        fixed_s: the round trip, and the frame's own bits on the air [s].
        token_s: drafting and sending of each token in it [s].

    """

    acceptance_rate: float
    fixed_s: float
    token_s: float

    def tokens(self, within_s: float) -> int:
        """How many tokens come within this time [s]."""
        return max(0, int((within_s - self.fixed_s) / self.token_s + 1e-9))


def first_frame(view: Callable[[int], View], delay_s: float, bandwidth_hz: float) -> FirstFrame:
    """The first frame of a device.

    Args:
        view: function that gives α, T^S [s] and Q/r [Hz·s] of a token in frames of a given number of tokens.
        delay_s: one-way delay of its link [s].
        bandwidth_hz: part of the band that it is granted, more than 0 [Hz].

    """
    rate, token_s, alone_hz_s = view(1)
    frame_hz_s = max(0.0, 2.0 * (alone_hz_s - view(2)[2]))  # Q/r of the frame itself, spread over its tokens
    air_s = max(0.0, alone_hz_s - frame_hz_s) / bandwidth_hz
    return FirstFrame(rate, 2.0 * delay_s + frame_hz_s / bandwidth_hz, token_s + air_s)


def waited_s(
    frames: Sequence[FirstFrame], others: int, pass_s: float, token_s: float, most: int, alone_per_s: float
) -> float:
    """How long a pass waits for first frames where each pass waits so long, and that gives the most tokens per second.

    It maximises Σ E[N_k] / (φ + T_ver) over φ, where device k has drafted as many tokens as come within φ.

    Args:
        frames: first frames of the devices that draft.
        others: number of other sessions in a pass, which get a token each.
        pass_s: time of a pass without drafts [s].
        token_s: time of a verified token [s].
        most: longest draft [tokens].
        alone_per_s: goodput of the edge alone, which a pass that waits must exceed [tokens/s].

    Returns: φ [s]; 0 if it is better not to wait for anybody.
    """
    if not frames:
        return 0.0
    rate, fixed_s, each_s = np.array(frames, dtype=np.float64).T
    lengths: Floats = np.arange(1.0, most + 1.0)
    ends_s = np.unique(fixed_s[:, None] + each_s[:, None] * lengths)
    if len(ends_s) > _TRIED:
        ends_s = ends_s[np.linspace(0, len(ends_s) - 1, _TRIED).astype(int)]
    drafted = np.clip(np.floor((ends_s[:, None] - fixed_s) / each_s + 1e-9), 0.0, most)
    missing = np.maximum(1.0 - rate, 1e-12)
    tokens = ((1.0 - (1.0 - missing) ** (drafted + 1.0)) / missing).sum(axis=1) + others
    per_s = tokens / (ends_s + pass_s + token_s * drafted.sum(axis=1))
    best = int(np.argmax(per_s))
    return float(ends_s[best]) if per_s[best] > alone_per_s else 0.0
