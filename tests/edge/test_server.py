"""The real server and the real device client over real sockets, in one process, with a tiny model."""

import asyncio
import threading

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from multispin.control import Verification
from multispin.device import DeviceClient, Emulation, Patience
from multispin.edge import EdgeServer
from multispin.edge.paced import PacedEngine
from multispin.edge.server import MAX_ENGINE_FAULTS
from multispin.errors import InputError
from multispin.models import (
    EdgeDrafter,
    ModelDrafter,
    Verifier,
    decode_alone,
    load_model,
    load_tokenizer,
    round_weights,
)
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    SESSION_PATH,
    Close,
    Distribution,
    Draft,
    Error,
    Grant,
    Granted,
    Hello,
    Open,
    Profile,
    RefusedError,
    Request,
    Resume,
    Verdict,
    Welcome,
    decode_downlink,
    encode,
)
from multispin.protocol.events import Round
from multispin.speculation import (
    NoDrafter,
    PromptLookupDrafter,
    Rule,
    SamplingParams,
    TextStream,
    bits_per_id,
    certain_distribution,
    pack_distributions,
    text_of,
    unpack_offer,
)

PROMPT = list(b"the quick brown fox")
PROFILE = Profile(0.001, 5.0)
HOT = SamplingParams(1.2, top_p=0.95, seed=12)


class Site:
    """A server on a free port, for the length of an `async with`."""

    def __init__(self, folder, slots=4, port=0, policy="heterogeneous", longest=8, mode="rounds", edge=None, **limits):
        self.folder, self.port, self.events = folder, port, []
        verifier = Verifier(load_model(folder), slots, 256)
        self.fingerprint = load_tokenizer(folder).fingerprint
        settings = ControllerSettings(
            *(policy, 1e5, bits_per_id(verifier.vocabulary_size), longest), mode=mode, edge_drafts=edge is not None
        )
        # A pass that takes its time: drafts of the edge's own pay on any machine, however busy.
        engine = verifier if edge is None else PacedEngine(verifier, Verification(0.02, 0.0, 0.0))
        self.passes = Passes(
            *(engine, Controller(settings), self.fingerprint, Limits(**limits)),
            seed=3,
            edge_drafter=None if edge is None else EdgeDrafter(edge, slots, 256),
        )

    async def __aenter__(self):
        self.server = EdgeServer(self.passes, self.events.append)
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
            texts = await asyncio.gather(
                *(c.generate(Request([*PROMPT, 10 + i], params, 30)) for i, c in enumerate(clients))
            )
            assert site.passes.sessions == {}
        model = load_model(tiny_folder)
        assert texts == [decode_alone(model, [*PROMPT, 10 + i], params, 30) for i in range(4)]
        return clients

    clients = run(scenario())
    assert clients[1].counters.accepted > 0.9 * clients[1].counters.drafted > 0  # it drafts with the target itself
    assert clients[3].counters.drafted == 0


@pytest.mark.parametrize("params", [SamplingParams(), HOT], ids=["greedy", "coupled"])
@pytest.mark.parametrize(
    ("mode", "bits"),
    [("plain", None), ("edge", 6), ("auto", 6), ("auto", 3), ("auto", None), ("streams", None), ("streams", 6)],
)
def test_texts_are_the_targets_own_whoever_drafts(tiny_folder, mode, bits, params):
    """Devices that draft well, badly, at random lengths and not at all; the edge drafts well, badly or not."""

    async def scenario():
        drafters = [
            ModelDrafter(round_weights(load_model(tiny_folder), 6), 256),
            ModelDrafter(round_weights(load_model(tiny_folder), 3), 256),
            PromptLookupDrafter(),
            NoDrafter(),
        ]
        edge = None if bits is None else round_weights(load_model(tiny_folder), bits)
        async with Site(tiny_folder, mode=mode, edge=edge) as site:
            clients = [site.client(drafter, f"device-{i}") for i, drafter in enumerate(drafters)]
            texts = await asyncio.gather(
                *(c.generate(Request([*PROMPT, 10 + i], params, 120)) for i, c in enumerate(clients))
            )
            assert site.passes.sessions == {}
        return texts, [event for event in site.events if isinstance(event, Round)]

    texts, rounds = run(scenario())
    model = load_model(tiny_folder)
    assert texts == [decode_alone(model, [*PROMPT, 10 + i], params, 120) for i in range(4)]
    accepted = sum(device.accepted for each in rounds for device in each.devices)
    if mode != "auto":  # that may find that nothing pays here
        assert (accepted > 0) == (mode != "plain")


