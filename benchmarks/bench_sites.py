"""On random sites that nobody chose: is `auto` ever slower than plain decoding or the edge's own drafter?

    OMP_NUM_THREADS=1 python benchmarks/bench_sites.py [--sites 30] [--seed 1] [--only N ...] [--modes MODE ...]

Each site is drawn: 1 to 40 devices, acceptance 0.05 to 0.95, drafting of 1 to 400 ms per token, round trips of 0 to
400 ms, a verification of 5 to 500 ms and more for each device and token, an edge drafter or none, and a band. Each mode
learns; it knows nothing beforehand. Tokens per second are counted after `PASSES` passes, for as long as `WATCHED` of
them, or `TOKENS` tokens, take in plain decoding. Acceptance is drawn from the same random numbers in all modes.
"""

import argparse
import random

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.control.who import decide
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site

PASSES, WATCHED, TOKENS = 50, 150, 1500
BAR = 0.97
"""Of the better of plain decoding and the edge's own drafter, `auto` has at least this share."""


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(low * (high / low) ** rng.random())


def drawn(seed: int, number: int) -> Scenario:
    """Site `number` of this seed."""
    rng = random.Random(f"{seed} {number}")
    count = rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 40])
    typical_s, delay_s = log_uniform(rng, 1e-3, 0.4), rng.choice([0.0, log_uniform(rng, 1e-3, 0.2)])
    devices = tuple(
        Device(
            f"d{k}",
            min(0.4, max(1e-3, typical_s * log_uniform(rng, 0.5, 2.0))),
            rng.uniform(1.0, 6.0),
            rng.uniform(0.05, 0.95),
            delay_s=delay_s * rng.uniform(0.5, 1.0),
        )
        for k in range(count)
    )
    fixed_s = log_uniform(rng, 5e-3, 0.5)
    verifier = Verification(fixed_s, fixed_s * rng.choice([0.0, 0.02, 0.5]), fixed_s * rng.choice([0.0, 0.002, 0.02]))
    drafter = None
    if rng.random() < 0.6:
        step_s = fixed_s * log_uniform(rng, 0.02, 0.5)
        drafter = EdgeDrafter(step_s, step_s * rng.choice([0.0, 0.01]), rng.uniform(0.2, 0.9))
    band_hz = log_uniform(rng, 2e3, 2e3 * 1000)
    cell = Cell(band_hz, 16, max_draft_length=rng.choice([8, 16]), min_draft_length=0)
    return Scenario(cell, verifier, devices, drafter)


def rate_of(scenario: Scenario, mode: str, seed: int) -> float:
    """Tokens per second after `PASSES` passes."""
    site = Site(Setup(scenario, Behaviour(frame_bits=176)), "heterogeneous", seed, mode=mode)
    site.run(PASSES)
    begin_s, before = site.queue.now_s, committed(site)
    watched = max(WATCHED, TOKENS // len(scenario.devices))
    end_s = begin_s + watched * scenario.verifier.verify_s([0] * len(scenario.devices))
    while site.queue.now_s < end_s and site.queue.step():
        pass
    return (committed(site) - before) / (site.queue.now_s - begin_s)


def committed(site: Site) -> int:
    """Tokens of all texts, as the edge knows them."""
    requests = [session.request for session in site.passes.sessions.values()]
    return sum(len(request.committed) for request in requests if request is not None)


def described(scenario: Scenario) -> str:
    """A site in a few numbers."""
    devices, verifier, drafter = scenario.devices, scenario.verifier, scenario.edge_drafter
    drafting = sorted(1e3 * device.seconds_per_token for device in devices)[len(devices) // 2]
    delay = sorted(2e3 * device.delay_s for device in devices)[len(devices) // 2]
    edge = "none" if drafter is None else f"{1e3 * drafter.fixed_s:.1f} ms at {drafter.acceptance_rate:.2f}"
    return (
        f"{len(devices):2} devices, {drafting:5.1f} ms, trip {delay:5.1f} ms, T_ver {1e3 * verifier.fixed_s:5.1f} + "
        f"{1e3 * verifier.per_device_s:5.2f} K ms, band {scenario.cell.bandwidth_hz / 1e3:6.1f} kHz, edge {edge}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of sites")
    parser.add_argument("--modes", nargs="+", default=["plain", "edge", "rounds", "auto"])
    options = parser.parse_args()
    below = 0
    for number in options.only or range(options.sites):
        scenario = drawn(options.seed, number)
        modes = [mode for mode in options.modes if mode != "edge" or scenario.edge_drafter is not None]
        rates = {mode: rate_of(scenario, mode, options.seed) for mode in modes}
        shown = "  ".join(f"{mode} {rate:.2f}" for mode, rate in rates.items())
        best = max(rates.get("plain", 0.0), rates.get("edge", 0.0))
        share = rates["auto"] / best if best and "auto" in rates else float("nan")
        below += share < BAR
        model = decide(scenario).goodput_tokens_per_s
        mark = "   BELOW" if share < BAR else ""
        print(
            f"{number:2}: {described(scenario)}\n    {shown}  (model {model:.2f})  auto/best {share:.3f}{mark}",
            flush=True,
        )
    print(f"{below} sites below {BAR}")


if __name__ == "__main__":
    main()
