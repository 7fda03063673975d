"""Every decoder of what comes from outside, fed with damaged input: it answers, or refuses in one sentence.

python tests/fuzz/decoders.py [INPUTS [SEED]]      `make fuzz` runs a million
"""

import json
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from multispin.control.files import parse_scenario
from multispin.data import scenario_path
from multispin.errors import InputError
from multispin.estimation.traces import load_traces
from multispin.gateway.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, read_body
from multispin.models.gguf_file import read_facts
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
from multispin.simulation.uplink import load_efficiency_trace
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
TRACES = {"format": "multispin-trace-1", "target": "t", "drafter": "d", "traces": [{"accepts": "0110"}]}
SPECIAL = [
    *(b"", b"\0", b"\xff", b"\x7f", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 3000),
    *(b"nan", b"1e999", b"-1e-999", b"9" * 5000, b"[" * 3000, b"{" * 500, b'"\\ud800"', b"\xef\xbb\xbf", b"\n\n"),
    *(b"=", b"a." * 2000, b"[[device]]\n", b"null", b"true", b"-0", b"\x1b[2J", b"\xe2\x80\xae", b"inf"),
]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _in_file(read):  # type: ignore[no-untyped-def]
    """The reader of a file, as one of bytes; each process has a file of its own."""

    def call(data: bytes) -> object:
        path = Path(tempfile.gettempdir()) / f"multispin-fuzz-{os.getpid()}.gguf"
        path.write_bytes(data)
        try:
            return read(path)
        finally:
            path.unlink()

    return call


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
    "chat": (lambda d: read_body(d, ChatBody), [json.dumps(CHAT).encode()], 12),
    "completion": (lambda d: read_body(d, CompletionBody), [b'{"prompt": [1, 2], "max_tokens": 3, "echo": false}'], 4),
    "tokenize": (lambda d: read_body(d, TokenizeBody), [b'{"prompt": "hello"}'], 2),
    "detokenize": (lambda d: read_body(d, DetokenizeBody), [b'{"tokens": [1, 2]}'], 2),
    "json": (lambda d: json_value(_text(d), "a file"), [json.dumps(CHAT).encode(), b"[[1, 2.5e3], {}]"], 10),
    "shown": (lambda d: (one_line(_text(d)), printable(_text(d))), ["a\u202eb\x1b[31m\r\n".encode()], 5),
    "scenario": (lambda d: parse_scenario(_text(d)), [scenario_path("paper-llama").read_bytes()[:3000]], 1),
    "traces": (_in_file(load_traces), [json.dumps(TRACES).encode()], 1),
    "link": (_in_file(load_efficiency_trace), [b"seconds,bit/s/Hz\n0,3.5\n1,2\n2.5,4\n"], 1),
    "gguf": (_in_file(read_facts), [b"GGUF\3\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\4" + bytes(7) + b"a.bc"], 1),
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
    with ProcessPoolExecutor() as pool:
        for done, counts in enumerate(pool.map(fuzz, *zip(*parts, strict=True)), 1):
            totals = {name: (a + counts[name][0], b + counts[name][1]) for name, (a, b) in totals.items()}
            print(f"{done} of {len(parts)} parts", file=sys.stderr, flush=True)
    for name, (read, refused) in totals.items():
        print(f"{name:12} {read:9} read {refused:9} refused")
    print(f"{sum(map(sum, totals.values()))} inputs, none of which raised anything else")


if __name__ == "__main__":
    main(*(int(each) for each in (sys.argv[1:] + ["1000000", "1"][len(sys.argv) - 1 :])))
