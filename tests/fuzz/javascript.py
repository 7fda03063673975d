"""The JavaScript client, fed with the same damaged frames as the Python one: both read the same or both refuse.

python -m tests.fuzz.javascript [INPUTS [SEED]]      `make fuzz` runs 300,000; it needs node
"""

import copy
import importlib.util
import json
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tests.fuzz.decoders import DOWNLINK, MOST_S, UPLINK, damaged

from multispin.errors import InputError
from multispin.protocol import (
    Ask,
    Commit,
    Error,
    Grant,
    Request,
    Tail,
    Verdict,
    Window,
    decode_downlink,
    decode_uplink,
    encode,
)
from multispin.speculation import SamplingParams, Score, pack_ids, unpack_ids

LEAST_NODE = 20
HERE = Path(__file__).resolve().parent
MOST_MIB = 64
"""Of node's heap: a frame that claims to be large ends the process, and with it the run."""
AT_ONCE = 10_000
V = 50
SEEDS = [encode(each) for each in UPLINK + DOWNLINK] + [
    encode(Commit(40, 3, 1, 1, (17,), "", (Score(-0.5, ((3, -1.0),)), Score(-1.0)))),
    encode(Tail(1, 3, b"x", 1, "", Grant(1, 3, 4, 1e4), (Score(-0.5),))),
]
NAN = float("nan")
VALUES = [
    *(None, True, 0, 1, -1, 63, 64, 65, 2**20 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63, 2**64 - 1),
    *(-(2**63), 0.0, -0.0, 1.0, 4.0, 0.5, 3600.0, 3600.1, -1.0, 1e300, 9e18, 2.0**64, NAN, float("inf"), -float("inf")),
    *("", "greedy", "4", "é" * 80, "é" * 81, "\ufeffa", "\0", "😀" * 80, b"", b"x", {}, {"a": 1}, {1: [2]}),
    *([], [1], [1, 2], [0.1, 3.0], [[1, 2.0]], [[1, 2]], [[1, 2, 3]], [[0.5, [[1, -0.5]]]], [[0.5, [], 1]], [[0.5]]),
    *([4, 1, 2, 3, 1e4], [4, 1, 2, 3, 1e4, 9], [4], [6, 1, 2, 3, 1, 17], [99], [[[[[[[[[[[[1]]]]]]]]]]]]),
    *(msgspec.msgpack.Ext(5, b"abc"), msgspec.msgpack.Ext(-1, b"\0\0\0\0"), msgspec.msgpack.Ext(1, b"x" * 300)),
]


def node():
    """Path of node; InputError says what is wrong with it."""
    found = shutil.which("node")
    if found is None:
        raise InputError("node is not installed: the JavaScript client is not tested here (apt-get install nodejs)")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < LEAST_NODE:
        raise InputError(f"node {version} is older than {LEAST_NODE}: the JavaScript client is not tested here")
    return found


def reshaped(rng: random.Random) -> bytes:
    """A message with some of its values replaced, added or left out."""
    message = msgspec.msgpack.decode(rng.choice(SEEDS))
    for _ in range(rng.choice([1, 1, 2, 3])):
        part = message
        while (inner := [each for each in part if isinstance(each, list)]) and rng.random() < 0.4:
            part = rng.choice(inner)
        at, value = rng.randrange(len(part) + 1), copy.deepcopy(rng.choice(VALUES))
        part[at : at + rng.choice([0, 1, 1, 1])] = [value] if rng.random() < 0.8 else []
    return msgspec.msgpack.encode(message)


