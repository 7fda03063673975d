"""What does it cost to try drafters that are of no use?

    OMP_NUM_THREADS=1 python benchmarks/bench_trials.py [MODE ...]

Sites where no draft ever pays: every device and the edge's drafter are right with one token in fifty. So plain decoding
is the best choice, and what a mode makes less is the price of finding out, again and again: trials of devices and of
the edge's drafter, and passes without some riders. Passes 50 to 450 are counted. Everything is learned.
"""

import sys

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site

FROM, TO = 50, 450
USELESS = 0.02
VERIFIERS = {
    "50 ms": Verification(0.05, 0.0),
    "20 ms + 12 ms per session": Verification(0.02, 0.012),
    "20 ms + 2 ms per token": Verification(0.02, 0.0, 0.002),
    "8 ms + 0.1 ms per token": Verification(0.008, 0.0, 0.0001),
}
STEPS = {"none": 0.0, "a step of 1/20 of a pass": 0.05, "a step of 1/3 of a pass": 1 / 3}


def rate(scenario: Scenario, mode: str) -> float:
    """Tokens per second of a site between two of its passes."""
    site = Site(Setup(scenario, Behaviour(frame_bits=176)), "heterogeneous", 1, mode=mode)
    site.run(FROM)
    begin_s, before = site.queue.now_s, committed(site)
    site.run(TO)
    return (committed(site) - before) / (site.queue.now_s - begin_s)


def committed(site: Site) -> int:
    """Tokens of all texts."""
    return sum(len(each.request.committed) for each in site.passes.sessions.values() if each.request is not None)


def main() -> None:
    modes = sys.argv[1:] or ["auto", "mixture"]
    for count in (4, 20):
        devices = tuple(Device(f"d{k}", 0.01, 3.0, USELESS, delay_s=0.005) for k in range(count))
        for name, verifier in VERIFIERS.items():
            for step, share in STEPS.items():
                drafter = EdgeDrafter(share * verifier.fixed_s, 0.0, USELESS) if share else None
                scenario = Scenario(Cell(1e6, 16, 16, 0), verifier, devices, drafter)
                plain = rate(scenario, "plain")
                shown = "  ".join(f"{mode} {rate(scenario, mode) / plain:.3f}" for mode in modes)
                print(f"{count:2} devices, {name}, edge's drafter: {step}: of plain decoding  {shown}", flush=True)


if __name__ == "__main__":
    main()
