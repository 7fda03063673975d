"""Record what a rounded copy of the embedded target gets right: `python examples/record_embedded.py`.

Writes traces/embedded-q4.json: for the first prompts of the package the target's own greedy text, and for every
position of it whether the target with its weights rounded to 4 bits, given the target's text so far, proposes the
same token. docs/simulation.md says what the file is for.
"""

from pathlib import Path

import torch

from multispin.data import load_prompts
from multispin.estimation.traces import Trace, save_traces
from multispin.models import load_model, load_tokenizer
from multispin.models.quantised import round_weights
from multispin.models.reference import decode_alone
from multispin.speculation import SamplingParams

PROMPTS, TOKENS, BITS = 8, 48, 4


def main() -> None:
    """Write the file."""
    target, drafter = load_model("embedded"), round_weights(load_model("embedded"), BITS)
    drafter.set_attn_implementation("sdpa")
    tokenizer = load_tokenizer("embedded")
    traces = []
    for prompt in load_prompts()[:PROMPTS]:
        ids = tokenizer.encode_chat(prompt.text)
        text = decode_alone(target, ids, SamplingParams(), TOKENS, tokenizer.stop_ids)
        with torch.inference_mode():
            logits = drafter(input_ids=torch.tensor([ids + text])).logits[0]
        proposed = logits[len(ids) - 1 : -1].argmax(-1).tolist()
        accepts = "".join(str(int(a == b)) for a, b in zip(proposed, text, strict=True))
        traces.append(Trace(prompt.text, prompt.task, accepts))
    save_traces(Path(__file__).parent / "traces" / f"embedded-q{BITS}.json", "embedded", f"q{BITS}", 0.0, traces)


if __name__ == "__main__":
    main()
