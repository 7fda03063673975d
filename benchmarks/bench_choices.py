"""How good are the searches that prove nothing? Algorithm 1 beside the optimum, and the cost of deciding who drafts.

OMP_NUM_THREADS=1 python benchmarks/bench_choices.py
"""

import statistics
import sys
import time

import numpy as np

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification, decide, plan

DRAWS = 300


def varied(random: np.random.Generator) -> Scenario:
    """2 to 29 devices whose speeds differ by up to a hundred and links by up to thirty, with the paper's T_ver."""
    return Scenario(
        Cell(10 ** random.uniform(5.5, 7.5), 31744),
        Verification(10 ** random.uniform(-2.5, -0.5), 10 ** random.uniform(-4, -1.5)),
        tuple(
            Device(
                str(k), 10 ** random.uniform(-3, -1), 10 ** random.uniform(-0.5, 1), float(random.uniform(0.05, 0.98))
            )
            for k in range(int(random.integers(2, 30)))
        ),
    )


def wild(random: np.random.Generator) -> Scenario:
    """Speeds over four decades, links over three, any weights, drafts of 0 allowed in half of them."""
    return Scenario(
        Cell(10 ** random.uniform(4.5, 8), 31744, min_draft_length=int(random.integers(0, 2))),
        Verification(10 ** random.uniform(-3, 0), 10 ** random.uniform(-4, -1)),
        tuple(
            Device(
                str(k),
                10 ** random.uniform(-4, 0),
                10 ** random.uniform(-1.5, 1.3),
                float(random.uniform(0.01, 0.99)),
                weight=float(random.choice([1.0, random.uniform(0.1, 5)])),
            )
            for k in range(int(random.integers(2, 24)))
        ),
    )


def site(random: np.random.Generator, size: int) -> Scenario:
    """A site with an edge drafter, near and far devices."""
    return Scenario(
        Cell(2e6, 40, 16, 0),
        Verification(float(random.uniform(0.01, 0.1)), float(random.choice([0.0, 0.01])), 2e-4),
        tuple(
            Device(
                str(k),
                float(random.uniform(0.004, 0.03)),
                float(random.uniform(1, 6)),
                float(random.uniform(0.3, 0.9)),
                delay_s=float(random.choice([0.0, 0.003, 0.02])),
            )
            for k in range(size)
        ),
        EdgeDrafter(0.004, 0.0002, 0.6),
    )


def main() -> None:
    """Print both tables."""
    print(f"Algorithm 1 below the optimum, {DRAWS} draws each [%]")
    for make in (varied, wild):
        random, lost = np.random.default_rng(0), []
        for _ in range(DRAWS):
            scenario = make(random)
            best = plan(scenario, relative_gap=1e-6, max_effort=2e7).goodput_tokens_per_s
            lost.append(100 * (1 - plan(scenario, "algorithm1").goodput_tokens_per_s / best))
        print(
            f"  {make.__name__:7} mean {statistics.mean(lost):.3g}  95th percentile {np.quantile(lost, 0.95):.3g}  "
            f"most {max(lost):.3g}  more than 5 %: {sum(each > 5 for each in lost)}"
        )
    print("decide(), processor time, median of 12 sites [ms]: cold, and from the decision before")
    for size in (8, 20, 64, 200):
        cold, warm = [], []
        for seed in range(12):
            scenario = site(np.random.default_rng(seed), size)
            rounds = plan(scenario, relative_gap=0.01)
            begin = time.process_time()
            made = decide(scenario, rounds=rounds)
            cold.append(1e3 * (time.process_time() - begin))
            begin = time.process_time()
            decide(scenario, rounds=rounds, warm_start=made)
            warm.append(1e3 * (time.process_time() - begin))
        print(f"  {size:4} sessions: {statistics.median(cold):5.1f}  {statistics.median(warm):5.1f}")


if __name__ == "__main__":
    sys.exit(main())
