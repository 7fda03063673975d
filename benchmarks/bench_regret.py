"""What does the decision of streams lose by not knowing when tokens will come?

    OMP_NUM_THREADS=1 python benchmarks/bench_regret.py [SITE ...] [--devices 3] [--ticks 2]

`control.streams.choose` sees what has come. The oracle of `oracle.py` also knows when the next frame of every
device will come, whatever happens; of outcomes both know the probabilities only. Joint states must be few, so the site
is made small: three of its devices, by their acceptance rates, stand for all. A ride and a token cost the engine as
much as those of the third of the site that a device stands for, so that a pass of all takes as long as at the site. The
edge's own drafter is left out. Goodput is computed exactly for each policy, in ticks of half a frame
of the quickest device:

* choose: the decision as it is, with the price of time that it makes itself, and the same in the simulator;
* no patience: the best policy that waits only where `choose` waits;
* oracle: the best policy of all; and the bound that no policy exceeds.

Also the whole site, without and with its edge drafter, in the simulator and with everything known: its goodput over the
bound of the best rates (`control.exact.fluid`), which knows neither frames nor turns; and what it becomes with
*patience*: a pass is put off to the expected arrival at which the sum of surpluses, less the price of the wait, is
greatest.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from multispin.control import Device, EdgeDrafter, Scenario, Verification, load_scenario
from multispin.control.edge import plain
from multispin.control.exact.fluid import fluid
from multispin.control.streams import LEAST_WAIT_S, Candidate, Decide, Go, Wait, _PendingTable, choose
from multispin.control.worth import Worth, worth
from multispin.data import scenario_path
from multispin.passes.flows import window_of
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site
from oracle import JointPolicy, SmallSite, State, Stream, Value

SITES = ("a100-7b", "a100-27b", "desk-32b", "h100-7b", "paper-llama", "paper-qwen")
FRAME_BITS = 176.0
PASSES = 300
SEEDS = (1, 2)
CANDIDATES = 4
"""So many arrivals are compared …"""
SOON = 0.5
"""… of those that are expected within this share of a pass."""


def small(scenario: Scenario, count: int) -> Scenario:
    """A few devices that stand for all."""
    ordered = sorted(scenario.devices, key=lambda device: device.acceptance_rate or 0.0)
    stand_for = len(ordered) / count
    devices = [ordered[int((k + 0.5) * stand_for)] for k in range(count)]
    verifier, cell = scenario.verifier, scenario.cell
    return Scenario(
        replace(cell, bandwidth_hz=cell.bandwidth_hz / stand_for),
        replace(verifier, per_device_s=stand_for * verifier.per_device_s, per_token_s=stand_for * verifier.per_token_s),
        tuple(devices),
    )


class Case:
    """A small site, and how `choose` sees it.

    Args:
        scenario: the small site.
        ticks: ticks in a frame of the quickest device.
    """

    def __init__(self, scenario: Scenario, ticks: float) -> None:
        self.scenario, count = scenario, len(scenario.devices)
        self.worth: Worth = worth(scenario)
        band_hz, verifier = scenario.cell.bandwidth_hz / count, scenario.verifier
        pass_s = verifier.verify_s([0] * count)
        chosen = [self._window(device, band_hz, pass_s) for device in scenario.devices]
        frames_s = [chunk * token_s for _, chunk, token_s in chosen]
        self.tick_s = min(frames_s) / ticks
        streams = []
        for device, (length, chunk, _), frame_s in zip(scenario.devices, chosen, frames_s, strict=True):
            air_s = (chunk * (device.bits_per_token or scenario.cell.bits_per_token) + FRAME_BITS) / (
                device.rate_bits_per_s(band_hz)
            )
            # A token that has been begun is finished first.
            restart_s = 2.0 * device.delay_s + (chunk + 0.5) * device.seconds_per_token + air_s
            streams.append(
                Stream(
                    device.acceptance_rate or 0.0,
                    chunk,
                    length,
                    max(1, round(frame_s / self.tick_s)),
                    max(1, round(restart_s / self.tick_s)),
                    length,
                )
            )
        self.site = SmallSite(streams, self.tick_s, verifier.fixed_s, verifier.per_device_s, verifier.per_token_s)

    def _window(self, device: Device, band_hz: float, pass_s: float) -> tuple[int, int, float]:
        """Window, frame, and time of a token."""
        bits = device.bits_per_token or self.scenario.cell.bits_per_token

        def view(tokens: int) -> tuple[float, float, float]:
            hz_s = (bits + FRAME_BITS / max(1, tokens)) * band_hz / device.rate_bits_per_s(band_hz)
            return device.acceptance_rate or 0.0, device.seconds_per_token, hz_s

        most = self.scenario.cell.max_draft_length
        length, chunk = window_of(view, device.delay_s, band_hz, pass_s, most, len(self.scenario.devices))
        return length, chunk, max(device.seconds_per_token, view(chunk)[2] / band_hz)

    def ready(self, states: Sequence[State], goodput: float) -> list[Candidate]:
        """What `choose` is told in a joint state. Nobody is owed anything: both maximise the sum."""
        found, scale = [], self.worth.scale(goodput)
        for k, (stream, (held, left)) in enumerate(zip(self.site.streams, states, strict=True)):
            each = self.worth.sessions[k].scaled(scale)
            found.append(
                Candidate(
                    k,
                    max(0, held),
                    stream.acceptance_rate,
                    next_s=left * self.tick_s if left else float("inf"),
                    next_tokens=stream.chunk if left else 0,
                    tokens_per_s=stream.chunk / (stream.period * self.tick_s),
                    room=stream.window,
                    behind_tokens=-1e6,
                    worth=each,
                )
            )
        return found

    def decide(self, states: Sequence[State], goodput: float) -> int:
        """Who rides, as bits; 0 to wait."""
        made = choose(self.ready(states, goodput), self.scenario.verifier, self.worth.price(goodput))
        return sum(1 << ride.session for ride in made.rides) if isinstance(made, Go) else 0

    def followed(self) -> tuple[JointPolicy, Value]:
        """The policy of `choose` with the price that it makes itself."""
        goodput = 0.85 * self.worth.most_tokens_per_s
        for _ in range(2):
            policy = self.site.follow(lambda states, price=goodput: self.decide(states, price))  # type: ignore[misc]
            value = self.site.value(policy)
            goodput = value.tokens_per_s
        return policy, value


def patient(
    ready: Sequence[Candidate],
    verifier: Verification,
    price: float,
    edge_drafter: EdgeDrafter | None = None,
    patience_s: float = 0.0,  # noqa: ARG001
    patience_for_all_s: float = 0.0,  # noqa: ARG001
) -> Go | Wait:
    """`choose`, but a pass is put off to an arrival that is worth more than the wait, however long that is."""
    made = choose(ready, verifier, price, edge_drafter)
    if not isinstance(made, Go):
        return made
    times_s = sorted({each.next_s for each in ready if LEAST_WAIT_S <= each.next_s < SOON * made.pass_s})
    if len(times_s) > CANDIDATES:
        times_s = [times_s[(k + 1) * len(times_s) // CANDIDATES - 1] for k in range(CANDIDATES)]
    best, when_s = surplus(ready, verifier, price, edge_drafter), 0.0
    for time_s in times_s:
        then = surplus([after(each, time_s) for each in ready], verifier, price, edge_drafter) - price * time_s
        if then > best:
            best, when_s = then, time_s
    return Wait(when_s) if when_s else made


def surplus(
    ready: Sequence[Candidate], verifier: Verification, price: float, edge_drafter: EdgeDrafter | None
) -> float:
    """Greatest sum of surpluses of a pass, less the price of the edge's drafting steps [tokens]."""
    table = _PendingTable(ready, verifier, price, edge_drafter)
    return float(table.worths(table.must).max())


