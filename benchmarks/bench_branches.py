"""Would it pay to draft on behind second-best tokens, too? A study of single devices; the running system does not.

    python benchmarks/bench_branches.py [SITE ...] [--second 0.33] [--passes 2000]

Each device rides in every pass, and each pass takes as long as one of everybody. A device drafts one token after the
other. `chain` drafts on along its best tokens, as streams do. With branches it always drafts the token that is needed
with the greatest probability: the next of its chain, needed with α^n, or one behind the second-best token of place i,
needed with α^i (1 − α) ρ α^j, where ρ is the probability that the second-best token is right where the best is not.
Both stop where that is less than `LEAST`. Branches are sent like all else. What is done with them:

* kept: only the chain is verified. Where the edge's own token is the second-best one, the branch behind it becomes the
  chain, and nothing has to be drafted anew.
* verified: branches that have come are verified with the chain. That costs the engine `per_token_s` for each of them.

Printed: tokens per second of all devices beside those of `chain`; drafted tokens and tokens that are verified, too.
"""

import argparse
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

from multispin.control import Device, Scenario, load_scenario
from multispin.control.edge import plain
from multispin.data import scenario_path

SITES = ("a100-7b", "a100-27b", "desk-32b", "h100-7b", "paper-llama", "paper-qwen")
FRAME_BITS = 176.0
LEAST = 0.02
WAYS = ("chain", "kept", "verified")


@dataclass
class Tree:
    """What a device has drafted after the committed text, and when each token is at the edge [s].

    Attributes:
        chain: arrival of each token of the chain.
        branches: by place in the chain, arrivals of the tokens behind the second-best one there.
        right: how many of the chain's tokens are right, drafted or not.
        second: whether the second-best token is right at the first wrong place.
        behind: how many of the tokens behind it are right.
    """

    right: int
    second: bool
    behind: int
    chain: list[float] = field(default_factory=list)
    branches: dict[int, list[float]] = field(default_factory=dict)


class Study:
    """One device in passes of equal length.

    Args:
        device: what it is like.
        air_s: time of a token on the air [s].
        second: ρ.
        seed: of all that is drawn.
    """

    def __init__(self, device: Device, air_s: float, second: float, seed: int) -> None:
        self._alpha, self._second = device.acceptance_rate or 0.0, second
        self._token_s = max(device.seconds_per_token, air_s)
        self._way_s, self._delay_s = air_s + device.delay_s, device.delay_s
        self._random = random.Random(seed)
        self.tokens = self.drafted = self.verified = 0

    def run(self, way: str, passes: int, pass_s: float, per_token_s: float) -> float:
        """Tokens per second."""
        tree, free_s, now_s = self._new(), 0.0, 0.0
        for _ in range(passes):
            free_s = self._draft(tree, free_s, now_s, way)
            length = sum(at <= now_s for at in tree.chain)
            waiting = {place: sum(at <= now_s for at in branch) for place, branch in tree.branches.items()}
            fed = length + 1
            if way == "verified":
                fed += sum(count + 1 for place, count in waiting.items() if count and place < length)
            self.verified += fed
            now_s += pass_s + per_token_s * fed
            heard_s = now_s + self._delay_s
            free_s = self._draft(tree, free_s, heard_s, way)
            accepted = min(length, tree.right)
            self.tokens += accepted + 1
            if accepted < length and way == "verified" and tree.second and (count := waiting.get(accepted, 0)):
                more = min(count, tree.behind)
                self.tokens += more + 1  # the second-best token was the edge's own
                rest = tree.branches[accepted]
                if tree.behind > more or len(rest) == more:  # the edge's token is the branch's next, or it had none
                    tree = self._new(right=max(0, tree.behind - more - 1) if tree.behind > more else None)
                    tree.chain = rest[more + 1 :]
                    continue
            elif tree.right > accepted or len(tree.chain) == accepted:  # the edge's token is the device's next one
                if tree.right > accepted:
                    tree.right -= accepted + 1
                else:
                    tree = self._new()
                tree.chain = tree.chain[accepted + 1 :]
                tree.branches = {
                    place - accepted - 1: rest for place, rest in tree.branches.items() if place > accepted
                }
                continue
            elif way != "chain" and tree.second and tree.branches.get(accepted):
                rest = tree.branches[accepted]
                tree = self._new(right=tree.behind)
                tree.chain = rest
                continue
            tree, free_s = self._new(), max(free_s, heard_s)
        return self.tokens / now_s

    def _new(self, right: int | None = None) -> Tree:
        return Tree(
            self._geometric() if right is None else right, self._random.random() < self._second, self._geometric()
        )

    def _geometric(self) -> int:
        alpha = self._alpha
        return int(math.log(1.0 - self._random.random()) / math.log(alpha)) if alpha > 0.0 else 0

    def _draft(self, tree: Tree, free_s: float, until_s: float, way: str) -> float:
        """Draft until then; returns when the device is free."""
        alpha = self._alpha
        while free_s < until_s:
            best, place = alpha ** (len(tree.chain) + 1), None
            if way != "chain":
                for i in range(len(tree.chain)):
                    chance = alpha**i * (1.0 - alpha) * self._second * alpha ** (len(tree.branches.get(i, ())) + 1)
                    if chance > best:
                        best, place = chance, i
            if best < LEAST:
                return until_s
            free_s += self._token_s
            self.drafted += 1
            (tree.chain if place is None else tree.branches.setdefault(place, [])).append(free_s + self._way_s)
        return free_s


def studied(scenario: Scenario, way: str, second: float, passes: int) -> tuple[float, float, float]:
    """Tokens per second of all devices; drafted and verified tokens for each of them."""
    verifier, count = scenario.verifier, len(scenario.devices)
    pass_s = verifier.fixed_s + count * verifier.per_device_s
    total = drafted = verified = made = 0.0
    for number, device in enumerate(scenario.devices):
        band_hz = scenario.cell.bandwidth_hz / count
        bits = device.bits_per_token or scenario.cell.bits_per_token
        chunk = max(1.0, pass_s / 8.0 / device.seconds_per_token)
        study = Study(device, (bits + FRAME_BITS / chunk) / device.rate_bits_per_s(band_hz), second, number)
        total += study.run(way, passes, pass_s, count * verifier.per_token_s)
        drafted, verified, made = drafted + study.drafted, verified + study.verified, made + study.tokens
    return total, drafted / made, verified / made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", nargs="*", default=SITES, help="scenario files, or names of the package's")
    parser.add_argument("--second", type=float, default=1.0 / 3.0, help="ρ (default a third, as measured)")
    parser.add_argument("--passes", type=int, default=2000)
    options = parser.parse_args()
    for name in options.sites:
        scenario = load_scenario(scenario_path(name))
        found = {way: studied(scenario, way, options.second, options.passes) for way in WAYS}
        base = found["chain"][0]
        print(
            f"{Path(name).stem:20} plain {plain(scenario).goodput_tokens_per_s:7.1f}, chain {base:7.1f} tokens/s; "
            + "; ".join(
                f"{way} {rate / base:.3f} x, drafted {drafted:.1f}, fed {verified:.1f} a token"
                for way, (rate, drafted, verified) in found.items()
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
