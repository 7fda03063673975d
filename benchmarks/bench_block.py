"""How many drafted tokens stand token by token, and by block verification, from the same drafts.

    python benchmarks/bench_block.py [--prompts 12] [--tokens 48] [--pairs 1000]

First random pairs: target and drafter over 8 ids, every distribution drawn from Dirichlet(1), each mean exact. Then the
shipped drafters against the embedded target at temperature 1 on the bundled prompts: texts are written by `rejection`
in rounds of 8 drafted tokens, V̂ = 1024, Q_B = 16, and for each draft both means over the coins are computed, for
the whole draft and for its first tokens alone. Prints two tables in Markdown.
"""

import argparse

import numpy as np
import torch

from multispin.data import load_prompts
from multispin.models import Verifier, load_drafter, load_model, load_tokenizer
from multispin.models.drafter_name import SHIPPED
from multispin.speculation import (
    DistributionFormat,
    Feed,
    SamplingParams,
    derive_seed,
    shaped,
    target_distribution,
    verify_distributions,
)

IDS, LENGTHS = 8, (1, 2, 4, 8)
SEED = 2026


def standing(ratios):
    """Mean accepted tokens of one draft over the coins, by its length: token by token, and as a block.

    Args:
        ratios: p(x)/q(x) of each drafted token.
    """
    ratios = np.asarray(ratios)
    weight, weights = 1.0, []
    for ratio in ratios:
        weight = min(1.0, weight * ratio)
        weights.append(weight)
    return np.cumsum(np.cumprod(np.minimum(1.0, ratios))), np.cumsum(weights)


def of_random_pair(rng, length):
    """Exact means of one random pair over all drafts of `length` tokens: (token by token, block)."""
    mass, token, block = np.ones(1), np.ones(1), np.ones(1)  # by the draft so far
    means = np.zeros(2)
    for _ in range(length):
        p, q = rng.dirichlet(np.ones(IDS), (2, len(mass)))
        ratio = p / q
        token = (token[:, None] * np.minimum(1.0, ratio)).ravel()
        block = np.minimum(1.0, block[:, None] * ratio).ravel()
        mass = (mass[:, None] * q).ravel()
        means += (mass * token).sum(), (mass * block).sum()
    return means


def random_pairs(count):
    print(f"{count} random pairs over {IDS} ids\n")
    print("| draft length | token by token | block | gain: mean | least | most |")
    print("|---|---|---|---|---|---|")
    for length in (1, 2, 3, 4):
        rng = np.random.default_rng(SEED)
        token, block = np.array([of_random_pair(rng, length) for _ in range(count)]).T
        gain = 100 * (block / token - 1)
        facts = (
            f"{token.mean():.3f} | {block.mean():.3f} | {gain.mean():.1f} % | {gain.min():.1f} % | {gain.max():.1f} %"
        )
        print(f"| {length} | {facts} |", flush=True)


def of_a_text(drafter, target, prompt, tokens, params, form):
    """[rounds, 2, longest] means of `standing` for every full draft of one text."""
    text, found = list(prompt), []
    slot = target.open()
    target.forward([Feed(slot, 0, text[:-1], None)])
    while len(text) < len(prompt) + tokens:
        base = len(text)
        drafted, distributions = drafter.draft_distributions(text, max(LENGTHS), params, form)
        (logits,) = target.forward([Feed(slot, base - 1, [text[-1], *drafted], params)])
        p = target_distribution(shaped(logits, range(base, base + len(drafted) + 1), params), params)
        q = [
            distribution.weight(token) / form.total for distribution, token in zip(distributions, drafted, strict=True)
        ]
        found.append(standing([float(p[i, token]) / q[i] for i, token in enumerate(drafted)]))
        outcome = verify_distributions(drafted, distributions, logits, base, params)
        text += [*drafted[: outcome.accepted], outcome.next_token]
        target.commit(slot, base + outcome.accepted)
    target.close(slot)
    return np.array(found)


def shipped_drafters(prompts, tokens):
    tokenizer, target = load_tokenizer("embedded"), Verifier(load_model("embedded"), 1, 512)
    form = DistributionFormat(target.vocabulary_size, 1024, 16)
    print(f"\n{prompts} prompts, {tokens} tokens each, temperature 1\n")
    print("| drafter | draft length | token by token | block | gain (± standard error over prompts) |")
    print("|---|---|---|---|---|")
    for name in SHIPPED:
        drafter, _ = load_drafter(name, "embedded", 512)
        texts = []
        for index, prompt in enumerate(load_prompts()[:prompts]):
            params = SamplingParams(1.0, seed=derive_seed(SEED, index))
            texts.append(of_a_text(drafter, target, tokenizer.encode_chat(prompt.text), tokens, params, form))
        for length in LENGTHS:
            sums = np.array([text[:, :, length - 1].sum(0) for text in texts])
            rounds = sum(len(text) for text in texts)
            token, block = sums.sum(0)
            gain = block / token - 1
            error = np.sqrt(((sums[:, 1] - (1 + gain) * sums[:, 0]) ** 2).sum()) / token
            facts = f"{token / rounds:.3f} | {block / rounds:.3f} | {100 * gain:.1f} ± {100 * error:.1f} %"
            print(f"| {name} | {length} | {facts} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=1000)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    random_pairs(options.pairs)
    shipped_drafters(options.prompts, options.tokens)


if __name__ == "__main__":
    main()
