"""What a device pays for each drafter, in each library that can run it, and what it gets.

    OMP_NUM_THREADS=1 python benchmarks/bench_runtimes.py [--threads 1] [--prompts 12]

Times are medians of one process that holds all drafters and lets them draft in turns, so that other work on the machine
hits all alike: ms per drafted token at temperature 0 and under `coupled` at 1, and for llama.cpp its own loop of decode
and argmax. Each row's other numbers come from a process of its own: acceptance along the target's own texts (the share
of tokens that it would have drafted), resident memory, time from the start of the process to its first draft, and the
size of all that the device has installed.
"""

import argparse
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = [(name, "torch") for name in ("small", "medium", "large", "q8", "embedded")]
ROWS += [(name, "llama.cpp") for name in ("small", "medium", "large", "q8", "embedded")]
ROWS += [("lookup", "numpy")]
EXTRAS = {"torch": "models", "llama.cpp": "llama", "numpy": "device"}
HEAD = (
    "| drafter | library | ms/token | coupled | own loop | accepted T=0 | T=1 | memory MB | start s | installed MB |",
    "|---|---|---|---|---|---|---|---|---|---|",
)
TURNS, LENGTH, TEXT_TOKENS, MAX_LENGTH = 12, 16, 48, 512


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--row", nargs=3, metavar=("DRAFTER", "LIBRARY", "TEXTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(*options.row, options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        texts.write_text(json.dumps(write_texts(options.prompts)))
        print(f"{options.threads} threads, {options.prompts} prompts\n\n" + "\n".join(HEAD), flush=True)
        times = measure_times(options.threads)
        for name, library in ROWS:
            row = [sys.executable, __file__, "--threads", str(options.threads), "--row", name, library, str(texts)]
            if library == "llama.cpp":  # its file is made before, once
                subprocess.run([*row[:-1], ""], check=True, capture_output=True)
            began = time.time()
            found = json.loads(subprocess.run(row, check=True, capture_output=True, text=True).stdout)
            cells = [f"{1e3 * statistics.median(each):.2f}" if each else "" for each in times[name, library]]
            cells += [f"{rate:.3f}" for rate in found["accepted"]]
            cells += [f"{found['memory']:.0f}", f"{found['first'] - began:.1f}", f"{installed_mb(EXTRAS[library]):.0f}"]
            print(f"| {name} | {library} | {' | '.join(cells)} |", flush=True)


def write_texts(count):
    """(temperature, seed, prompt, the target's own text) of a few bundled prompts."""
    import torch

    from multispin.data import load_prompts
    from multispin.models import decode_alone, load_model, load_tokenizer
    from multispin.speculation import SamplingParams

    torch.set_num_threads(os.cpu_count() or 1)
    target, tokenizer = load_model("embedded"), load_tokenizer("embedded")
    prompts = [ids for each in load_prompts() if len(ids := tokenizer.encode_chat(each.text)) < 200]
    chosen = prompts[:: max(1, len(prompts) // count)][:count]
    return [
        (temperature, seed, ids, decode_alone(target, ids, SamplingParams(temperature, seed=seed), TEXT_TOKENS))
        for temperature in (0.0, 1.0)
        for seed, ids in enumerate(chosen)
    ]


def load(name, library, threads):
    """A drafter, and the ids of a prompt."""
    from multispin.models import load_draft_source

    if library == "torch":
        import torch

        torch.set_num_threads(threads)
    source = load_draft_source(name, "embedded", threads=threads, batched=library == "torch")
    return source.drafter(MAX_LENGTH), source.tokenizer.encode_chat("Why is the sky blue?")


def measure_times(threads):
    """Seconds per token of each row, drafter by drafter in turns: greedy, coupled, and llama.cpp's own loop."""
    from multispin.speculation import SamplingParams

    drafters = {row: load(*row, threads) for row in ROWS}
    times = {row: ([], [], []) for row in ROWS}
    for turn in range(TURNS + 1):
        for row, (drafter, prompt) in drafters.items():
            found = times[row] if turn else ([], [], [])  # the first turn is not counted
            for place, params in enumerate((SamplingParams(), SamplingParams(1.0, seed=turn))):
                drafter.prepare(prompt)
                began = time.perf_counter()
                drafted = drafter.draft(prompt, LENGTH, params)
                found[place].append((time.perf_counter() - began) / max(1, len(drafted)))
            if row[1] == "llama.cpp":
                found[2].append(own_loop(drafter, prompt))
    return times


def measure(name, library, texts, threads):
    """What does not depend on how busy the machine is, but for the start, in a process of its own."""
    from multispin.speculation import SamplingParams

    drafter, prompt = load(name, library, threads)
    drafter.draft(prompt, 1, SamplingParams())
    found = {"first": time.time()}
    if not texts:
        return found
    accepted = {0.0: [], 1.0: []}
    for temperature, seed, ids, text in json.loads(Path(texts).read_text()):
        params = SamplingParams(temperature, seed=seed)
        for place, token in enumerate(text):
            accepted[temperature].append(drafter.draft([*ids, *text[:place]], 1, params) == [token])
    status = Path("/proc/self/status").read_text()
    found["accepted"] = [statistics.mean(values) for values in accepted.values()]
    found["memory"] = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    return found


def own_loop(drafter, prompt):
    """Seconds per token of the library's own decode, one token each, and the argmax of its logits in numpy."""
    context = drafter._context
    context.decode(0, prompt[:-1])
    token, place = prompt[-1], len(prompt) - 1
    native, batch = context._library, context._batch
    began = time.perf_counter()
    for _ in range(LENGTH):
        batch.n_tokens, batch.token[0], batch.pos[0], batch.logits[0] = 1, token, place, 1
        native.llama_decode(context._context, batch)
        row = native.llama_get_logits_ith(context._context, 0)
        token, place = max_of(row, context.vocabulary_size), place + 1
    context.cached[0].clear()
    return (time.perf_counter() - began) / LENGTH


def max_of(row, size):
    import numpy as np

    return int(np.ctypeslib.as_array(row, (size,)).argmax())


def installed_mb(extra):
    """Size of this package with an extra and all that they require, as installed here."""
    from packaging.requirements import Requirement

    seen, waiting, size = set(), [("multispin", extra), ("multispin", "")], 0
    while waiting:
        name, wanted = waiting.pop()
        if (name.lower(), wanted) in seen:
            continue
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name.lower() not in {each for each, _ in seen}:
            size += sum(file.locate().stat().st_size for file in found.files or () if file.locate().is_file())
        seen.add((name.lower(), wanted))
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": wanted}):
                waiting += [(needed.name, each) for each in (needed.extras or {""})]
    return size / 1e6


if __name__ == "__main__":
    main()
