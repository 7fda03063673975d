"""The events that an edge tells of its texts."""

import asyncio

import aiohttp
import pytest

from multispin.protocol import Close, Open, Request, encode
from multispin.protocol.events import Ended, Opened, Round
from multispin.speculation import NoDrafter, SamplingParams, pack_ids

PROMPT = (5, 6, 7)


@pytest.mark.parametrize("mode", ["rounds", "plain"])
def test_a_text_is_told_from_its_request_to_its_end(stub_site, run, mode):
    async def scenario():
        async with stub_site(mode=mode) as site:
            client = site.client()
            ids = await client.generate(Request(PROMPT, SamplingParams(), 20))
            client.close()
            return site, ids

    site, ids = run(scenario())
    assert ids == [1] * 20
    [opened], [ended] = site.of(Opened), site.of(Ended)
    assert (opened.name, opened.prompt_tokens, opened.max_tokens) == ("laptop", len(PROMPT), 20)
    assert (ended.session, ended.finish, ended.tokens) == (opened.session, "length", 20)
    assert 0.0 <= ended.first_token_s <= ended.seconds
    rows = [row for event in site.of(Round) for row in event.devices]
    assert {row.session for row in rows} == {opened.session}
    assert sum(row.tokens for row in rows) == 20
    assert sum(row.drafted for row in rows) == ended.drafted
    assert sum(row.accepted for row in rows) == ended.accepted
    assert all((row.drafter == "device") == (row.drafted > 0) for row in rows)
    assert (ended.drafted > 0) == (mode == "rounds")
    if mode == "rounds":
        assert {grant.session for event in site.of(Round) for grant in event.grants} == {opened.session}


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "cheats"])
def test_a_session_that_ends_before_its_text_is_told_as_an_abort(stub_site, run, closes):
    async def scenario():
        async with stub_site() as site, aiohttp.ClientSession() as http, http.ws_connect(site.url) as socket:
            await socket.send_bytes(encode(site.hello()))
            await socket.receive()
            await socket.send_bytes(encode(Open(1, pack_ids(PROMPT, 100), len(PROMPT), 200, 0.0, 0, 1.0, 0)))
            while not site.of(Opened):
                await asyncio.sleep(0.01)
            await socket.send_bytes(encode(Close(1 if closes else 2)))
            while not site.of(Ended):
                await asyncio.sleep(0.01)
            return site.of(Ended)

    [ended] = run(scenario())
    assert ended.finish == "abort"


def test_a_listener_that_always_fails_costs_no_text(stub_site, run):
    def broken(_):
        raise RuntimeError("the metrics are broken")

    async def scenario():
        async with stub_site() as site:
            site.server.audience.add(broken)
            client = site.client(NoDrafter())
            try:
                return await client.generate(Request(PROMPT, SamplingParams(), 10)), site.server.audience.failures
            finally:
                client.close()

    ids, failures = run(scenario())
    assert ids == [1] * 10
    assert failures > 10
