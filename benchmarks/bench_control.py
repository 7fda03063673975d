"""How long a plan takes, against Algorithm 1 on a 100 x 100 grid and a general solver on the relaxed problem.

`OMP_NUM_THREADS=1 python benchmarks/bench_control.py`. Times are medians of warm runs in one process; the ratios are
what to compare between machines.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

from multispin.control import Cell, Device, Plan, Scenario, Verification, plan
from multispin.control.exact.search import EXACT_SIZE
from multispin.control.goodput import expected_tokens
from multispin.control.problem import Problem, as_problem


def paper_scenario(size: int, seed: int) -> Scenario:
    """The paper's Llama pair with 0.5 MHz per device; beyond 20 devices the server grows with them."""
    random = np.random.default_rng(seed)
    rates = random.choice([0.8582, 0.7390, 0.7393, 0.7126], size)
    speeds = 0.008 * random.uniform(0.85, 1.15, size)
    efficiency = np.log2(1 + 10**2.4 * random.exponential(random.uniform(0.2, 0.5, size)))
    devices = tuple(Device(f"phone-{k}", float(speeds[k]), float(efficiency[k]), float(rates[k])) for k in range(size))
    return Scenario(Cell(0.5e6 * size, 31744), Verification(0.02268, 0.01272 * min(1, 20 / size)), devices)


def relaxed_by_slsqp(problem: Problem) -> float:
    """Goodput bound from scipy's SLSQP on P2 with real lengths: variables (L, B shares, phi)."""
    size = problem.size
    scale = float(problem.seconds_per_token.mean())

    def goodput(x: np.ndarray) -> float:
        tokens = expected_tokens(problem.acceptance_rate, x[:size]).sum()
        return -float(tokens) / (x[-1] * scale + problem.fixed_s) * scale

    def spare(x: np.ndarray) -> np.ndarray:
        length, share = x[:size], x[size:-1] / size
        return x[-1] - length * (problem.seconds_per_token + problem.upload_s / share) / scale

    start = np.concatenate([np.full(size, 5.0), np.ones(size), [12.0]])
    bounds = [(1, 25)] * size + [(1e-3, size)] * size + [(1, 1000)]
    found = minimize(
        goodput,
        start,
        method="SLSQP",
        bounds=bounds,
        constraints=[
            {"type": "ineq", "fun": spare},
            {"type": "ineq", "fun": lambda x: size - x[size:-1].sum()},
        ],
        options={"maxiter": 300, "ftol": 1e-9},
    )
    return -float(found.fun) / scale


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of warm runs [ms]."""
    work()
    gc.collect()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def spread_ms(scenarios: list[Scenario], make: Callable[[Scenario], object], repeats: int) -> float:
    """Median over scenarios of each one's median [ms]."""
    return statistics.median(median_ms(lambda s=scenario: make(s), repeats) for scenario in scenarios)  # type: ignore[misc]


def row(what: str, value_ms: float, reference_ms: float, note: str = "") -> None:
    print(f"  {what:<46}{value_ms:>12.2f} ms{value_ms / reference_ms:>10.2f} x   {note}")


def gap(made: Plan) -> str:
    assert made.upper_bound_tokens_per_s is not None
    return f"bound {made.upper_bound_tokens_per_s / made.goodput_tokens_per_s - 1:.1e} above the answer"


def main() -> None:
    """Print all tables."""
    for size, seeds, repeats in ((20, 15, 20), (100, 5, 10), (1_000, 3, 5), (10_000, 1, 3)):
        scenarios = [paper_scenario(size, seed) for seed in range(seeds)]
        first = scenarios[0]
        print(f"K = {size}")
        reference = spread_ms(scenarios, plan, repeats)
        made = plan(first)
        row("heterogeneous, as by default", reference, reference, gap(made))
        before = {id(s): plan(paper_scenario(size, seed)) for seed, s in enumerate(scenarios)}
        warm = spread_ms(scenarios, lambda s, b=before: plan(s, warm_start=b[id(s)]), repeats)  # type: ignore[misc]
        row("heterogeneous, from the previous plan", warm, reference)
        for asked in () if size <= EXACT_SIZE else (1e-6,):
            value = spread_ms(scenarios, lambda s, g=asked: plan(s, relative_gap=g), max(3, repeats // 2))  # type: ignore[misc]
            row(f"heterogeneous, gap {asked:g}", value, reference, gap(plan(first, relative_gap=asked)))
        row("homogeneous", spread_ms(scenarios, lambda s: plan(s, "homogeneous"), repeats), reference)
        row("fair", spread_ms(scenarios, lambda s: plan(s, "fair"), repeats), reference)
        if size <= 1_000:
            value = spread_ms(scenarios[:2], lambda s: plan(s, "algorithm1"), 1)
            lost = (
                1 - plan(first, "algorithm1").goodput_tokens_per_s / plan(first, relative_gap=1e-6).goodput_tokens_per_s
            )
            row("algorithm1, 100 x 100 grid", value, reference, f"{lost:.1e} below the optimum, nothing proven")
        if size <= 20:
            problem = as_problem(first)
            value = median_ms(lambda p=problem: relaxed_by_slsqp(p), 1)  # type: ignore[misc]
            above = relaxed_by_slsqp(problem) / plan(first, relative_gap=0).goodput_tokens_per_s - 1
            row(
                "scipy SLSQP on the relaxed problem",
                value,
                reference,
                f"{above:+.1e} to the optimum, not a proven bound",
            )
        tracemalloc.start()
        plan(first)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"  peak memory of a plan: {peak / 1e6:.1f} MB, {peak / size / 1e3:.1f} kB per device")


if __name__ == "__main__":
    main()
