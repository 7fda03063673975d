"""What a drafted token costs with each shipped drafter, against a token of the target decoding alone.

    OMP_NUM_THREADS=1 python benchmarks/bench_drafters.py [--threads 1] [--dtype bfloat16]

Both run in this process through the same code (a cache of one slot, one token per forward pass, the draw included), in
turns, so that what the machine does besides hits both alike. Prints medians and their ratio to the target's.
"""

import argparse
import statistics
import time

import torch

from multispin.data import load_prompts
from multispin.models import load_model, load_tokenizer
from multispin.models.distilled import load_student
from multispin.models.drafter import SHIPPED, ModelDrafter, shipped_folder
from multispin.speculation import SamplingParams

TURNS, LENGTH = 24, 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", help="of both: a device would run both in the same numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer("embedded")
    prompt = tokenizer.encode_chat(load_prompts()[0].text)
    drafters = {"target": ModelDrafter(load_model("embedded", options.dtype), 512)}
    for name in SHIPPED:
        student = load_student(shipped_folder(name), load_model("embedded", options.dtype))
        drafters[name] = ModelDrafter(student, 512)
    print(f"| temperature | drafter | ms per token | of the target's | ({options.threads} threads, {options.dtype})")
    print("|---|---|---|---|")
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
        for name, value in medians.items():
            print(f"| {temperature:g} | {name} | {1e3 * value:.2f} | {value / medians['target']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
