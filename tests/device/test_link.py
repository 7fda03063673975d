"""What every link must do, tried on each; and what only a real WebSocket can meet."""

import asyncio
import base64
import contextlib
import hashlib
import re
import socket

import aiohttp
import pytest
from aiohttp import web
from tests import virtual_time
from yarl import URL

from multispin.device import DelayedLink, LinkLostError, MemoryLink, ShapedLink, WebSocketLink
from multispin.device.proxy import proxy_of
from multispin.errors import InputError
from multispin.protocol import MAX_FRAME_BYTES, websocket_frame_bytes

DELAY_S = 0.02


class WebPeer:
    """The server's end of a WebSocket, with the methods of an in-memory end."""

    def __init__(self, socket, transport):
        self.socket, self.transport = socket, transport
        self.done = asyncio.Event()

    async def send(self, frame):
        await self.socket.send_bytes(frame)

    async def receive(self):
        frame = await self.socket.receive()
        if frame.type is not aiohttp.WSMsgType.BINARY:
            raise LinkLostError(str(frame.type))
        return frame.data

    async def close(self):
        await self.socket.close()
        self.done.set()

    def cut(self):
        self.transport.abort()
        self.done.set()


@contextlib.asynccontextmanager
async def web_server(serve, host="127.0.0.1"):
    """A WebSocket server that hands its end of every connection to `serve`."""

    async def answer(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        peer = WebPeer(socket, request.transport)
        serve(str(request.rel_url), peer)
        await peer.done.wait()
        return socket

    app = web.Application()
    app.router.add_get("/edge", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    port = runner.addresses[0][1]
    try:
        yield f"ws://{f'[{host}]' if ':' in host else host}:{port}/edge"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def linked(kind):
    """A link of one kind, the address to connect to, and the peers that its connections reach."""
    peers = asyncio.Queue()

    def serve(url, peer):
        peers.put_nowait(peer)

    if kind in ("memory", "delayed"):
        carrier = MemoryLink(serve)
        found = DelayedLink(carrier, DELAY_S) if kind == "delayed" else carrier
        yield found, "memory://edge", peers
        await found.close()
        return
    async with web_server(serve) as url:
        carrier = WebSocketLink()
        found = ShapedLink(carrier, 5.0) if kind == "shaped" else carrier
        try:
            yield found, url, peers
        finally:
            await found.close()
            while not peers.empty():
                peers.get_nowait().done.set()


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 60))


async def send_until_lost(tried):
    for _ in range(1000):  # a network notices only after a while
        await tried.send(b"x")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["memory", "web socket", "shaped", "delayed"])
def test_every_link_carries_frames_whole_and_in_order_and_says_when_it_ends(kind):
    async def scenario():
        async with linked(kind) as (tried, url, peers):
            for call in (tried.send(b"x"), tried.receive()):
                with pytest.raises(LinkLostError):  # not connected yet
                    await call
            await tried.close()  # harmless
            await tried.connect(url)
            peer = await peers.get()
            frames = [b"", b"\0\xff", b"x" * MAX_FRAME_BYTES]
            for frame in frames:
                await tried.send(frame)
            assert [await peer.receive() for _ in frames] == frames
            for frame in frames:
                await peer.send(frame)
            assert [await tried.receive() for _ in frames] == frames
            tried.granted(1e9)
            await tried.send(b"last")
            await tried.close()
            assert await peer.receive() == b"last"  # what was sent before a goodbye arrives
            with pytest.raises(LinkLostError):
                await peer.receive()
            await peer.close()

    run(scenario())


@pytest.mark.parametrize("kind", ["memory", "web socket", "shaped", "delayed"])
@pytest.mark.parametrize("end", ["close", "cut"])
def test_every_link_can_connect_again_after_its_peer_is_gone(kind, end):
    async def scenario():
        async with linked(kind) as (tried, url, peers):
            for _ in range(3):
                await tried.connect(url)
                peer = await peers.get()
                waits = asyncio.create_task(tried.receive())
                await asyncio.sleep(0)
                if end == "cut":
                    peer.cut()
                else:
                    await peer.close()
                with pytest.raises(LinkLostError, match=r"\w"):
                    await waits
                with pytest.raises(LinkLostError):
                    await send_until_lost(tried)

    run(scenario())


