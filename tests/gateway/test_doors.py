"""What the API refuses, and how it says so: error documents with the statuses that clients know."""

import asyncio
import gc
import gzip
import weakref

import pytest
from tests.gateway.site import api, post, schema

from multispin.edge import TokenFile
from multispin.protocol import SESSION_PATH

KEY = "a key"


def test_what_cannot_be_served_is_an_error_document(tiny_folder):
    cases = [
        (400, "prompt", {}),
        (400, "temperature", {"prompt": "a", "temperature": 99}),
        (400, "logprobs", {"prompt": "a", "logprobs": 21}),
        (400, "echo", {"prompt": "a", "echo": True}),
        (400, "tools", {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}),
        (400, "response_format", {"prompt": "a", "response_format": {"type": "xml"}}),
        (400, "response_format", {"prompt": "a", "response_format": schema({"type": "nothing"})}),
        (400, "stop_token_ids", {"prompt": "a", "stop_token_ids": [-1]}),
        (400, "stop_token_ids", {"prompt": "a", "stop_token_ids": [10**9]}),
        (400, "logit_bias", {"prompt": "a", "logit_bias": {"999999": 1}}),
        (400, "min_tokens", {"prompt": "a", "response_format": schema({}), "min_tokens": 3}),
        (400, "ignore_eos", {"prompt": "a", "response_format": schema({}), "ignore_eos": True}),
        (400, "prompt", {"prompt": "a", "max_tokens": 1000}),
        (400, "max_tokens", {"prompt": "a", "max_tokens": 0}),
        (400, "min_tokens", {"prompt": "a", "max_tokens": 4, "min_tokens": 5}),
        (400, "stream_options", {"prompt": "a", "stream_options": {"include_usage": True}}),
        (400, "prompt", {"prompt": ""}),
        (400, "prompt", {"prompt": [10**9]}),
        (404, "model", {"prompt": "a", "model": "another"}),
    ]

    async def scenario():
        async with api(tiny_folder) as http:
            found = [await post(http, "/v1/completions", body) for _, _, body in cases]
            async with (
                http.post("/v1/completions", data=b"{") as broken,
                http.post("/v1/completions", data=b" " * (3 * 2**20)) as long,
            ):
                return [*found, (broken.status, await broken.json()), (long.status, await long.json())]

    found = asyncio.run(scenario())
    for (status, param, _), (seen, document) in zip(cases, found[: len(cases)], strict=True):
        assert (seen, document["error"]["param"]) == (status, param), document
        assert document["error"]["message"]
    assert [status for status, _ in found[-2:]] == [400, 413]


def test_an_edge_that_has_stopped_is_forgotten(tiny_folder):
    async def scenario():
        async with api(tiny_folder) as http:
            await post(http, "/v1/completions", {"prompt": "a", "max_tokens": 2})
            for path in ("/healthz", "/v1/models", "/v1/nothing", "/nothing"):
                async with http.get(path) as answer:
                    await answer.read()
            return weakref.ref(http.edge)

    stopped = asyncio.run(scenario())
    gc.collect()
    assert stopped() is None


def test_a_path_or_method_that_is_not_there_is_an_error_document_with_a_name(tiny_folder):
    async def scenario():
        async with api(tiny_folder, credential=KEY) as http:
            found = []
            for method, path in (
                ("GET", "/v1/nothing"),
                ("GET", "/v1/completions"),
                ("PUT", "/tokenize"),
                ("POST", "/v1/completions"),  # without a key
                ("POST", "/chat/completions"),
                ("POST", "/v1/v1/chat/completions"),
                ("POST", "//v1/chat/completions"),
                ("POST", "/v1/chat/completions/"),
                ("POST", "/v1/tokenize"),
            ):
                address = http.url.replace("ws:", "http:").replace(SESSION_PATH, path)
                async with http.request(method, address, headers={"X-Request-Id": "mine"}) as answer:
                    found.append((answer, (await answer.json())["error"]))
            async with http.get("/elsewhere") as answer:
                return found, await answer.text()

    found, elsewhere = asyncio.run(scenario())
    statuses = [404, 405, 405, 401, *[404] * 5]
    assert [answer.status for answer, _ in found] == [document["code"] for _, document in found] == statuses
    assert {answer.headers["X-Request-Id"] for answer, _ in found[:4]} == {"mine"}
    assert (found[1][0].headers["Allow"], found[2][0].headers["Allow"]) == ("POST", "POST")
    assert "takes POST, not GET" in found[1][1]["message"]
    for (_, document), meant in zip(found[4:], (*["/v1/chat/completions"] * 4, "/tokenize"), strict=True):
        assert f"here, but {meant}: " in document["message"]
    assert elsewhere == "404: Not Found"


