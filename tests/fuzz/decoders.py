"""Every decoder of what comes from outside, fed with damaged input: it answers, or refuses in one sentence.

python -m tests.fuzz.decoders [INPUTS [SEED]]      `make fuzz` runs a million
"""

import functools
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import click
import msgspec

from multispin.cli.chat import read_answer
from multispin.cli.serve import command as serve
from multispin.control.files import parse_scenario
from multispin.data import scenario_path
from multispin.edge import TokenFile
from multispin.errors import InputError
from multispin.estimation.traces import load_traces
from multispin.gateway.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, read_body
from multispin.gateway.formats import grammar_of_schema
from multispin.gateway.responses import ResponsesBody
from multispin.models.drafter_card import CARD_FILE, read_card
from multispin.models.gguf_file import read_facts
from multispin.models.gguf_header import check_end, check_header
from multispin.outside import json_value, one_line, printable
from multispin.protocol import (
    PROTOCOL_VERSION,
    Ask,
    Chunk,
    Close,
    Commit,
    Distribution,
    Draft,
    Error,
    Grant,
    Hello,
    Open,
    Profile,
    Resume,
    Tail,
    Verdict,
    Welcome,
    Window,
    decode_downlink,
    decode_uplink,
    encode,
)  # fmt: skip
from multispin.protocol import events as lines
from multispin.simulation.setup import ScenarioFile
from multispin.simulation.uplink import load_efficiency_trace
from multispin.simulation.workers import workers
from multispin.speculation import DistributionFormat, Rule, pack_ids, unpack_ids, unpack_offer
from multispin.speculation.evidence import unpack_draft

MOST_S = 2.0
"""No input may take longer than this."""
FORM = DistributionFormat(50, retained=8, probability_bits=6)
UPLINK = [
    Hello(PROTOCOL_VERSION, "f" * 16, "phone", "q5", True, Profile(0.05, 3.0)),
    Open(1, b"\0\1", 1, 10, 0.5, 0, 1.0, 7, (2,), 0, Rule.REJECTION_UP, 64, 8, 5, ((7, -1.5),)),
    *(
        Draft(1, 2, 3, 1, b"\0\5", 1000),
        Distribution(1, 2, 3, b"\0\5"),
        Resume(PROTOCOL_VERSION, "token", 12),
        Close(1),
    ),
    Chunk(3, 40, 2, b"\0\5\0\7", 1000),
]
DOWNLINK = [
    *(Welcome(1, "token", 0, 49152, 1024, 30.0), Grant(1, 2, 4, 1e4), Ask(1, 2, 3), Error("full", "no room")),
    Verdict(1, 2, 3, 1, 17, "", Grant(1, 3, 4, 1e4), b"offer"),
    *(Tail(1, 3, b"\0\5", 1, "stop"), Window(1, 8, 4, 1e4), Commit(40, 3, 0, 0, (17, 18), "length")),
]
CHAT = {
    "model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "hé\ud83d\ude00"}]}],
    "temperature": 0.7, "top_p": 0.9, "max_tokens": 5, "stop": ["a", "b"], "logit_bias": {"5": -3.5}, "n": 2,
    "stream": True, "stream_options": {"include_usage": True}, "seed": 3,
}  # fmt: skip
TOOL = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {"w": {"enum": ["a", 2]}}}}
CALL = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "look", "arguments": '{"w": 2}'}}]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "required": ["a"]}}}
CHATS = [
    CHAT,
    CHAT | {"response_format": SCHEMA, "logprobs": True, "top_logprobs": 3, "min_p": 0.1, "presence_penalty": -1.5},
    {"messages": [CALL, {"role": "tool", "tool_call_id": "c", "content": "x"}], "tool_choice": "required",
     "tools": [{"type": "function", "function": TOOL}], "parallel_tool_calls": False, "stop_token_ids": [3]},
]  # fmt: skip
RESPONSES = [
    {"input": "hé", "instructions": "be brief", "max_output_tokens": 5, "stream": True, "metadata": {"a": "b"}},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]},
               {"type": "function_call", "name": "look", "call_id": "c", "arguments": "{}"},
               {"type": "function_call_output", "call_id": "c", "output": "y"}],
     "tools": [{"type": "function", **TOOL}], "tool_choice": {"type": "function", "name": "look"}},
    {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["a", "b"]}}},
     "include": ["message.output_text.logprobs"], "top_logprobs": 2},
]  # fmt: skip
ANSWERS = [
    {"choices": [{"index": 0, "delta": {"content": "x"}, "drafted": True, "finish_reason": None}], "usage": None},
    {"usage": {"completion_tokens": 3}, "metrics": {"speculative_decoding": {"num_accepted_draft_tokens": 2}}},
    {"object": "list", "data": [{"id": "m", "owned_by": "multispin"}]},
    {"error": {"message": "no\x1b[2J", "type": "t", "code": 429}},
]
EVENTS = [
    lines.Listening("127.0.0.1", 8765, "m", 4, 1000),
    lines.Ended(1, "phone", "req-1", "stop", 3, 9, 4, 2, 0.1, 1.5, 7.0),
    lines.Round(1, 2.0, 0.1, 0, 0.2, 9.5, (lines.RoundDevice("phone", 4, 2, 3, 0.7, 0.01, 1, "device"),),
                (lines.RoundGrant("phone", 4, 1e4, 1),), 2),
    lines.Away("ws://h", "refused", 0.5, 10.0),
    lines.Done((1, 2), "ab", 2, "stop", "greedy", 1.0, 4, 2, 3, 100, 80, 0),
]  # fmt: skip
TOKENS = [
    {"id": "ab12", "name": "anna", "sha256": "0" * 64, "created": "2026-01-01T00:00:00+00:00", "max_sessions": 2},
    {"id": "cd34", "name": "b", "sha256": "1" * 64, "created": "", "expires": "2027-01-31T23:59:59Z"},
]
CARD = {"target": "t", "fingerprint": "f", "layers": [0, 3], "vocabulary": 100, "storage": "int8", "made": {"a": 1}}
CONFIG = b"""target = "embedded"
port = 9000
slots = 4
mode = "auto"
bandwidth_hz = 2e4
emulated_verification_s = [0.1, 0.0, 0.001]
trusted_proxy = ["127.0.0.1"]
api = true
tokens = "tokens.json"
"""
TRACES = {"format": "multispin-trace-1", "target": "t", "drafter": "d", "traces": [{"accepts": "0110"}]}
SPECIAL = [
    *(b"", b"\0", b"\xff", b"\x7f", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 3000),
    *(b"nan", b"1e999", b"-1e-999", b"9" * 5000, b"[" * 3000, b"{" * 500, b'"\\ud800"', b"\xef\xbb\xbf", b"\n\n"),
    *(b"=", b"a." * 2000, b"[[device]]\n", b"null", b"true", b"-0", b"\x1b[2J", b"\xe2\x80\xae", b"inf"),
]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@functools.cache
def _folder(process: int) -> tempfile.TemporaryDirectory[str]:
    """A folder of one process."""
    return tempfile.TemporaryDirectory(prefix=f"fuzz-{process}-")


