"""The target alone: the texts that it writes without drafts, and its speed."""

import time
from collections.abc import Iterator, Sequence

from multispin.demo.order import DemoOrder
from multispin.models import load_tokenizer
from multispin.speculation import SamplingParams

TextRequest = tuple[list[int], SamplingParams]
"""A prompt as token ids, and the sampling parameters of the answer."""


def requests_of(order: DemoOrder, names: Sequence[str]) -> list[TextRequest]:
    """The requests of the devices of these names."""
    tokenizer = load_tokenizer(order.target)
    requests = []
    for spec in order.crew:
        if spec.name in names:
            prompt = tokenizer.encode_chat(spec.prompt)
            params = order.params(spec.seed).with_min_tokens(tokenizer.stop_ids, len(prompt), order.min_tokens)
            requests.append((prompt, params))
    return requests


def own_texts(order: DemoOrder, requests: Sequence[TextRequest]) -> Iterator[list[int]]:
    """Yield the target's own text of each request, in the engine of the demo, one after the other."""
    tokenizer = load_tokenizer(order.target)
    stop_ids = tokenizer.stop_ids
    if order.engine == "vllm":
        from multispin.models.vllm_engine import decode_by_vllm
        from multispin.models.vllm_options import parse_options

        chosen = parse_options(order.engine_options)
        yield from decode_by_vllm(order.target, requests, order.max_tokens, stop_ids, order.dtype, chosen)
        return
    from multispin.models import decode_alone, load_model  # loads torch, after the plays

    model = load_model(order.target, order.dtype, order.place)
    for prompt, params in requests:
        yield decode_alone(
            model, prompt, params, order.max_tokens, stop_ids, order.min_tokens, vocabulary_size=tokenizer.size
        )


def own_goodput(order: DemoOrder, requests: Sequence[TextRequest]) -> float | None:
    """Tokens per second of the target alone, writing all texts in one batch on all cores of this machine.

    None for vLLM, which has its own benchmarks and would have to be started again.
    """
    if order.engine != "embedded":
        return None
    from multispin.models import decode_together, load_verifier

    stop_ids = load_tokenizer(order.target).stop_ids
    longest = max(len(prompt) for prompt, _ in requests) + order.max_tokens
    engine = load_verifier(order.target, len(requests), longest, order.dtype, order.place)
    texts, spent_s = decode_together(engine, requests, order.max_tokens, stop_ids, time.perf_counter)
    return sum(map(len, texts)) / spent_s
