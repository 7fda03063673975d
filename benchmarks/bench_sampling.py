"""How much faster `draw` is than its plain definition, as ratios within one run.

Run: OMP_NUM_THREADS=1 python benchmarks/bench_sampling.py
Both sides draw the same tokens from the same rows (checked), alternating, best of several repetitions. Rows are
normal logits with a few strong ones, the shape of a language model's.
"""

import time

import torch

from multispin.speculation import SamplingParams, draw, gumbel_torch

ROWS = 8
REPEATS = 15


def plain_draw(logits, positions, params):
    """The definition: truncate by a full sort, score every token of the support, take the best."""
    scaled = logits.float() / params.temperature
    if params.top_p < 1.0:
        weights = (scaled - scaled.max(dim=-1, keepdim=True).values).exp().double()
        order = scaled.argsort(dim=-1, descending=True, stable=True)
        ordered = weights.gather(-1, order)
        before = ordered.cumsum(dim=-1) - ordered
        dropped = before >= params.top_p * weights.sum(dim=-1, keepdim=True)
        scaled = scaled.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    tokens = []
    for row, position in zip(scaled, positions, strict=True):
        support = torch.nonzero(row > -torch.inf).squeeze(-1)
        scores = row[support].double() + gumbel_torch(params.seed, [position], support)[0]
        tokens.append(int(support[scores.argmax()]))
    return tokens


def main():
    generator = torch.Generator().manual_seed(0)
    print(f"{'V':>8} {'top_p':>6} {'plain ms/row':>13} {'draw ms/row':>12} {'ratio':>6}")
    for vocabulary in (32_000, 49_152, 151_665):
        logits = torch.randn(ROWS, vocabulary, generator=generator) * 2
        logits[:, :20] += torch.linspace(14, 6, 20)
        for top_p in (1.0, 0.95):
            params = SamplingParams(0.8, top_p=top_p, seed=7)
            best = {plain_draw: float("inf"), draw: float("inf")}
            for repeat in range(REPEATS):
                positions = list(range(repeat * ROWS, (repeat + 1) * ROWS))
                tokens = []
                for function in best:
                    begin = time.perf_counter()
                    tokens.append(function(logits, positions, params))
                    best[function] = min(best[function], time.perf_counter() - begin)
                assert tokens[0] == tokens[1], "the two draws differ"
            plain, fast = best[plain_draw] / ROWS * 1e3, best[draw] / ROWS * 1e3
            print(f"{vocabulary:8d} {top_p:6.2f} {plain:13.3f} {fast:12.3f} {plain / fast:6.1f}")


if __name__ == "__main__":
    main()
