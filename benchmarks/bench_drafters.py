"""What a drafted token costs with each shipped drafter, against a token of the target decoding alone.

    OMP_NUM_THREADS=1 python benchmarks/bench_drafters.py [--threads 1]

Both run in this process through the same code (a cache of one slot, one token per forward pass, the draw included), in
turns, so that what the machine does besides hits both alike. Prints medians and their ratio to the target's.
"""

import argparse
import statistics
import time

import torch

from multispin.data import load_prompts
from multispin.models import load_drafter, load_model, load_tokenizer
from multispin.models.drafter import ModelDrafter
from multispin.models.drafter_name import SHIPPED
from multispin.speculation import SamplingParams

TURNS, LENGTH = 24, 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer("embedded")
    prompt = tokenizer.encode_chat(load_prompts()[0].text)
    drafters = {
        f"target, {dtype}": ModelDrafter(load_model("embedded", dtype), 512) for dtype in ("float32", "bfloat16")
    }
    for name in ("q8", *SHIPPED):
        drafters["target, q8" if name == "q8" else name], _ = load_drafter(name, "embedded", 512)
    print(f"{options.threads} threads\n")
    print("| temperature | drafter | ms per token | of float32's | of bfloat16's | of q8's |")
    print("|---|---|---|---|---|---|")
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature)
        times = {name: [] for name in drafters}
        for turn in range(TURNS + 2):
            for name, drafter in drafters.items():
                drafter.prepare(prompt)
                began = time.perf_counter()
                drafter.draft(prompt, LENGTH, params)
                if turn >= 2:
                    times[name].append((time.perf_counter() - began) / LENGTH)
        medians = {name: statistics.median(values) for name, values in times.items()}
        targets = [medians[f"target, {dtype}"] for dtype in ("float32", "bfloat16", "q8")]
        for name, value in medians.items():
            ratios = " | ".join(f"{value / target:.2f}" for target in targets)
            print(f"| {temperature:g} | {name} | {1e3 * value:.2f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
