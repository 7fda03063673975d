"""Plans of a round as frozen values, and how a choice of lengths becomes one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multispin.control.goodput import Floats, Ints
from multispin.control.problem import Problem
from multispin.control.scenario import Device, Scenario
from multispin.errors import InputError


@dataclass(frozen=True)
class DevicePlan:
    """The plan of one device.

    Args:
        name: name of the device.
        draft_length: L_k [tokens]; 0 is plain decoding, with no upload and no band.
        bandwidth_hz: B_k [Hz]; under TDMA the whole band for every device that drafts.
        expected_tokens: E[N_k] of the round [tokens].
        mode: which of the device's modes; None if it has none.
        start_s: under TDMA, when it may begin to send, after the beginning of the round [s]; None otherwise.
    """

    name: str
    draft_length: int
    bandwidth_hz: float
    expected_tokens: float
    mode: str | None = None
    start_s: float | None = None


@dataclass(frozen=True)
class Plan:
    """The plan of the next round.

    Args:
        policy: which policy made it.
        status: "optimal": proven to be within the gap that was asked for; "feasible": nothing is proven;
            "infeasible": some device gets less than the `min_goodput_tokens_per_s` it asks for.
        goodput_tokens_per_s: Σ_k w_k E[N_k] / round_s.
        upper_bound_tokens_per_s: goodput that no choice of lengths and bands exceeds [tokens/s]; None where the policy
            proves nothing.
        round_s: time of the round, φ + T_ver [s].
        devices: one plan per device, in the order of the scenario.
        iterations: candidates or search nodes that were examined.
    """

    policy: str
    status: str
    goodput_tokens_per_s: float
    upper_bound_tokens_per_s: float | None
    round_s: float
    devices: tuple[DevicePlan, ...]
    iterations: int


class InfeasibleError(InputError):
    """The devices' least goodputs cannot all be met. `best` gives each the largest common fraction of them."""

    def __init__(self, message: str, best: Plan) -> None:
        super().__init__(message)
        self.best = best


def first_modes(scenario: Scenario) -> Scenario:
    """The scenario for policies that choose no modes: each device has its first one."""
    if not any(device.modes for device in scenario.devices):
        return scenario
    return replace(scenario, devices=tuple(replace(d, modes=d.modes[:1]) for d in scenario.devices))


def assemble(
    scenario: Scenario,
    problem: Problem,
    policy: str,
    options: Ints,
    shares: Floats,
    *,
    round_s: float | None = None,
    iterations: int = 1,
) -> Plan:
    """The plan of options [K] and band shares [K]; its round time follows from them unless it is given.

    Args:
        scenario: the site as it is known.
        problem: the same in numbers.
        policy: the name to put on the plan.
        options: chosen options, [K].
        shares: shares of the band, [K]; where devices send by turns, any share above 0 means all of it.
        round_s: time of the round [s]; None (default) takes what the options and shares give.
        iterations: candidates that were examined; default 1.
    """
    if not problem.access.splits_band:
        shares = np.where(shares > 0, 1.0, 0.0)
    busy = problem.busy_s(problem.drafted(options))
    upload = problem.upload_time(options, shares)
    if round_s is None and problem.access.splits_band:
        # What these shares of the band give, which need not be the best ones.
        round_s = float((busy + upload).max()) + float(problem.verification_s(options))
    elif round_s is None:
        round_s = float(problem.round_s(options))
    start = problem.access.starts(busy, upload)
    expected = problem.expected(options)
    bands = shares * scenario.cell.bandwidth_hz
    devices: Sequence[Device] = scenario.devices
    modes = [
        device.modes[option // problem.reach].name if device.modes else None
        for device, option in zip(devices, options.tolist(), strict=True)
    ]
    return Plan(
        policy=policy,
        status="feasible" if bool(problem.meets_minimum(options, np.asarray(round_s))) else "infeasible",
        goodput_tokens_per_s=float(expected @ problem.weight) / round_s,
        upper_bound_tokens_per_s=None,
        round_s=round_s,
        devices=tuple(
            DevicePlan(device.name, length, band, tokens, mode, begin if band else None)
            for device, length, band, tokens, mode, begin in zip(
                devices,
                problem.drafted(options).tolist(),
                bands.tolist(),
                expected.tolist(),
                modes,
                start,
                strict=True,
            )
        ),
        iterations=iterations,
    )
