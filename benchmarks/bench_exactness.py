"""How many texts differ from the target's own, by number type, when ragged drafts of others share each pass.

    python benchmarks/bench_exactness.py [--types float32 int8 bfloat16] [--models 4] [--batches 4] [--tokens 40]
        [--batch-invariant] [--target embedded]

Tiny random models of Llama's family, or a real one (--target) on bundled prompts, write six texts at once, half of them
greedy, half with `coupled` at temperature 0.8. Each text joins four passes of five with a draft of 0 to 5 tokens, half
of which end in a wrong one. The reference is plain decoding by transformers, one text at a time, in the same number
type. In bfloat16 a sum depends on the number of rows in its batch, and near ties of a random model are common: a
trained model has fewer of both kinds.

With --batch-invariant two verifiers write the same texts, one whose passes all have one shape and one without that. The
reference of each is the same verifier with one text at a time; their times are compared.
"""

import argparse
import random
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from multispin.data import load_prompts
from multispin.models import Verifier, decode_alone, load_model, load_tokenizer
from multispin.models.quantised import whole_weights
from multispin.speculation import Feed, SamplingParams

VOCABULARY, TEXTS = 500, 6


def model_of(seed, kind, target):
    if target is not None:
        return load_model(target, kind)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return whole_weights(model) if kind == "int8" else model.to(getattr(torch, kind))


def prompts_of(target, rng):
    """The prompts of six texts."""
    if target is None:
        return [[rng.randrange(VOCABULARY) for _ in range(rng.choice([3, 9, 20, 31]))] for _ in range(TEXTS)]
    tokenizer = load_tokenizer(target)
    return [tokenizer.encode_chat(prompt.text) for prompt in rng.sample(load_prompts(), TEXTS)]


def draft_for(own, done, tokens, rng):
    """Some of the target's own next tokens, every second time with a wrong one at the end."""
    draft = own[done : done + min(rng.randrange(6), tokens - done - 1)]
    if draft and rng.random() < 0.5:
        draft[-1] = rng.randrange(VOCABULARY)
    return draft


def write_together(verifier, prompts, samplings, alone, tokens, rng):
    """The texts that come out of ragged passes with the texts `alone` as drafts."""
    slots, texts = [verifier.open() for _ in prompts], [list(prompt) for prompt in prompts]
    for slot, prompt in zip(slots, prompts, strict=True):
        verifier.verify([Feed(slot, 0, prompt[:-1], None)])
    while running := [k for k in range(TEXTS) if len(texts[k]) - len(prompts[k]) < tokens]:
        joining = [k for k in running if rng.random() < 0.8]
        feeds = []
        for k in joining:
            draft = draft_for(alone[k], len(texts[k]) - len(prompts[k]), tokens, rng)
            feeds.append(Feed(slots[k], len(texts[k]) - 1, [texts[k][-1], *draft], samplings[k]))
        for k, feed, outcome in zip(joining, feeds, verifier.verify(feeds), strict=True):
            texts[k] += [*feed.tokens[1 : 1 + outcome.accepted], outcome.next_token]
            verifier.commit(slots[k], len(texts[k]) - 1)
    for slot in slots:
        verifier.close(slot)
    return [text[len(prompt) :][:tokens] for text, prompt in zip(texts, prompts, strict=True)]


def write_alone(verifier, prompt, sampling, tokens):
    """A text written by the verifier without drafts, and with nobody else in its passes."""
    slot, text = verifier.open(), list(prompt)
    verifier.verify([Feed(slot, 0, prompt[:-1], None)])
    while len(text) < len(prompt) + tokens:
        text.append(verifier.verify([Feed(slot, len(text) - 1, [text[-1]], sampling)])[0].next_token)
        verifier.commit(slot, len(text) - 1)
    verifier.close(slot)
    return text[len(prompt) :]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=["float32", "int8", "bfloat16"])
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--target", help="a real model, such as embedded; by default tiny random ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kind in options.types:
        differ, times = {False: 0, True: 0}, {False: 0.0, True: 0.0}  # without and with one shape
        for seed in range(options.models):
            model, rng = model_of(seed, kind, options.target), random.Random(seed)
            length = 128 if options.target is None else 512
            engines = {False: Verifier(model, TEXTS, length)}
            if options.batch_invariant:
                engines[True] = Verifier(model, TEXTS, length, batch_invariant=True)
            for batch in range(options.batches):
                prompts = prompts_of(options.target, rng)
                samplings = [
                    SamplingParams() if k % 2 else SamplingParams(0.8, seed=100 * batch + k) for k in range(TEXTS)
                ]
                state = rng.getstate()
                for one_shape, engine in engines.items():
                    alone = [
                        write_alone(engine, p, sampling, options.tokens)
                        if options.batch_invariant
                        else decode_alone(model, p, sampling, options.tokens)
                        for p, sampling in zip(prompts, samplings, strict=True)
                    ]
                    rng.setstate(state)
                    began = time.perf_counter()
                    found = write_together(engine, prompts, samplings, alone, options.tokens, rng)
                    times[one_shape] += time.perf_counter() - began
                    differ[one_shape] += sum(text != own for text, own in zip(found, alone, strict=True))
        texts = options.models * options.batches * TEXTS
        print(f"{kind}: {differ[False]} of {texts} texts differ", flush=True)
        if options.batch_invariant:
            print(f"{kind}, one shape: {differ[True]} of {texts} differ", flush=True)
            print(f"{kind}, one shape: {times[True] / times[False]:.2f} times the time", flush=True)


if __name__ == "__main__":
    main()
