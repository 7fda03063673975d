"""Who comes while somebody else has all slots: it does not wait until one of the other's long texts has ended."""

import asyncio

import pytest
from tests.chaos import world
from tests.edge.virtual_site import in_memory, run
from tests.gateway.site import alone, api

from multispin.device import DeviceClient
from multispin.edge import CALLER, Access, Caller, EdgeServer
from multispin.edge.access import Holder
from multispin.edge.door import Door, read_network
from multispin.gateway import local_sessions
from multispin.models import load_tokenizer
from multispin.passes import Controller, ControllerSettings, Passes
from multispin.protocol import PROTOCOL_VERSION, Hello, Profile, Request
from multispin.speculation import PromptLookupDrafter, SamplingParams

PASS_S, LONG, SHORT = 0.01, 400, 20


class Instant(world.Engine):
    """The target; the loop plays the time of a pass."""

    def verify(self, feeds):
        self.take(feeds)
        return [None if feed.params is None else self._judged(feed.start, feed.tokens) for feed in feeds]


@pytest.mark.parametrize("mode", world.MODES)
def test_a_newcomer_has_a_slot_at_once_and_every_text_is_right(mode):
    many = [Request((3, 4 + k), SamplingParams(), LONG) for k in range(6)]
    few = [Request((5, 6 + k), SamplingParams(), SHORT) for k in range(3)]

    async def scenario():
        passes = Passes(Instant(3), Controller(ControllerSettings("heterogeneous", 1e6, 7, 8, mode=mode)), world.MODEL)
        server = EdgeServer(passes)
        pool = local_sessions(server, world.MODEL, world.Letters().decode, 16, world.MAX_LENGTH)
        ended = []

        async def text_of(request):
            found = [token async for piece in pool.write(request) for token in piece.tokens]
            ended.append(request)
            return found

        async with in_memory(server):
            CALLER.set(Caller(Holder(), "many"))
            texts = [asyncio.create_task(text_of(request)) for request in many]
            await asyncio.sleep(30 * PASS_S)
            CALLER.set(Caller(Holder(), "few"))
            short = [await text_of(request) for request in few]
            assert ended == few  # and none of the others
            return short, await asyncio.gather(*texts)

    short, long = run(scenario(), PASS_S)
    assert short == [world.undisturbed(request.prompt, SHORT) for request in few]
    assert long == [world.undisturbed(request.prompt, LONG) for request in many]


@pytest.mark.parametrize("mode", ["edge", "mixture", "streams", "auto"])
def test_beside_an_edge_that_drafts_and_a_device_every_text_is_right(mode, tiny_folder):
    async def ask(http, address, prompt, tokens):
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        async with http.post("/v1/completions", json=body, headers={"X-Forwarded-For": address}) as answer:
            document = await answer.json()
        return document["choices"][0]["text"]

    async def scenario():
        access = Access(door=Door(proxies=[read_network("127.0.0.1")]))
        async with api(tiny_folder, access=access, slots=3, mode=mode, edge=True, pass_s=0.02) as http:
            tokenizer = load_tokenizer(tiny_folder)
            hello = Hello(PROTOCOL_VERSION, tokenizer.fingerprint, "phone", "lookup", True, Profile(0.001, 5.0))
            device = DeviceClient(http.url, hello, PromptLookupDrafter())
            long = [asyncio.create_task(ask(http, "192.0.2.1", f"abc abc {k}", 180)) for k in range(3)]
            while http.passes.round < 5:
                await asyncio.sleep(0.01)
            drafted = asyncio.create_task(
                device.generate(Request(tuple(tokenizer.encode("abcabcabc")), SamplingParams(), 40))
            )
            short = [await ask(http, "192.0.2.2", f"the the {k}", 5) for k in range(3)]
            texts = short, await asyncio.gather(*long), tokenizer.decode(await drafted)
            device.close()
            return texts

    short, long, drafted = asyncio.run(scenario())
    assert short == [alone(tiny_folder, f"the the {k}", 5) for k in range(3)]
    assert long == [alone(tiny_folder, f"abc abc {k}", 180) for k in range(3)]
    assert drafted == alone(tiny_folder, "abcabcabc", 40)
