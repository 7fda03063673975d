"""The real server and the real device client over real sockets, in one process, with a tiny model."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from multispin.device import DeviceClient, Emulation
from multispin.edge import Controller, ControllerSettings, Edge, EdgeServer, Limits
from multispin.errors import InputError
from multispin.models import (
    ModelDrafter,
    NoDrafter,
    PromptLookupDrafter,
    Verifier,
    decode_alone,
    load_model,
    load_tokenizer,
    round_weights,
)
from multispin.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    SESSION_PATH,
    Close,
    Draft,
    Error,
    Grant,
    Hello,
    Open,
    Profile,
    RefusedError,
    Welcome,
    decode_downlink,
    encode,
)
from multispin.speculation import SamplingParams, bits_per_id

PROMPT = list(b"the quick brown fox")
PROFILE = Profile(0.001, 5.0)


class Site:
    """A server on a free port, for the length of an `async with`."""

    def __init__(self, folder, slots=4, port=0, policy="heterogeneous", longest=8, **limits):
        self.folder, self.port, self.events = folder, port, []
        verifier = Verifier(load_model(folder), slots, 256)
        self.fingerprint = load_tokenizer(folder).fingerprint
        settings = ControllerSettings(policy, 1e5, bits_per_id(verifier.vocabulary_size), longest)
        self.edge = Edge(verifier, Controller(settings), self.fingerprint, Limits(**limits), seed=3)

    async def __aenter__(self):
        self.server = EdgeServer(self.edge, self.events.append)
        self.runner = web.AppRunner(self.server.application())
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        self.port = self.runner.addresses[0][1]
        self.url = f"ws://127.0.0.1:{self.port}{SESSION_PATH}"
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    def hello(self, name="phone", drafts=True, fingerprint=None):
        return Hello(PROTOCOL_VERSION, fingerprint or self.fingerprint, name, "q5", drafts, PROFILE)

    def client(self, drafter, name="phone", **options):
        return DeviceClient(self.url, self.hello(name, not isinstance(drafter, NoDrafter)), drafter, **options)


def run(scenario, limit_s=120):
    return asyncio.run(asyncio.wait_for(scenario, limit_s))


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(0.9, top_p=0.95, seed=12)], ids=["greedy", "coupled"]
)
def test_devices_of_every_kind_get_the_targets_own_text(tiny_folder, params):
    async def scenario():
        drafters = [
            ModelDrafter(round_weights(load_model(tiny_folder), 6), 256),
            ModelDrafter(load_model(tiny_folder), 256),
            PromptLookupDrafter(),
            NoDrafter(),
        ]
        async with Site(tiny_folder) as site:
            clients = [site.client(drafter, f"device-{i}") for i, drafter in enumerate(drafters)]
            texts = await asyncio.gather(*(c.generate([*PROMPT, 10 + i], params, 30) for i, c in enumerate(clients)))
            assert site.edge.sessions == {}
        model = load_model(tiny_folder)
        assert texts == [decode_alone(model, [*PROMPT, 10 + i], params, 30) for i in range(4)]
        return clients

    clients = run(scenario())
    assert clients[1].counters.accepted > 0.9 * clients[1].counters.drafted > 0  # it drafts with the target itself
    assert clients[3].counters.drafted == 0


def test_more_requests_than_slots_are_all_served(tiny_folder):
    async def scenario():
        async with Site(tiny_folder, slots=2) as site:
            clients = [site.client(PromptLookupDrafter(), f"device-{i}") for i in range(6)]
            return await asyncio.gather(
                *(c.generate([*PROMPT, i], SamplingParams(), 10) for i, c in enumerate(clients))
            )

    model = load_model(tiny_folder)
    assert run(scenario()) == [decode_alone(model, [*PROMPT, i], SamplingParams(), 10) for i in range(6)]


class CuttingProxy:
    """A TCP proxy that cuts its connections after so many bytes, a few times."""

    def __init__(self, port, cuts):
        self.target, self.cuts = port, list(cuts)

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def _serve(self, reader, writer):
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.target)
        budget = [self.cuts.pop(0) if self.cuts else 10**9]

        async def pump(source, sink):
            try:
                while data := await source.read(64):
                    budget[0] -= len(data)
                    if budget[0] < 0:
                        break
                    sink.write(data)
                    await sink.drain()
            finally:
                for end in (writer, upstream_writer):
                    end.transport.abort()

        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer), return_exceptions=True)


def test_a_connection_that_breaks_again_and_again_does_not_change_the_text(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site, CuttingProxy(site.port, [900, 1000, 1100, 700]) as proxy:
            site.url = f"ws://127.0.0.1:{proxy.port}{SESSION_PATH}"
            client = site.client(ModelDrafter(load_model(tiny_folder), 256))
            return await client.generate(PROMPT, SamplingParams(0.9, seed=4), 60), client.counters.reconnects

    text, reconnects = run(scenario())
    assert text == decode_alone(load_model(tiny_folder), PROMPT, SamplingParams(0.9, seed=4), 60)
    assert reconnects >= 3


def test_a_lost_edge_is_survived_by_opening_again_at_the_next_one(tiny_folder):
    async def scenario():
        first = Site(tiny_folder)
        await first.__aenter__()
        half_way = asyncio.Event()

        def progress(_):
            if len(client.session.generated) > 15:
                half_way.set()

        client = first.client(ModelDrafter(load_model(tiny_folder), 256), on_progress=progress)
        work = asyncio.create_task(client.generate(PROMPT, SamplingParams(), 60))
        await half_way.wait()
        await first.__aexit__()
        async with Site(tiny_folder, port=first.port):
            return await work

    assert run(scenario()) == decode_alone(load_model(tiny_folder), PROMPT, SamplingParams(), 60)


async def talk(site, *frames, text=None):
    """Send frames as they are; return everything that comes back until the connection ends."""
    async with aiohttp.ClientSession() as http, http.ws_connect(site.url) as socket:
        for frame in frames:
            await socket.send_bytes(frame)
        if text is not None:
            await socket.send_str(text)
        return [decode_downlink(message.data) async for message in socket]


def test_misbehaviour_ends_its_own_session_with_an_error_and_no_other(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:
            good = site.client(ModelDrafter(load_model(tiny_folder), 256), emulation=Emulation(0.01, 0.0))
            work = asyncio.create_task(good.generate(PROMPT, SamplingParams(), 60))
            hello = encode(site.hello("bad"))
            cases = {
                "hello-first": [encode(Close(1))],
                "bad-message": [hello, b"\xc1 nonsense"],
                "wrong-session": [hello, encode(Close(9999))],
                "unexpected": [hello, hello],
                "tokenizer-mismatch": [encode(site.hello("bad", fingerprint="0" * 16))],
            }
            for code, frames in cases.items():
                *_, last = await talk(site, *frames)
                assert isinstance(last, Error), code
                assert last.code == code
            assert (await talk(site, text="hello"))[-1].code == "hello-first"
            heard = await talk(site, hello, b"x" * (MAX_FRAME_BYTES + 1))  # the frame limit closes the connection
            assert all(isinstance(message, Welcome) for message in heard)
            return await work

    assert run(scenario()) == decode_alone(load_model(tiny_folder), PROMPT, SamplingParams(), 60)


def test_a_flood_of_messages_is_cut_off(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:
            async with aiohttp.ClientSession() as http, http.ws_connect(site.url) as socket:
                await socket.send_bytes(encode(site.hello()))
                welcome = decode_downlink((await socket.receive()).data)
                await socket.send_bytes(encode(Open(welcome.session, bytes([0, 1, 0]), 2, 10, 0.0, 0, 1.0, 0)))
                assert isinstance(decode_downlink((await socket.receive()).data), Grant)
                stale = encode(Draft(welcome.session, 999, 2, 0, b"", 0))
                for _ in range(2000):
                    if socket.closed:
                        break
                    await socket.send_bytes(stale)
                return [decode_downlink(m.data) async for m in socket]

    heard = run(scenario())
    assert isinstance(heard[-1], Error)
    assert heard[-1].code in ("too-fast", "too-slow")


def test_a_refused_device_is_told_why_and_does_not_try_again(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:
            client = DeviceClient(site.url, site.hello(fingerprint="0" * 16), NoDrafter())
            await client.generate(PROMPT, SamplingParams(), 10)

    with pytest.raises(RefusedError, match="0000000000000000 is not the target's"):
        run(scenario())


def test_an_edge_that_is_not_there_is_given_up_after_a_few_attempts(tiny_folder):
    client = DeviceClient(
        "ws://127.0.0.1:9/v1/session",
        Hello(PROTOCOL_VERSION, "f", "n", "d", False, PROFILE),
        NoDrafter(),
        max_reconnects=2,
    )
    with pytest.raises(InputError, match="cannot reach the edge"):
        run(client.generate(PROMPT, SamplingParams(), 10))


def test_a_drafter_that_fails_is_reported_and_not_swallowed(tiny_folder):
    class Broken(NoDrafter):
        def draft(self, committed, length, params):
            raise RuntimeError("out of memory")

    async def scenario():
        async with Site(tiny_folder) as site:
            client = DeviceClient(site.url, site.hello(), Broken())
            await client.generate(PROMPT, SamplingParams(), 10)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(scenario())


def test_an_engine_that_fails_is_not_passed_over_in_silence(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:

            def out_of_memory(feeds):
                raise MemoryError("no memory for the batch")

            site.edge.engine.verify = out_of_memory
            work = asyncio.create_task(site.client(NoDrafter()).generate(PROMPT, SamplingParams(), 5))
            why = await site.server.failure()
            work.cancel()
            return why

    assert isinstance(run(scenario()), MemoryError)


def test_health_says_what_is_going_on(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site, aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{site.port}/health") as answer:
                return await answer.json()

    assert run(scenario()) == {"status": "ok", "sessions": 0, "slots": 4, "round": 0}


def test_uplink_bytes_are_counted_as_they_are_on_the_wire(tiny_folder):
    """A raw TCP count of what a device sends after the handshake equals its own counter."""

    async def scenario():
        async with Site(tiny_folder, policy="fixed", longest=4) as site:
            sent = bytearray()

            async def serve(reader, writer):
                upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", site.port)

                async def pump(source, sink, log):
                    while data := await source.read(65536):
                        log += data
                        sink.write(data)
                    sink.close()

                await asyncio.gather(pump(reader, upstream_writer, sent), pump(upstream_reader, writer, bytearray()))

            proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
            site.url = f"ws://127.0.0.1:{proxy.sockets[0].getsockname()[1]}{SESSION_PATH}"
            client = site.client(ModelDrafter(load_model(tiny_folder), 256))
            await client.generate(PROMPT, SamplingParams(), 40)
            proxy.close()
            handshake = sent.index(b"\r\n\r\n") + 4
            return len(sent) - handshake, client.counters

    on_the_wire, counters = run(scenario())
    closing_frame_bytes = 8  # header, mask and status code of the WebSocket's own goodbye
    assert counters.uplink_bytes <= on_the_wire <= counters.uplink_bytes + closing_frame_bytes
    assert counters.draft_bytes / counters.drafted < 12
