"""A real edge whose engine is vLLM: real sockets and devices, in the modes in which devices draft ahead.

Every text is compared with what the target writes alone.
"""

import asyncio
from types import SimpleNamespace

import pytest
from tests.edge.model_site import HOT, PROMPT, run
from tests.vllm.conftest import LENGTH, SLOTS

from multispin.control import Verification
from multispin.device import DeviceClient, WebSocketLink
from multispin.edge import EdgeServer, listening
from multispin.edge.paced import PacedEngine
from multispin.models import ModelDrafter, decode_alone, load_model, load_tokenizer, round_weights
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile, Request
from multispin.protocol.events import Round
from multispin.speculation import NoDrafter, PromptLookupDrafter, SamplingParams, bits_per_id

PASS_S = 0.03
"""A pass takes at least so long, so that devices have time to draft on any machine [s]."""
MAX_TOKENS = 60


class VllmSite:
    """An edge on a free port, for the length of an `async with`."""

    def __init__(self, engine, folder, mode):
        self.events, self.fingerprint = [], load_tokenizer(folder).fingerprint
        settings = ControllerSettings("heterogeneous", 1e5, bits_per_id(engine.vocabulary_size), 8, mode=mode)
        paced = PacedEngine(engine, Verification(PASS_S, 0.0, 0.0))
        self.passes = Passes(paced, Controller(settings), self.fingerprint, Limits())

    async def __aenter__(self):
        self.server = EdgeServer(self.passes, self.events.append)
        self._listening = listening(self.server.application(), "127.0.0.1", 0)
        port = await self._listening.__aenter__()
        self.url = f"ws://127.0.0.1:{port}{SESSION_PATH}"
        return self

    async def __aexit__(self, *_):
        await self._listening.__aexit__(None, None, None)

    def client(self, drafter, name, link=None):
        drafts = not isinstance(drafter, NoDrafter)
        hello = Hello(PROTOCOL_VERSION, self.fingerprint, name, "q6", drafts, Profile(0.001, 5.0))
        return DeviceClient(self.url, hello, drafter, link=link)


@pytest.fixture(scope="module")
def drafters(folder):
    """The target itself, nearly it, far from it, copies from the text, and nobody: more than there are slots."""
    made = [ModelDrafter(load_model(folder), LENGTH)]
    made += [ModelDrafter(round_weights(load_model(folder), bits), LENGTH) for bits in (6, 3)]
    return [*made, PromptLookupDrafter(), NoDrafter()]


@pytest.mark.parametrize("mode", ["streams", "auto", "rounds"])
@pytest.mark.parametrize("params", [SamplingParams(), HOT], ids=["greedy", "coupled"])
def test_devices_that_draft_ahead_of_vllm_get_the_targets_own_texts(vllm_engine, folder, model, drafters, params, mode):
    assert len(drafters) > SLOTS

    async def scenario():
        async with VllmSite(vllm_engine, folder, mode) as site:
            clients = [site.client(drafter, f"device-{k}") for k, drafter in enumerate(drafters)]
            texts = await asyncio.gather(
                *(c.generate(Request([*PROMPT, 10 + k], params, MAX_TOKENS)) for k, c in enumerate(clients))
            )
            assert site.passes.sessions == {}
            for client in clients:
                client.close()
            return SimpleNamespace(
                texts=texts, clients=clients, rounds=[e for e in site.events if isinstance(e, Round)]
            )

    found = run(scenario())
    assert found.texts == [decode_alone(model, [*PROMPT, 10 + k], params, MAX_TOKENS) for k in range(len(drafters))]
    best, nobody = found.clients[0].counters, found.clients[-1].counters
    assert best.accepted > 0.3 * MAX_TOKENS  # it drafts with the target itself, and passes leave it time
    assert nobody.drafted == 0
    assert max(len(each.devices) for each in found.rounds) == SLOTS  # they shared passes


def test_a_device_that_is_killed_in_its_stream_comes_back_to_vllm_and_goes_on(vllm_engine, folder, model, drafters):
    async def scenario():
        async with VllmSite(vllm_engine, folder, "streams") as site:
            request = Request([*PROMPT, 10], HOT, MAX_TOKENS)
            link = WebSocketLink()
            client, other = site.client(drafters[0], "lost", link), site.client(drafters[1], "stays")
            stays = asyncio.create_task(other.generate(Request([*PROMPT, 11], HOT, MAX_TOKENS)))
            goes = asyncio.create_task(client.generate(request))
            while len(client.session.generated) < 15:
                await asyncio.sleep(0.01)
            await link.close()  # as if the network had gone
            texts = await goes, await stays
            client.close()
            other.close()
            return texts, client.counters.reconnects

    texts, reconnects = run(scenario())
    assert reconnects == 1
    assert list(texts) == [decode_alone(model, [*PROMPT, 10 + k], HOT, MAX_TOKENS) for k in range(2)]
