"""What can one device that lies, stalls or falls silent cost the others?

OMP_NUM_THREADS=1 python benchmarks/bench_liars.py [MODE ...]
"""

import sys
from dataclasses import replace

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.simulation.liars import LIES
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site

CELL = Cell(bandwidth_hz=5e5, bits_per_token=16, max_draft_length=12, min_draft_length=0)
DEVICES = tuple(Device(f"d{k}", 0.006 + 0.001 * k, 3.0 + 0.2 * k, 0.8 - 0.02 * k, delay_s=0.003) for k in range(5))
SITES = {
    "paper": Scenario(CELL, Verification(0.0227, 0.0127), DEVICES),
    "small target": Scenario(CELL, Verification(0.03, 0.002, 0.001), DEVICES, EdgeDrafter(0.004, 0.0004, 0.5)),
    "long pass": Scenario(CELL, Verification(0.15, 0.002, 0.0005), DEVICES),
}
BEHAVIOUR = Behaviour(frame_bits=176)
WAYS = [
    ("rounds", "heterogeneous"),
    ("rounds", "fair"),
    ("rounds", "fixed"),
    ("mixture", "heterogeneous"),
    ("streams", "heterogeneous"),
    ("auto", "heterogeneous"),
]
PASSES = 20
"""After so many passes of the honest site one looks …"""
WATCHED_S = 40.0
"""… for so long [s]."""


def honest_tokens_per_s(
    scenario: Scenario, mode: str, policy: str, lie: str | None, begin_s: float
) -> tuple[float, int]:
    """Tokens per second of all devices but the last, and how many of them the edge sent away."""
    place = len(scenario.devices) - 1
    site = Site(Setup(scenario, BEHAVIOUR), policy, 1, mode=mode, lies={} if lie is None else {place: lie})
    while site.queue.now_s < begin_s and site.queue.step():
        pass
    honest = site.devices[:place]
    numbers, before = [device.number for device in honest], [device.record.tokens for device in honest]
    while site.queue.now_s < begin_s + WATCHED_S and site.queue.step():
        pass
    made = sum(device.record.tokens - tokens for device, tokens in zip(honest, before, strict=True))
    return made / WATCHED_S, sum(d.number != number for d, number in zip(honest, numbers, strict=True))


def main(ways: list[tuple[str, str]]) -> None:
    for name, scenario in SITES.items():
        decoding, _ = honest_tokens_per_s(scenario, "plain", "heterogeneous", None, 0.0)
        print(f"{name}: honest tokens/s, of what they have beside an honest device [%]; plain decoding {decoding:.0f}")
        shares = []
        for mode, policy in ways:
            first = Site(Setup(scenario, BEHAVIOUR), policy, 1, mode=mode)
            first.run(PASSES)
            begin_s = first.queue.now_s
            base, _ = honest_tokens_per_s(scenario, mode, policy, None, begin_s)
            alone = replace(
                scenario, devices=(*scenario.devices[:-1], replace(scenario.devices[-1], max_draft_length=0))
            )
            plain, _ = honest_tokens_per_s(alone, mode, policy, None, begin_s)
            found = [honest_tokens_per_s(scenario, mode, policy, lie, begin_s) for lie in LIES]
            shares.append(
                [
                    f"{base:.0f}",
                    f"{100 * plain / base:.0f}",
                    *(f"{100 * rate / base:.0f}" + f" ({away} away)" * bool(away) for rate, away in found),
                ]
            )
        print(f"{'':34}" + "".join(f"{mode + ' ' + policy[:6]:>16}" for mode, policy in ways))
        for row, cells in zip(
            ["tokens/s beside an honest device", "without a drafter", *LIES], zip(*shares, strict=True), strict=True
        ):
            print(f"{row:34}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    wanted = sys.argv[1:]
    main([way for way in WAYS if not wanted or way[0] in wanted])
