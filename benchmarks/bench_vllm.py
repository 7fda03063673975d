"""The embedded verifier against vLLM, as engines of the same edge: time of one verification.

Run where vLLM is installed: .venv-vllm/bin/python benchmarks/bench_vllm.py [--target embedded] [--threads 2]
    [--turns 12] [--rule greedy|coupled] [--dtype float32] [--engine-option NAME=VALUE ...]

B sessions bring drafts of L tokens that are all wrong, so every text grows by one token a round, in both engines: L = 0
is plain decoding. The engines take turns within one process and the medians of the turns' ratios are reported, so
that a busy machine disturbs both alike. Then the latency model of `multispin profile` is fitted to each column.
Elsewhere it says that vLLM is not installed, and ends.
"""

import argparse
import os
import random
import statistics
import sys
import time

CONTEXT = 100
SESSIONS = (1, 4, 8, 16)
DRAFTS = (0, 4, 8)


class Crew:
    """B sessions of one engine, each with a text that grows."""

    def __init__(self, engine, sessions, params):
        from multispin.speculation import Feed

        self.feed, self.engine, self.params = Feed, engine, params
        rng = random.Random(1)
        self.texts = {engine.open(): [rng.randrange(1000, 40_000) for _ in range(CONTEXT)] for _ in range(sessions)}
        engine.verify([Feed(slot, 0, text[:-1], None) for slot, text in self.texts.items()])

    def verify(self, length):
        """Seconds of one verification; the newest token, again and again, is a draft that is nearly always wrong."""
        feeds = [
            self.feed(slot, len(text) - 1, [text[-1], *[text[-1]] * length], self.params)
            for slot, text in self.texts.items()
        ]
        began = time.perf_counter()
        outcomes = self.engine.verify(feeds)
        seconds = time.perf_counter() - began
        for (slot, text), outcome in zip(self.texts.items(), outcomes, strict=True):
            text += [text[-1]] * outcome.accepted + [outcome.next_token]
            self.engine.commit(slot, len(text) - 1)
        return seconds

    def leave(self):
        for slot in self.texts:
            self.engine.close(slot)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--rule", choices=("greedy", "coupled"), default="greedy")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", help="of the embedded verifier; vLLM computes where its build can")
    parser.add_argument("--sessions", type=int, nargs="+", default=SESSIONS)
    parser.add_argument("--engine-option", action="append", default=[])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))

    from multispin.cli.process import prepare

    prepare(options.threads)  # threads wait as those of `serve` do

    from multispin.errors import InputError
    from multispin.models import Verifier, load_model
    from multispin.models.vllm_engine import VllmEngine
    from multispin.models.vllm_options import check_installed, parse_options
    from multispin.profiling import BatchTiming, fit_latency
    from multispin.speculation import SamplingParams

    try:
        check_installed()
    except InputError as error:
        print(error)
        return 0
    params = SamplingParams() if options.rule == "greedy" else SamplingParams(0.8, seed=1)
    slots, length = max(options.sessions), CONTEXT + len(DRAFTS) * (options.turns + 2) * (max(DRAFTS) + 1)
    chosen = parse_options(options.engine_option)
    engines = {
        "embedded": Verifier(load_model(options.target, options.dtype, options.device), slots, length),
        "vllm": VllmEngine.load(options.target, slots, length, options.dtype, max(DRAFTS), chosen),
    }
    print(f"{options.target}, {options.dtype}, {options.rule}, {options.threads} threads, {options.turns} turns\n")
    print("| B | L | embedded [ms] | vLLM [ms] | vLLM / embedded |\n| --- | --- | --- | --- | --- |", flush=True)
    points = {name: [] for name in engines}
    for sessions in options.sessions:
        crews = {name: Crew(engine, sessions, params) for name, engine in engines.items()}
        for draft in DRAFTS:
            turns = {name: [] for name in crews}
            for turn in range(options.turns + 1):
                # The engines take turns in going first; the first turn warms up.
                for name in sorted(crews, reverse=bool(turn % 2)):
                    seconds = crews[name].verify(draft)
                    if turn:
                        turns[name].append(seconds)
            ratio = statistics.median(v / e for e, v in zip(turns["embedded"], turns["vllm"], strict=True))
            for name in engines:
                points[name].append(BatchTiming(sessions, draft, statistics.median(turns[name])))
            ours, theirs = (1e3 * points[name][-1].seconds for name in ("embedded", "vllm"))
            print(f"| {sessions} | {draft} | {ours:.1f} | {theirs:.1f} | {ratio:.2f} |", flush=True)
        for crew in crews.values():
            crew.leave()
    print("\n| engine | fixed [ms] | per device [ms] | per token [ms] | relative error, rms |\n|---|---|---|---|---|")
    for name, found in points.items():
        fit = fit_latency(found)
        milliseconds = (f"{1e3 * value:.2f}" for value in (fit.fixed_s, fit.per_device_s, fit.per_token_s))
        print(f"| {name} | {' | '.join(milliseconds)} | {fit.relative_rms:.1%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
