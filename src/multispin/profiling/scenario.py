"""What `multispin profile` measured, as a scenario that the planner reads."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from multispin.control import Cell, Device, Mode, Scenario, Verification
from multispin.errors import InputError
from multispin.speculation import DistributionFormat, Rule, bits_per_token, uplink_bits_per_rejection

_SUREST = 0.9999
"""Highest acceptance rate of a device in a scenario: 1 would promise drafts without end."""
_RETAINED, _PROBABILITY_BITS = 1024, 16
"""Distributions on the air, as in arXiv 2606.04581."""


class MeasuredDevice(NamedTuple):
    """A drafter on texts of one task family.

    Attributes:
        name: name of the device in the scenario.
        seconds_per_token: time of a drafted token [s].
        acceptance_rate: share of its tokens that were accepted.
        overlap: mean of min(1, p/q) over its tokens; None for a drafter without a distribution of its own.

    """

    name: str
    seconds_per_token: float
    acceptance_rate: float
    overlap: float | None


def measured_scenario(
    vocabulary_size: int,
    verifier: Verification,
    found: Sequence[MeasuredDevice],
    bandwidth_hz: float,
    spectral_efficiency: float,
    *,
    modes: bool = False,
) -> Scenario:
    """Measurements as a scenario.

    Args:
        vocabulary_size: V, number of the target's token ids.
        verifier: fitted time of a verification.
        found: one device for each drafter and task family whose acceptance was measured.
        bandwidth_hz: shared band [Hz]; it was not measured.
        spectral_efficiency: spectral efficiency of every device [bit/s/Hz]; it was not measured.
        modes: whether a device may choose its acceptance rule; default no.

    Raises:
        InputError: no drafter's acceptance was measured.
    """
    if not found:
        raise InputError("a scenario needs a drafter whose acceptance was measured")
    devices = []
    for each in found:
        rate: float | None = min(each.acceptance_rate, _SUREST)
        rules: tuple[Mode, ...] = ()
        if modes and each.overlap is not None:
            rate, rules = None, _modes(vocabulary_size, each.acceptance_rate, each.overlap)
        devices.append(
            Device(each.name, each.seconds_per_token, spectral_efficiency, acceptance_rate=rate, modes=rules)
        )
    bits = math.ceil(math.log2(max(2, vocabulary_size)))
    return Scenario(Cell(bandwidth_hz, bits, max_draft_length=16, min_draft_length=0), verifier, tuple(devices))


def measured_format(vocabulary_size: int) -> DistributionFormat:
    """The format of distributions that gives the modes of a measured scenario their bits."""
    return DistributionFormat(vocabulary_size, min(_RETAINED, vocabulary_size), _PROBABILITY_BITS)


def _modes(vocabulary_size: int, coupled: float, rejection: float) -> tuple[Mode, ...]:
    """The rules of a device that has a distribution of its own, each with its acceptance and its bits.

    `rejection-down` is left out: what it costs goes down, and the planner knows no downlink.
    """
    form = measured_format(vocabulary_size)
    rates = {Rule.COUPLED: coupled, Rule.REJECTION: rejection, Rule.REJECTION_UP: rejection}
    return tuple(
        Mode(str(rule), min(rate, _SUREST), None, bits_per_token(rule, form), uplink_bits_per_rejection(rule, form))
        for rule, rate in rates.items()
    )
