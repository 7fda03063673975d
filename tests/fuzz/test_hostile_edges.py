"""The JavaScript client at edges that say what no edge says, over real WebSockets: one sentence each, and no hang."""

import asyncio
import contextlib
import json
import re
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from tests.fuzz import javascript

from multispin.edge import listening
from multispin.errors import InputError
from multispin.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    Ask,
    Commit,
    Error,
    Grant,
    Hello,
    Profile,
    Tail,
    Verdict,
    Welcome,
    Window,
    encode,
)
from multispin.protocol.limits import MAX_MESSAGES_WITHOUT_TOKENS
from multispin.speculation import pack_ids

V = 20
WELCOME = encode(Welcome(1, "secret", 9, V, 100, 30.0))
WINDOW = encode(Window(1, 4, 1, 1e4))
NOTHING = encode(Tail(1, 2, b"", 0))


def tail(*ids, finish=""):
    return encode(Tail(1, 2, pack_ids(ids, V), len(ids), finish))


def raw(*values):
    return msgspec.msgpack.encode(values)


INSTEAD_OF_A_WELCOME = {
    "empty frame": (b"", "a frame ends in the middle of a value"),
    "no message": (b"\xc0", "a frame is not a message of this protocol"),
    "two values": (b"\xff\xfe", "bytes follow a MessagePack value"),
    "over the limit": (b"x" * (MAX_FRAME_BYTES + 1), f"a frame of {MAX_FRAME_BYTES + 1} bytes is over the limit"),
    "far over the limit": (b"\x91" * 2**22, "is over the limit"),
    "claims 4 GB": (b"\x92\x07\xc6\xff\xff\xff\xff", "a frame ends in the middle of a value"),
    "deep": (b"\x91" * 100_000, "a frame nests over 500 values"),
    "object": (raw({"__proto__": {"type": "Welcome"}}), "a frame is not a message of this protocol"),
    "number of an object": (raw("__proto__", 1), "a frame is not a message of this protocol"),
    "of a device": (
        encode(Hello(PROTOCOL_VERSION, "f", "n", "d", True, Profile(0.1, 3.0))),
        "a Hello, which only devices send",
    ),
    "Tail first": (NOTHING, "a Tail of session 1, not ours"),
    "Commit first": (encode(Commit(2, 0, 0, 0, (3,))), "a Commit, which is not allowed at this stage"),
    "no vocabulary": (encode(Welcome(1, "s", 9, 0, 100, 30.0)), "empty vocabulary"),
    "session beyond": (raw(2, 2**63, "s", 9, V, 100, 30.0), "session of a Welcome is not a whole number"),
    "wait that is no number": (raw(10, "full", "s", float("nan")), "retry_after_s of an Error is not a number"),
    "refusal": (encode(Error("unauthorised", "no\x1b[31m")), "RefusedError: no"),
    "unknown refusal": (encode(Error("new", "of a later version")), "RefusedError: of a later version"),
    "full": (encode(Error("full", "no room here")), "RefusedError: no room here"),
    "come back in an hour": (encode(Error("full", "no room here", 3600.0)), "RefusedError: no room here"),
}
AFTER_THE_REQUEST = {
    "Welcome again": ([WELCOME], "a Welcome in the middle of a session"),
    "other session": ([encode(Tail(2, 2, b"", 0))], "a Tail of session 2, not ours"),
    "wrong epoch": ([WINDOW, encode(Commit(2, 77, 1, 1, (3,)))], "accepted 1 of 1 tokens at 2 that were never sent"),
    "more than sent": ([WINDOW, encode(Commit(2, 1, 60, 60, ()))], "accepted 60 of 60 tokens at 2 that were never"),
    "more than asked for": ([WINDOW, encode(Commit(2, 1, 0, 0, (3,) * 7))], "more than the 6 tokens"),
    "ahead": ([WINDOW, encode(Commit(5, 1, 0, 0, (3,)))], "tokens at 5 that were never sent"),
    "unknown token": ([WINDOW, encode(Commit(2, 1, 0, 0, (V,)))], f"token {V}, which is outside its vocabulary"),
    "endless band": ([encode(Window(1, 4, 1, float("inf")))], "granted a band of Infinity Hz"),
    "no band": ([raw(13, 1, 4, 1, float("nan"))], "bandwidth_hz of a Window is not a number"),
    "offer": ([encode(Verdict(1, 1, 2, 0, 3, "", None, b"abc"))], "an offer, which is for a rejection rule"),
    "Ask": ([encode(Ask(1, 1, 0))], "an Ask, which is for the rejection rules"),
    "Grant in a stream": ([WINDOW, encode(Grant(1, 1, 3, 1e4))], "a Grant for a text that streams"),
    "unknown end": ([tail(3, finish="because")], "for the unknown reason because"),
    "end at once": ([tail(finish="stop")], r"^\[\]$"),
    "right": ([tail(3, 4, finish="stop")], r"^\[3, 4\]$"),
    **{
        f"{kind}s without end": ([message] * (MAX_MESSAGES_WITHOUT_TOKENS + 1), "10000 messages without a new token")
        for kind, message in (("Tail", NOTHING), ("Window", WINDOW), ("Grant", encode(Grant(1, 1, 3, 1e4))))
    },
}
NO_EDGE, DROPS = "takes connections, but does not answer as an edge", "and then does not keep its session"
BYTES = {
    "compressed": (b"\xc2\x03abc", NO_EDGE),
    "masked": (b"\x82\x83\0\0\0\0abc", NO_EDGE),
    "not UTF-8": (b"\x81\x02\xff\xfe", NO_EDGE),
    "long ping": (b"\x89\x7e\x01\0" + b"x" * 256, NO_EDGE),
    "half a code": (b"\x88\x01\0", NO_EDGE),
    "claims 8 EB": (b"\x82\x7f\x7f" + b"\xff" * 7, NO_EDGE),
}
CODES = {f"code {code}": (code, f"{DROPS}: .*code {code}") for code in (1000, 1008, 1009, 1011, 1012, 4000)}
OTHERS = {
    "text": "text, not a message",
    "closes at once": f"{NO_EDGE}: ",
    "cuts": f"{DROPS}|{NO_EDGE}",
    "status 404": "cannot reach",
}
SENTENCES = OTHERS | {
    name: case[1] for cases in (INSTEAD_OF_A_WELCOME, AFTER_THE_REQUEST, BYTES, CODES) for name, case in cases.items()
}


