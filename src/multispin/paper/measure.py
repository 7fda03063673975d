"""One realisation of one point of a figure under several schemes, and many of them over processes.

The goodput of a round is the analytic τ of eq. 26 for the plan of `control.plan`; a realisation's is its mean over
the fading blocks. Every scheme sees the same realisations.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

import numpy as np

from multispin.control import Plan, Scenario, plan
from multispin.paper.cell import BANDWIDTH_HZ, DEVICES, PAIRS, Assumptions, realise, scenario

SCHEMES: Mapping[str, str] = {
    "heterogeneous": "Hete, exact",
    "algorithm1": "Hete, Algorithm 1",
    "uniform-bandwidth": "Uni-BW",
    "homogeneous": "Homo",
    "fixed": "Fixed BW&L",
    "centralized": "Cen-SPIN",
    "p2p": "P2P-SPIN",
}
"""The paper's schemes by policy, with what they are called on figures."""
BEYOND: Mapping[str, str] = {"fair": "Fair (Σ log)", "goodput-argmax": "Goodput argmax"}
"""Policies that the paper does not have."""


@dataclass(frozen=True)
class Case:
    """One realisation of one point. The fields after `index` are those of `cell.scenario`."""

    pair: str
    assumed: Assumptions
    seed: int
    index: int
    blocks: int
    schemes: tuple[str, ...] = tuple(SCHEMES)
    devices: int = DEVICES
    bandwidth_hz: float = BANDWIDTH_HZ
    bits_per_token: float | None = None
    coupled: bool = False


@dataclass(frozen=True)
class CaseResult:
    """What a case measured, by scheme.

    Args:
        goodput: mean of τ over the blocks [tokens/s].
        jain: Jain's index (Σx)²/(K Σx²) of the devices' mean tokens/s, 1 when all get the same.
    """

    goodput: Mapping[str, float]
    jain: Mapping[str, float]


def plan_case(case: Case) -> CaseResult:
    """Plan every block of a realisation under every scheme of the case. A pure function of the case."""
    drawn = realise(case.seed, case.index, case.blocks)
    rates = {scheme: np.zeros((case.blocks, case.devices)) for scheme in case.schemes}
    for block in range(case.blocks):
        seen = scenario(
            PAIRS[case.pair],
            case.assumed,
            drawn,
            block,
            devices=case.devices,
            bandwidth_hz=case.bandwidth_hz,
            bits_per_token=case.bits_per_token,
            coupled=case.coupled,
        )
        for scheme in case.schemes:
            rates[scheme][block] = _device_rates(seen, scheme)
    per_device = {scheme: rate.mean(axis=0) for scheme, rate in rates.items()}
    return CaseResult(
        goodput={scheme: float(rate.sum()) for scheme, rate in per_device.items()},
        jain={s: float(rate.sum() ** 2 / (rate.size * (rate**2).sum())) for s, rate in per_device.items()},
    )


def plan_cases(
    cases: Iterable[Case], processes: int, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> dict[Case, CaseResult]:
    """Measure each distinct case once, on that many processes; `progress` hears of (done, all)."""
    unique = list(dict.fromkeys(cases))
    if processes == 1:
        found = {}
        for case in unique:
            found[case] = plan_case(case)
            progress(len(found), len(unique))
        return found
    with ProcessPoolExecutor(processes) as pool:
        running = {pool.submit(plan_case, case): case for case in unique}
        for done, _future in enumerate(as_completed(running), start=1):
            progress(done, len(unique))
    return {case: future.result() for future, case in running.items()}


def _device_rates(seen: Scenario, scheme: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if scheme == "p2p":
        return _served_alone(seen)
    made = plan(seen, scheme, relative_gap=1e-4)
    return _tokens(made) / made.round_s


def _served_alone(seen: Scenario) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """P2P-SPIN with a device drawn at random: the paper does not say which one is served.

    Each device is served 1/K of the time, in rounds of its own with the whole band. `control`'s own choice, the best
    device of the moment, would be faster and would serve nobody else.
    """
    alone: Sequence[Plan] = [plan(replace(seen, devices=(device,)), "p2p") for device in seen.devices]
    return np.array([made.goodput_tokens_per_s for made in alone]) / len(alone)


def _tokens(made: Plan) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([device.expected_tokens for device in made.devices])
