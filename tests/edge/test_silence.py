"""An edge that answers pings and says nothing of a text, over real sockets; and a queue, which is no such edge."""

import asyncio
import threading

import pytest
from tests.chaos.world import Letters
from tests.edge import virtual_site
from tests.edge.virtual_site import in_memory

from multispin.device import EdgeAwayError, Emulation, Patience, WebSocketLink
from multispin.gateway import local_sessions
from multispin.protocol import Request
from multispin.speculation import NoDrafter, SamplingParams

SILENCE_S = 1.5
SOON = Patience(silence_s=SILENCE_S)
WORD_PERIOD_S = SILENCE_S / 10


def test_an_edge_whose_engine_is_stuck_answers_pings_and_is_left_with_a_clear_sentence(stub_site, run):
    async def scenario():
        stuck = threading.Event()

        class Stuck(stub_site.Engine):
            def verify(self, feeds):
                stuck.wait()
                return super().verify(feeds)

        async with stub_site(engine=Stuck(4)) as site:
            outages = []
            link = WebSocketLink(heartbeat_s=SILENCE_S / 2.5)  # an edge that answered no ping would be lost by this
            client = site.client(
                link=link,
                patience=Patience(2 * SILENCE_S, 2 * SILENCE_S, silence_s=SILENCE_S),
                on_outage=outages.append,
            )
            try:
                with pytest.raises(EdgeAwayError, match=r"the edge has sent nothing about this text for 1\.5 s"):
                    await client.generate(Request((1, 2), SamplingParams(), 5))
            finally:
                stuck.set()
        assert outages

    run(scenario())


@pytest.mark.parametrize("mode", ["rounds", "streams", "plain"])
def test_who_waits_for_a_slot_hears_that_passes_go_on(stub_site, mode):
    async def scenario():
        site = stub_site(mode=mode, slots=1, word_period_s=WORD_PERIOD_S)
        async with in_memory(site.server) as link:
            first = site.client(NoDrafter(), name="first", link=link(), patience=SOON)
            second = site.client(name="second", link=link(), patience=SOON)
            long = asyncio.create_task(first.generate(Request((1, 2), SamplingParams(), 4000)))
            await asyncio.sleep(0.2)  # the first has the only slot by now
            short = asyncio.create_task(second.generate(Request((1, 2), SamplingParams(), 5)))
            await asyncio.sleep(4 * SILENCE_S)
            assert not long.done()
            assert not short.done()
            long.cancel()
            assert await short == [1] * 5
            assert second.counters.reconnects == 0

    virtual_site.run(scenario(), 0.02)


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("mode", ["rounds", "streams", "plain"])
def test_whose_prompt_is_being_read_hears_that_passes_go_on(stub_site, mode, drafts):
    async def scenario():
        site = stub_site(mode=mode, prefill_tokens_per_round=2, word_period_s=WORD_PERIOD_S)
        async with in_memory(site.server) as link:
            client = site.client(None if drafts else NoDrafter(), link=link(), patience=SOON)
            text = asyncio.create_task(client.generate(Request((1,) * 500, SamplingParams(), 5)))
            await asyncio.sleep(2 * SILENCE_S)  # of the 5 s that the prompt takes
            assert not text.done()
            assert await text == [1] * 5
            assert client.counters.reconnects == 0

    virtual_site.run(scenario(), 0.02)


@pytest.mark.parametrize("mode", ["rounds", "streams", "auto", "plain"])
@pytest.mark.parametrize("pass_s", [Patience().silence_s + 10.0, 2 * Patience().once_known_s])
def test_an_http_client_waits_for_an_engine_however_long_its_passes_take(stub_site, mode, pass_s):
    async def scenario():
        site = stub_site(mode=mode, slots=1)
        async with in_memory(site.server):
            pool = local_sessions(site.server, "stub", Letters().decode, 2, site.Engine.max_length)
            texts = [pool.write(Request((1, 2), SamplingParams(), 3)) for _ in range(2)]  # one waits for the slot
            return await asyncio.gather(*map(_whole, texts))

    assert virtual_site.run(scenario(), pass_s) == [[1] * 3] * 2


@pytest.mark.parametrize("mode", ["rounds", "streams", "auto", "plain"])
def test_a_device_goes_on_with_an_edge_whose_passes_are_longer_than_it_waits_for_a_message(stub_site, mode):
    """Passes of 150 s: before the first token stand those of the prompt and of whoever has the slot."""

    async def scenario():
        site = stub_site(mode=mode, slots=1, prefill_tokens_per_round=2)
        async with in_memory(site.server) as link:
            clients = [site.client(name=name, link=link()) for name in ("first", "second")]
            texts = [client.generate(Request((1,) * 8, SamplingParams(), 3)) for client in clients]
            assert await asyncio.gather(*texts) == [[1] * 3] * 2
            assert all(client.counters.reconnects for client in clients)

    virtual_site.run(scenario(), Patience().silence_s + 30.0)


def test_whose_draft_waits_for_those_of_others_hears_that_passes_go_on(stub_site):
    """Meanwhile there are passes, of 150 s each, of those that no device drafts for."""

    async def scenario():
        site = stub_site(mode="mixture", deadline_slack_s=3600.0, draft_timeout_s=3600.0)
        async with in_memory(site.server) as link:
            outages = []
            quick = site.client(name="quick", link=link(), on_outage=outages.append)
            others = [
                site.client(name="slow", link=link(), emulation=Emulation(6 * Patience().silence_s)),
                site.client(NoDrafter(), name="nobody drafts", link=link()),
            ]
            texts = [asyncio.create_task(each.generate(Request((1, 2), SamplingParams(), 2000))) for each in others]
            assert await quick.generate(Request((1, 2), SamplingParams(), 6)) == [1] * 6
            assert outages
            for text in texts:
                text.cancel()

    virtual_site.run(scenario(), Patience().silence_s + 30.0)


async def _whole(text):
    return [token async for piece in text for token in piece.tokens]