async def play(request):
    name = request.match_info["name"]
    if name == "status 404":
        raise web.HTTPNotFound
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    with contextlib.suppress(ConnectionError):
        if name == "text":
            await socket.send_str("hello")
        elif name in BYTES:
            request.transport.write(BYTES[name][0])
        elif name != "closes at once":
            await socket.receive()
            await socket.send_bytes(INSTEAD_OF_A_WELCOME.get(name, (WELCOME,))[0])
        if name == "cuts":
            request.transport.abort()
        elif name in CODES:
            await socket.close(code=CODES[name][0])
        elif name in AFTER_THE_REQUEST:
            await socket.receive()
            for message in AFTER_THE_REQUEST[name][0]:
                await socket.send_bytes(message)
        if name in ("closes at once", "cuts") or name in CODES:
            return socket
        async for _ in socket:
            pass
    return socket


@pytest.mark.processes
def test_a_hostile_edge_ends_the_text_with_one_sentence():
    try:
        node = javascript.node()
    except InputError as error:
        pytest.skip(str(error))

    async def scenario():
        app = web.Application()
        app.router.add_get("/{name}", play)
        async with listening(app, port=0) as port:
            process = await asyncio.create_subprocess_exec(
                *(node, "--experimental-websocket", "--no-warnings", str(Path(__file__).with_name("hostile.mjs"))),
                *(f"ws://127.0.0.1:{port}", *SENTENCES),
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await process.communicate()
            return output.decode().splitlines()

    lines = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert len(lines) == len(SENTENCES)
    for (name, sentence), line in zip(SENTENCES.items(), lines, strict=True):
        assert re.search(sentence, str(json.loads(line))), (name, line)
