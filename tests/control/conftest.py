"""Random scenarios for tests, and the answer of brute force, handed to tests as fixtures that are functions."""

import itertools

import numpy as np
import pytest
from scipy.optimize import brentq

from multispin.control import Cell, Device, Scenario, Verification
from multispin.control.goodput import Ints
from multispin.control.problem import Problem, as_problem


def _draw(random: np.random.Generator, size: int, longest: int = 25, *, minimum: bool = False) -> Scenario:
    """A scenario with any of the extensions: profiles, weights, limits, packed or padded cost per token."""
    devices = []
    for k in range(size):
        extra: dict[str, object] = {}
        if random.random() < 0.3:
            profile = np.clip(random.uniform(0, 1.05, random.integers(1, 5)), 0, 1)
            extra["acceptance_profile"] = tuple(profile.tolist())
        else:
            extra["acceptance_rate"] = float(np.clip(random.uniform(-0.05, 1.05), 0, 1))
        if random.random() < 0.3:
            extra["weight"] = float(random.uniform(0.1, 5))
        if random.random() < 0.15:
            extra["max_draft_length"] = 0
        if random.random() < 0.2:
            extra["bits_per_token"] = float(random.uniform(20, 50_000))
        if minimum and random.random() < 0.3:
            extra["min_goodput_tokens_per_s"] = float(random.uniform(0.1, 6))
        devices.append(
            Device(f"d{k}", float(10 ** random.uniform(-3, -1)), float(10 ** random.uniform(-0.5, 1)), **extra)  # type: ignore[arg-type]
        )
    return Scenario(
        Cell(float(10 ** random.uniform(5.5, 7.5)), 31744, longest, int(random.integers(0, 2))),
        Verification(
            float(10 ** random.uniform(-2.5, -1)),
            float(10 ** random.uniform(-3, -1.5)),
            float(random.choice([0.0, 10 ** random.uniform(-4, -2)])),
            bool(random.random() < 0.4),
        ),
        tuple(devices),
    )


def _paper_scenario(seed: int, size: int = 20, bandwidth_hz: float = 10e6, **cell: int) -> Scenario:
    """The paper's Llama pair: acceptance rates of Table I, Fig. 5's latency, Rayleigh fading at 24 dB."""
    random = np.random.default_rng(seed)
    rates = random.choice([0.8582, 0.7390, 0.7393, 0.7126], size)
    speeds = 0.008 * random.uniform(0.85, 1.15, size)
    gains = random.exponential(random.uniform(0.2, 0.5, size))
    efficiency = np.log2(1 + 10**2.4 * gains)
    return Scenario(
        Cell(bandwidth_hz, 31744, **cell),
        Verification(0.02268, 0.01272),
        tuple(Device(f"phone-{k}", float(speeds[k]), float(efficiency[k]), float(rates[k])) for k in range(size)),
    )


def _all_lengths(problem: Problem) -> Ints:
    """Every choice of lengths, [N, K]."""
    ranges = [range(low, high + 1) for low, high in zip(problem.shortest, problem.longest, strict=True)]
    return np.array(list(itertools.product(*ranges)), dtype=np.int64)


def _brute_force(scenario: Scenario, *, fair: bool = False) -> float:
    """Best weighted sum goodput, or Σ w log goodput, over all lengths; −inf if none meets the least goodputs.

    Written from the paper's formulas with scipy's root finder, so that it shares no code with the solver but the
    token table.
    """
    problem = as_problem(scenario)
    best = -np.inf
    for lengths in _all_lengths(problem):
        busy = lengths * problem.seconds_per_token
        upload = lengths * problem.upload_s
        phi = 0.0
        if lengths.any():
            low = busy.max()
            on = lengths > 0

            def spare(x: float, low: float = low, busy: object = busy[on], upload: object = upload[on]) -> float:
                return float((upload / (x + low - busy)).sum()) - 1.0  # type: ignore[operator]

            phi = low + brentq(spare, 1e-3 * upload[on].min() / len(lengths), 2 * upload.sum(), xtol=1e-18, rtol=1e-15)
        verifier = scenario.verifier
        tokens = len(lengths) * (max(lengths) + 1) if verifier.padded else sum(lengths) + len(lengths)
        time = phi + verifier.fixed_s + len(lengths) * verifier.per_device_s + tokens * verifier.per_token_s
        expected = np.array([problem.tokens[length, k] for k, length in enumerate(lengths)])
        if (expected < problem.minimum_goodput * time * (1 - 1e-12)).any():
            continue
        score = (problem.weight * np.log(expected / time)).sum() if fair else (problem.weight @ expected) / time
        best = max(best, float(score))
    return best


@pytest.fixture(scope="session")
def draw():
    return _draw


@pytest.fixture(scope="session")
def paper_scenario():
    return _paper_scenario


@pytest.fixture(scope="session")
def brute_force():
    return _brute_force


@pytest.fixture(scope="session")
def all_lengths():
    return _all_lengths
