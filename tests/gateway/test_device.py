"""A device that serves clients of its own over the API, from an edge."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from tests.gateway.site import MAX_LENGTH, alone, api, device_of, events, post

from multispin.device import DeviceClient, Patience
from multispin.edge import Access, listening
from multispin.gateway import Gateway, SessionPool, guard
from multispin.models import (
    ModelDrafter,
    load_model,
    load_tokenizer,
)
from multispin.models.packable import PackedModel
from multispin.protocol import PROTOCOL_VERSION, Hello, Profile
from multispin.speculation import NoDrafter


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_device_serves_its_own_clients_and_drafts_for_them(tiny_folder, mode):
    """Texts of clients on the device are sessions with the edge; the device's drafts help and change nothing."""

    async def scenario():
        tokenizer = load_tokenizer(tiny_folder)
        async with api(tiny_folder, mode=mode, pass_s=0.03) as far:
            hello = Hello(PROTOCOL_VERSION, tokenizer.fingerprint, "laptop", "same", True, Profile(0.001, 5.0))

            def make(on_progress):
                drafter = ModelDrafter(PackedModel.of(load_model(tiny_folder)), MAX_LENGTH, tokenizer.size)
                return DeviceClient(far.url, hello, drafter, on_progress=on_progress, decode=tokenizer.decode)

            pool, app = SessionPool(make, 2, MAX_LENGTH), web.Application()
            Gateway(pool, tokenizer, "tiny").add_routes(app, guard(Access()))
            async with listening(app, port=0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                body = {"prompt": "abc", "max_tokens": 40, "temperature": 0}
                both = *(post(http, "/v1/completions", body) for _ in range(3)), post(far, "/v1/completions", body)
                *found, (status, own) = await asyncio.gather(*both)  # the edge's own client shares the passes
            pool.close()
            assert (status, own["choices"][0]["text"]) == (200, alone(tiny_folder, "abc", 40))
            return found

    for status, answer in asyncio.run(scenario()):
        assert status == 200
        assert answer["choices"][0]["text"] == alone(tiny_folder, "abc", 40)
        figures = answer["metrics"]["speculative_decoding"]
        assert figures["num_accepted_draft_tokens"] == figures["num_draft_tokens"] > 0
        assert sum(figures["acceptance_histogram"]) == figures["num_spec_steps"]


def test_an_edge_that_is_away_is_no_fault_of_the_client(tiny_folder):
    async def scenario():
        tokenizer = load_tokenizer(tiny_folder)
        hello = Hello(PROTOCOL_VERSION, tokenizer.fingerprint, "laptop", "none", False, Profile(0.001, 5.0))

        def make(on_progress):
            return DeviceClient(
                *("ws://127.0.0.1:9/v1/session", hello, NoDrafter()),
                on_progress=on_progress,
                patience=Patience(0.0, 0.0),
            )

        app = web.Application()
        Gateway(SessionPool(make, 1, MAX_LENGTH), tokenizer, "tiny").add_routes(app, guard(Access()))
        async with listening(app, port=0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            return await post(http, "/v1/completions", {"prompt": "abc", "max_tokens": 2})

    status, answer = asyncio.run(scenario())
    assert status == 503
    assert "cannot reach the edge" in answer["error"]["message"]


def test_a_stream_marks_the_text_of_accepted_drafts(tiny_folder):
    body = {"prompt": "abc", "max_tokens": 20, "temperature": 0, "stream": True, "mark_drafted": True}

    async def scenario():
        async with api(tiny_folder) as far, device_of(tiny_folder, far) as near:
            return await events(near, "/v1/completions", body), await events(far, "/v1/completions", body)

    helped, plain = ([each["choices"][0] for each in pieces] for pieces in asyncio.run(scenario()))
    assert "".join(each["text"] for each in helped) == alone(tiny_folder, "abc", 20)
    assert {each["drafted_by"] for each in helped if each.get("drafted")} == {"device"}
    assert any(each["text"] and not each.get("drafted") for each in helped)
    assert not any(each.get("drafted") for each in plain)
