"""What `multispin profile` measured, as a scenario that the planner reads."""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from multispin.control import Cell, Device, Mode, Scenario, Verification, dump_scenario
from multispin.data import TASKS
from multispin.errors import InputError
from multispin.speculation import DistributionFormat, Rule, bits_per_token, uplink_bits_per_rejection

_SUREST = 0.9999
"""Highest acceptance rate of a device in a scenario: 1 would promise drafts without end."""
_RETAINED, _PROBABILITY_BITS = 1024, 16
"""Distributions on the air, as in arXiv 2606.04581."""


def measured_scenario(
    found: Mapping[str, Any], bandwidth_hz: float, spectral_efficiency: float, *, modes: bool = False
) -> Scenario:
    """Measurements as a scenario: one device for each drafter and task family.

    Args:
        found: the JSON object of `multispin profile`.
        bandwidth_hz: shared band [Hz]; it was not measured.
        spectral_efficiency: spectral efficiency of every device [bit/s/Hz]; it was not measured.
        modes: whether a device may choose its acceptance rule; default no.

    Raises:
        InputError: no drafter's acceptance was measured.
    """
    verification = found["verification"]
    bits = math.ceil(math.log2(max(2, found["vocabulary"])))
    devices = []
    for drafter in found["drafters"]:
        for task in TASKS:
            found_here = drafter["tasks"][task]
            rate = found_here["acceptance_rate"]["mean"]
            if rate is None:
                continue
            device = Device(
                name=f"{drafter['drafter']}-{task}",
                seconds_per_token=drafter["seconds_per_token"],
                spectral_efficiency=spectral_efficiency,
                acceptance_rate=min(rate, _SUREST),
            )
            overlap = found_here["rejection_acceptance_rate"]
            if modes and overlap is not None:
                rules = _modes(found["vocabulary"], rate, overlap["mean"])
                device = replace(device, acceptance_rate=None, modes=rules)
            devices.append(device)
    if not devices:
        raise InputError("a scenario needs a drafter whose acceptance was measured")
    return Scenario(
        Cell(bandwidth_hz, bits, max_draft_length=16, min_draft_length=0),
        Verification(verification["fixed_s"], verification["per_device_s"], verification["per_token_s"]),
        tuple(devices),
    )


def measured_text(found: Mapping[str, Any], scenario: Scenario, per_task: int, tokens: int, *, modes: bool) -> str:
    """A scenario file: what was measured, and comments that say where and when.

    Args:
        found: the JSON object of `multispin profile`.
        scenario: what `measured_scenario` made of it.
        per_task: prompts of each task family.
        tokens: most tokens of a text.
        modes: whether devices may choose their acceptance rule.
    """
    verification = found["verification"]
    head = [
        f"Measured by multispin profile on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {found['machine']}.",
        f"Target {found['target']} on the {found['engine']} engine; verification fitted over "
        f"{len(verification['points'])} kinds of batches, relative error {verification['relative_rms_error']:.1%} "
        f"(root mean square), {verification['worst_relative_error']:+.1%} at worst.",
        f"Acceptance at temperature {found['temperature']:g} by the {'coupled' if found['temperature'] else 'greedy'} "
        f"rule, {per_task} prompts per task family, up to {tokens} tokens each.",
        "Band and spectral efficiency were not measured. One device per drafter and task family.",
    ]
    if modes:
        head.append(
            "Modes: the rejection rules accept min(1, p/q) of whole distributions; their bits are for those cut "
            f"to {_distribution_format(found['vocabulary']).retained} tokens, in {_PROBABILITY_BITS} bits each."
        )
    return "".join(f"# {line}\n" for line in head) + "\n" + dump_scenario(scenario)


def _distribution_format(vocabulary: int) -> DistributionFormat:
    return DistributionFormat(vocabulary, min(_RETAINED, vocabulary), _PROBABILITY_BITS)


def _modes(vocabulary: int, coupled: float, rejection: float) -> tuple[Mode, ...]:
    """The rules of a device that has a distribution of its own, each with its acceptance and its bits.

    `rejection-down` is left out: what it costs goes down, and the planner knows no downlink.
    """
    form = _distribution_format(vocabulary)
    rates = {Rule.COUPLED: coupled, Rule.REJECTION: rejection, Rule.REJECTION_UP: rejection}
    return tuple(
        Mode(str(rule), min(rate, _SUREST), None, bits_per_token(rule, form), uplink_bits_per_rejection(rule, form))
        for rule, rate in rates.items()
    )
