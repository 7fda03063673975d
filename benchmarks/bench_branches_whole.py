"""What would branches behind second-best tokens gain in whole sites, where all is learned and the edge may draft, too?

    python benchmarks/bench_branches_whole.py [SITE ...] [--seeds 5] [--passes 200] [--second 0.33] [--ways WAY ...]

The simulator of `multispin simulate --mode streams`, with devices that draft branches while they stand at the end of
their window, each token where it is needed with the greatest probability (`spread`). Where the chain's first wrong
token is at place i, the second-best token there is right with probability ρ; then the branch behind it counts.

* late: the branch is sent when the device hears that its chain is wrong.
* kept: the branch is at the edge by then, which follows it when its own token is the second-best one. It has cost
  nothing on the air.
* one place: as kept, but all that was drafted stands behind the token that turns out wrong. No device can know it.
* verified: branches are at the edge, and are verified with the chain. Each of their tokens costs `per_token_s`.
* apart: as verified, but a branch is a sequence of its own, as an engine without trees takes it, and costs
  `per_device_s`, too. A ride has one, behind the second-best token of its first place.

Printed: tokens per second, mean ± standard error, and how much more than the chain has with the same seeds.
"""

import argparse
import random
from pathlib import Path
from statistics import mean, stdev

from msgspec.structs import replace

from multispin.data import scenario_path
from multispin.protocol import Commit
from multispin.protocol.device_stream import DeviceStreaming
from multispin.protocol.running_request import RunningRequest
from multispin.simulation.device import RIGHT, Drafting
from multispin.simulation.engine import SimulatedEngine
from multispin.simulation.measures import measure
from multispin.simulation.setup import ScenarioFile
from multispin.simulation.site import Site
from multispin.speculation import Outcome

SITES = ("a100-7b", "a100-27b", "desk-32b", "h100-7b", "evening-cell", "campus")
WAYS = ("late", "kept", "one place", "verified", "apart")
IN_PASS = ("verified", "apart")
LEAST = 0.005
"""Nothing is drafted that is needed with less than this probability."""


def spread(count: int, places: int, alpha: float, second: float) -> list[int]:
    """Number of tokens behind the second-best token of each place, if `count` are drafted for the likeliest needs."""
    counts, chances = [0] * places, [alpha**i * (1.0 - alpha) * second * alpha for i in range(places)]
    for _ in range(count):
        place = max(range(places), key=chances.__getitem__)
        if chances[place] < LEAST:
            break
        counts[place] += 1
        chances[place] *= alpha
    return counts


