"""How devices share the uplink: by frequency, each with a part of the band, or by time, one after the other.

Everything that the two differ in is here, but for the bounds of the exact solver (`exact.pricing`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from multispin.control.bandwidth import bandwidth_shares, draft_time, makespan, start_times, token_latency
from multispin.control.goodput import Floats, Ints


@dataclass(frozen=True)
class MultipleAccess:
    """A way to share the uplink.

    Its functions take lengths [..., K] [tokens], T_k and the upload time of a token over the whole band, each [K] or
    [..., K] [s], and then `snr` and `round_trip_s` as in `bandwidth.draft_time`.

    Attributes:
        name: the value of `cell.multiple_access`.
        splits_band: whether devices have parts of the band, so that its split is a choice.
        draft_time: computes φ, the shortest time until all drafts have arrived, [...] [s].
        shares: computes each device's share of the band for that, [..., K]; 0 for those without a draft.
        token_latency: computes φ from T_k, upload times and snr if every device drafts one token, without round trips
            [s].
        starts: computes when each device begins to send, from the times at which K drafts are ready and their upload
            times [s]; None where nobody has to wait for a turn.

    """

    name: str
    splits_band: bool
    draft_time: Callable[[Ints, Floats, Floats, Floats | None, Floats | None], Floats]
    shares: Callable[[Ints, Floats, Floats, Floats | None, Floats | None], Floats]
    token_latency: Callable[[Floats, Floats, Floats | None], float]
    starts: Callable[[Floats, Floats], list[float] | list[None]]


def _no_turns(ready_s: Floats, _upload_s: Floats) -> list[None]:
    return [None] * len(ready_s)


def _time_by_turns(
    lengths: Ints, seconds_per_token: Floats, upload_s: Floats, _snr: Floats | None, _round_trip_s: Floats | None
) -> Floats:
    return makespan(lengths * seconds_per_token, lengths * upload_s)


def _whole_band(
    lengths: Ints, _seconds_per_token: Floats, _upload_s: Floats, _snr: Floats | None, _round_trip_s: Floats | None
) -> Floats:
    return np.where(lengths > 0, 1.0, 0.0)


def _token_by_turns(seconds_per_token: Floats, upload_s: Floats, _snr: Floats | None) -> float:
    return float(makespan(seconds_per_token, upload_s))


def _turns(ready_s: Floats, upload_s: Floats) -> list[float]:
    return [float(start) for start in start_times(ready_s, upload_s)]


_FREQUENCY_DIVISION = MultipleAccess("fdma", True, draft_time, bandwidth_shares, token_latency, _no_turns)
"""Every device that drafts has a part of the band for the whole round (Lemmas 1 and 3)."""
_TIME_DIVISION = MultipleAccess("tdma", False, _time_by_turns, _whole_band, _token_by_turns, _turns)
"""Devices send in the order of readiness, each over the whole band. Round trips are not supported (`Scenario`)."""

ACCESS: Mapping[str, MultipleAccess] = MappingProxyType(
    {each.name: each for each in (_FREQUENCY_DIVISION, _TIME_DIVISION)}
)
"""All ways to share the uplink, by the name that scenario files use."""
