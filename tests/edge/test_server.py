"""The real server and the real device client over real sockets, in one process, with a tiny model."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from tests.edge.model_site import HOT, PROMPT, Forbidden, Site, alone, run

from multispin.edge import Access
from multispin.edge.door import Door
from multispin.models import (
    ModelDrafter,
    decode_alone,
    load_model,
    load_tokenizer,
    round_weights,
)
from multispin.protocol import (
    SESSION_PATH,
    Request,
)
from multispin.protocol.events import Round
from multispin.speculation import (
    NoDrafter,
    PromptLookupDrafter,
    SamplingParams,
    TextStream,
    text_of,
)


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
        assert texts == [alone(tiny_folder, [*PROMPT, 10 + i], params, 30) for i in range(4)]
        return clients

    clients = run(scenario())
    assert clients[1].counters.accepted > 0.9 * clients[1].counters.drafted > 0  # it drafts with the target itself
    assert clients[3].counters.drafted == 0


@pytest.mark.parametrize(
    ("mode", "bits"),
    [("plain", None), ("edge", 6), ("auto", 6), ("auto", 3), ("streams", None)],
)
def test_texts_are_the_targets_own_whoever_drafts(tiny_folder, mode, bits):
    """Devices that draft well, badly, at random lengths and not at all; the edge drafts well, badly or not.

    Each kind of device writes a greedy text and a sampled one, all of them in the same passes. With the same drafters,
    `auto` and `streams` are one program.
    """
    wanted = [([*PROMPT, 10 + i], params) for params in (SamplingParams(), HOT) for i in range(4)]

    async def scenario():
        models = [round_weights(load_model(tiny_folder), width) for width in (6, 3)]
        edge = None if bits is None else round_weights(load_model(tiny_folder), bits)
        async with Site(tiny_folder, slots=8, mode=mode, edge=edge) as site:
            drafters = [
                each
                for _ in range(2)
                for each in (*(ModelDrafter(model, 256) for model in models), PromptLookupDrafter(), NoDrafter())
            ]
            clients = [site.client(drafter, f"device-{i}") for i, drafter in enumerate(drafters)]
            texts = await asyncio.gather(
                *(c.generate(Request(prompt, params, 60)) for c, (prompt, params) in zip(clients, wanted, strict=True))
            )
            assert site.passes.sessions == {}
        return texts, [event for event in site.events if isinstance(event, Round)]

    texts, rounds = run(scenario())
    assert texts == [alone(tiny_folder, prompt, params, 60) for prompt, params in wanted]
    accepted = sum(device.accepted for each in rounds for device in each.devices)
    if mode != "auto":  # that may find that nothing pays here
        assert (accepted > 0) == (mode != "plain")


@pytest.mark.long
@pytest.mark.parametrize("bits", [None, 6], ids=["devices", "devices and edge"])
def test_in_streams_a_text_does_not_depend_on_who_shares_its_passes(tiny_folder, bits):
    """Each alone, a greedy beside a sampled one, and both beside a crowd that comes and goes: the ids are the same."""
    draws, length = (SamplingParams(), HOT), 60
    good = round_weights(load_model(tiny_folder), 6)
    others = [round_weights(load_model(tiny_folder), width) for width in (3, 4, 5)]

    async def other(site, k):
        await asyncio.sleep(0.05 * k)
        drafter = ModelDrafter(others[k % 3], 256)
        await site.client(drafter, f"other-{k}").generate(Request([*PROMPT, 50 + k], HOT, 15 + 10 * k))

    async def scenario(together, crowd):
        async with Site(tiny_folder, slots=4, mode="streams", edge=good if bits else None) as site:

            def write(params):
                return site.client(ModelDrafter(good, 256)).generate(Request([*PROMPT, 10], params, length))

            if together:
                texts = (await asyncio.gather(*map(write, draws), *(other(site, k) for k in range(crowd))))[:2]
            else:
                texts = [await write(params) for params in draws]
            most = max(len(event.devices) for event in site.events if isinstance(event, Round))
        return texts, most

    found = [run(scenario(together, crowd)) for together, crowd in ((False, 0), (True, 0), (True, 5))]
    assert found[0][1] == 1
    assert found[1][1] == 2
    assert found[2][1] > 2
    expected = [alone(tiny_folder, [*PROMPT, 10], params, length) for params in draws]
    assert [list(texts) for texts, _ in found] == [expected] * 3


def test_more_requests_than_slots_are_all_served(tiny_folder):
    async def scenario():
        async with Site(tiny_folder, slots=2) as site:
            clients = [site.client(PromptLookupDrafter(), f"device-{i}") for i in range(6)]
            return await asyncio.gather(
                *(c.generate(Request([*PROMPT, i], SamplingParams(), 10)) for i, c in enumerate(clients))
            )

    assert run(scenario()) == [alone(tiny_folder, [*PROMPT, i], SamplingParams(), 10) for i in range(6)]


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_device_that_answers_every_grant_at_once_is_not_taken_for_noise(tiny_folder, mode):
    access = Access(door=Door(max_messages_per_s=5))  # of which Hello and Open are two

    async def scenario():
        async with Site(tiny_folder, policy="fixed", longest=1, mode=mode, server={"access": access}) as site:
            return await site.client(Forbidden()).generate(Request(PROMPT, SamplingParams(), 60))

    assert run(scenario()) == alone(tiny_folder, PROMPT, SamplingParams(), 60)


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
def test_texts_are_written_while_a_plan_is_made(tiny_folder, mode):
    """A plan that never ends before the texts do."""
    begun, ended = threading.Event(), threading.Event()

    class Slow(ThreadPoolExecutor):
        def submit(self, work):
            return super().submit(lambda: (begun.set(), ended.wait(), work())[-1])

    async def scenario():
        async with Site(tiny_folder, mode=mode, server={"planning": Slow(1)}) as site:
            clients = [site.client(ModelDrafter(load_model(tiny_folder), 256), f"device-{i}") for i in range(2)]
            try:
                return await asyncio.gather(*(client.generate(Request(PROMPT, HOT, 20)) for client in clients))
            finally:
                ended.set()

    assert run(scenario()) == [alone(tiny_folder, PROMPT, HOT, 20)] * 2
    assert begun.is_set()