class BranchingSite(Site):
    """A site whose devices draft branches while they are idle."""

    def __init__(self, way, second, *more):
        self.way, self.second, self.luck = way, second, random.Random(more[2])
        self.idle_s, self.since_s = {}, {}  # by device: idle time of this chain, and since when it is idle
        self.behind = {}  # by session, tokens of a branch that a pass accepts beyond its chain
        self.fed = self.branches = 0
        super().__init__(*more, mode="streams")
        verify = self.passes.verify
        self.passes.verify = lambda batch: self._with_branches(batch, verify(batch))

    def _branches(self, device, places):
        """How many tokens the device holds behind the second-best token of each place of its chain."""
        name, now_s = device.truth.name, self.queue.now_s
        idle_s = self.idle_s.get(name, 0.0) + now_s - self.since_s.get(name, now_s)
        count, alpha = int(idle_s / device.truth.seconds_per_token), device.truth.acceptance_rate or 0.0
        if self.way == "apart":
            return [*spread(count, 1, alpha, self.second), *[0] * (places - 1)]
        return [count] * places if self.way == "one place" else spread(count, places, alpha, self.second)

    def _found(self, device, message):
        """The branch that the edge's own token chooses, as a number of tokens; None if its chain goes on."""
        session, stage = device.session, device.session.stage
        if not isinstance(message, Commit) or not isinstance(stage, DeviceStreaming) or stage.epoch != message.epoch:
            return None
        text = [*stage.ids[: message.accepted], *message.ids]
        wrong = next((i for i, (one, other) in enumerate(zip(text, stage.ids, strict=False)) if one != other), None)
        if wrong is None or message.base != len(session.committed):
            return None
        return self._branches(device, len(stage.ids))[wrong] if self.luck.random() < self.second else 0

    def tell(self, number, message):
        device = self._present[number]
        held = None if self.way in IN_PASS or device.away else self._found(device, message)
        if held and self.way != "late":
            self._follow(number, device, message, held)  # it is at the edge: no delay
        elif held:
            self.queue.at(self.queue.now_s + device.truth.delay_s, lambda: self._follow(number, device, message, held))
        else:
            super().tell(number, message)

    def _follow(self, number, device, message, held):
        on = device.losses, device.record.requests
        self._hear(number, device, message, on)
        session, stage = device.session, device.session.stage
        held = min(held, session.room_ahead)
        if not isinstance(stage, DeviceStreaming) or on != (device.losses, device.record.requests) or not held:
            return
        device.drafting = None
        part = Drafting(session.epoch, len(session.committed), self.queue.now_s, held)
        device.record.drafted += held
        device.record.under_way += held
        session.drafted(part.epoch, part.start, device._chain(part), held * device.truth.seconds_per_token)
        window, stage.window = stage.window, replace(stage.window, chunk=held)
        chunk, stage.window = session.chunk(), window
        if chunk is not None and self.way == "late":
            self._send_chunk(number, device, chunk)
        elif chunk is not None:
            self._arrived(number, device, chunk, held * device.bits_per_token, on)
        self._stream_on(number, device)

    def _hear(self, number, device, message, on):
        epoch = device.session.epoch
        super()._hear(number, device, message, on)
        if device.session.epoch != epoch:
            self.idle_s[device.truth.name] = 0.0
            self.since_s.pop(device.truth.name, None)

    def _stream_on(self, number, device):
        super()._stream_on(number, device)
        name, now_s = device.truth.name, self.queue.now_s
        if device.drafting is not None:
            self.idle_s[name] = self.idle_s.get(name, 0.0) + now_s - self.since_s.pop(name, now_s)
        elif device._free_s <= now_s:
            self.since_s.setdefault(name, now_s)

    def _with_branches(self, batch, findings):
        """Let a pass accept the branch behind a chain's first wrong token, if branches are verified."""
        self.fed = self.branches = 0
        for job, found in zip(batch.jobs, findings, strict=True):
            device = self._present.get(job.session)
            stage = device.session.stage if device is not None else None
            if self.way not in IN_PASS or not isinstance(found, Outcome) or not isinstance(stage, DeviceStreaming):
                continue
            counts = self._branches(device, max(1, len(stage.ids)))
            self.fed += sum(counts) + sum(map(bool, counts))
            self.branches += sum(map(bool, counts))
            seat, alpha = self.passes._seats[job.session], device.truth.acceptance_rate or 0.0
            riding, request = seat.session.stage.riding, seat.session.request
            count = counts[found.accepted] if found.accepted < min(riding.own, len(counts)) else 0
            if count and self.luck.random() < self.second:
                right = 1
                while right <= count and self.luck.random() < alpha:
                    right += 1
                extra = min(right, request.remaining - 1 - found.accepted)
                self.behind[id(request)] = self.engine.behind[job.feed.slot] = extra
        return findings

    def pass_s(self, batch):
        verify_s, done_s = super().pass_s(batch)
        verifier = self.setup.scenario.verifier
        more_s = self.fed * verifier.per_token_s + (self.way == "apart") * self.branches * verifier.per_device_s
        return verify_s + more_s, done_s + more_s


def rate(way, second, setup, seed, passes):
    """Tokens per second of a run."""
    site = BranchingSite(way, second, setup, "heterogeneous", seed)
    engine_commit, commit = SimulatedEngine.commit, RunningRequest.commit
    site.engine.behind = {}

    def engine_committed(engine, slot, length):
        engine_commit(engine, slot, length)
        engine._cached[slot] += engine.behind.pop(slot, 0)

    def committed(request, tokens, scores=()):
        return commit(request, [*tokens, *[RIGHT] * site.behind.pop(id(request), 0)], scores)

    SimulatedEngine.commit, RunningRequest.commit = engine_committed, committed
    try:
        site.run(passes)
    finally:
        SimulatedEngine.commit, RunningRequest.commit = engine_commit, commit
    return measure(site).goodput_tokens_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", nargs="*", default=SITES, help="scenario files, or names of the package's")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=200)
    parser.add_argument("--second", type=float, default=1.0 / 3.0, help="ρ (default a third, as measured)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args()
    for name in options.sites:
        setup = ScenarioFile(scenario_path(name)).setup()
        seeds = range(1, options.seeds + 1)
        chain = [rate("late", 0.0, setup, seed, options.passes) for seed in seeds]
        print(f"{Path(name).stem:20} chain {_shown(chain)} tokens/s", end="", flush=True)
        for way in options.ways:
            found = [rate(way, options.second, setup, seed, options.passes) for seed in seeds]
            more = [100.0 * (one / other - 1.0) for one, other in zip(found, chain, strict=True)]
            print(f"; {way} {_shown(found)}, {_shown(more)} %", end="", flush=True)
        print(flush=True)


def _shown(values):
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{mean(values):.1f} ± {error:.1f}"


if __name__ == "__main__":
    main()
