"""What comes over one connection is handed on whole and in order, and takes no more than its share of the loop."""

import asyncio
from collections import Counter

import aiohttp
import pytest
from aiohttp import web
from tests import virtual_time

from multispin.edge import listening
from multispin.edge.arriving import AT_ONCE_S, BURST_S, CONNECTION_SHARE, MAX_KEPT_BYTES, PORTION_BYTES, Arriving


class Peer:
    """A connection, and a server for which each byte takes time; `came` says when it took how many bytes."""

    def __init__(self, byte_s):
        self.data, self.came, self.spent_s = b"", [], 0.0
        self.reading, self.aborted, self._reading_paused = True, False, False
        self._byte_s = byte_s
        self.arriving = Arriving(self, self.clock)
        self.arriving.over(self)

    def clock(self):
        return asyncio.get_running_loop().time() + self.spent_s

    def data_received(self, data):
        self.data += data
        self.came.append((asyncio.get_running_loop().time(), len(data)))
        self.spent_s += self._byte_s * len(data)

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def is_closing(self):
        return self.aborted

    def abort(self):
        self.aborted = True


def test_cheap_data_is_handed_on_at_once_whatever_its_size():
    async def scenario():
        peer = Peer(0.0)
        for size in (0, 1, PORTION_BYTES + 1, 100_000):
            peer.arriving.take(b"x" * size)
        return peer

    peer = virtual_time.run(scenario())
    assert (len(peer.data), peer.reading) == (101_026, True)


@pytest.mark.parametrize("piece", [1, 700, 50_000])
def test_costly_data_take_their_share_of_the_time_and_lose_nothing(piece):
    """20 µs a byte: a connection that sends without pause gets some 5,000 bytes a second through."""
    sent = bytes(range(251)) * 240

    async def scenario():
        peer, loop = Peer(2e-5), asyncio.get_running_loop()
        for start in range(0, len(sent), piece):
            while not peer.reading:
                await asyncio.sleep(0.001)
            peer.arriving.take(sent[start : start + piece])
        while len(peer.data) < len(sent):
            await asyncio.sleep(0.001)
        return peer, loop.time()

    peer, took_s = virtual_time.run(scenario())
    assert peer.data == sent
    assert peer.spent_s <= BURST_S + CONNECTION_SHARE * took_s + 3 * AT_ONCE_S + PORTION_BYTES * 2e-5
    at_once = Counter()
    for when_s, size in peer.came:
        at_once[when_s] += size
    assert max(at_once.values()) * 2e-5 <= BURST_S + 3 * AT_ONCE_S + PORTION_BYTES * 2e-5


def test_a_server_that_has_no_room_is_not_read_for():
    async def scenario():
        peer = Peer(1e-4)
        peer.arriving.take(b"x" * 10_000)
        peer._reading_paused = True  # as aiohttp says it
        await asyncio.sleep(60)
        return peer

    peer = virtual_time.run(scenario())
    assert (len(peer.data), peer.reading) == (10_000, False)


def test_what_is_kept_is_handed_on_before_the_end_and_has_a_limit():
    async def scenario():
        ended, flooded = Peer(1e-4), Peer(1e-4)
        ended.arriving.take(b"x" * 10_000)
        before = len(ended.data)
        ended.arriving.end()
        flooded.arriving.take(b"x" * 10_000)
        flooded.arriving.take(b"x" * MAX_KEPT_BYTES)
        await asyncio.sleep(60)
        return before, len(ended.data), flooded.aborted

    before, after, aborted = virtual_time.run(scenario())
    assert before < after == 10_000
    assert aborted


def test_a_large_body_in_small_chunks_comes_whole(run):
    async def echo(request):
        await asyncio.sleep(0.2)  # aiohttp stops reading meanwhile
        return web.Response(body=await request.read())

    async def chunks():
        for number in range(3000):
            yield b"%03d" % (number % 1000) * 100

    async def scenario():
        application = web.Application(client_max_size=2**22)
        application.router.add_post("/", echo)
        async with listening(application, port=0) as port, aiohttp.ClientSession() as http:
            async with http.post(f"http://127.0.0.1:{port}/", data=chunks()) as answer:
                return await answer.read()

    assert run(scenario()) == b"".join([b"%03d" % (number % 1000) * 100 for number in range(3000)])
