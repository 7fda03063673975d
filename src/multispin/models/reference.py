"""Plain decoding by the target alone: the text that every device's text is compared with.

It shares nothing with the verifier but the sampling law: transformers' own attention, mask and cache, one token at
a time, one request at a time.
"""

from collections.abc import Collection, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from multispin.speculation import SamplingParams, StopStrings, draw


@torch.inference_mode()
def decode_alone(
    model: PreTrainedModel,
    prompt: Sequence[int],
    params: SamplingParams,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    min_tokens: int = 0,
    stops: StopStrings | None = None,
) -> list[int]:
    """Generate up to `max_tokens` ids after `prompt`.

    Ends with the first stop id, which is included and cannot come within the first `min_tokens`, or with the first
    id that completes a stop string.
    """
    params = params.with_min_tokens(tuple(stop_ids), len(prompt), min_tokens)
    model.set_attn_implementation("sdpa")
    cache = DynamicCache(config=model.config)
    feed = list(prompt)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        out = model(
            input_ids=torch.tensor([feed], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        feed = draw(out.logits[0], [len(prompt) + len(tokens)], params)
        tokens += feed
        if feed[0] in stop_ids or (stops is not None and stops.end(tokens, len(tokens) - 1)):
            break
    return tokens
