"""One realisation of one setting of the paper's cell, planned under several schemes; and many of them over processes.

The goodput of a round is the analytic τ of eq. 26 for the plan that `control.plan` makes. The goodput of a realisation
is the mean over its fading blocks. Every scheme sees the same realisations.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from multispin.control import Scenario, decide, plan
from multispin.paper.cell import BANDWIDTH_HZ, DEVICES, PAIRS, Assumptions, realise, scenario
from multispin.paper.schemes import COMPARED, EDGE_ALONE
from multispin.simulation.workers import workers

_RELATIVE_GAP = 1e-4
"""How far the exact planner's proven bound may lie above its plan."""


@dataclass(frozen=True)
class Setting:
    """One point on a figure's horizontal axis.

    Args:
        pair: key of the models in `cell.PAIRS`.
        devices: K, number of devices.
        bandwidth_hz: B, shared band [Hz].
        schemes: schemes to plan with.
        bits_per_token: payload per drafted token [bit]; None is the paper's Q_tok.
        coupled: whether only ids are sent, under shared noise (see `cell.scenario`).
    """

    pair: str
    devices: int = DEVICES
    bandwidth_hz: float = BANDWIDTH_HZ
    schemes: tuple[str, ...] = tuple(COMPARED)
    bits_per_token: float | None = None
    coupled: bool = False


@dataclass(frozen=True)
class Trial:
    """One realisation of one setting: everything that its result depends on.

    Args:
        setting: the point on the figure.
        assumed: assumptions for what the paper leaves open.
        seed: seed of the draws.
        index: which realisation of this seed.
        blocks: number of fading blocks.
    """

    setting: Setting
    assumed: Assumptions
    seed: int
    index: int
    blocks: int


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial, by scheme.

    Args:
        goodput: mean of τ over the blocks [tokens/s].
        jain: Jain's index (Σx)²/(K Σx²) of the devices' mean tokens/s; 1 when all get the same.
    """

    goodput: Mapping[str, float]
    jain: Mapping[str, float]


def run_trial(trial: Trial) -> TrialResult:
    """Plan every fading block under every scheme of the setting. A pure function of the trial."""
    setting = trial.setting
    drawn = realise(trial.seed, trial.index, trial.blocks)
    rates = {scheme: np.zeros((trial.blocks, setting.devices)) for scheme in setting.schemes}
    for block in range(trial.blocks):
        seen = scenario(
            PAIRS[setting.pair],
            trial.assumed,
            drawn,
            block,
            devices=setting.devices,
            bandwidth_hz=setting.bandwidth_hz,
            bits_per_token=setting.bits_per_token,
            coupled=setting.coupled,
        )
        for scheme in setting.schemes:
            rates[scheme][block] = _device_rates(seen, scheme)
    per_device = {scheme: rate.mean(axis=0) for scheme, rate in rates.items()}
    return TrialResult(
        goodput={scheme: float(rate.sum()) for scheme, rate in per_device.items()},
        jain={s: float(rate.sum() ** 2 / (rate.size * (rate**2).sum())) for s, rate in per_device.items()},
    )


def run_trials(
    trials: Iterable[Trial], processes: int, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> dict[Trial, TrialResult]:
    """Run each distinct trial once.

    Args:
        trials: the trials, in any order; equal ones are run once.
        processes: number of processes to run on.
        progress: function of (trials done, all trials); default nothing.
    """
    unique = list(dict.fromkeys(trials))
    found: dict[Trial, TrialResult] = {}
    with ExitStack() as stack:
        results: Iterable[TrialResult] = map(run_trial, unique)
        if processes > 1:
            pool = stack.enter_context(workers(processes))
            results = pool.map(run_trial, unique, chunksize=min(32, max(1, len(unique) // (8 * processes))))
        for trial, result in zip(unique, results, strict=True):
            found[trial] = result
            progress(len(found), len(unique))
    return found


def _device_rates(seen: Scenario, scheme: str) -> NDArray[np.float64]:
    """Tokens per second of each device in one round, [K]."""
    if scheme == "p2p":
        return _served_alone(seen)
    if scheme in EDGE_ALONE:
        return edge_alone(seen, scheme)
    made = plan(seen, scheme, relative_gap=_RELATIVE_GAP)
    return np.array([device.expected_tokens for device in made.devices]) / made.round_s


def edge_alone(seen: Scenario, scheme: str) -> NDArray[np.float64]:
    """Tokens per second of each session when no device drafts, [K].

    Args:
        seen: scenario with an edge drafter.
        scheme: one of `EDGE_ALONE`.
    """
    decided = decide(seen, mode="plain" if scheme == "plain" else "edge")
    return np.array([session.tokens_per_s for session in decided.sessions])


def _served_alone(seen: Scenario) -> NDArray[np.float64]:
    """P2P-SPIN with a device drawn at random: the paper does not say which one is served.

    Each device is served 1/K of the time, in rounds of its own with the whole band. `control`'s own choice, the best
    device of the moment, would be faster and would serve nobody else.
    """
    alone = [plan(replace(seen, devices=(device,)), "p2p") for device in seen.devices]
    return np.array([made.goodput_tokens_per_s for made in alone]) / len(alone)