@pytest.mark.parametrize("bits", [None, 6], ids=["devices", "devices and edge"])
@pytest.mark.parametrize("params", [SamplingParams(), HOT], ids=["greedy", "coupled"])
def test_in_streams_a_text_does_not_depend_on_who_shares_its_passes(tiny_folder, params, bits):
    """Alone, beside one that drafts badly, and beside a crowd that comes and goes: the ids are the same."""

    async def scenario(others):
        edge = None if bits is None else round_weights(load_model(tiny_folder), bits)

        async def other(site, k):
            await asyncio.sleep(0.05 * k)
            drafter = ModelDrafter(round_weights(load_model(tiny_folder), 3 + k % 3), 256)
            await site.client(drafter, f"other-{k}").generate(Request([*PROMPT, 50 + k], HOT, 20 + 15 * k))

        async with Site(tiny_folder, mode="streams", edge=edge) as site:
            drafter = ModelDrafter(round_weights(load_model(tiny_folder), 6), 256)
            text, *_ = await asyncio.gather(
                site.client(drafter).generate(Request([*PROMPT, 10], params, 80)), *(other(site, k) for k in others)
            )
            most = max(len(event.devices) for event in site.events if isinstance(event, Round))
        return text, most

    found = [run(scenario(others)) for others in ((), (0,), range(5))]
    assert found[0][1] == 1
    assert found[1][1] == 2
    assert found[2][1] > 2
    expected = decode_alone(load_model(tiny_folder), [*PROMPT, 10], params, 80)
    assert [text for text, _ in found] == [expected] * 3


