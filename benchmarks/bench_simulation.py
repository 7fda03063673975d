"""How long does a simulated site take, and how much memory?

`python benchmarks/bench_simulation.py [--rounds 1000] [--devices 1000]`: the scenario of a thousand phones, acceptance
i.i.d., with a controller that knows the truth and one that learns; processor time per round and per device, the part
of planning from scratch, and the memory that a run of half and of full length adds.
"""

import argparse
import resource
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from multispin.passes.planning import Planning
from multispin.simulation.setup import ScenarioFile
from multispin.simulation.site import Site
from multispin.simulation.study import SimulatedRun, quiet_collector

PHONES = Path(__file__).resolve().parent.parent / "examples" / "scenarios" / "thousand-phones.toml"


def time_rounds(devices: int, rounds: int, knows: bool, tolerance: float) -> tuple[float, float, float, int, float]:
    """Processor and wall time [s], simulated time [s], plans from scratch, and added peak memory [MiB] of one run."""
    job = SimulatedRun(ScenarioFile(PHONES).setup({"devices": devices}), "heterogeneous", 1, rounds, knows, tolerance)
    plans = 0

    def counted(*arguments, **options):
        nonlocal plans
        plans += 1
        return from_scratch(*arguments, **options)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    site = Site(job.setup, job.policy, job.seed, job.knows, job.replan_tolerance)
    from_scratch, Planning.from_scratch = Planning.from_scratch, counted  # of this process, which ends after the run
    wall, processor = time.perf_counter(), time.process_time()
    with quiet_collector():
        site.run(rounds)
    spent = time.process_time() - processor, time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return *spent, site.queue.now_s, plans, (after - before) / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=1000)
    options = parser.parse_args()
    print(f"{options.devices} devices, heterogeneous")
    print("controller  tolerance   rounds   processor     wall   per round  per device  from scratch  memory added")
    for knows, tolerance, rounds in (
        (True, 0.02, options.rounds // 2),
        (True, 0.02, options.rounds),
        (False, 0.02, options.rounds),
        (False, 0.0, max(1, options.rounds // 20)),
    ):
        # A process of its own, so that the peak of memory is this run's.
        with get_context("spawn").Pool(1) as pool:
            processor, wall, _, plans, memory = pool.apply(time_rounds, (options.devices, rounds, knows, tolerance))
        print(
            f"{'knows' if knows else 'learns':10}  {tolerance:9}  {rounds:7}  {processor:8.1f} s  {wall:5.1f} s  "
            f"{1e3 * processor / rounds:7.1f} ms  {1e6 * processor / rounds / options.devices:7.1f} µs  {plans:12}  "
            f"{memory:8.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
