"""Devices that stream on without heed, over real sockets: each is sent away with a reason, and nobody else notices."""

import asyncio
import contextlib
import time

import aiohttp
import pytest
from tests.edge.conftest import VOCABULARY, StubEngine

from multispin.edge.connection import MAX_PINGS_PER_S
from multispin.protocol import Chunk, Error, Open, Request, Welcome, Window, decode_downlink, encode
from multispin.protocol.events import Refused
from multispin.speculation import SamplingParams, pack_ids

PROMPT = (5, 6, 7)
FLOODS = {
    "beyond the window": (lambda base: [(1, base + 8 * index, 8) for index in range(50)], "too-many"),
    "more than any window in one frame": (lambda base: [(1, base, 63)], "too-many"),
    "a chain for each token": (lambda base: [(epoch, base, 1) for epoch in range(1, 3000)], "too-fast"),
    "of a chain that is over": (lambda base: [(2, base, 1), *[(1, base, 1)] * 3000], "too-fast"),
    "with a gap": (lambda base: [(1, base, 1), (1, base + 9, 1)], "gap"),
}


class Slow(StubEngine):
    """A target whose pass is longer than a flood takes to arrive."""

    def verify(self, feeds):
        time.sleep(0.03)
        return super().verify(feeds)


async def flooding(site, frames):
    """Open a text, and stream on from the first window; returns all that comes back."""
    async with aiohttp.ClientSession() as http, http.ws_connect(site.url) as socket:
        await socket.send_bytes(encode(site.hello("flood")))
        welcome = decode_downlink((await socket.receive()).data)
        assert isinstance(welcome, Welcome)
        prompt = pack_ids(PROMPT, VOCABULARY)
        await socket.send_bytes(encode(Open(welcome.session, prompt, len(PROMPT), 1000, 0.0, 0, 1.0, 0)))
        while not isinstance(decode_downlink((await socket.receive()).data), Window):
            pass
        for epoch, start, length in frames(len(PROMPT)):
            if socket.closed:
                break
            await socket.send_bytes(encode(Chunk(epoch, start, length, pack_ids([2] * length, VOCABULARY), 1000)))
        return [decode_downlink(message.data) async for message in socket]


@pytest.mark.parametrize("mode", ["streams", "auto"])
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_chunks_ends_its_own_device_and_no_other(kind, mode, stub_site, run):
    frames, code = FLOODS[kind]

    async def scenario():
        async with stub_site(mode=mode, engine=Slow(4)) as site:
            honest = site.client(name="honest")
            writing = asyncio.create_task(honest.generate(Request(PROMPT, SamplingParams(), 60)))
            heard = await flooding(site, frames)
            text = await writing
            newcomer = site.client(name="newcomer")
            later = await newcomer.generate(Request(PROMPT, SamplingParams(), 10))
            for client in (honest, newcomer):
                assert client.counters.reconnects == 0
                client.close()
            return heard, text, later, site.of(Refused)

    heard, text, later, refused = run(scenario())
    assert isinstance(heard[-1], Error)
    assert heard[-1].code == code
    assert (text, later) == ([1] * 60, [1] * 10)
    assert len(refused) == 1


@pytest.mark.parametrize("greeted", [False, True])
def test_pings_are_answered_but_not_by_the_thousand(greeted, stub_site, run):
    async def scenario():
        async with stub_site() as site:
            honest = site.client(name="honest")
            writing = asyncio.create_task(honest.generate(Request(PROMPT, SamplingParams(), 60)))
            async with aiohttp.ClientSession() as http, http.ws_connect(site.url, autoping=False) as socket:
                if greeted:
                    await socket.send_bytes(encode(site.hello("pings")))
                    assert isinstance(decode_downlink((await socket.receive()).data), Welcome)
                for number in range(3):
                    await socket.ping(b"%d" % number)
                pongs = [(await socket.receive()).data for _ in range(3)]
                with contextlib.suppress(ConnectionError):
                    for _ in range(5000):
                        await socket.ping()
                heard = [message async for message in socket]
            text = await writing
            honest.close()
            return pongs, heard, text

    pongs, heard, text = run(scenario())
    assert pongs == [b"0", b"1", b"2"]
    assert len([each for each in heard if each.type is aiohttp.WSMsgType.PONG]) <= 2 * MAX_PINGS_PER_S
    errors = [decode_downlink(each.data) for each in heard if each.type is aiohttp.WSMsgType.BINARY]
    assert [each.code for each in errors] == ["too-fast" if greeted else "hello-first"]
    assert text == [1] * 60
