"""The verifier against padded batches, the bare model, one session at a time, and transformers' own generation.

Run: OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=100000 python benchmarks/bench_verifier.py [--dtype float32|bfloat16|both]
     [--threads 2]; threads then wait as those of `multispin serve` do

Everything runs on the embedded target (SmolLM2-135M-Instruct), greedy. The sides of a comparison take turns in one
process and the medians of the turns' ratios are reported, so that a busy machine disturbs both alike. `--check` exits
with 1 where a ratio misses its target.
"""

import argparse
import contextlib
import copy
import logging
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, PreTrainedModel

from multispin.models import Verifier, load_model
from multispin.models.prepacked import multiplies_bfloat16, prepack
from multispin.speculation import Feed, SamplingParams

GREEDY = SamplingParams()
CONTEXT = 100
NEW_TOKENS = 32
MIXES = ([5] * 8, [17, 1, 1, 1], [1] * 8, [9, 5, 1, 1], [25] + [1] * 7)


class Times:
    """Seconds of each side, turn by turn."""

    def __init__(self, sides: dict[str, Callable[[], object]], repeats: int) -> None:
        self._turns: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(repeats + 1):
            # The sides take turns, and take turns in going first.
            for name in list(sides) if turn % 2 else list(reversed(sides)):
                began = time.perf_counter()
                sides[name]()
                if turn:  # the first turn warms up
                    self._turns[name].append(time.perf_counter() - began)

    def __getitem__(self, name: str) -> float:
        return statistics.median(self._turns[name])

    def ratio(self, over: str, under: str) -> float:
        """Median of the turns' ratios."""
        return statistics.median(a / b for a, b in zip(self._turns[over], self._turns[under], strict=True))


class Table:
    """Rows of one comparison, and whether they reached their targets."""

    def __init__(self) -> None:
        self.missed = 0

    def row(self, what: str, ours: float, theirs: float, ratio: float, target: str = "", good: bool = True) -> None:
        mark = "" if not target else f"{target} {'reached' if good else 'MISSED'}"
        self.missed += not good
        print(f"| {what} | {1e3 * ours:.0f} | {1e3 * theirs:.0f} | {ratio:.2f} | {mark} |", flush=True)


def head(title: str, ours: str, theirs: str) -> None:
    print(f"\n{title}\n\n| case | {ours} [ms] | {theirs} [ms] | ratio | target |\n| --- | --- | --- | --- | --- |")


def prefilled(model: PreTrainedModel, slots: int, reorder: bool = True) -> tuple[Verifier, list[int]]:
    """A verifier whose slots hold CONTEXT tokens each."""
    verifier = Verifier(model, slots=slots, max_length=256, reorder=reorder)
    numbers = [verifier.open() for _ in range(slots)]
    rng = random.Random(1)
    verifier.verify([Feed(s, 0, [rng.randrange(1000, 40_000) for _ in range(CONTEXT)], None) for s in numbers])
    return verifier, numbers


def drafts(slots: list[int], lengths: list[int]) -> list[Feed]:
    return [Feed(s, CONTEXT, list(range(2000, 2000 + n)), GREEDY) for s, n in zip(slots, lengths, strict=False)]


def padded_mixes(table: Table, model: PreTrainedModel, repeats: int) -> None:
    """Padding is drafting tokens that nobody asked for: the same engine, every feed as long as the longest."""
    head("Packed against padded", "packed", "padded")
    verifier, slots = prefilled(model, 8)
    for mix in MIXES:
        ragged, equal = drafts(slots, mix), drafts(slots, [max(mix)] * len(mix))
        t = Times(
            {"packed": lambda f=ragged: verifier.verify(f), "padded": lambda f=equal: verifier.verify(f)}, repeats
        )  # type: ignore[misc]
        ratio = t.ratio("padded", "packed")
        least = 1.4 if mix == [17, 1, 1, 1] else 1 / 1.05
        table.row(", ".join(map(str, mix)), t["packed"], t["padded"], ratio, f"≥ {least:.2f}", ratio >= least)