def _in_file(read, name="file.gguf"):  # type: ignore[no-untyped-def]
    """The reader of a file, as one of bytes."""

    def call(data: bytes) -> object:
        path = Path(_folder(os.getpid()).name) / name
        path.write_bytes(data)
        path.chmod(0o600)
        try:
            return read(path)
        finally:
            path.unlink()  # a reader that is not collected yet may still have it in memory: it must not change

    return call


def _refusing(read, *errors):  # type: ignore[no-untyped-def]
    """A reader whose callers know some errors of its own."""

    def call(data: bytes) -> object:
        try:
            return read(data)
        except errors as error:
            raise InputError(str(error)) from None

    return call


def _settings(path: Path) -> object:
    """The settings of a file, as `serve --config` takes them."""
    try:
        return serve.make_context("serve", ["--config", str(path)]).params
    except click.ClickException as error:
        raise InputError(error.format_message()) from None


def _chat(data: bytes) -> object:
    """A chat's body, and all that is made of it before anything is tokenised."""
    body = read_body(data, ChatBody)
    use = body.tool_use()
    grammar = grammar_of_schema(body.form_schema()) if use is None else use.grammar()
    return body.conversation(), body.params(1, grammar), body.stop_ids((2,)), body.stop_strings, body.reported


def _response(data: bytes) -> object:
    """The same of `/v1/responses`."""
    body = read_body(data, ResponsesBody)
    use = body.tool_use()
    grammar = grammar_of_schema(body.form_schema()) if use is None else use.grammar()
    return body.conversation(), body.params(1, grammar), body.stop_ids((2,)), body.stop_strings, body.reported


def _read_header(path: Path) -> None:
    check_header(path)
    check_end(path)