def a_message(rng: random.Random) -> bytes:
    """A damaged frame, a reshaped one, or now and then a very long one."""
    if rng.random() < 0.002:
        long = rng.choice(
            [b"\xdd\x00\x03\xff\xff", b"\x91", b"\x81", b"\xdf\xff\xff\xff\xff", b"\xc0", b"\xa0", b"\xdc\xff\xff"]
        )
        return (b"\x92" + long * (200_000 // len(long)))[: rng.choice([1000, 200_000])]
    return damaged(rng, SEEDS) if rng.random() < 0.4 else reshaped(rng)


def some_ids(rng: random.Random) -> bytes:
    """A number of ids, and their bits, perhaps damaged."""
    count = rng.choice([0, 1, 2, 5, 63, 64, 65, 200])
    packed = pack_ids([rng.randrange(V) for _ in range(count)], V)
    return bytes([count]) + (packed if rng.random() < 0.3 else damaged(rng, [packed]))


def a_table(rng: random.Random) -> bytes:
    """The bytes of some tokens, perhaps damaged."""
    pieces = [rng.randbytes(rng.choice([0, 1, 3, 300])) for _ in range(rng.randrange(6))]
    packed = b"".join(len(each).to_bytes(2, "big") + each for each in pieces)
    return packed if rng.random() < 0.3 else damaged(rng, [packed])


def read_message(data: bytes) -> str:
    """The frame of what either decoder reads."""
    try:
        message = decode_downlink(data)
    except InputError:
        message = decode_uplink(data)
    return with_one_nan(encode(message).hex())


def with_one_nan(digits: str) -> str:
    """A frame with one kind of NaN: JavaScript may change its sign, and says nothing by it."""

    def same(value):
        if isinstance(value, list):
            return [same(each) for each in value]
        return math.nan if value != value else value

    return msgspec.msgpack.encode(same(msgspec.msgpack.decode(bytes.fromhex(digits)))).hex()


def read_ids(data: bytes) -> str:
    """The ids, packed again."""
    return pack_ids(unpack_ids(data[1:], data[0], V), V).hex()


def read_table(data: bytes) -> str:
    """The same bytes, if they end where a token ends."""
    at = 0
    while at < len(data):
        at += 2 + int.from_bytes(data[at : at + 2], "big") if at + 2 <= len(data) else 3
    if at != len(data):
        raise InputError("the table ends in the middle of a token")
    return data.hex()


@cache
def _vectors():
    spec = importlib.util.spec_from_file_location("make_vectors", HERE.parents[1] / "clients" / "make_vectors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(rng: random.Random, device, welcome):
    """Something that an edge might say now, mostly with a mistake or two."""
    base = len(device.committed) + rng.choice([0, 0, 0, 0, 0, 0, 0, -1, 1, 5])
    session, turn = rng.choice([7, 7, 7, 7, 7, 7, 7, 7, 7, 8]), rng.choice([1, 1, 2, 3])
    ids = [rng.choice([5, 6, 6, 49, 50]) for _ in range(rng.choice([0, 1, 1, 2, 13]))]
    finish = rng.choice([""] * 8 + ["stop", "length", "because"])
    scores = rng.choice([()] * 9 + [(Score(-1.0),)])
    grant = Grant(session, turn + 1, rng.choice([0, 1, 3]), rng.choice([1e4, 1e4, 1e4, 0.0, float("inf")]))
    perhaps = rng.choice([None, grant])
    within = tuple(each for each in ids if each < V)
    count, offer = rng.choice([len(within)] * 5 + [3]), rng.choice([b""] * 4 + [b"x"])
    epoch, other = rng.choice([device.epoch] * 4 + [0, 1, 9]), msgspec.structs.replace
    return rng.choices(
        [
            grant,
            Verdict(session, turn, base, rng.randrange(4), rng.choice([5, 6, 50]), finish, perhaps, offer, scores),
            Tail(session, base, pack_ids(within, V), count, finish, perhaps, scores),
            Window(session, rng.choice([0, 2, 8, 63]), rng.choice([1, 2, 4]), rng.choice([1e4] * 4 + [float("inf")])),
            Commit(base, epoch, rng.randrange(4), rng.randrange(3), tuple(ids), finish, scores),
            Ask(session, turn, 1),
            Error(rng.choice(["full", "unknown-session", "no-request", "ahead", "x"]), "no", rng.choice([0.0, 2.0])),
            welcome,
            other(welcome, session=8, vocabulary_size=rng.choice([0, V]), max_length=rng.choice([0, 4, 100])),
        ],
        [5, 5, 3, 3, 8, 1, 1, 2, 1],
    )[0]


def a_session(rng: random.Random):
    """A conversation with an edge that makes mistakes; how Python's device stands after each step is written down."""
    vectors, params = _vectors(), SamplingParams(rng.choice([0.0, 0.8]), seed=rng.choice([0, 2**62]))
    request = Request(
        (1, 2, 3), params, rng.choice([3, 12]), stop_ids=rng.choice([(), (6,)]), seed_of_edge=rng.random() < 0.5
    )
    script = vectors.Script("fuzz", request, rng.choice([1.0, 1.0, 0.2]))
    script.join()
    device = script.device
    for _ in range(rng.randrange(4, 24)):
        ids = [rng.choice([5, 6]) for _ in range(rng.randrange(4))]
        if device.wants_draft and rng.random() < 0.7:
            script.do("answer", ids=ids[: device.stage.grant.length], draft_s=0.05)
        elif device.room_ahead and ids and rng.random() < 0.7:
            script.ahead(ids[: device.room_ahead], sends=False)
        elif rng.random() < 0.05:
            script.do("lose")
            script.do("greet")
        else:
            script.hear(said(rng, device, vectors.WELCOME))
    return script.written() | {"hello": encode(vectors.HELLO).hex()}


def expected(script):
    """What node should say of a conversation's steps."""
    return [
        {"frame": None, "error": "", **{k: v for k, v in step.items() if k not in ("do", "arguments", "edge")}}
        for step in script["steps"]
    ]


def _python(read, data):
    try:
        return ["read", read(data)]
    except InputError as error:
        return ["refused", str(error)]


class Kind(NamedTuple):
    """A kind of inputs: how many there are beside others, how one is made, and how Python reads it."""

    share: int
    make: Callable[[random.Random], Any]
    read: Callable[[Any], Any]


KINDS = {
    "message": Kind(70, a_message, read_message),
    "ids": Kind(10, some_ids, read_ids),
    "table": Kind(5, a_table, read_table),
    "session": Kind(15, a_session, expected),
}


def _part(inputs: int, seed: int, program: str, kinds: Mapping[str, Kind]) -> Counter:
    rng, given, wanted = random.Random(seed), [], []
    for name in rng.choices(list(kinds), [kind.share for kind in kinds.values()], k=inputs):
        data = kinds[name].make(rng)
        given.append([name, data.hex() if isinstance(data, bytes) else data])
        wanted.append(_python(kinds[name].read, data))
    ran = subprocess.run(
        [program, f"--max-old-space-size={MOST_MIB}", str(HERE / "decode.mjs")],
        input="".join(json.dumps(each) + "\n" for each in given),
        capture_output=True,
        text=True,
        timeout=600,
    )
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, f"node ended after {given[len(answers)]!r:.2000}: {ran.stderr[-2000:]}"
    counts: Counter = Counter()
    for (name, data), (verdict, result), (own, found, took_ms) in zip(given, wanted, answers, strict=True):
        where = f"{name}: {data!r}"[:6000]
        assert own == verdict, f"{where}: Python says {verdict} ({result!r:.500}), JavaScript {own} ({found!r:.500})"
        if (name, verdict, own) == ("message", "read", "read"):
            found = with_one_nan(found)
        if verdict == "read" and found != result:
            step = next(at for at in range(len(result)) if found[at : at + 1] != result[at : at + 1])
            at = max(0, step - 40) if isinstance(result, str) else step
            said_so = f"Python reads {result[at : step + 1]!r}, JavaScript {found[at : step + 1]!r}"
            raise AssertionError(f"{where[-3000:]}: at {step}, {said_so}")
        assert took_ms < 1e3 * MOST_S, f"{where}: {took_ms:.0f} ms"
        counts[name, verdict] += 1
    return counts


def fuzz(inputs: int, seed: int, kinds: Mapping[str, Kind] = KINDS) -> Counter:
    """Feed so many inputs of these kinds; returns how many of each kind were read and refused.

    AssertionError names an input that Python and JavaScript do not take alike, that raised anything but a refusal, that
    took too long, or whose program ended.
    """
    program, counts = node(), Counter()
    for at in range(0, inputs, AT_ONCE):
        counts += _part(min(AT_ONCE, inputs - at), seed + at, program, kinds)
    return counts


if __name__ == "__main__":
    inputs, seed = (int(each) for each in (sys.argv[1:] + ["300000", "1"][len(sys.argv) - 1 :]))
    for (name, verdict), count in sorted(fuzz(inputs, seed).items()):
        print(f"{name:12} {count:9} {verdict}")
