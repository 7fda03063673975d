"""What the number types of a target change: in its argmax, in its distribution, and in the time of a verification.

    python benchmarks/bench_dtypes.py [--texts 24] [--tokens 128] [--turns 10]

The float32 target answers bundled prompts at temperature 0; the same texts then go through the other number types, and
at each position of an answer argmax and distribution (temperature 1) are compared. "int8 weights, bfloat16 sums" is
what `--draft q8` makes of it. Verifications of 8 sessions with 5 tokens after 100 are timed in turns, in this process.
"""

import argparse
import statistics
import time

import torch

from multispin.data import load_prompts
from multispin.models import Verifier, decode_together, load_model, load_tokenizer, round_weights
from multispin.models.drafter import ModelDrafter
from multispin.speculation import Feed, SamplingParams

GREEDY, SAMPLED = SamplingParams(0.0), SamplingParams(1.0)
SESSIONS, DRAFTED, CONTEXT, LENGTH = 8, 4, 100, 512


def model_of(kind):
    return round_weights(load_model("embedded"), 8) if kind.endswith("sums") else load_model("embedded", kind)


def timed(verifiers, turns):
    """Seconds of each turn's verification by number type, the types in turns."""
    slots = {kind: [engine.open() for _ in range(SESSIONS)] for kind, engine in verifiers.items()}
    context = list(range(1000, 1000 + CONTEXT))
    for kind, engine in verifiers.items():
        engine.verify([Feed(slot, 0, context, None) for slot in slots[kind]])
    times = {kind: [] for kind in verifiers}
    for turn in range(turns + 2):
        for kind, engine in verifiers.items():
            feeds = [Feed(slot, CONTEXT, context[: DRAFTED + 1], GREEDY) for slot in slots[kind]]
            began = time.perf_counter()
            engine.verify(feeds)
            if turn >= 2:
                times[kind].append(time.perf_counter() - began)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args()
    tokenizer = load_tokenizer("embedded")
    prompts = [tokenizer.encode_chat(p.text) for p in load_prompts()[:: max(1, 48 // options.texts)]][: options.texts]
    writer = Verifier(load_model("embedded"), len(prompts), LENGTH)
    answers, _ = decode_together(
        writer, [(p, GREEDY) for p in prompts], options.tokens, tokenizer.stop_ids, time.perf_counter
    )
    del writer
    texts = [(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]

    kinds = ("float32", "bfloat16", "int8", "int8 weights, bfloat16 sums")
    distributions, rows = [], []
    for kind in kinds:
        reader = ModelDrafter(model_of(kind), LENGTH)
        agrees, overlaps = [], []
        for index, (text, begin) in enumerate(texts):
            logits = reader.logits_along(text, begin, SAMPLED).float()
            distribution = logits.softmax(-1)
            if kind == "float32":
                distributions.append(distribution)
            agrees += (distributions[index].argmax(-1) == distribution.argmax(-1)).tolist()
            overlaps += torch.minimum(distributions[index], distribution).sum(-1).tolist()
        rows.append((kind, statistics.mean(agrees), statistics.mean(overlaps)))
    times = timed({kind: Verifier(model_of(kind), SESSIONS, LENGTH) for kind in kinds[:3]}, options.turns)
    print(
        f"{len(texts)} texts, {sum(len(answer) for answer in answers)} positions, {torch.get_num_threads()} threads\n"
    )
    print("| number type | same argmax | overlap of the distributions | verification [ms] | of float32's |")
    print("|---|---|---|---|---|")
    for kind, agree, overlap in rows:
        if kind in times:
            ratio = statistics.median(a / b for a, b in zip(times[kind], times["float32"], strict=True))
            speed = f"{1e3 * statistics.median(times[kind]):.0f} | {ratio:.2f}"
        else:
            speed = " | "
        print(f"| {kind} | {100 * agree:.1f} % | {overlap:.3f} | {speed} |")


if __name__ == "__main__":
    main()
