"""How devices share the uplink: by frequency, each with a part of the band, or by time, one after the other.

Everything that the two differ in is here, but for the bounds of the exact solver (`exact.pricing`).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np

from multispin.control.bandwidth import bandwidth_shares, draft_time, makespan, start_times, token_latency
from multispin.control.goodput import Floats, Ints


class Access(Protocol):
    """A way to share the uplink.

    Lengths are [..., K] [tokens], `seconds_per_token` is T_k and `upload_s` the upload time of a token over the whole
    band, [K] or [..., K] [s]; `snr` and `round_trip_s` as in `bandwidth.draft_time`.
    """

    name: str
    """As `cell.multiple_access` has it."""
    splits_band: bool
    """Whether devices have parts of the band, so that its split is a choice."""

    def draft_time(
        self,
        lengths: Ints,
        seconds_per_token: Floats,
        upload_s: Floats,
        snr: Floats | None,
        round_trip_s: Floats | None,
    ) -> Floats:
        """φ, the shortest time in which all drafts can be there, [...] [s]."""
        ...

    def shares(
        self,
        lengths: Ints,
        seconds_per_token: Floats,
        upload_s: Floats,
        snr: Floats | None,
        round_trip_s: Floats | None,
    ) -> Floats:
        """Share of the band in which each device sends then, [..., K]; 0 for those without a draft."""
        ...

    def token_latency(self, seconds_per_token: Floats, upload_s: Floats, snr: Floats | None) -> float:
        """φ if everybody drafts one token, round trips aside [s]."""
        ...

    def starts(self, ready_s: Floats, upload_s: Floats) -> list[float] | list[None]:
        """When each device begins to send, one for each of K; None where nobody has to wait for a turn."""
        ...


class FrequencyDivision:
    """Every device that drafts has a part of the band for the whole round (Lemmas 1 and 3)."""

    name = "fdma"
    splits_band = True

    def draft_time(
        self,
        lengths: Ints,
        seconds_per_token: Floats,
        upload_s: Floats,
        snr: Floats | None,
        round_trip_s: Floats | None,
    ) -> Floats:
        """See `Access.draft_time`."""
        return draft_time(lengths, seconds_per_token, upload_s, snr, round_trip_s)

    def shares(
        self,
        lengths: Ints,
        seconds_per_token: Floats,
        upload_s: Floats,
        snr: Floats | None,
        round_trip_s: Floats | None,
    ) -> Floats:
        """See `Access.shares`."""
        return bandwidth_shares(lengths, seconds_per_token, upload_s, snr, round_trip_s)

    def token_latency(self, seconds_per_token: Floats, upload_s: Floats, snr: Floats | None) -> float:
        """See `Access.token_latency`."""
        return token_latency(seconds_per_token, upload_s, snr)

    def starts(self, ready_s: Floats, upload_s: Floats) -> list[float] | list[None]:
        """Nobody waits for a turn."""
        return [None] * len(ready_s)


class TimeDivision:
    """Devices send in the order of readiness, each over the whole band. Round trips are not supported (`Scenario`)."""

    name = "tdma"
    splits_band = False

    def draft_time(
        self,
        lengths: Ints,
        seconds_per_token: Floats,
        upload_s: Floats,
        snr: Floats | None,
        round_trip_s: Floats | None,
    ) -> Floats:
        """See `Access.draft_time`."""
        return makespan(lengths * seconds_per_token, lengths * upload_s)

    def shares(
        self,
        lengths: Ints,
        seconds_per_token: Floats,
        upload_s: Floats,
        snr: Floats | None,
        round_trip_s: Floats | None,
    ) -> Floats:
        """The whole band for everybody who sends."""
        return np.where(lengths > 0, 1.0, 0.0)

    def token_latency(self, seconds_per_token: Floats, upload_s: Floats, snr: Floats | None) -> float:
        """See `Access.token_latency`."""
        return float(makespan(seconds_per_token, upload_s))

    def starts(self, ready_s: Floats, upload_s: Floats) -> list[float] | list[None]:
        """In the order of readiness."""
        return [float(start) for start in start_times(ready_s, upload_s)]


ACCESS: Mapping[str, Access] = MappingProxyType({each.name: each for each in (FrequencyDivision(), TimeDivision())})
"""All ways to share the uplink, by the name that scenario files use."""
