"""What a connection that sends tiny pieces as fast as it can costs the others of an edge.

An edge with a stub engine writes one text after the other for an HTTP client, for three seconds, beside one connection
of another process that sends pieces without a pause. Printed are the processor time of the event loop for one text,
and the longest processor time between two looks of a watcher that wakes every millisecond. Compare with `nobody`.

    python benchmarks/bench_pieces.py
    python benchmarks/bench_pieces.py chunks pings
"""

import asyncio
import contextlib
import multiprocessing
import socket
import sys
import threading
import time

import aiohttp

from bench_server import MAX_LENGTH, StubWords, edge_of
from multispin.edge import Access, EdgeServer, listening, new_event_loop
from multispin.gateway import Gateway, guard, local_sessions
from multispin.passes import Passes

SLOTS = 4
PASS_S = 0.005
LASTS_S, MEASURED_S = 6.0, 3.0
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
UPGRADE = (
    b"GET /v1/session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MASK = b"\x80\0\0\0\0"
KINDS = {
    "nobody": (b"", b""),
    "segments": (POST + b"Content-Length: 2000000\r\n\r\n", b" "),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 20_000),
    "frames": (UPGRADE, (b"\x82" + MASK) * 20_000),
    "fragments": (UPGRADE + b"\x02" + MASK, (b"\x00" + MASK) * 20_000),
    "pings": (UPGRADE, (b"\x89" + MASK) * 20_000),
}
"""What is sent first, and what again and again."""


def send(port, kind):
    """Send pieces of a kind until the time is over or the edge hangs up."""
    head, pieces = KINDS[kind]
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=read_all, args=(connection,), daemon=True).start()
        connection.sendall(head)
        end = time.monotonic() + LASTS_S
        while pieces and time.monotonic() < end:
            connection.send(pieces)


def read_all(connection):
    """Read, so that the edge need not wait for it."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


async def watch(stretches):
    """Note the loop's processor time between two looks [s]."""
    while True:
        before_s = time.thread_time()
        await asyncio.sleep(0.001)
        stretches.append(time.thread_time() - before_s)


async def measure(kind):
    """Print one row."""
    engine, controller, limits = edge_of(SLOTS, "rounds", PASS_S)
    access = Access()
    server = EdgeServer(Passes(engine, controller, "stub", limits), access=access)
    application, words = server.application(), StubWords()
    source = local_sessions(server, "stub", words.decode, SLOTS, MAX_LENGTH)
    Gateway(source, words, "stub").add_routes(application, guard(access))
    async with listening(application, port=0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:

        async def text():
            async with http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 100}) as answer:
                answer.raise_for_status()
                await answer.read()

        await text()
        process = multiprocessing.get_context("spawn").Process(target=send, args=(port, kind), daemon=True)
        process.start()
        await asyncio.sleep(1.0)
        stretches, texts = [], 0
        watching = asyncio.create_task(watch(stretches))
        began_s, began_cpu_s = time.monotonic(), time.thread_time()
        while time.monotonic() < began_s + MEASURED_S:
            await text()
            texts += 1
        spent_s = time.thread_time() - began_cpu_s
        watching.cancel()
        process.kill()
        process.join()
    print(f"{kind:>10}  {1e3 * spent_s / texts:>12.1f}  {1e3 * max(stretches):>10.1f}", flush=True)


def main():
    """Measure the kinds that are named, or all."""
    print(f"{'pieces':>10}  {'ms per text':>12}  {'longest ms':>10}")
    for kind in sys.argv[1:] or KINDS:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(measure(kind))


if __name__ == "__main__":
    main()
