"""Streams: what does the floor of a user whose device is of no use cost the others?

    OMP_NUM_THREADS=1 python benchmarks/bench_floor.py [--draws 4] [--floors 0.95 0.9 0.85 0]

The site is `LONG_PASS` of `five_phones.py`: passes of 0.15 s and more, and drafts of a few milliseconds. The fifth
device is honest, has no drafter, is never right, or is not there. Nobody is to have less than the floor, a share of
plain decoding of all (`LEAST_OF_PLAIN`). Everything is learned; counted are the 40 s after the first 20 passes.
"""

import argparse
from dataclasses import replace

import numpy as np

from five_phones import BEHAVIOUR, LONG_PASS
from multispin.control import Device
from multispin.control import streams as control_streams
from multispin.passes import flows
from multispin.simulation.setup import Setup
from multispin.simulation.site import Site

PASSES, WATCHED_S = 20, 40.0
*_OTHERS, _FIFTH = LONG_PASS.devices
KINDS = {
    "honest": [_FIFTH],
    "has no drafter": [replace(_FIFTH, max_draft_length=0)],
    "is never right": [replace(_FIFTH, acceptance_rate=0.0)],
    "is not there": [],
}


def one(fifth: list[Device], seed: int) -> tuple[float, float, float]:
    """Tokens/s of the four others, of the fifth over plain decoding of all, and the time from pass to pass [s]."""
    scenario = replace(LONG_PASS, devices=(*_OTHERS, *fifth))
    site = Site(Setup(scenario, BEHAVIOUR), "heterogeneous", seed, mode="streams")
    site.run(PASSES)
    end_s, before, passes = site.queue.now_s + WATCHED_S, [d.record.tokens for d in site.devices], site.rounds
    while site.queue.now_s < end_s and site.queue.step():
        pass
    rates = [(d.record.tokens - tokens) / WATCHED_S for d, tokens in zip(site.devices, before, strict=True)]
    plain_s = scenario.verifier.verify_s([0] * len(scenario.devices))
    return sum(rates[:4]), sum(rates[4:]) * plain_s, WATCHED_S / (site.rounds - passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--floors", type=float, nargs="+", default=[0.95, 0.9, 0.85, 0.0])
    options = parser.parse_args()
    for floor in options.floors:
        control_streams.LEAST_OF_PLAIN = flows.LEAST_OF_PLAIN = floor
        honest = 0.0
        for kind, fifth in KINDS.items():
            others, share, period_s = np.mean([one(fifth, seed) for seed in range(1, options.draws + 1)], axis=0)
            honest = honest or others
            print(
                f"floor {floor:4.2f}, the fifth {kind:15}: the others {others:5.1f} tokens/s "
                f"({100 * others / honest:5.1f} %), the fifth {share:4.2f} of plain decoding, "
                f"a pass every {1e3 * period_s:3.0f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