def test_a_credential_is_asked_for_and_other_origins_are_refused(tiny_folder):
    body = {"prompt": "a", "max_tokens": 1}

    async def scenario():
        async with api(tiny_folder, credential=KEY) as http:
            headers = [
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": f"Bearer {KEY}"},
                {"Authorization": f"Bearer {KEY}", "Origin": "https://example.org"},
                {"Authorization": f"Bearer {KEY}", "Origin": "http://[::1"},
                {"Authorization": f"Bearer {KEY}", "Origin": "http://evil.example", "Host": "evil.example"},
            ]
            return [(await post(http, "/v1/completions", body, headers=each))[0] for each in headers]

    assert asyncio.run(scenario()) == [401, 401, 200, 403, 403, 403]


def test_a_page_of_an_allowed_origin_asks_first_and_may_read_the_answer(tiny_folder):
    own, path = "https://chat.example", "/v1/completions"
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}

    async def scenario():
        async with api(tiny_folder, credential=KEY, origins=[own]) as http:

            async def ask(method, origin, headers, **more):
                headers = headers if origin is None else {**headers, "Origin": origin}
                async with http.request(method, path, headers=headers, **more) as answer:
                    return answer.status, answer.headers

            said = {"Authorization": f"Bearer {KEY}"}
            body = {"prompt": "a", "max_tokens": 1}
            return [
                await ask("OPTIONS", own, asking),
                await ask("OPTIONS", "https://evil.example", asking),
                await ask("OPTIONS", None, asking),
                await ask("POST", own, said, json=body),
                await ask("POST", own, said, json={**body, "stream": True}),
                await ask("POST", own, {}, json=body),
                await ask("POST", "https://evil.example", said, json=body),
                await ask("POST", None, said, json=body),
                await ask("GET", own, said),
            ]

    first, *found = asyncio.run(scenario())
    assert [status for status, _ in (first, *found)] == [204, 403, 403, 200, 200, 401, 403, 200, 405]
    assert first[1]["Access-Control-Allow-Headers"] == asking["Access-Control-Request-Headers"]
    assert "POST" in first[1]["Access-Control-Allow-Methods"]
    readable = [headers.get("Access-Control-Allow-Origin") for _, headers in (first, *found)]
    assert readable == [own, None, None, own, own, own, None, None, own]


@pytest.mark.parametrize("data", [b"no gzip at all", gzip.compress(b" " * 10**7)])
def test_a_compressed_body_is_refused_and_never_unpacked(tiny_folder, data):
    async def scenario():
        async with api(tiny_folder) as http:
            headers = {"Content-Encoding": "gzip"}
            async with http.post("/v1/completions", data=data, headers=headers) as answer:
                return answer.status, await answer.json()

    status, document = asyncio.run(scenario())
    assert (status, document["error"]["type"]) == (415, "invalid_request_error")
    assert "Content-Encoding" in document["error"]["message"]


def test_one_request_too_many_is_told_to_come_back(tiny_folder):
    async def scenario():
        async with api(tiny_folder, slots=1, max_waiting=1) as http:
            body = {"prompt": "a", "max_tokens": 200, "temperature": 0}
            return [
                status for status, _ in await asyncio.gather(*(post(http, "/v1/completions", body) for _ in range(6)))
            ]

    statuses = asyncio.run(scenario())
    assert set(statuses) == {200, 429}


def test_a_token_counts_for_the_texts_of_its_http_requests(tiny_folder, tmp_path):
    """Its quota and its limit of a prompt hold for HTTP clients, with OpenAI's statuses."""
    file = TokenFile(tmp_path / "tokens.json")
    short, small = file.add("short", max_prompt_tokens=4), file.add("small", tokens_per_minute=5)
    body = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True}  # a text that ends early costs less

    async def scenario():
        async with api(tiny_folder, tokens=file) as http:
            found = []
            for secret in (short, small, small):
                headers = {"Authorization": f"Bearer {secret}", "X-Request-Id": "mine-1"}
                async with http.post("/v1/completions", json=body, headers=headers) as answer:
                    found.append((answer.status, answer.headers, await answer.json()))
            async with http.post("/v1/completions", json=body, headers={"X-Request-Id": "<script>"}) as answer:
                found.append((answer.status, answer.headers, await answer.json()))
            return found

    long, first, second, stranger = asyncio.run(scenario())
    assert long[0] == 400
    assert "over the limit of 4" in long[2]["error"]["message"]
    assert first[0] == 200
    assert first[1]["X-Request-Id"] == "mine-1"
    assert second[0] == 429
    assert int(second[1]["Retry-After"]) > 30
    assert second[2]["error"]["type"] == "rate_limit_error"
    assert (stranger[0], stranger[1]["WWW-Authenticate"]) == (401, "Bearer")
    assert stranger[2]["error"]["type"] == "authentication_error"
