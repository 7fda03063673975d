"""On random sites that nobody chose: is `auto` ever slower than plain decoding or the edge's own drafter?

    OMP_NUM_THREADS=1 python benchmarks/bench_sites.py [--sites 30] [--seed 1] [--only N ...] [--modes MODE ...]
                                                       [--draws 4]

Each site is drawn: 1 to 40 devices, acceptance 0.05 to 0.95, drafting of 1 to 400 ms per token, round trips of 0 to
400 ms, a verification of 5 to 500 ms and more for each device and token, an edge drafter or none, and a band. Each mode
learns; it knows nothing beforehand. Tokens per second are counted after `PASSES` passes, for as long as `WATCHED` of
them, or `TOKENS` tokens, take in plain decoding. A draft counts as the tokens that it brings on average at the true
acceptance, not as those that it brought: with two devices luck alone would change 150 passes by 4 %. Where `auto` has
less than `NEAR` of the best other mode, more draws are made, and the sums of all of them count.

*model* is the best choice of `decide` with all known, each frame's bits charged as `multispin advise` does
(`control.frames`): what rounds, the edge's drafts and mixtures of both can make at best, by the planner's model.
"""

import argparse
import random
from collections.abc import Sequence

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.control.frames import FRAME_BITS, decide_with_frames
from multispin.control.goodput import expected_tokens
from multispin.passes import Batch
from multispin.passes.plans import DEVICE
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site
from multispin.speculation import Failure, Finding

PASSES, WATCHED, TOKENS = 50, 150, 1500
BAR = 0.97
"""Of the better of plain decoding and the edge's own drafter, `auto` has at least this share."""
NEAR = 1.0


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
    """Expected tokens per second after `PASSES` passes."""
    site = Site(Setup(scenario, Behaviour(frame_bits=FRAME_BITS)), "heterogeneous", seed, mode=mode)
    counted = Expected(site, scenario)
    site.run(PASSES)
    begin_s, before = site.queue.now_s, counted.tokens
    watched = max(WATCHED, TOKENS // len(scenario.devices))
    end_s = begin_s + watched * scenario.verifier.verify_s([0] * len(scenario.devices))
    while site.queue.now_s < end_s and site.queue.step():
        pass
    return (counted.tokens - before) / (site.queue.now_s - begin_s)


class Expected:
    """Counts what the drafts of all passes bring on average: α^l of l tokens in a row stand.

    Attributes:
        tokens: Σ E[N_k] of all passes so far [tokens].

    Args:
        site: the site, before its first pass.
        scenario: its true acceptance rates.

    """

    def __init__(self, site: Site, scenario: Scenario) -> None:
        self.tokens = 0.0
        self._site, self._verified = site, site.passes.verified
        self._edge = 0.0 if scenario.edge_drafter is None else scenario.edge_drafter.acceptance_rate
        site.passes.verified = self._count  # type: ignore[method-assign]

    def _count(self, batch: Batch, findings: Sequence[Finding | Failure | None], verify_s: float, now_s: float) -> None:
        rates = {device.number: device.truth.acceptance_rate or 0.0 for device in self._site.devices}
        for job, finding in zip(batch.jobs, findings, strict=True):
            if finding is not None:
                riding = getattr(self._site.passes.sessions[job.session].stage, "riding", None)
                length = job.drafted if riding is None else len(riding.ids)
                own = riding.own if riding is not None else length if job.drafter == DEVICE else 0
                rate = rates[job.session]
                more = expected_tokens(self._edge, length - own) - 1.0
                self.tokens += float(expected_tokens(rate, own) + rate**own * more)
        self._verified(batch, findings, verify_s, now_s)


def best_of_model(scenario: Scenario) -> float:
    """Tokens per second of the best pure or mixed choice, as `multispin advise` finds it."""
    return decide_with_frames(scenario).goodput_tokens_per_s


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


def rates_of(scenario: Scenario, modes: list[str], draws: int, seed: int) -> tuple[dict[str, float], int]:
    """Tokens per second of each mode, the mean of one or some draws, and how many."""
    rates = {mode: rate_of(scenario, mode, seed) for mode in modes}
    others = [rate for mode, rate in rates.items() if mode != "auto"]
    if "auto" not in rates or not others or rates["auto"] >= NEAR * max(others):
        return rates, 1
    for draw in range(1, draws):
        for mode in modes:
            rates[mode] += rate_of(scenario, mode, seed + 1000 * draw)
    return {mode: rate / draws for mode, rate in rates.items()}, draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of sites")
    parser.add_argument("--modes", nargs="+", default=["plain", "edge", "rounds", "auto"])
    parser.add_argument("--draws", type=int, default=4, help="draws where `auto` is not ahead")
    options = parser.parse_args()
    below: dict[str, list[int]] = {"plain and edge": [], "plain, edge and rounds": [], "model": []}
    for number in options.only or range(options.sites):
        scenario = drawn(options.seed, number)
        modes = [mode for mode in options.modes if mode != "edge" or scenario.edge_drafter is not None]
        rates, draws = rates_of(scenario, modes, options.draws, options.seed)
        shown = "  ".join(f"{mode} {rate:.2f}" for mode, rate in rates.items())
        alone = max(rates.get("plain", 0.0), rates.get("edge", 0.0))
        against = {"plain and edge": alone, "plain, edge and rounds": max(alone, rates.get("rounds", 0.0))}
        against["model"] = best_of_model(scenario)
        shares = {name: rates.get("auto", 0.0) / best if best else 1.0 for name, best in against.items()}
        for name, share in shares.items():
            below[name] += [number] * (share < BAR)
        said = "  ".join(f"{name} {share:.3f}" for name, share in shares.items())
        print(
            f"{number:2}: {described(scenario)}\n    {shown}  model {against['model']:.2f}  ({draws} draws)\n"
            f"    auto over {said}{'   BELOW' if shares['plain and edge'] < BAR else ''}",
            flush=True,
        )
    for name, numbers in below.items():
        print(f"below {BAR} of {name}: {len(numbers)} {numbers}")


if __name__ == "__main__":
    main()