def after(each: Candidate, time_s: float) -> Candidate:
    """What a session has a little later."""
    if time_s < each.next_s or each.tokens_per_s <= 0.0:
        return each
    frames = 1 + int((time_s - each.next_s) * each.tokens_per_s / max(1, each.next_tokens))
    most = max(each.pending, each.pending if each.room is None else each.room)
    return each._replace(pending=min(each.pending + frames * each.next_tokens, most))


def simulated(scenario: Scenario, decide: Decide = choose) -> float:
    """Tokens per second in the simulator, the first quarter left out."""
    rates = []
    for seed in SEEDS:
        setup = Setup(scenario, Behaviour(frame_bits=FRAME_BITS))
        site = Site(setup, "heterogeneous", seed, True, mode="streams", decide=decide)
        site.run(PASSES // 4)
        begin_s, before = site.queue.now_s, sum(device.record.tokens for device in site.devices)
        site.run(PASSES)
        made = sum(device.record.tokens for device in site.devices) - before
        rates.append(made / (site.queue.now_s - begin_s))
    return sum(rates) / len(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", nargs="*", default=SITES, help="scenario files, or names of the package's")
    parser.add_argument("--devices", type=int, default=3, help="devices of the small site (default 3)")
    parser.add_argument("--ticks", type=float, default=2.0, help="ticks in the shortest frame (default 2)")
    parser.add_argument("--whole", action="store_true", help="only whole sites")
    options = parser.parse_args()
    for name in options.sites:
        scenario = load_scenario(scenario_path(name))
        alone = replace(scenario, edge_drafter=None)
        print(f"{Path(name).stem}: plain decoding {plain(scenario).goodput_tokens_per_s:.1f} tokens/s", flush=True)
        if not options.whole:
            print(f"  small: {of_small(small(alone, options.devices), options.ticks)}", flush=True)
        print(f"  whole: {of_whole(alone)}", flush=True)
        if scenario.edge_drafter is not None:
            print(f"  whole, the edge drafts too: {of_whole(scenario)}", flush=True)


def of_small(scenario: Scenario, ticks: float) -> str:
    """What the decision, the oracle and what is between them make of a small site."""
    case = Case(scenario, ticks)
    policy, value = case.followed()
    best = case.site.best(value.tokens_per_s)
    eager = case.site.best(value.tokens_per_s, (policy.riders == 0) & (value.share > 0))
    most, waiting = best.tokens_per_s, case.site.value(best.policy).waiting
    return (
        f"choose {value.tokens_per_s:.1f} ({value.tokens_per_s / most:.3f}; simulated {simulated(scenario):.1f}), "
        f"no patience {eager.tokens_per_s:.1f} ({eager.tokens_per_s / most:.3f}), "
        f"oracle {most:.1f} (waits {100 * waiting:.0f} % of the time; its bound {best.bound_tokens_per_s / most:.4f}), "
        f"bound of the best rates {fluid(scenario).upper_bound_tokens_per_s:.1f}; {case.site.count} states"
    )


def of_whole(scenario: Scenario) -> str:
    """What a whole site makes in the simulator."""
    made, bound = simulated(scenario), fluid(scenario).upper_bound_tokens_per_s
    waited = simulated(scenario, patient)
    return f"{made:.1f} of at most {bound:.1f} ({made / bound:.3f}); with patience {waited:.1f} ({waited / made:.3f})"


if __name__ == "__main__":
    main()
