"""Messages of a connection: at once where there is room, else in order; and an end to those that do not read."""

import asyncio
import gc
import weakref

import aiohttp
import pytest
from aiohttp import web

from multispin.device import WebSocketLink
from multispin.edge import listening
from multispin.edge.connection import MAX_QUEUED_MESSAGES, Connection, WebSocketWire
from multispin.protocol import Ask, Error, decode_downlink


class Wire:
    """Has room for so many frames, and for one more whenever the test makes some."""

    address = ""

    def __init__(self, room):
        self.room, self.sent, self.closed, self.broken = room, [], False, False
        self._freed = asyncio.Event()

    def free(self, count):
        self.room += count
        self._freed.set()

    def send_now(self, frame):
        if self.broken:
            raise ConnectionResetError
        if not self.room:
            return False
        self.room -= 1
        self.sent.append(decode_downlink(frame))
        return True

    async def send(self, frame):
        while not self.send_now(frame):
            self._freed.clear()
            await self._freed.wait()

    async def close(self, edge_stops=False, floods=False):
        self.closed = True


@pytest.fixture
def opened(run):
    """Run a test beside a connection's writer."""

    def opened(room, test):
        async def scenario():
            wire = Wire(room)
            connection = Connection(wire)
            writer = asyncio.create_task(connection.write())
            await test(wire, connection)
            await writer
            return wire

        return run(scenario())

    return opened


def test_what_finds_room_is_sent_at_once(opened):
    async def test(wire, connection):
        connection.put(Ask(1, 1, 1))
        assert wire.sent == [Ask(1, 1, 1)]
        connection.end()

    assert opened(1, test).closed


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_messages_keep_their_order_however_room_comes_and_goes(opened, step):
    async def test(wire, connection):
        for number in range(30):
            connection.put(Ask(1, number, 0))
            if number % step == 0:
                wire.free(step)
                connection.put(Ask(2, number, 0))  # before the writer has had its turn
            await asyncio.sleep(0)
        wire.free(100)
        connection.end()

    sent = opened(2, test).sent
    wanted = [each for number in range(30) for each in ((1, number), (2, number))[: 2 if number % step == 0 else 1]]
    assert [(each.session, each.round) for each in sent] == wanted


def test_who_does_not_read_is_told_so_and_hung_up_on(opened):
    async def test(wire, connection):
        for number in range(MAX_QUEUED_MESSAGES + 2):
            connection.put(Ask(1, number, 0))
        connection.put(Ask(1, 0, 0))  # nothing follows the end
        wire.free(100)

    wire = opened(0, test)
    assert wire.closed
    *heard, last = wire.sent
    assert isinstance(last, Error)
    assert last.code == "too-slow"
    assert [each.round for each in heard] == list(range(MAX_QUEUED_MESSAGES))  # a gap would look like an edge that errs


def test_an_end_with_a_word_drops_nothing_of_a_full_queue(opened):
    async def test(wire, connection):
        for number in range(MAX_QUEUED_MESSAGES):
            connection.put(Ask(1, number, 0))
        connection.end(Error("shutdown", "come back"))
        wire.free(100)

    *heard, last = opened(0, test).sent
    assert last.code == "shutdown"
    assert [each.round for each in heard] == list(range(MAX_QUEUED_MESSAGES))


def test_a_broken_connection_ends_without_a_word(opened):
    async def test(wire, connection):
        wire.broken = True
        connection.put(Ask(1, 0, 0))

    wire = opened(1, test)
    assert wire.closed
    assert wire.sent == []


def test_nothing_of_a_closed_connection_is_left_at_either_end(run):
    there = weakref.WeakSet()

    def here():
        """Connections of devices that are still held."""
        return [each for each in gc.get_objects() if isinstance(each, aiohttp.ClientWebSocketResponse)]

    async def handler(request):
        socket = web.WebSocketResponse(heartbeat=3600.0)
        await socket.prepare(request)
        there.add(socket)
        wire = WebSocketWire(socket, "", request.transport)
        assert await wire.receive() == b"first"
        await wire.close()
        return socket

    async def scenario():
        application = web.Application()
        application.router.add_get("/", handler)
        async with listening(application, port=0) as port:
            links, before = [WebSocketLink(heartbeat_s=3600.0) for _ in range(5)], len(here())
            for link in links:
                await link.connect(f"ws://127.0.0.1:{port}/")
                await link.send(b"first")
                await link.close()
            while there or len(here()) > before:
                await asyncio.sleep(0.01)
                gc.collect()

    run(scenario())


def test_a_ping_that_a_lost_connection_cannot_answer_is_its_end(run):
    found = []

    async def handler(request):
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        while not socket._reader._buffer:  # the ping
            await asyncio.sleep(0.01)
        request.transport.close()
        found.append(await WebSocketWire(socket, "", request.transport).receive())
        return socket

    async def scenario():
        application = web.Application()
        application.router.add_get("/", handler)
        async with listening(application, port=0) as port:
            async with aiohttp.ClientSession() as http, http.ws_connect(f"http://127.0.0.1:{port}/") as socket:
                await socket.ping()
                while not found:
                    await asyncio.sleep(0.01)

    run(scenario())
    assert found == [None]
