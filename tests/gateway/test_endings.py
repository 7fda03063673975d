"""Clients that go away, and edges and devices that stop, while texts are written over the API."""

import asyncio
import json
import threading
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from tests.gateway.site import alone, api, device_of, post, text_of

from multispin.edge import listening
from multispin.errors import InputError
from multispin.gateway import Gateway
from multispin.gateway.source import Piece
from multispin.models import load_tokenizer
from multispin.protocol import RefusedError

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
def test_a_client_that_goes_away_before_the_first_token_is_noticed_while_the_engine_works(tiny_folder, stream):
    async def scenario():
        async with api(tiny_folder) as http:
            verify, begun, may_end = http.passes.engine.verify, threading.Event(), threading.Event()

            def stuck(feeds):
                begun.set()
                may_end.wait(60.0)
                return verify(feeds)

            http.passes.engine.verify = stuck
            body = {"prompt": "a", "max_tokens": 250, "stream": stream}
            asking = asyncio.create_task(http.post("/v1/completions", json=body))
            try:
                await asyncio.to_thread(begun.wait, 60.0)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                async with asyncio.timeout(30.0):
                    while http.passes.sessions:
                        await asyncio.sleep(0.01)
            finally:
                may_end.set()

    asyncio.run(scenario())


def test_a_client_that_leaves_its_stream_in_mid_text_is_in_no_further_pass(tiny_folder, caplog):
    """It is noticed while nothing is sent to it: the pass that was under way is the last one with its text."""

    async def scenario():
        async with api(tiny_folder, slots=1) as http:
            verify, begun, may_end, later = http.passes.engine.verify, threading.Event(), threading.Event(), []
            passes = iter(range(120))

            def stuck_in_mid_text(feeds):
                if begun.is_set():
                    later.extend(feeds)
                elif next(passes) == 20:
                    begun.set()
                    may_end.wait(60.0)
                return verify(feeds)

            http.passes.engine.verify = stuck_in_mid_text
            try:
                answer = await http.post("/v1/completions", json=LONG | {"stream": True})
                await answer.content.readline()
                await asyncio.to_thread(begun.wait, 60.0)
                answer.close()
                async with asyncio.timeout(30.0):
                    while http.passes.sessions:
                        await asyncio.sleep(0.01)
            finally:
                may_end.set()
            status, _ = await post(http, "/v1/completions", {"prompt": "b", "max_tokens": 2})  # the only slot is free
            return status, [feed.start for feed in later]

    status, starts = asyncio.run(scenario())
    assert status == 200
    assert starts
    assert max(starts) < 20  # of the second text alone
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


class Deep:
    """A grammar that allows everything, and becomes too complex after so many tokens."""

    def __init__(self, most):
        self._left = most

    def advance(self, tokens):
        self._left -= len(tokens)

    def mask(self, drafted):
        if len(drafted) >= self._left:
            raise InputError("the grammar became too complex: too many items")
        return np.full(64, 255, dtype=np.uint8)


@pytest.mark.parametrize("mode", ["rounds", "auto"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_grammar_that_becomes_too_complex_is_its_own_requests_fault_alone(tiny_folder, stream, mode):
    formed = {"prompt": "abc", "temperature": 0, "max_tokens": 200, "response_format": {"type": "json_object"}}

    async def scenario():
        async with api(tiny_folder, mode=mode, pass_s=0.02) as http:
            depths = iter([3, 300])

            def matcher(_):  # asked for once in a thread before, to compile the grammar
                return Deep(next(depths) if threading.current_thread() is threading.main_thread() else 0)

            http.passes.grammars = SimpleNamespace(matcher=matcher)
            plain = {"prompt": "abc", "temperature": 0, "max_tokens": 40}
            other = asyncio.create_task(post(http, "/v1/completions", plain))
            async with http.post("/v1/completions", json={**formed, "stream": stream, "n": 2}) as answer:
                found = answer.status, await answer.text()
            left = [each.request for each in http.passes.sessions.values() if each.request.matcher is not None]
            async with asyncio.timeout(30.0):
                while any(each.request.matcher is not None for each in http.passes.sessions.values()):
                    await asyncio.sleep(0.01)
            return found, [request.finish for request in left], (await other)[1]

    (status, text), finishes, other = asyncio.run(scenario())
    assert not any(finishes)  # the second text is given up, too: it has not gone on to its end
    error = json.loads(text.split("data: ")[-2] if stream else text)["error"]
    assert status == (200 if stream else 400)
    assert (error["type"], error["code"]) == ("invalid_request_error", "bad-request")
    assert error["message"] == "the grammar became too complex: too many items"
    assert other["choices"][0]["text"] == alone(tiny_folder, "abc", 40)


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


def test_a_stream_that_does_not_end_in_time_is_told_so(tiny_folder, caplog):
    """The client sees an error event and [DONE], not a broken connection; to its operator that is no error."""

    async def scenario():
        async with api(tiny_folder) as http:
            answer = await http.post("/v1/completions", json=LONG | {"stream": True})
            first = await answer.content.readline()
            reading = asyncio.create_task(answer.content.read())
            await http.edge.finish(0.0)
            await http.application.shutdown()  # as the web server does when it closes
            return first + await reading

    *_, error, done, _ = asyncio.run(scenario()).decode().split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "shutdown"
    assert done == "data: [DONE]"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


class _Fails:
    """A `TextSource` whose texts fail at their second token."""

    max_length = 64

    async def write(self, _):
        yield Piece((65,))
        raise RefusedError("failed", "this text has no token that may follow")


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_the_edge_could_not_compute_is_an_error_in_its_log(tiny_folder, caplog, stream):
    async def scenario():
        app = web.Application()
        Gateway(_Fails(), load_tokenizer(tiny_folder), "tiny").add_routes(app)
        body = {"prompt": "a", "stream": stream}
        async with (
            listening(app, port=0) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
            http.post("/v1/completions", json=body) as answer,
        ):
            return answer.status, await answer.text()

    status, text = asyncio.run(scenario())
    assert status == (200 if stream else 500)
    assert '"code": "failed"' in text
    assert [record.levelname for record in caplog.records] == ["ERROR"]


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