def bare_forward(table: Table, model: PreTrainedModel, reordered: PreTrainedModel, repeats: int) -> None:
    """Whole `verify` against the model's own forward of the same [8, 5] tokens, with and without the 100 before."""
    head("Whole verify against the bare forward, B = 8, 5 tokens each (ratio: verify / bare)", "verify", "bare")
    verifier, slots = prefilled(model, 8)
    feeds = drafts(slots, [5] * 8)
    tokens = torch.tensor([list(feed.tokens) for feed in feeds])
    cache = DynamicCache(config=reordered.config)
    rng = random.Random(1)
    reordered.set_attn_implementation("sdpa")
    with torch.inference_mode():
        prompts = torch.tensor([[rng.randrange(1000, 40_000) for _ in range(CONTEXT)] for _ in slots])
        reordered(prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
    found = []

    @torch.inference_mode()
    def bare(cached: DynamicCache | None) -> None:
        logits = reordered(tokens, past_key_values=cached, use_cache=cached is not None).logits
        if cached is not None:
            cached.crop(-tokens.shape[1])
            found.append(logits.argmax(-1)[:, 0].tolist())

    t = Times(
        {"verify": lambda: verifier.verify(feeds), "same": lambda: bare(cache), "empty": lambda: bare(None)},
        2 * repeats,
    )
    ratio = t.ratio("verify", "same")
    table.row("same 100 cached tokens", t["verify"], t["same"], ratio, "≤ 1.05", ratio <= 1.05)
    table.row("bare forward without any context", t["verify"], t["empty"], t.ratio("verify", "empty"))
    same = [int(logits[0].argmax()) for logits in verifier.forward(feeds)]
    if model.dtype == torch.float32 and same != found[-1]:
        sys.exit("verify and the bare forward disagree")


def one_by_one(table: Table, model: PreTrainedModel, repeats: int) -> None:
    head("Batched against one by one, B = 8", "batched", "one by one")
    verifier, slots = prefilled(model, 8)
    for length in (1, 5):
        feeds = drafts(slots, [length] * 8)
        t = Times(
            {
                "batched": lambda f=feeds: verifier.verify(f),  # type: ignore[misc]
                "alone": lambda f=feeds: [verifier.verify([feed]) for feed in f],  # type: ignore[misc]
            },
            repeats,
        )
        ratio = t.ratio("alone", "batched")
        target = "≥ 2" if length == 5 else ""
        table.row(f"8 × {length} tokens", t["batched"], t["alone"], ratio, target, not target or ratio >= 2)


def prompt_chunks(table: Table, model: PreTrainedModel, repeats: int) -> None:
    """What a chunk of somebody's prompt in the batch costs the others' round of 8 × 5 tokens."""
    head("A chunk of a prompt riding along (ratio: round with it / without)", "with", "without")
    verifier, slots = prefilled(model, 9)
    feeds = drafts(slots, [5] * 8)
    chunks = {n: Feed(slots[8], 0, list(range(1000, 1000 + n)), None) for n in (16, 64, 256)}
    sides: dict[str, Callable[[], object]] = {"without": lambda: verifier.verify(feeds)}
    for n, chunk in chunks.items():
        sides[str(n)] = lambda c=chunk: verifier.verify([*feeds, c])  # type: ignore[misc]
    t = Times(sides, repeats)
    for n in chunks:
        table.row(f"{n} prompt tokens", t[str(n)], t["without"], t.ratio(str(n), "without"))


def overhead(table: Table, model: PreTrainedModel, repeats: int) -> None:
    """A decoding step of the target beside its two floors: reading its weights and doing nothing else; and a step of as
    many layers that are 1/16 as wide, which is Python and dispatch alone."""
    head("Bytes and overhead of a decoding step, B = 8 (ratio: part / whole)", "part", "whole")
    thin = copy.deepcopy(model.config)
    thin.hidden_size, thin.intermediate_size, thin.vocab_size, thin.head_dim = 36, 96, 42_000, 4
    small = AutoModelForCausalLM.from_config(thin, dtype=model.dtype).eval()
    verifiers = {"whole": prefilled(model, 8), "thin": prefilled(small, 8)}
    size = sum(p.numel() for p in load_model("embedded", str(model.dtype).removeprefix("torch.")).parameters())
    read = size * model.dtype.itemsize
    weights = torch.ones(read // 4)
    sides: dict[str, Callable[[], object]] = {
        name: lambda v=v, s=s: v.verify(drafts(s, [1] * 8))  # type: ignore[misc]
        for name, (v, s) in verifiers.items()
    }
    t = Times({**sides, "read": weights.sum}, 2 * repeats)
    speed = read / t["read"] / 1e9
    table.row(
        f"reading {read / 1e6:.0f} MB of weights, {speed:.1f} GB/s", t["read"], t["whole"], t.ratio("read", "whole")
    )
    table.row("layers 1/16 as wide: Python and dispatch", t["thin"], t["whole"], t.ratio("thin", "whole"))


def decode(verifier: Verifier, prompts: list[list[int]]) -> list[list[int]]:
    """Plain decoding of all prompts through the engine: a draft length of 0 in every round."""
    slots = [verifier.open() for _ in prompts]
    verifier.verify([Feed(s, 0, p[:-1], None) for s, p in zip(slots, prompts, strict=True)])
    texts = [list(prompt) for prompt in prompts]
    for _ in range(NEW_TOKENS):
        feeds = [Feed(s, len(text) - 1, text[-1:], GREEDY) for s, text in zip(slots, texts, strict=True)]
        for text, outcome in zip(texts, verifier.verify(feeds), strict=True):
            assert outcome is not None
            text.append(outcome.next_token)
    for slot in slots:
        verifier.close(slot)
    return [text[-NEW_TOKENS:] for text in texts]


def generation(
    table: Table, model: PreTrainedModel, reordered: PreTrainedModel, plain: PreTrainedModel, repeats: int
) -> None:
    """Prompts of 20 … 60 tokens, `NEW_TOKENS` new ones each, prefill included."""
    head(f"Plain decoding, {NEW_TOKENS} tokens after prompts of 20 … 60", "engine", "other")
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    for batch in (8, 16):
        rng = random.Random(batch)
        prompts = [[rng.randrange(1000, 40_000) for _ in range(rng.randint(20, 60))] for _ in range(batch)]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        verifier = Verifier(model, slots=batch, max_length=128)
        texts: dict[str, list[list[int]]] = {}

        def engine(
            verifier: Verifier = verifier, prompts: list[list[int]] = prompts, texts: dict[str, list[list[int]]] = texts
        ) -> None:
            texts["engine"] = decode(verifier, prompts)

        def generate(
            other: PreTrainedModel,
            ids: torch.Tensor = ids,
            mask: torch.Tensor = mask,
            texts: dict[str, list[list[int]]] = texts,
        ) -> None:
            other.set_attn_implementation("sdpa")
            out = other.generate(ids, attention_mask=mask, generation_config=config)
            texts["generate"] = out[:, ids.shape[1] :].tolist()

        def continuous(prompts: list[list[int]] = prompts) -> None:
            plain.set_attn_implementation("sdpa")
            with contextlib.redirect_stderr(None):
                plain.generate_batch(inputs=prompts, generation_config=config, persistent_manager=True, warmup=False)

        sides: dict[str, Callable[[], object]] = {
            "engine": engine,
            "generate": lambda: generate(plain),
            "generate, weights reordered too": lambda: generate(reordered),
            "continuous batching": continuous,
        }
        t = Times(sides, repeats)
        for name in list(sides)[1:]:
            ratio = t.ratio(name, "engine")
            target = "" if "reordered" in name else "≥ 1.5"
            table.row(f"B = {batch}: {name}", t["engine"], t[name], ratio, target, not target or ratio >= 1.5)
        equal = sum(a == b for a, b in zip(texts["engine"], texts["generate"], strict=True))
        print(f"| B = {batch}: texts equal to generate's | {equal} of {batch} | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "both"], default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    table, began = Table(), time.perf_counter()
    dtypes = ["float32", "bfloat16"] if options.dtype == "both" else [options.dtype]
    if options.dtype == "both" and not multiplies_bfloat16():
        print("no bfloat16: this processor has no products of it")
        dtypes.remove("bfloat16")
    for dtype in dtypes:
        model, other, plain = (load_model("embedded", dtype) for _ in range(3))
        reordered = prepack(other)
        print(f"\n{dtype}, {options.threads} threads, torch {torch.__version__}")
        padded_mixes(table, model, options.repeats)
        bare_forward(table, model, reordered, options.repeats)
        one_by_one(table, model, options.repeats)
        overhead(table, model, options.repeats)
        prompt_chunks(table, model, options.repeats // 2)
        generation(table, model, reordered, plain, 3)
    print(f"\n{time.perf_counter() - began:.0f} s; {table.missed} targets missed")
    sys.exit(options.check and table.missed > 0)


if __name__ == "__main__":
    main()
