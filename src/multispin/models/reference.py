"""Plain decoding by the target alone: the text with which every device's text is compared, and its speed.

`decode_alone` shares only the drawing of a token with the verifier. It uses transformers' own attention, mask and
cache, one token and one request at a time.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from transformers import DynamicCache, PreTrainedModel

from multispin.errors import InputError
from multispin.speculation import Failure, Outcome, SamplingParams, TextStream, draw_after
from multispin.speculation.engine import Engine, Feed


@torch.inference_mode()
def decode_alone(
    model: PreTrainedModel,
    prompt: Sequence[int],
    params: SamplingParams,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    min_tokens: int = 0,
    stream: TextStream | None = None,
    vocabulary_size: int | None = None,
) -> list[int]:
    """Generate up to `max_tokens` ids after `prompt`.

    Ends with the first stop id, which is included and cannot come within the first `min_tokens`, or with the first
    id that completes a stop string of `stream`, a new one. Ids from `vocabulary_size` on (padding of the logits)
    cannot be drawn.
    """
    params = params.with_min_tokens(tuple(stop_ids), len(prompt), min_tokens)
    cache = DynamicCache(config=model.config)
    feed = list(prompt)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        out = model(
            input_ids=torch.tensor([feed], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        feed = [draw_after(out.logits[0, :, :vocabulary_size], prompt, tokens, params)]
        tokens += feed
        if stream is not None:
            stream.push(feed)
        if feed[0] in stop_ids or (stream is not None and stream.stopped):
            break
    return tokens


def decode_together(
    engine: Engine,
    requests: Sequence[tuple[Sequence[int], SamplingParams]],
    max_tokens: int,
    stop_ids: Collection[int],
    clock: Callable[[], float],
) -> tuple[list[list[int]], float]:
    """Let the target write all texts in one batch without drafts, as a baseline.

    Args:
        engine: engine with a free slot per request.
        requests: prompt and sampling parameters of each.
        max_tokens: most tokens of a text.
        stop_ids: ids that end a text.
        clock: function that returns the time [s].

    Returns:
        The texts, and their time from the first token on, without the prompts [s].

    """
    texts = [list(prompt) for prompt, _ in requests]
    settings = [replace(params, prompt_tokens=len(prompt)) for prompt, params in requests]
    slots = [engine.open() for _ in requests]
    for slot, text in zip(slots, texts, strict=True):
        if len(text) > 1:
            engine.verify([Feed(slot, 0, text[:-1], None)])
    running = list(range(len(requests)))
    began = clock()
    while running:
        feeds = [Feed(slots[k], len(texts[k]) - 1, texts[k][-1:], settings[k], None, texts[k]) for k in running]
        for k, outcome in zip(running, engine.verify(feeds), strict=True):
            if isinstance(outcome, Failure):
                raise InputError(outcome.reason)
            assert isinstance(outcome, Outcome)
            texts[k].append(outcome.next_token)
        running = [
            k for k in running if texts[k][-1] not in stop_ids and len(texts[k]) - len(requests[k][0]) < max_tokens
        ]
    spent_s = clock() - began
    for slot in slots:
        engine.close(slot)
    return [text[len(prompt) :] for text, (prompt, _) in zip(texts, requests, strict=True)], spent_s
