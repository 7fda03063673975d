"""What can one device that lies, stalls, falls silent or goes bad cost the others?

    OMP_NUM_THREADS=1 python benchmarks/bench_liars.py [MODE ...] [--draws 1] [--rows lies changes]

*Lies* are told from the beginning; the others' tokens are counted from the time of the 20th pass on. *Changes* come at
the time of the 20th pass, and tokens are counted from twice that time on. `live_liars.py` does it with real processes.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from five_phones import BEHAVIOUR, LONG_PASS, PAPER, SMALL_TARGET
from multispin.control import Scenario
from multispin.simulation.liars import LIES
from multispin.simulation.setup import Setup
from multispin.simulation.site import Site

SITES = {"paper": PAPER, "small target": SMALL_TARGET, "long pass": LONG_PASS}
WAYS = [
    ("plain", "heterogeneous"),
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


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the last device.

    Attributes:
        lie: one of `LIES`, from the beginning; None for none.
        first: what it is like at first, beside what the site says.
        then: what it is like from the 20th pass on, beside what the site says; None if it stays.
        every_s: for how long it stays like either in turn [s]; None: it changes once.

    """

    lie: str | None = None
    first: Mapping[str, float] = field(default_factory=dict)
    then: Mapping[str, float] | None = None
    every_s: float | None = None


WRONG, SLOW, DEAD, FROZEN = (
    {"acceptance_rate": 0.0},
    {"seconds_per_token": 1.0},
    {"spectral_efficiency": 1e-6},
    {"seconds_per_token": 1e6},
)
CHANGES = {
    "is never right any more": Trouble(then=WRONG),
    "is 100 times slower": Trouble(then=SLOW),
    "freezes": Trouble(then=FROZEN),
    "its link dies": Trouble(then=DEAD),
    "warms up: 100 times slower at first": Trouble(first=SLOW, then={}),
    "claims to be 100 times faster, then is never right": Trouble("claims to be 100 times faster", then=WRONG),
    "claims to be 100 times faster, and its link dies": Trouble("claims to be 100 times faster", then=DEAD),
    "warms up, and is never right": Trouble(first=SLOW, then=WRONG),
    "is never right and right, 5 s each": Trouble(first=WRONG, then={}, every_s=5.0),
}
"""Troubles that begin or end in the middle, and some at once."""


def honest_tokens_per_s(
    scenario: Scenario, mode: str, policy: str, trouble: Trouble, times_s: tuple[float, float], seed: int
) -> tuple[float, int]:
    """Tokens per second of all devices but the last, and how many of them the edge sent away.

    Args:
        scenario: the site.
        mode: who drafts.
        policy: how rounds are planned.
        trouble: what is wrong with the last device.
        times_s: when it changes, and from when on tokens are counted [s].
        seed: of the draws.

    """
    place, good = len(scenario.devices) - 1, scenario.devices[-1]
    there = replace(scenario, devices=(*scenario.devices[:-1], replace(good, **trouble.first)))
    lies = {} if trouble.lie is None else {place: trouble.lie}
    site = Site(Setup(there, BEHAVIOUR), policy, seed, mode=mode, lies=lies)

    def change(what: Mapping[str, float], other: Mapping[str, float]) -> None:
        site.devices[place].becomes(replace(good, **what))
        if trouble.every_s is not None:
            site.queue.at(site.queue.now_s + trouble.every_s, lambda: change(other, what))

    if trouble.then is not None:
        then = trouble.then
        site.queue.at(times_s[0], lambda: change(then, trouble.first))
    while site.queue.now_s < times_s[1] and site.queue.step():
        pass
    honest = site.devices[:place]
    numbers, before = [device.number for device in honest], [device.record.tokens for device in honest]
    while site.queue.now_s < times_s[1] + WATCHED_S and site.queue.step():
        pass
    made = sum(device.record.tokens - tokens for device, tokens in zip(honest, before, strict=True))
    return made / WATCHED_S, sum(d.number != number for d, number in zip(honest, numbers, strict=True))


def column(scenario: Scenario, mode: str, policy: str, rows: Sequence[str], draws: int) -> dict[str, str]:
    """The others' tokens per second beside each kind of device, in percent of those beside an honest one."""
    first = Site(Setup(scenario, BEHAVIOUR), policy, 1, mode=mode)
    first.run(PASSES)
    passes_s = first.queue.now_s

    def made(site: Scenario, trouble: Trouble, times_s: tuple[float, float]) -> tuple[float, int]:
        found = [honest_tokens_per_s(site, mode, policy, trouble, times_s, seed) for seed in range(1, draws + 1)]
        return sum(rate for rate, _ in found) / draws, sum(away for _, away in found)

    cells = {}
    kinds = {"lies": ({lie: Trouble(lie) for lie in LIES}, 1.0), "changes": (CHANGES, 2.0)}
    alone = replace(scenario, devices=(*scenario.devices[:-1], replace(scenario.devices[-1], max_draft_length=0)))
    for row in rows:
        troubles, begins = kinds[row]
        times_s = passes_s, begins * passes_s
        base, _ = made(scenario, Trouble(), times_s)
        cells[f"{row}: tokens/s beside an honest device"] = f"{base:.0f}"
        cells[f"{row}: without a drafter"] = f"{100 * made(alone, Trouble(), times_s)[0] / base:.0f}"
        for name, trouble in troubles.items():
            rate, away = made(scenario, trouble, times_s)
            cells[name] = f"{100 * rate / base:.0f}" + f" ({away} away)" * bool(away)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", help="default: all")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--rows", nargs="+", choices=["lies", "changes"], default=["lies", "changes"])
    options = parser.parse_args()
    ways = [way for way in WAYS if not options.modes or way[0] in options.modes]
    for name, scenario in SITES.items():
        decoding, _ = honest_tokens_per_s(scenario, "plain", "heterogeneous", Trouble(), (0.0, 0.0), 1)
        print(f"{name}: honest tokens/s, of what they have beside an honest device [%]; plain decoding {decoding:.0f}")
        columns = [column(scenario, mode, policy, options.rows, options.draws) for mode, policy in ways]
        print(f"{'':52}" + "".join(f"{mode + ' ' + policy[:6]:>16}" for mode, policy in ways))
        for row in columns[0]:
            print(f"{row:52}" + "".join(f"{cells[row]:>16}" for cells in columns), flush=True)


if __name__ == "__main__":
    main()
