"""Draft, verify and commit, pass by pass, in one process: `python examples/one_pass.py`.

Two texts are written by one target model. Each has a drafter of its own, and every pass verifies both drafts in one
batch. The texts are exactly those that the target writes alone; the drafters only change how many passes it takes.

    python examples/one_pass.py                                       # the embedded target and its shipped drafters
    python examples/one_pass.py --target ./my-model --draft lookup    # any model folder, .gguf file or Hub id
"""

import argparse

import multispin

PROMPTS = ("Why is the sky blue?", "Write a Python function that reverses a list.")


def main(arguments: list[str] | None = None) -> None:
    """Write both texts and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="embedded", help="model that verifies")
    parser.add_argument("--draft", default="large", help="drafter: small, medium, large, lookup, none, q8 or a model")
    parser.add_argument("--max-tokens", type=int, default=48, help="longest text")
    options = parser.parse_args(arguments)

    tokenizer = multispin.load_tokenizer(options.target)
    prompts = [tokenizer.encode_chat(prompt) for prompt in PROMPTS]
    longest = max(map(len, prompts)) + options.max_tokens
    engine = multispin.Verifier(multispin.load_model(options.target), slots=len(prompts), max_length=longest)
    texts = []
    for prompt in prompts:
        drafter, _ = multispin.load_drafter(options.draft, options.target, longest)
        texts.append(
            multispin.open_text(engine, prompt, drafter, max_tokens=options.max_tokens, stop_ids=tokenizer.stop_ids)
        )

    passes = 0
    while not all(text.finished for text in texts):
        multispin.one_pass(engine, texts, draft_length=4)
        passes += 1

    for text in texts:
        print(tokenizer.decode(text.generated))
        print(f"-- {len(text.generated)} tokens, {text.accepted} of {text.drafted} drafted tokens accepted\n")
    print(f"{passes} passes; without drafts it takes {max(len(text.generated) for text in texts)}")


if __name__ == "__main__":
    main()
