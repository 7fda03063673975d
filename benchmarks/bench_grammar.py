"""Time of a schema's masks: by llguidance, and by xgrammar where it is installed (`pip install xgrammar`).

    python benchmarks/bench_grammar.py

Compiles a schema of four fields over the embedded target's 49,152 ids, and over 152,000 ids (with pairs of tokens),
then asks for a mask before each token of a document that fits it.
"""

import json
import random
import statistics
import time
from importlib.util import find_spec

import llguidance

from multispin.models import load_tokenizer

LARGE = 152_000
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
    },
    "required": ["name", "age", "tags", "zip"],
    "additionalProperties": False,
}
DOCUMENT = '{"name": "John O\'Neil of the long street", "age": 42, "tags": ["red", "green"], "zip": "12345"}'


class Listed:
    """A vocabulary as a list of bytes."""

    eos_token_id, bos_token_id, special_token_ids = 2, 1, (0, 1, 2)

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, text):
        return []


def main():
    tokenizer = load_tokenizer("embedded")
    small = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
    ids, rng, known = tokenizer.encode(DOCUMENT), random.Random(0), set(small)
    while len(known) < LARGE:
        known.add(rng.choice(small[300:]) + rng.choice(small[300:]))
    large = [*small, *sorted(known - set(small))]
    for vocabulary in (small, large):
        tell("llguidance", len(vocabulary), *with_llguidance(vocabulary, ids))
        if find_spec("xgrammar") is not None:
            tell("xgrammar", len(vocabulary), *with_xgrammar(vocabulary, ids))


def tell(library, size, compile_s, masks_s):
    print(
        f"{library}, {size} ids: compiles in {1e3 * compile_s:.1f} ms, a mask takes "
        f"{1e6 * statistics.mean(masks_s):.0f} µs on average, {1e6 * max(masks_s):.0f} µs at most"
    )


def with_llguidance(vocabulary, ids):
    tokens = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Listed(vocabulary)))
    began_s = time.perf_counter()
    matcher = llguidance.LLMatcher(tokens, llguidance.LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA)))
    compile_s, masks_s = time.perf_counter() - began_s, []
    for token in ids:
        began_s = time.perf_counter()
        matcher.compute_bitmask()
        masks_s.append(time.perf_counter() - began_s)
        assert matcher.consume_token(token)
    return compile_s, masks_s


def with_xgrammar(vocabulary, ids):
    import xgrammar

    info = xgrammar.TokenizerInfo(vocabulary, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[2])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    began_s = time.perf_counter()
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(SCHEMA)))
    compile_s, masks_s = time.perf_counter() - began_s, []
    mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    for token in ids:
        began_s = time.perf_counter()
        matcher.fill_next_token_bitmask(mask)
        masks_s.append(time.perf_counter() - began_s)
        assert matcher.accept_token(token)
    return compile_s, masks_s


if __name__ == "__main__":
    main()
