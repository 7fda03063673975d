"""Clients that go away, and edges and devices that stop, while texts are written over the API."""

import asyncio
import json

import pytest
from tests.gateway.site import api, device_of, post, text_of

LONG = {"prompt": "hello", "max_tokens": 120, "temperature": 0, "ignore_eos": True}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_gives_its_slot_back_and_fills_no_log(tiny_folder, caplog, stream):
    async def scenario():
        async with api(tiny_folder, slots=1) as http:
            body = {"prompt": "a", "max_tokens": 250, "temperature": 0, "stream": stream, "ignore_eos": True}
            asking = asyncio.create_task(http.post("/v1/completions", json=body))
            while not any(session.request for session in http.passes.sessions.values()):
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            status, _ = await post(http, "/v1/completions", {"prompt": "b", "max_tokens": 2})
            while len(http.passes.sessions) > 0:
                await asyncio.sleep(0.01)
            return status

    assert asyncio.run(scenario()) == 200
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


@pytest.mark.parametrize("stream", [True, False])
def test_an_edge_that_stops_lets_a_text_end_and_takes_no_new_one(tiny_folder, stream):
    async def scenario():
        async with api(tiny_folder) as http:
            alone = await text_of(http, LONG | {"stream": stream})
            begun = asyncio.create_task(text_of(http, LONG | {"stream": stream}))
            while not any(session.request for session in http.passes.sessions.values()):
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(http.edge.finish(60.0))
            await asyncio.sleep(0)
            async with http.post("/v1/completions", json=LONG) as answer:
                refused = answer.status, answer.headers.get("Retry-After"), await answer.json()
            assert not stopping.done()
            await stopping
            return alone, await begun, refused

    alone, text, (status, retry_after, refused) = asyncio.run(scenario())
    assert (text, len(text) > 50) == (alone, True)
    assert (status, retry_after, refused["error"]["code"]) == (503, "10", "shutdown")


def test_a_stream_that_does_not_end_in_time_is_told_so(tiny_folder):
    """The client sees an error event and [DONE], not a broken connection."""

    async def scenario():
        async with api(tiny_folder) as http:
            answer = await http.post("/v1/completions", json=LONG | {"stream": True})
            first = await answer.content.readline()
            reading = asyncio.create_task(answer.content.read())
            await http.edge.finish(0.0)
            await http.edge._hang_up(None)  # as the web server does when it closes
            return first + await reading

    *_, error, done, _ = asyncio.run(scenario()).decode().split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "shutdown"
    assert done == "data: [DONE]"


def test_a_device_that_stops_lets_its_clients_texts_end_and_takes_no_new_one(tiny_folder):
    body = LONG | {"max_tokens": 60, "stream": True}

    async def scenario():
        async with (
            api(tiny_folder) as far,
            device_of(tiny_folder, far) as near,
            device_of(tiny_folder, far) as other,
        ):
            begun = await near.post("/v1/completions", json=body)
            first = await begun.content.readline()
            stopping = asyncio.create_task(near.pool.finish(60.0))
            await asyncio.sleep(0)
            refused, _ = await post(near, "/v1/completions", LONG)
            whole = first + await begun.content.read()
            await stopping
            cut = await other.post("/v1/completions", json=LONG | {"stream": True})
            await cut.content.readline()
            await other.pool.finish(0.0)
            return whole.decode(), refused, (await cut.content.read()).decode()

    whole, refused, cut = asyncio.run(scenario())
    pieces = [json.loads(line[6:]) for line in whole.splitlines() if line.startswith("data: {")]
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    assert refused == 503
    *_, error, done, _ = cut.split("\n\n")
    assert json.loads(error.strip().removeprefix("data: "))["error"]["code"] == "shutdown"
    assert done == "data: [DONE]"