def test_a_shaped_link_is_as_fast_as_band_times_efficiency():
    async def scenario():
        async with linked("shaped") as (tried, url, peers):
            await tried.connect(url)
            peer = await peers.get()
            loop = asyncio.get_running_loop()
            bits = 8 * websocket_frame_bytes(1000, masked=True)
            times_s = []
            for band_hz in (None, 20_000.0, 40_000.0, 0.0):  # a grant without a band keeps the one before
                if band_hz is not None:
                    tried.granted(band_hz)
                began_s = loop.time()
                await tried.send(bytes(1000))
                await peer.receive()
                times_s.append(loop.time() - began_s)
            return bits, times_s

    bits, (_, slow_s, fast_s, kept_s) = run(scenario())
    assert slow_s >= bits / 1e5
    assert fast_s >= bits / 2e5
    assert kept_s >= bits / 2e5


def test_a_delayed_link_is_late_in_both_directions_and_takes_many_frames_at_once():
    async def scenario():
        async with linked("delayed") as (tried, url, peers):
            await tried.connect(url)
            peer, loop = await peers.get(), asyncio.get_running_loop()
            began_s = loop.time()
            for number in range(30):
                await tried.send(bytes([number]))
            assert loop.time() == began_s  # nobody waits for a frame to arrive
            first = asyncio.create_task(peer.receive())
            await asyncio.sleep(0)
            assert not first.done()
            assert await first == b"\0"
            assert [await peer.receive() for _ in range(29)] == [bytes([number]) for number in range(1, 30)]
            up_s, began_s = loop.time() - began_s, loop.time()
            for number in range(30):
                await peer.send(bytes([number]))
            assert [await tried.receive() for _ in range(30)] == [bytes([number]) for number in range(30)]
            return up_s, loop.time() - began_s

    assert virtual_time.run(scenario()) == (pytest.approx(DELAY_S), pytest.approx(DELAY_S))


def test_a_delayed_link_whose_goodbye_is_cancelled_leaves_no_connection_open():
    async def scenario():
        async with linked("delayed") as (tried, url, peers):
            tasks = asyncio.all_tasks()
            await tried.connect(url)
            peer = await peers.get()
            await tried.send(b"x")
            goodbye = asyncio.create_task(tried.close())
            await asyncio.sleep(0)  # it waits for the frame to arrive
            goodbye.cancel()
            await asyncio.gather(goodbye, return_exceptions=True)
            with pytest.raises(LinkLostError):
                await asyncio.wait_for(peer.receive(), 10 * DELAY_S)
            assert asyncio.all_tasks() == tasks

    run(scenario())


def test_a_peer_that_goes_silent_without_a_word_is_a_lost_connection_and_no_protocol_error():
    """A cable is pulled: no FIN, no pong. What aiohttp makes of that must not end the request."""

    async def scenario():
        async def accept(reader, writer):  # shakes hands, and never answers a ping
            head = await reader.readuntil(b"\r\n\r\n")
            key = next(
                line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-k")
            )
            proof = base64.b64encode(hashlib.sha1(key + aiohttp.http_websocket.WS_KEY).digest())
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + proof + b"\r\n\r\n"
            )
            await asyncio.sleep(30)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        tried = WebSocketLink(heartbeat_s=0.2)
        await tried.connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/edge")
        with pytest.raises(LinkLostError, match="broke"):
            await tried.receive()
        await tried.close()
        server.close()

    run(scenario())


def test_what_can_never_be_an_edge_and_what_is_none_now_are_told_apart():
    async def scenario():
        tried = WebSocketLink(connect_timeout_s=0.3)
        for url in ("ws://", "ftp://127.0.0.1/x", "ws://127.0.0.1:99999"):
            with pytest.raises(InputError, match="not an address"):
                await tried.connect(url)
        with pytest.raises(LinkLostError):
            await tried.connect("ws://127.0.0.1:9/edge")
        async with web_server(lambda url, peer: peer.done.set()) as url:
            with pytest.raises(LinkLostError, match="HTTP status 404"):
                await tried.connect(url + "/nowhere")
        with socket.socket() as silent:  # takes connections and never answers, like a stopped process
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            with pytest.raises(LinkLostError, match=r"no answer within"):
                await tried.connect(f"ws://127.0.0.1:{silent.getsockname()[1]}/edge")

    run(scenario())


