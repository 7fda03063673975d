"""Connections that break, devices that misbehave and parts that fail: each costs its own session and no other."""

import asyncio

import aiohttp
import llguidance
import pytest
from tests.edge.model_site import PROFILE, PROMPT, CuttingProxy, Site, alone, run

from multispin.device import DeviceClient, Emulation, Patience
from multispin.device.link import LinkLostError, WebSocketLink
from multispin.edge.pass_loop import MAX_ENGINE_FAULTS
from multispin.errors import InputError
from multispin.models import ModelDrafter, TextGrammars, load_model, load_tokenizer, round_weights
from multispin.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    SESSION_PATH,
    Close,
    Draft,
    Error,
    Granted,
    Hello,
    Open,
    RefusedError,
    Request,
    Resume,
    Verdict,
    Welcome,
    decode_downlink,
    encode,
)
from multispin.speculation import (
    NoDrafter,
    SamplingParams,
)


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_connection_that_breaks_again_and_again_does_not_change_the_text(tiny_folder, mode):
    async def scenario():
        async with (
            Site(tiny_folder, longest=2, mode=mode) as site,
            CuttingProxy(site.port, [900, 800, 800, 700, 800, 700]) as proxy,
        ):
            site.url = f"ws://127.0.0.1:{proxy.port}{SESSION_PATH}"
            client = site.client(ModelDrafter(load_model(tiny_folder), 256))
            return await client.generate(Request(PROMPT, SamplingParams(0.9, seed=4), 60)), client.counters.reconnects

    text, reconnects = run(scenario())
    assert text == alone(tiny_folder, PROMPT, SamplingParams(0.9, seed=4), 60)
    assert reconnects >= 2  # it takes 20 verdicts or more


class Cut(WebSocketLink):
    """A link that breaks at some of its frames, before or after they are sent; of what comes, the frame is lost."""

    def __init__(self, frames, before):
        super().__init__()
        self._frames, self._before, self._count = set(frames), before, 0

    def _breaks(self):
        self._count += 1
        return self._count in self._frames

    async def send(self, frame):
        breaks = self._breaks()
        if not (breaks and self._before):
            await super().send(frame)
        if breaks:
            raise LinkLostError("cut")

    async def receive(self):
        frame = await super().receive()
        if self._breaks():
            raise LinkLostError("cut")
        return frame


@pytest.mark.long
@pytest.mark.parametrize("mode", ["rounds", "streams"])
@pytest.mark.parametrize("before", [True, False])
def test_a_text_with_a_form_is_the_same_however_often_its_link_breaks(tiny_folder, mode, before):
    tokenizer = load_tokenizer(tiny_folder)
    grammars, drafting = TextGrammars(tokenizer), round_weights(load_model(tiny_folder), 4)
    form = llguidance.LLMatcher.grammar_from_json_schema(
        '{"type": "array", "items": {"type": "integer", "minimum": 10, "maximum": 99}, "minItems": 4, "maxItems": 6}'
    )
    params = SamplingParams(0.9, seed=5, grammar=form, logprobs=1, repetition_penalty=1.2)
    request = Request(PROMPT, params, 30, stop_ids=tokenizer.stop_ids)

    async def scenario():
        edge = round_weights(load_model(tiny_folder), 6) if mode == "streams" else None
        async with Site(tiny_folder, mode=mode, edge=edge) as site:
            site.passes.grammars = grammars
            found = []
            for drafter, cuts in (
                (NoDrafter(), ()),
                *((ModelDrafter(drafting, 256, tokenizer.size, grammars), range(k, 40, 4)) for k in (2, 3, 4, 5)),
            ):
                scores = []
                client = site.client(
                    drafter,
                    link=Cut(cuts, before),
                    patience=Patience(5.0, 10.0, 0.01, 0.02),
                    on_progress=lambda progress, scores=scores: scores.extend(progress.scores),
                )
                ids = await client.generate(request)
                found.append((ids, len(scores)))
                assert client.counters.reconnects >= (2 if cuts else 0)
                client.close()
            return found

    alone, *cut = run(scenario())
    assert cut == [alone] * 4
    assert tokenizer.decode(alone[0]).lstrip().startswith("[")


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_lost_edge_is_survived_by_opening_again_at_the_next_one(tiny_folder, mode):
    async def scenario():
        first = Site(tiny_folder, mode=mode, server={"come_back_s": 0.1})
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

    assert run(scenario()) == alone(tiny_folder, PROMPT, SamplingParams(), 60)


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

    assert run(scenario()) == alone(tiny_folder, PROMPT, SamplingParams(), 60)


def test_a_flood_of_messages_is_cut_off(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:
            async with aiohttp.ClientSession() as http, http.ws_connect(site.url) as socket:
                await socket.send_bytes(encode(site.hello()))
                welcome = decode_downlink((await socket.receive()).data)
                await socket.send_bytes(encode(Open(welcome.session, bytes([0, 1, 0]), 2, 10, 0.0, 0, 1.0, 0)))
                first = decode_downlink((await socket.receive()).data)  # the first token, and the first grant
                assert isinstance(first, Verdict)
                assert first.grant is not None
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
            await client.generate(Request(PROMPT, SamplingParams(), 10))

    with pytest.raises(RefusedError, match="0000000000000000\\) is not that of the edge's target"):
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

    assert run(scenario()) == alone(tiny_folder, PROMPT, SamplingParams(), 5)


def test_a_fault_of_the_edges_drafter_costs_a_pass_its_drafts_and_one_that_repeats_ends_the_edge(tiny_folder):
    async def scenario():
        async with Site(tiny_folder, mode="edge", edge=load_model(tiny_folder)) as site:
            draft, faults = site.passes.draft, [MemoryError("no memory for the draft")]
            site.passes.draft = lambda step: draft(step) if not faults else fail(faults.pop())
            request = Request(PROMPT, SamplingParams(), 30)
            text = await site.client(NoDrafter()).generate(request)
            left = len(faults)
            faults += [MemoryError("no memory for the draft")] * MAX_ENGINE_FAULTS
            work = asyncio.create_task(site.client(NoDrafter()).generate(request))
            why = await site.server.failure()
            work.cancel()
            return text, left, why

    def fail(error):
        raise error

    text, left, why = run(scenario())
    assert text == alone(tiny_folder, PROMPT, SamplingParams(), 30)
    assert left == 0
    assert isinstance(why, MemoryError)


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

    def send_now(self, frame):
        self.down.put_nowait(frame)
        return True

    async def send(self, frame):
        self.send_now(frame)

    async def close(self, edge_stops=False, floods=False):
        pass
