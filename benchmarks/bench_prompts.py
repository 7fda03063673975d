"""A long prompt beside 20 devices that write: how soon is its first token there, and what do the others lose meanwhile?

    OMP_NUM_THREADS=1 python benchmarks/bench_prompts.py [--mode streams rounds] [--most 64 512] [--seeds 3]

The simulated edge learns what a pass and a token cost, as a real one does. Three engines: `gpu` is near a 7B model on
an H100, whose tokens cost little up to some 300 in a pass and three times as much beyond; `cpu` is near a small
model on two cores, where each token costs its share; for `free` tokens cost nothing. After 10 s, or 60 on the CPU, one
more user comes with the prompt. `--most` is `serve --prefill-tokens-per-round`.

Columns: passes from its arrival to its first token, its time [ms], the longest of these passes over the usual
time of a pass before, and the others' tokens per second during it over those of as long a time before.
"""

import argparse
from dataclasses import replace
from statistics import median

from multispin.control import Cell, Device, Scenario, Verification
from multispin.simulation.setup import Behaviour, DeviceLife, Setup
from multispin.simulation.site import Site

OTHERS = 20
# Seconds of a pass, for each session, for each token, and for each token beyond 300.
ENGINES = {"gpu": (8.2e-3, 0.12e-3, 1e-5, 2e-5), "cpu": (15e-3, 0.0, 1e-3, 0.0), "free": (22.68e-3, 1e-3, 0.0, 0.0)}
ARRIVES_S = {"gpu": 10.0, "cpu": 60.0, "free": 10.0}
TOKEN_S = {"gpu": 4e-3, "cpu": 30e-3, "free": 4e-3}
PROMPTS = (200, 2000, 6000)


class Beside(Site):
    """A site whose last device has a prompt of its own length.

    Attributes:
        passes_s: time of each pass so far [s].

    """

    def __init__(self, setup, mode, seed, prompt_tokens, engine):
        super().__init__(setup, "heterogeneous", seed, mode=mode)
        self.passes_s = []
        self._last, self._prompt_tokens, self._cost = self.devices[-1], prompt_tokens, ENGINES[engine]

    def _request(self, device):
        usual = self.setup
        if device is self._last:
            self.setup = replace(usual, behaviour=replace(usual.behaviour, prompt_tokens=self._prompt_tokens))
        super()._request(device)
        self.setup = usual

    def pass_s(self, batch):
        """Time of a pass, and until its verdicts can go out [s]."""
        factors = 1, len(batch.jobs), batch.tokens, max(0, batch.tokens - 300)
        self.passes_s.append(sum(cost * factor for cost, factor in zip(self._cost, factors, strict=True)))
        return self.passes_s[-1], self.passes_s[-1]

    def others(self):
        """Tokens that the others have."""
        return sum(device.record.tokens for device in self.devices[:-1])

    def until(self, test):
        """Go on until something is so."""
        while not test() and self.queue.step():
            pass


def measure(engine, mode, most, prompt_tokens, seed):
    """One run: passes, time to the first token [s], and the two ratios."""
    arrives_s = ARRIVES_S[engine]
    devices = tuple(
        Device(f"d{k}", TOKEN_S[engine] * (0.5 + k / OTHERS), 4.0, 0.5 + 0.4 * (k % 5) / 4) for k in range(OTHERS + 1)
    )
    scenario = Scenario(Cell(5e5, 16, max_draft_length=8, min_draft_length=0), Verification(0.02, 0.001), devices)
    behaviour = Behaviour(prefill_tokens_per_round=most, frame_bits=176.0)
    lives = (*[DeviceLife()] * OTHERS, DeviceLife(arrives_s=arrives_s))
    site = Beside(Setup(scenario, behaviour, lives), mode, seed, prompt_tokens, engine)
    site.until(lambda: site.queue.now_s >= 0.75 * arrives_s)
    early_s, early = site.queue.now_s, site.others()
    site.until(lambda: site.queue.now_s >= arrives_s)
    begun, came, usual_s = len(site.passes_s), site.others(), median(site.passes_s[-50:])
    rate = (came - early) / (site.queue.now_s - early_s)
    last = site.devices[-1].record
    site.until(lambda: last.tokens > 0)
    first_s = site.queue.now_s - arrives_s
    during = site.passes_s[begun:]
    return len(during), first_s, max(during) / usual_s, (site.others() - came) / first_s / rate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", nargs="+", default=["streams", "rounds"])
    parser.add_argument("--most", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--engine", nargs="+", default=list(ENGINES))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("engine mode     most  prompt  passes  first token ms  longest/usual  others' rate")
    for engine in options.engine:
        for mode in options.mode:
            for prompt_tokens in PROMPTS:
                for most in options.most:
                    runs = [measure(engine, mode, most, prompt_tokens, seed) for seed in range(options.seeds)]
                    passes, first_s, longest, kept = (sum(each) / len(runs) for each in zip(*runs, strict=True))
                    print(
                        f"{engine:6} {mode:8} {most:4}  {prompt_tokens:6}  {passes:6.1f}  {1e3 * first_s:14.0f}  "
                        f"{longest:13.2f}  {kept:12.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
