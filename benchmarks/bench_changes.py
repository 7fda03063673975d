"""A device that was of no use becomes useful: how soon does it draft again, and what did looking for it cost?

    OMP_NUM_THREADS=1 python benchmarks/bench_changes.py [--draws 4] [--modes rounds mixture auto]

One of five devices is of no use until the 100th pass: its tokens are never right, it drafts 150 times more slowly, or
its link is some thousand times worse; from the beginning, or from the 20th pass on. Then it is like the others, again.
Everything is learned.

*Found* is the time until 20 of its drafted tokens have been accepted [s], the mean and the longest of some draws.
*Cost* is what the site makes less than one where this device says that it has no drafter, from the 50th to the 100th
pass [%].
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace

from five_phones import BEHAVIOUR, LONG_PASS, PAPER, SMALL_TARGET
from multispin.control import Scenario
from multispin.simulation.setup import Setup
from multispin.simulation.site import Site

SITES = {"paper": PAPER, "an edge drafter": SMALL_TARGET, "long pass": LONG_PASS}
TROUBLES: Mapping[str, tuple[int, Mapping[str, float]]] = {
    "never right": (0, {"acceptance_rate": 0.0}),
    "slow": (0, {"seconds_per_token": 0.9}),
    "never right later": (20, {"acceptance_rate": 0.0}),
    "slow later": (20, {"seconds_per_token": 0.9}),
    "bad link later": (20, {"spectral_efficiency": 1e-3}),
}
"""From which pass on a device is of no use, and what it is like then."""
BEGIN, CHANGE = 50, 100
"""Passes after which costs are counted, and after which the device is useful."""
ENOUGH = 20
"""So many accepted tokens of it count as found."""
LONGEST_S = 300.0


def goodput(site: Site, passes: int) -> float:
    """Tokens per second of all devices, until so many passes have been made."""
    since_s, before = site.queue.now_s, sum(device.record.tokens for device in site.devices)
    site.run(passes)
    return (sum(device.record.tokens for device in site.devices) - before) / (site.queue.now_s - since_s)


def one(
    scenario: Scenario, mode: str, policy: str, since: int, trouble: Mapping[str, float], seed: int
) -> tuple[float, float]:
    """Time until it is found [s], and the share of goodput that looking for it takes."""
    good = scenario.devices[0]
    bad, rates = replace(good, **trouble), []
    for first in (replace(good, max_draft_length=0), good if since else bad):
        there = replace(scenario, devices=(first, *scenario.devices[1:]))
        site = Site(Setup(there, BEHAVIOUR), policy, seed, mode=mode)
        site.run(since)
        if first is good:
            site.devices[0].becomes(bad)
        site.run(BEGIN)
        rates.append(goodput(site, CHANGE))
    device = site.devices[0]
    device.becomes(good)
    begun_s, accepted = site.queue.now_s, device.record.accepted
    while device.record.accepted < accepted + ENOUGH and site.queue.now_s < begun_s + LONGEST_S:
        site.run(site.rounds + 1)
    return site.queue.now_s - begun_s, 1.0 - rates[1] / rates[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--modes", nargs="+", default=["rounds", "mixture", "auto"])
    parser.add_argument("--policy", default="heterogeneous")
    parser.add_argument("--sites", nargs="+", choices=SITES, default=[*SITES])
    parser.add_argument("--troubles", nargs="+", choices=TROUBLES, default=[*TROUBLES])
    options = parser.parse_args()
    for name in options.sites:
        print(f"{name}: found after [s], mean and longest; cost [%]")
        print(f"{'':18}" + "".join(f"{mode:>24}" for mode in options.modes))
        for trouble in options.troubles:
            (since, change), scenario, cells = TROUBLES[trouble], SITES[name], []
            for mode in options.modes:
                draws = range(1, options.draws + 1)
                found = [one(scenario, mode, options.policy, since, change, seed) for seed in draws]
                times, costs = zip(*found, strict=True)
                mean_s, cost = sum(times) / len(times), 100 * sum(costs) / len(costs)
                cells.append(f"{mean_s:9.1f} {max(times):6.1f} {cost:6.1f}")
            print(f"{trouble:18}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
