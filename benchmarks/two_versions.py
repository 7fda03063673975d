"""Processor time of this version beside an older one's, in turn, as ratios within one run.

    git worktree add ../older 3762bdc
    OMP_NUM_THREADS=1 python benchmarks/two_versions.py ../older

Each version has a process of its own, which does each piece of work when it is told to; they take turns in going first.
The pieces use what both versions have: 3762bdc is the last one before the rooms of docs/architecture.md.
"""

import argparse
import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

WORKS = (
    *("plan heterogeneous 20 10 5", "plan homogeneous 20 10 5", "plan fair 20 10 5", "plan heterogeneous 100 3 3"),
    *("plan heterogeneous 1000 2 1", "plan heterogeneous 10000 1 1", "plan algorithm1 20 1 1"),
    *("simulate knows 0.02 100", "simulate learns 0.02 60", "simulate learns 0 5"),
    *("draw 49152 1", "draw 49152 0.95", "draw 151665 1", "draw 151665 0.95"),
    *("verify 5,5,5,5,5,5,5,5 0", "verify 17,1,1,1 0", "verify 1,1,1,1,1,1,1,1 0", "verify 5,5,5,5,5,5,5,5 0.8"),
)
HERE = Path(__file__).resolve().parents[1]


def plans(policy: str, size: str, seeds: str, times: str) -> Callable[[], object]:
    """Plans by a policy for SIZE phones of the paper, of SEEDS sites, TIMES times."""
    from multispin.control import Cell, Device, Scenario, Verification, plan

    def site(seed: int) -> Scenario:
        draw, count = np.random.default_rng(seed), int(size)
        rates = draw.choice([0.8582, 0.7390, 0.7393, 0.7126], count)
        speeds = 0.008 * draw.uniform(0.85, 1.15, count)
        efficiency = np.log2(1 + 10**2.4 * draw.exponential(draw.uniform(0.2, 0.5, count)))
        values = zip(speeds.tolist(), efficiency.tolist(), rates.tolist(), strict=True)
        devices = tuple(Device(f"phone-{k}", *each) for k, each in enumerate(values))
        return Scenario(Cell(0.5e6 * count, 31744), Verification(0.02268, 0.01272 * min(1, 20 / count)), devices)

    sites = [site(seed) for seed in range(int(seeds))] * int(times)
    return lambda: [plan(each, policy) for each in sites]


def rounds(knows: str, tolerance: str, count: str) -> Callable[[], object]:
    """Rounds of a thousand phones under a virtual clock."""
    from multispin.simulation.setup import ScenarioFile
    from multispin.simulation.site import Site
    from multispin.simulation.study import quiet_collector

    setup = ScenarioFile(HERE / "examples" / "scenarios" / "thousand-phones.toml").setup({"devices": 1000})

    def work() -> None:
        site = Site(setup, "heterogeneous", 1, knows == "knows", float(tolerance))
        with quiet_collector():
            site.run(int(count))

    return work


def draws(vocabulary: str, top_p: str) -> Callable[[], object]:
    """Eight tokens, ten times, each from logits of its own."""
    import torch

    from multispin.speculation import SamplingParams, draw

    logits = torch.randn(8, int(vocabulary), generator=torch.Generator().manual_seed(0)) * 2
    logits[:, :20] += torch.linspace(14, 6, 20)
    params = SamplingParams(0.8, top_p=float(top_p), seed=7)
    return lambda: [draw(logits, range(8 * turn, 8 * turn + 8), params) for turn in range(10)]


def verifications(lengths: str, temperature: str) -> Callable[[], object]:
    """Two passes of the embedded target in float32 over drafts of these lengths, after 100 tokens each."""
    from multispin.models import Verifier, load_model

    try:
        from multispin.speculation import Feed
    except ImportError:
        from multispin.models import Feed
    from multispin.speculation import SamplingParams

    verifier = Verifier(load_model("embedded", "float32"), slots=8, max_length=256)
    slots, draw = [verifier.open() for _ in range(8)], random.Random(1)
    verifier.verify([Feed(slot, 0, [draw.randrange(1000, 40_000) for _ in range(100)], None) for slot in slots])
    params = SamplingParams(float(temperature), seed=3)
    feeds = [
        Feed(slot, 100, list(range(2000, 2000 + int(length))), params)
        for slot, length in zip(slots, lengths.split(","), strict=False)
    ]
    return lambda: [verifier.verify(feeds) for _ in range(2)]


KINDS = {"plan": plans, "simulate": rounds, "draw": draws, "verify": verifications}


def work_off() -> None:
    """Do the pieces that standard input names, and print the seconds of processor that each took."""
    made: tuple[str, Callable[[], object]] | None = None
    for line in sys.stdin:
        if made is None or made[0] != line:
            kind, *arguments = line.split()
            made = line, KINDS[kind](*arguments)
            made[1]()  # warm
        gc.collect()
        began = time.process_time()
        made[1]()
        print(time.process_time() - began, flush=True)


class Version:
    """A process with one version of the package."""

    def __init__(self, root: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root / "src")}
        command = [sys.executable, __file__, "--work-off", str(root)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def seconds(self, work: str) -> float:
        self._process.stdin.write(work + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", type=Path, help="the older version's working tree")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--works", nargs="+", default=WORKS, metavar="WORK", help="such as 'plan fair 20 10 5'")
    parser.add_argument("--work-off", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work_off:
        return work_off()
    older, newer = Version(options.older.resolve()), Version(HERE)
    print(f"{'':38}{'older':>10}{'newer':>12}  newer / older: median (range)")
    for work in options.works:
        pairs = []
        for turn in range(options.turns):
            if turn % 2:
                pairs.append((older.seconds(work), newer.seconds(work)))
            else:
                pairs.append((newer.seconds(work), older.seconds(work))[::-1])
        old, new = (1e3 * statistics.median(each) for each in zip(*pairs, strict=True))
        ratios = sorted(after / before for before, after in pairs)
        range_ = f"({ratios[0]:.2f} … {ratios[-1]:.2f})"
        print(f"{work:36}{old:9.1f} ms{new:9.1f} ms  {statistics.median(ratios):.2f} {range_}", flush=True)
    return None


if __name__ == "__main__":
    main()