@pytest.mark.parametrize(("status", "sentence"), [(302, "in a circle"), (407, "proxy asks for a password")])
def test_what_stands_before_an_edge_is_told(status, sentence):
    async def scenario():
        async def answer(request):
            return web.Response(status=status, headers={"Location": request.path})

        app = web.Application()
        app.router.add_get("/edge", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with pytest.raises(LinkLostError, match=sentence):
            await WebSocketLink().connect(f"ws://127.0.0.1:{runner.addresses[0][1]}/edge")
        await runner.cleanup()

    run(scenario())


def test_text_is_refused_because_no_edge_sends_it():
    async def scenario():
        async with linked("web socket") as (tried, url, peers):
            await tried.connect(url)
            peer = await peers.get()
            await peer.socket.send_str("hello")
            with pytest.raises(InputError, match="not binary"):
                await tried.receive()

    run(scenario())


def test_a_frame_over_the_limit_is_refused_because_no_edge_sends_it():
    async def scenario():
        async with linked("web socket") as (tried, url, peers):
            await tried.connect(url)
            peer = await peers.get()
            await peer.socket.send_bytes(b"x" * (MAX_FRAME_BYTES + 1))
            with pytest.raises(InputError, match=f"over the limit of {MAX_FRAME_BYTES} bytes"):
                await tried.receive()

    run(scenario())


def test_a_ping_that_a_lost_connection_cannot_answer_is_a_lost_connection():
    """As where a computer wakes: the edge's pings wait, and the connection has ended meanwhile."""

    async def scenario():
        async with linked("web socket") as (tried, url, peers):
            await tried.connect(url)
            peer = await peers.get()
            await peer.socket.ping()
            await asyncio.sleep(0.1)
            peer.transport.abort()
            await asyncio.sleep(0.1)
            with pytest.raises(LinkLostError, match="closing transport"):
                await tried.receive()

    run(scenario())


def test_addresses_of_version_six_and_query_strings_reach_the_edge():
    async def scenario():
        seen = asyncio.Queue()
        try:
            async with web_server(lambda url, peer: (seen.put_nowait(url), peer.done.set()), "::1") as url:
                tried = WebSocketLink()
                await tried.connect(f"{url}?room=7")
                await tried.close()
        except OSError:
            pytest.skip("this machine has no IPv6")
        return await seen.get()

    assert run(scenario()) == "/edge?room=7"


@pytest.mark.parametrize(
    ("name", "proxy", "sentence"),
    [
        ("http_proxy", "http://[::1", "HTTP_PROXY is not the address"),
        ("http_proxy", "http://a:99999", "HTTP_PROXY is not the address"),
        ("http_proxy", "foo:bar", "HTTP_PROXY is not the address"),
        ("http_proxy", "https://127.0.0.1:9", "HTTP_PROXY names a https proxy"),
        ("http_proxy", "socks5h://127.0.0.1:9", "HTTP_PROXY names a socks5h proxy"),
        ("all_proxy", "socks5://127.0.0.1:9", "ALL_PROXY names a socks5 proxy"),
        ("all_proxy", "http://", "ALL_PROXY is not the address"),
        ("all_proxy", "http://a..b", "ALL_PROXY is not the address"),
        ("all_proxy", "ga rbage", "ALL_PROXY is not the address"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told(name, proxy, sentence, monkeypatch):
    monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(InputError, match=f"{sentence}.*add 127.0.0.1 to NO_PROXY"):
        asyncio.run(WebSocketLink().connect("ws://127.0.0.1:1/v1/session"))


@pytest.mark.parametrize(
    ("environment", "address", "proxy"),
    [
        ({}, "ws://edge.example:8765/", None),
        ({"all_proxy": "http://127.0.0.1:9"}, "ws://edge.example:8765/", "http://127.0.0.1:9"),
        ({"all_proxy": "127.0.0.1:9"}, "wss://edge.example/", "http://127.0.0.1:9"),
        ({"all_proxy": "socks5://a:9", "http_proxy": "http://b:9"}, "ws://edge.example/", "http://b:9"),
        ({"http_proxy": "http://b:9"}, "wss://edge.example/", None),
        ({"https_proxy": "http://me:secret@b:9"}, "wss://edge.example/", "http://me:secret@b:9"),
        ({"all_proxy": "http://b:9", "no_proxy": "edge.example:8765"}, "ws://edge.example:8765/", None),
        ({"all_proxy": "http://b:9", "no_proxy": "edge.example:8765"}, "ws://edge.example:80/", "http://b:9"),
        ({"all_proxy": "http://b:9", "no_proxy": "::1"}, "ws://[::1]:8765/", None),
        ({"all_proxy": "http://b:9", "no_proxy": "a, [::1]"}, "ws://[::1]:8765/", None),
        ({"all_proxy": "http://b:9", "no_proxy": "[::1]:8765"}, "ws://[::1]:8765/", None),
        ({"all_proxy": "http://b:9", "no_proxy": "[::1]:8766"}, "ws://[::1]:8765/", "http://b:9"),
        ({"all_proxy": "http://b:9", "no_proxy": "[::1"}, "ws://[::2]:8765/", "http://b:9"),
        ({"all_proxy": "http://b:9", "no_proxy": "a,10.0.0.0/8"}, "ws://10.9.8.7:8765/", None),
        ({"all_proxy": "http://b:9", "no_proxy": "10.0.0.0/8"}, "ws://11.9.8.7:8765/", "http://b:9"),
        ({"all_proxy": "http://b:9", "no_proxy": "fe80::/10"}, "ws://[fe80::1%25eth0]:8765/", None),
        ({"all_proxy": "http://b:9", "no_proxy": "10.0.0.0/8,/,0/0/0"}, "ws://edge.example/", "http://b:9"),
    ],
)
def test_which_proxy_the_environment_names(environment, address, proxy, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(address) == (proxy and URL(proxy))


@pytest.mark.parametrize("proxy", ["127.0.0.1:9", "[::1]:9"])
def test_a_proxy_that_does_not_answer_is_named(proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:secret@{proxy}")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(LinkLostError, match=f"the proxy {re.escape(proxy)} of the environment does not answer: "):
        asyncio.run(WebSocketLink().connect("ws://edge.example:8765/v1/session"))


def test_a_proxy_whose_host_is_unknown_is_named(monkeypatch):
    async def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("http_proxy", "http://me:secret@garbage")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr("aiohttp.resolver.DefaultResolver.resolve", unknown)
    with pytest.raises(LinkLostError, match=r"the proxy garbage:80 of the environment does not answer: Name") as lost:
        asyncio.run(WebSocketLink().connect("ws://edge.example:8765/v1/session"))
    assert "secret" not in str(lost.value)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize(("status", "sentence"), [(403, r"403, through the proxy 127"), (407, "asks for a password")])
def test_a_proxy_that_refuses_is_named_without_the_credential_in_its_address(scheme, status, sentence, monkeypatch):
    async def scenario():
        async def proxy(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        monkeypatch.setenv("all_proxy", f"http://me:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(LinkLostError, match=sentence) as refused:
            await WebSocketLink().connect(f"{scheme}://edge.example:8765/v1/session")
        server.close()
        return str(refused.value)

    assert "secret" not in run(scenario())


@pytest.mark.parametrize("zone", ["%25lo", "%lo"])
def test_the_zone_of_an_ipv6_address_reaches_the_system_as_sockets_write_it(zone, monkeypatch):
    asked = []

    async def resolve(loop, host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", resolve)
    with pytest.raises(LinkLostError):
        asyncio.run(WebSocketLink().connect(f"ws://[fe80::1{zone}]:8765/v1/session"))
    assert set(asked) == {"fe80::1%lo"}


def test_a_proxy_of_the_environment_is_used_and_exceptions_from_it_are_kept(monkeypatch):
    async def scenario():
        asked = []

        async def proxy(reader, writer):
            asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode())
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        tried = WebSocketLink()
        with pytest.raises(LinkLostError, match="502"):
            await tried.connect("ws://edge.example:8765/v1/session")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(LinkLostError):
            await tried.connect("ws://127.0.0.1:9/v1/session")
        server.close()
        return asked

    assert run(scenario()) == ["GET http://edge.example:8765/v1/session HTTP/1.1"]