@functools.cache
def _gguf() -> bytes:
    """A GGUF file with keys of every kind, and two tensors."""
    import numpy as np
    from gguf import GGUFWriter

    path = Path(_folder(os.getpid()).name) / "seed.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_string("llama.rope.scaling.type", "linear")
    writer.add_rope_scaling_factor(2.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([b"a", b"<|end|>", "é".encode()])
    writer.add_token_types([1, 3, 1])
    writer.add_token_merges(["a a"])
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_tensor("token_embd.weight", np.zeros((3, 8), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((8, 8), np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path.read_bytes()


def _payload(data: bytes) -> object:
    """One of the bit strings on the air: the first two bytes say which, and for how many tokens."""
    kind, count, rest = (*data[:2], 0, 0)[0] % 6, (*data[:2], 0, 0)[1] % 9, data[2:]
    if kind == 0:
        return unpack_ids(rest, count, 50)
    if kind == 1:
        return unpack_offer(rest, FORM)
    return unpack_draft(rest, count, list(Rule)[kind % len(Rule)], FORM, 3, 5)


DECODERS = {
    # name: (reader, seeds, share of the inputs)
    "uplink": (decode_uplink, [encode(m) for m in UPLINK], 30),
    "downlink": (decode_downlink, [encode(m) for m in DOWNLINK], 30),
    "payload": (_payload, [bytes([k, n]) + pack_ids(list(range(n)), 50) for k in range(6) for n in range(9)], 20),
    "chat": (_chat, [json.dumps(each).encode() for each in CHATS], 12),
    "response": (_response, [json.dumps(each).encode() for each in RESPONSES], 8),
    "completion": (lambda d: read_body(d, CompletionBody), [b'{"prompt": [1, 2], "max_tokens": 3, "echo": false}'], 4),
    "tokenize": (lambda d: read_body(d, TokenizeBody), [b'{"prompt": "hello"}'], 2),
    "detokenize": (lambda d: read_body(d, DetokenizeBody), [b'{"tokens": [1, 2]}'], 2),
    "json": (lambda d: json_value(_text(d), "a file"), [json.dumps(CHAT).encode(), b"[[1, 2.5e3], {}]"], 10),
    "shown": (lambda d: (one_line(_text(d)), printable(_text(d))), ["a\u202eb\x1b[31m\r\n".encode()], 5),
    "scenario": (lambda d: parse_scenario(_text(d)), [scenario_path("paper-llama").read_bytes()], 1),
    "traces": (_in_file(load_traces), [json.dumps(TRACES).encode()], 1),
    "link": (_in_file(load_efficiency_trace), [b"seconds,bit/s/Hz\n0,3.5\n1,2\n2.5,4\n"], 1),
    "site": (_in_file(lambda p: ScenarioFile(p).setup(), "site.toml"), [scenario_path("evening-cell").read_bytes()], 1),
    "gguf header": (_in_file(_read_header), [_gguf()], 3),
    "gguf": (_in_file(read_facts), [_gguf()], 3),
    "card": (_in_file(lambda p: read_card(p.parent), CARD_FILE), [json.dumps(CARD).encode()], 2),
    "config": (_in_file(_settings, "edge.toml"), [CONFIG], 1),
    "tokens": (_in_file(lambda p: TokenFile(p).read(), "tokens.json"), [json.dumps({"tokens": TOKENS}).encode()], 4),
    "event": (_refusing(lines.from_line, msgspec.DecodeError), [lines.as_line(e).encode() for e in EVENTS], 6),
    "answer": (read_answer, [json.dumps(each).encode() for each in ANSWERS], 4),
    "order": (
        _refusing(lambda d: lines.from_order(_text(d)), msgspec.DecodeError),
        [lines.as_order(each) for each in (lines.Begin("ws://h", 2.0), lines.Try(8))],
        2,
    ),
}


def damaged(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with some damage, or now and then noise."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.randrange(256)
            case 2:
                del data[at : at + rng.choice([1, 1, 2, 4, 30])]
            case 3:
                data[at:at] = rng.choice(SPECIAL)
            case 4:
                data[at : at + rng.randrange(9)] = rng.choice(SPECIAL)
            case 5:
                other = rng.choice(seeds)
                data[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                data[at:at] = data[at : at + rng.randrange(40)] * rng.randrange(4)
    return bytes(data)


def fuzz(inputs: int, seed: int) -> dict[str, tuple[int, int]]:
    """Feed so many inputs; returns how many each decoder read and how many it refused.

    AssertionError names an input that raised anything but a refusal in one line, or that took too long.
    """
    rng, counts = random.Random(seed), {name: [0, 0] for name in DECODERS}
    names, shares = list(DECODERS), [share for _, _, share in DECODERS.values()]
    for name in rng.choices(names, shares, k=inputs):
        read, seeds, _ = DECODERS[name]
        data = damaged(rng, seeds)
        began_s = time.thread_time()
        try:
            read(data)
            counts[name][0] += 1
        except InputError as error:
            counts[name][1] += 1
            assert str(error), (name, data)
            assert "\n" not in one_line(str(error)), (name, data)
        except Exception as error:
            raise AssertionError(f"{name}: {data[:2000]!r}: {error!r}") from error
        took_s = time.thread_time() - began_s
        assert took_s < MOST_S, f"{name}: {took_s:.1f} s for {data[:2000]!r}"
    return {name: (read, refused) for name, (read, refused) in counts.items()}


def main(inputs: int, seed: int) -> None:
    parts = [(min(50_000, inputs - at), seed + at) for at in range(0, inputs, 50_000)]
    totals = dict.fromkeys(DECODERS, (0, 0))
    with workers(os.cpu_count() or 1) as pool:
        for done, counts in enumerate(pool.map(fuzz, *zip(*parts, strict=True)), 1):
            totals = {name: (a + counts[name][0], b + counts[name][1]) for name, (a, b) in totals.items()}
            print(f"{done} of {len(parts)} parts", file=sys.stderr, flush=True)
    for name, (read, refused) in totals.items():
        print(f"{name:12} {read:9} read {refused:9} refused")
    print(f"{sum(map(sum, totals.values()))} inputs, none of which raised anything else")


if __name__ == "__main__":
    main(*(int(each) for each in (sys.argv[1:] + ["1000000", "1"][len(sys.argv) - 1 :])))