@pytest.mark.parametrize("rule", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_the_edge_drafts_under_the_rejection_rules_too(tiny_folder, rule):
    async def scenario():
        edge = round_weights(load_model(tiny_folder), 6)
        async with Site(tiny_folder, mode="edge", edge=edge) as site:
            clients = [site.client(NoDrafter(), f"device-{i}") for i in range(3)]
            texts = await asyncio.gather(
                *(c.generate(Request([*PROMPT, i], HOT, 40, rule=rule)) for i, c in enumerate(clients))
            )
        return texts, [event for event in site.events if isinstance(event, Round)]

    texts, rounds = run(scenario())
    assert [len(text) for text in texts] == [40] * 3
    # How much the edge drafts depends on what it measures: a busy machine may find that little of it pays.
    assert sum(device.accepted for each in rounds for device in each.devices) > 0


def test_more_requests_than_slots_are_all_served(tiny_folder):
    async def scenario():
        async with Site(tiny_folder, slots=2) as site:
            clients = [site.client(PromptLookupDrafter(), f"device-{i}") for i in range(6)]
            return await asyncio.gather(
                *(c.generate(Request([*PROMPT, i], SamplingParams(), 10)) for i, c in enumerate(clients))
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


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_connection_that_breaks_again_and_again_does_not_change_the_text(tiny_folder, mode):
    async def scenario():
        async with (
            Site(tiny_folder, mode=mode) as site,
            CuttingProxy(site.port, [900, 800, 800, 700, 800, 700]) as proxy,
        ):
            site.url = f"ws://127.0.0.1:{proxy.port}{SESSION_PATH}"
            client = site.client(ModelDrafter(load_model(tiny_folder), 256))
            return await client.generate(Request(PROMPT, SamplingParams(0.9, seed=4), 60)), client.counters.reconnects

    text, reconnects = run(scenario())
    assert text == decode_alone(load_model(tiny_folder), PROMPT, SamplingParams(0.9, seed=4), 60)
    assert reconnects >= (3 if mode == "rounds" else 2)  # a stream says the same in fewer bytes


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_lost_edge_is_survived_by_opening_again_at_the_next_one(tiny_folder, mode):
    async def scenario():
        first = Site(tiny_folder, mode=mode)
        await first.__aenter__()
        half_way = asyncio.Event()

        def progress(_):
            if len(client.session.generated) > 15:
                half_way.set()

        client = first.client(ModelDrafter(load_model(tiny_folder), 256), on_progress=progress)
        work = asyncio.create_task(client.generate(Request(PROMPT, SamplingParams(), 60)))
        await half_way.wait()
        await first.__aexit__()
        async with Site(tiny_folder, port=first.port, mode=mode):
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
            work = asyncio.create_task(good.generate(Request(PROMPT, SamplingParams(), 60)))
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


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_device_that_answers_every_grant_at_once_is_not_taken_for_noise(tiny_folder, monkeypatch, mode):
    monkeypatch.setattr("multispin.edge.server.MAX_MESSAGES_PER_S", 5)  # of which Hello and Open are two

    async def scenario():
        async with Site(tiny_folder, policy="fixed", longest=1, mode=mode) as site:
            return await site.client(Forbidden()).generate(Request(PROMPT, SamplingParams(), 60))

    assert run(scenario()) == decode_alone(load_model(tiny_folder), PROMPT, SamplingParams(), 60)


def test_a_refused_device_is_told_why_and_does_not_try_again(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:
            client = DeviceClient(site.url, site.hello(fingerprint="0" * 16), NoDrafter())
            await client.generate(Request(PROMPT, SamplingParams(), 10))

    with pytest.raises(RefusedError, match="0000000000000000 is not the target's"):
        run(scenario())


def test_an_edge_that_is_not_there_is_given_up_after_a_few_attempts(tiny_folder):
    client = DeviceClient(
        "ws://127.0.0.1:9/v1/session",
        Hello(PROTOCOL_VERSION, "f", "n", "d", False, PROFILE),
        NoDrafter(),
        patience=Patience(at_first_s=0.3),
    )
    with pytest.raises(InputError, match="cannot reach the edge"):
        run(client.generate(Request(PROMPT, SamplingParams(), 10)))


def test_a_drafter_that_fails_is_reported_and_not_swallowed(tiny_folder):
    class Broken(NoDrafter):
        def draft(self, committed, length, params):
            raise RuntimeError("out of memory")

    async def scenario():
        async with Site(tiny_folder) as site:
            client = DeviceClient(site.url, site.hello(), Broken())
            await client.generate(Request(PROMPT, SamplingParams(), 10))

    with pytest.raises(RuntimeError, match="out of memory"):
        run(scenario())


def test_an_engine_that_fails_is_not_passed_over_in_silence(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:

            def out_of_memory(feeds):
                raise MemoryError("no memory for the batch")

            site.passes.engine.verify = out_of_memory
            told = []
            for _ in range(MAX_ENGINE_FAULTS - 1):
                with pytest.raises(RefusedError) as refusal:
                    await site.client(NoDrafter()).generate(Request(PROMPT, SamplingParams(), 5))
                told.append(refusal.value.code)
            work = asyncio.create_task(site.client(NoDrafter()).generate(Request(PROMPT, SamplingParams(), 5)))
            why = await site.server.failure()
            work.cancel()
            return told, why

    told, why = run(scenario())
    assert told == ["failed"] * (MAX_ENGINE_FAULTS - 1)
    assert isinstance(why, MemoryError)


def test_a_single_fault_of_the_engine_ends_its_pass_and_not_the_edge(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:
            verify, faults = site.passes.engine.verify, [MemoryError("no memory for the batch")]
            site.passes.engine.verify = lambda feeds: verify(feeds) if not faults else fail(faults.pop())
            request = Request(PROMPT, SamplingParams(), 5)
            with pytest.raises(RefusedError, match="open the request again"):
                await site.client(NoDrafter()).generate(request)
            return await site.client(NoDrafter()).generate(request)

    def fail(error):
        raise error

    assert run(scenario()) == decode_alone(load_model(tiny_folder), PROMPT, SamplingParams(), 5)


def test_health_says_what_is_going_on(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site, aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{site.port}/health") as answer:
                return await answer.json()

    assert run(scenario()) == {"status": "ok", "sessions": 0, "slots": 4, "round": 0}


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_bytes_are_counted_as_they_are_on_the_wire(tiny_folder, mode):
    """A raw TCP count of what a device sends and hears after the handshake equals its own counters."""

    async def scenario():
        async with Site(tiny_folder, policy="fixed", longest=4, mode=mode) as site:
            sent, heard = bytearray(), bytearray()

            async def serve(reader, writer):
                upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", site.port)

                async def pump(source, sink, log):
                    while data := await source.read(65536):
                        log += data
                        sink.write(data)
                    sink.close()

                await asyncio.gather(pump(reader, upstream_writer, sent), pump(upstream_reader, writer, heard))

            proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
            site.url = f"ws://127.0.0.1:{proxy.sockets[0].getsockname()[1]}{SESSION_PATH}"
            client = site.client(ModelDrafter(load_model(tiny_folder), 256))
            await client.generate(Request(PROMPT, SamplingParams(), 40))
            proxy.close()
            return [len(each) - each.index(b"\r\n\r\n") - 4 for each in (sent, heard)], client.counters

    (on_the_wire, down_the_wire), counters = run(scenario())
    closing_frame_bytes = 8  # header, mask and status code of the WebSocket's own goodbye
    assert counters.uplink_bytes <= on_the_wire <= counters.uplink_bytes + closing_frame_bytes
    assert counters.downlink_bytes <= down_the_wire <= counters.downlink_bytes + closing_frame_bytes
    if mode == "rounds":
        assert counters.draft_bytes / counters.drafted < 12


@pytest.mark.parametrize("mode", ["rounds", "streams"])
@pytest.mark.parametrize("rule", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_drafters_of_every_kind_write_whole_texts_under_the_rejection_rules(tiny_folder, rule, mode):
    async def scenario():
        drafters = [
            ModelDrafter(round_weights(load_model(tiny_folder), 4), 256),
            ModelDrafter(load_model(tiny_folder), 256),
            PromptLookupDrafter(),
            NoDrafter(),
        ]
        async with Site(tiny_folder, policy="fixed", longest=4, mode=mode) as site:
            clients = [site.client(drafter, f"device-{i}") for i, drafter in enumerate(drafters)]
            texts = await asyncio.gather(
                *(c.generate(Request([*PROMPT, 10 + i], HOT, 30, rule=rule)) for i, c in enumerate(clients))
            )
            assert site.passes.sessions == {}
            assert site.passes.engine.free_slots == site.passes.engine.slots
        return texts, clients

    texts, clients = run(scenario())
    assert [len(text) for text in texts] == [30] * 4
    assert [client.session.finish for client in clients] == ["length"] * 4
    if mode == "streams":  # where distributions over this band take longer than passes without drafts
        return
    rough, same, lookup, plain = (client.counters for client in clients)
    assert same.accepted > 0.8 * same.drafted > 0  # what 16 bits cannot hold is refused
    assert 0 < rough.accepted < rough.drafted
    assert lookup.drafted > 0
    assert plain.drafted == 0


def test_distributions_sent_at_once_and_distributions_sent_when_asked_for_make_the_same_text(tiny_folder):
    # Of one drafted token a block decides as a single decision does; longer blocks accept more.
    async def scenario(rule):
        async with Site(tiny_folder, policy="fixed", longest=1) as site:
            client = site.client(ModelDrafter(round_weights(load_model(tiny_folder), 4), 256))
            return await client.generate(Request(PROMPT, HOT, 40, rule=rule)), client.counters

    texts, counters = zip(*(run(scenario(rule)) for rule in (Rule.REJECTION, Rule.REJECTION_UP)), strict=True)
    assert texts[0] == texts[1]
    assert counters[0].accepted == counters[1].accepted < counters[1].drafted
    assert counters[1].draft_bytes < counters[0].draft_bytes


@pytest.mark.parametrize("rule", [Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_a_broken_connection_does_not_end_a_request_that_is_half_decided(tiny_folder, rule):
    async def scenario():
        async with Site(tiny_folder) as site, CuttingProxy(site.port, [900, 1000, 1100, 1300, 1200, 1700]) as proxy:
            site.url = f"ws://127.0.0.1:{proxy.port}{SESSION_PATH}"
            client = site.client(ModelDrafter(round_weights(load_model(tiny_folder), 4), 256))
            text = await client.generate(Request(PROMPT, HOT, 60, rule=rule, retained=16))
            return text, client.counters.reconnects

    text, reconnects = run(scenario())
    assert len(text) == 60
    assert reconnects >= 3


class Forbidden(PromptLookupDrafter):
    """Always guesses the same token."""

    def draft(self, committed, length, params):
        return [5] * length


@pytest.mark.parametrize("rule", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_an_emulated_uplink_carries_what_is_owed_when_no_band_is_granted(tiny_folder, rule):
    async def scenario():
        async with Site(tiny_folder) as site:
            client = site.client(Forbidden(), emulation=Emulation(0.0, 5.0))
            params = SamplingParams(1.0, seed=3, logit_bias=((5, -100.0),))
            return [await client.generate(Request(PROMPT, params, length, rule=rule)) for length in (2, 3, 4)]

    texts = run(scenario())
    assert [len(text) for text in texts] == [2, 3, 4]
    assert not any(5 in text for text in texts)


def test_what_an_overtaken_connection_still_says_is_not_heard(tiny_folder):
    """A draft in flight on the old one must not meet the device that has drafted again on the new one."""

    async def scenario():
        async with Site(tiny_folder, policy="fixed") as site:
            old, new = WireOfQueues(), WireOfQueues()
            talks = [asyncio.create_task(site.server.converse(old))]
            old.say(site.hello())
            welcome = await old.hear()
            old.say(Open(welcome.session, bytes([0, 1, 0]), 2, 10, 0.0, 0, 1.0, 0))
            grant = await old.hear()
            talks.append(asyncio.create_task(site.server.converse(new)))
            new.say(Resume(PROTOCOL_VERSION, welcome.resume_token, 2))
            await new.hear()
            old.say(Draft(welcome.session, grant.round, 2, 0, b"", 0))
            await talks[0]
            stage = site.passes.sessions[welcome.session].stage
            new.hang_up()
            await talks[1]
            return stage

    assert isinstance(run(scenario()), Granted)


class WireOfQueues:
    """A connection whose device is the test."""

    address = ""

    def __init__(self):
        self.up, self.down = asyncio.Queue(), asyncio.Queue()

    def say(self, message):
        self.up.put_nowait(encode(message))

    def hang_up(self):
        self.up.put_nowait(None)

    async def hear(self):
        return decode_downlink(await self.down.get())

    async def receive(self):
        return await self.up.get()

    async def send(self, frame):
        self.down.put_nowait(frame)

    async def close(self, edge_stops=False):
        pass


class Cheat(DeviceClient):
    """Says something else than it should, once it has the occasion."""

    def __init__(self, *arguments, lie, **options):
        super().__init__(*arguments, **options)
        self.lie, self.offer = lie, b""
        honest = self.session.receive

        def receive(message):
            if isinstance(message, Verdict):
                self.offer = message.offer
            return honest(message)

        self.session.receive = receive

    async def _send(self, message):
        await super()._send(self.lie(self, message))


def _with(kind, **values):
    return lambda _, message: replace(message, **values) if isinstance(message, kind) else message


def _distribution_of_another_round(_, message):
    return replace(message, round=message.round + 1) if isinstance(message, Distribution) else message


def _distribution_unasked(_, message):
    return Distribution(message.session, message.round, 0, b"") if isinstance(message, Draft) else message


def _distribution_of_another_token(client, message):
    if not isinstance(message, Distribution):
        return message
    refused = client.session.stage.ids[message.accepted]
    form = client.session.form
    return replace(
        message,
        distribution=pack_distributions([certain_distribution((refused + 1) % form.vocabulary_size, form)], form),
    )


def _impossible_token(client, message):
    if not isinstance(message, Draft) or message.head is None:
        return message
    floor, rest_token = unpack_offer(client.offer, client.session.form)
    possible = {*map(int, floor.ids), rest_token}
    return replace(message, head=next(token for token in range(1000) if token not in possible))


def _token_kept_back(_, message):
    return replace(message, head=None) if isinstance(message, Draft) else message


LIES = {
    "a distribution that gives the token another weight": (
        Rule.REJECTION_UP,
        _distribution_of_another_token,
        "bad-message",
    ),
    "a distribution too large": (Rule.REJECTION_UP, _with(Distribution, distribution=b"x" * 50_000), "bad-message"),
    "a distribution for another round": (Rule.REJECTION_UP, _distribution_of_another_round, "unexpected"),
    "a distribution that nobody asked for": (Rule.REJECTION_UP, _distribution_unasked, "unexpected"),
    "weights of nothing": (Rule.REJECTION_UP, _with(Draft, length=1, payload=bytes(4)), "bad-message"),
    "distributions too large": (Rule.REJECTION, _with(Draft, length=1, payload=b"x" * 50_000), "bad-message"),
    "distributions cut short": (Rule.REJECTION, _with(Draft, length=1, payload=b"\x7f"), "bad-message"),
    "a token that no distribution gives": (Rule.REJECTION_DOWN, _impossible_token, "bad-head"),
    "a token kept back": (Rule.REJECTION_DOWN, _token_kept_back, "bad-head"),
    "a token without an offer": (Rule.REJECTION_DOWN, _with(Draft, head=1), "bad-head"),
    "evidence for a rule without any": (Rule.COUPLED, _with(Draft, length=1, payload=b"x" * 50_000), "bad-message"),
}


def test_who_cheats_under_a_rejection_rule_ends_its_own_session_and_no_other(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:
            good = site.client(ModelDrafter(load_model(tiny_folder), 256), emulation=Emulation(0.01, 0.0))
            work = asyncio.create_task(good.generate(Request(PROMPT, HOT, 100)))
            drafter = ModelDrafter(round_weights(load_model(tiny_folder), 3), 256)
            for what, (rule, lie, code) in LIES.items():
                bad = Cheat(site.url, site.hello("bad"), drafter, lie=lie)
                with pytest.raises(RefusedError) as refusal:
                    await bad.generate(Request(PROMPT, HOT, 60, rule=rule, retained=8, probability_bits=8))
                assert refusal.value.code == code, what
                bad.close()
            return await work, len(site.passes.sessions)

    text, left = run(scenario())
    assert text == decode_alone(load_model(tiny_folder), PROMPT, HOT, 100)
    assert left == 0


def test_a_rule_that_the_engine_cannot_apply_is_refused_with_those_that_it_can(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:
            type(site.passes.engine).rules, kept = (
                frozenset({Rule.GREEDY, Rule.COUPLED}),
                type(site.passes.engine).rules,
            )
            try:
                await site.client(NoDrafter()).generate(Request(PROMPT, HOT, 10, rule=Rule.REJECTION))
            finally:
                type(site.passes.engine).rules = kept

    with pytest.raises(RefusedError, match="only by coupled, greedy"):
        run(scenario())


def test_a_rule_that_does_not_fit_the_temperature_is_refused_before_anything_is_sent(tiny_folder):
    async def scenario():
        await DeviceClient(
            "ws://127.0.0.1:9", Hello(PROTOCOL_VERSION, "f", "n", "d", True, PROFILE), NoDrafter()
        ).generate(Request(PROMPT, SamplingParams(), 10, rule=Rule.REJECTION))

    with pytest.raises(InputError, match="rejection needs a temperature above 0"):
        run(scenario())


@pytest.mark.parametrize("mode", ["rounds", "streams"])
@pytest.mark.parametrize("params", [SamplingParams(), HOT], ids=["greedy", "coupled"])
def test_bias_minimal_length_and_stop_strings_end_a_text_where_the_target_alone_ends_it(tiny_folder, params, mode):
    tokenizer, model = load_tokenizer(tiny_folder), load_model(tiny_folder)
    plain = decode_alone(model, PROMPT, params, 40)
    biased = SamplingParams(params.temperature, 0, params.top_p, params.seed, ((plain[0], -100.0), (plain[1], 1.5)))
    stop_ids = tuple(sorted(set(decode_alone(model, PROMPT, biased, 40)[:4])))  # all met early, if they may
    wanted = decode_alone(model, PROMPT, biased, 40, stop_ids, 20)
    assert len(wanted) >= 20
    assert plain[0] not in wanted
    free = decode_alone(model, PROMPT, biased, 40)
    early, late = tokenizer.decode(free[3:6]), tokenizer.decode(free[24:27])
    strings = (early, late, "never")
    stopped = decode_alone(model, PROMPT, biased, 40, (), 20, TextStream(tokenizer.decode, strings, 20))
    text = text_of(stopped, tokenizer.decode, strings, 20)
    assert early in text  # too early to count
    assert late not in text

    async def scenario():
        async with Site(tiny_folder, mode=mode) as site:
            client = site.client(ModelDrafter(round_weights(load_model(tiny_folder), 5), 256), decode=tokenizer.decode)
            by_id = await client.generate(Request(PROMPT, biased, 40, 20, stop_ids))
            finish = client.session.finish
            by_string = await client.generate(Request(PROMPT, biased, 40, 20, (), strings))
            assert client.session.text == text
            assert site.passes.sessions == {}
            return by_id, finish, by_string, client.session.finish

    assert run(scenario()) == (wanted, "stop" if len(wanted) < 40 else "length", stopped, "stop")


@pytest.mark.parametrize("mode", ["rounds", "auto"])
def test_texts_are_written_while_a_plan_is_made(tiny_folder, mode, monkeypatch):
    """A plan that never ends before the texts do."""
    ended = threading.Event()
    monkeypatch.setattr("multispin.passes.planning.plan", lambda *_, **__: ended.wait())

    async def scenario():
        async with Site(tiny_folder, mode=mode) as site:
            clients = [site.client(ModelDrafter(load_model(tiny_folder), 256), f"device-{i}") for i in range(2)]
            texts = await asyncio.gather(*(client.generate(Request(PROMPT, HOT, 20)) for client in clients))
            ended.set()
        return texts

    assert run(scenario()) == [decode_alone(load_model(tiny_folder), PROMPT, HOT, 20)] * 2
