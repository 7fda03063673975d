"""The API over real HTTP, in front of a real edge with a tiny model."""

import asyncio
import json
import shutil
from contextlib import asynccontextmanager

import aiohttp
import pytest
import torch
from aiohttp import web

from multispin.control import Verification
from multispin.device import DeviceClient, Patience
from multispin.edge import Access, EdgeServer, TokenFile, listening
from multispin.edge.paced import PacedEngine
from multispin.gateway import Gateway, SessionPool, guard, local_sessions
from multispin.models import (
    EdgeDrafter,
    ModelDrafter,
    Verifier,
    decode_alone,
    load_grammars,
    load_model,
    load_tokenizer,
)
from multispin.models.packable import PackedModel
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile
from multispin.speculation import NoDrafter, SamplingParams, derive_seed

MAX_LENGTH = 256
KEY = "a key"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}, "days": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}]


@asynccontextmanager
async def api(folder, credential="", slots=4, tokens=None, mode="rounds", pass_s=0.0, edge=False, **limits):
    tokenizer = load_tokenizer(folder)
    drafter = EdgeDrafter(PackedModel.of(load_model(folder)), slots, MAX_LENGTH, tokenizer.size)
    verifier = Verifier(load_model(folder), slots, MAX_LENGTH)
    passes = Passes(
        PacedEngine(verifier, Verification(pass_s, 0.0, 0.0)) if pass_s else verifier,
        Controller(ControllerSettings("heterogeneous", 20e3, 9, mode=mode, edge_drafts=edge or mode == "edge")),
        tokenizer.fingerprint,
        Limits(**limits),
        edge_drafter=drafter if edge or mode == "edge" else None,
        grammars=load_grammars(tokenizer),
    )
    server = EdgeServer(passes, access=Access(credential, tokens))
    app = server.application()
    source = local_sessions(server, tokenizer.fingerprint, tokenizer.decode, 8, MAX_LENGTH)
    Gateway(source, tokenizer, "tiny", 7, passes.grammars).add_routes(app, guard(server.access))
    async with listening(app, port=0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        http.passes, http.edge, http.url = passes, server, f"ws://127.0.0.1:{port}{SESSION_PATH}"
        yield http


async def post(http, path, document, **options):
    async with http.post(path, json=document, **options) as answer:
        return answer.status, await answer.json()


async def events(http, path, document):
    """The documents of a stream; the last event must be [DONE]."""
    async with http.post(path, json=document) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        lines = (await answer.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def schema(inner):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": inner}}


def alone(folder, prompt, count, params=None):
    ids = load_tokenizer(folder).encode(prompt)
    params = params or SamplingParams()
    return load_tokenizer(folder).decode(decode_alone(load_model(folder), ids, params, count))


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_completion_is_the_targets_own_text(tiny_folder, mode):
    async def scenario():
        async with api(tiny_folder, mode=mode) as http:
            body = {"model": "tiny", "prompt": "abc", "max_tokens": 20, "temperature": 0}
            return await post(http, "/v1/completions", body)

    status, answer = asyncio.run(scenario())
    assert status == 200
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert choice["text"] == alone(tiny_folder, "abc", 20)
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}
    assert answer["metrics"]["speculative_decoding"]["num_draft_tokens"] == 0


def test_a_stream_brings_the_same_text_in_pieces(tiny_folder):
    body = {"prompt": "abc", "max_tokens": 20, "temperature": 0, "stream": True}

    async def scenario():
        async with api(tiny_folder) as http:
            plain = await events(http, "/v1/completions", body)
            return plain, await events(http, "/v1/completions", {**body, "stream_options": {"include_usage": True}})

    plain, with_usage = asyncio.run(scenario())
    text = "".join(each["choices"][0]["text"] for each in plain)
    assert text == alone(tiny_folder, "abc", 20)
    assert [each["choices"][0]["finish_reason"] for each in plain][-2:] == [None, "length"]
    assert len({each["id"] for each in plain}) == 1
    assert with_usage[-1]["choices"] == []
    assert with_usage[-1]["usage"]["completion_tokens"] == 20
    assert all("usage" not in each for each in plain)


def test_every_choice_has_a_seed_of_its_own_and_all_are_reproducible(tiny_folder):
    body = {"prompt": "abc", "max_tokens": 12, "temperature": 0.9, "seed": 5, "n": 3}

    async def scenario():
        async with api(tiny_folder) as http:
            return (await post(http, "/v1/completions", body))[1], await events(
                http, "/v1/completions", {**body, "stream": True}
            )

    whole, pieces = asyncio.run(scenario())
    texts = [each["text"] for each in whole["choices"]]
    expected = [
        alone(tiny_folder, "abc", 12, SamplingParams(0.9, seed=derive_seed(5, choice) if choice else 5))
        for choice in range(3)
    ]
    assert texts == expected
    streamed = ["", "", ""]
    for each in pieces:
        streamed[each["choices"][0]["index"]] += each["choices"][0]["text"]
    assert streamed == expected
    assert whole["usage"]["completion_tokens"] == 36


def test_penalties_change_the_text_as_plain_decoding_does(tiny_folder):
    penalties = {"presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.3}
    body = {"prompt": "abc", "max_tokens": 30, "temperature": 0, **penalties}

    async def scenario():
        async with api(tiny_folder) as http:
            return (await post(http, "/v1/completions", body))[1]["choices"][0]["text"]

    text = asyncio.run(scenario())
    assert text == alone(tiny_folder, "abc", 30, SamplingParams(**penalties))
    assert text != alone(tiny_folder, "abc", 30)


def test_a_stop_string_ends_the_text_before_it(tiny_folder):
    text = alone(tiny_folder, "abc", 30)
    stop = text[10:12]
    body = {"prompt": "abc", "max_tokens": 30, "temperature": 0, "stop": stop}

    async def scenario():
        async with api(tiny_folder) as http:
            whole = (await post(http, "/v1/completions", body))[1]["choices"][0]
            return whole, await events(http, "/v1/completions", {**body, "stream": True})

    whole, pieces = asyncio.run(scenario())
    assert whole["text"] == text[: text.find(stop)]
    assert whole["finish_reason"] == "stop"
    assert "".join(each["choices"][0]["text"] for each in pieces) == whole["text"]


def test_what_cannot_be_served_is_an_error_document(tiny_folder):
    cases = [
        (400, "prompt", {}),
        (400, "temperature", {"prompt": "a", "temperature": 99}),
        (400, "logprobs", {"prompt": "a", "logprobs": 21}),
        (400, "echo", {"prompt": "a", "echo": True}),
        (400, "tools", {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}),
        (400, "response_format", {"prompt": "a", "response_format": {"type": "xml"}}),
        (400, None, {"prompt": "a", "response_format": schema({"type": "nothing"})}),
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


def test_a_path_or_method_that_is_not_there_is_an_error_document_with_a_name(tiny_folder):
    async def scenario():
        async with api(tiny_folder, credential=KEY) as http:
            found = []
            for method, path in (
                ("GET", "/v1/nothing"),
                ("GET", "/v1/completions"),
                ("PUT", "/tokenize"),
                ("POST", "/v1/completions"),  # without a key
            ):
                async with http.request(method, path, headers={"X-Request-Id": "mine"}) as answer:
                    found.append((answer, (await answer.json())["error"]))
            async with http.get("/elsewhere") as answer:
                return found, await answer.text()

    found, elsewhere = asyncio.run(scenario())
    assert [answer.status for answer, _ in found] == [404, 405, 405, 401]
    assert [document["code"] for _, document in found] == [404, 405, 405, 401]
    assert {answer.headers["X-Request-Id"] for answer, _ in found} == {"mine"}
    assert (found[1][0].headers["Allow"], found[2][0].headers["Allow"]) == ("POST", "POST")
    assert "takes POST, not GET" in found[1][1]["message"]
    assert elsewhere == "404: Not Found"


def test_a_stream_says_what_was_used_so_far_if_it_is_asked_to(tiny_folder):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "abc", "max_tokens": 12, "temperature": 0, "stream": True, "stream_options": options}

    async def scenario():
        async with api(tiny_folder) as http:
            return await events(http, "/v1/completions", body)

    found = asyncio.run(scenario())
    counts = [each["usage"]["completion_tokens"] for each in found]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 12
    assert all(each["usage"]["total_tokens"] == 3 + each["usage"]["completion_tokens"] for each in found)


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


def test_a_body_that_is_not_what_its_headers_say_is_refused(tiny_folder):
    async def scenario():
        async with api(tiny_folder) as http:
            headers = {"Content-Encoding": "gzip"}
            async with http.post("/v1/completions", data=b"no gzip at all", headers=headers) as answer:
                return answer.status, await answer.json()

    status, document = asyncio.run(scenario())
    assert status == 400
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


LONG = {"prompt": "hello", "max_tokens": 120, "temperature": 0, "ignore_eos": True}


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


async def text_of(http, body):
    if not body["stream"]:
        status, document = await post(http, "/v1/completions", body)
        assert status == 200, document
        return document["choices"][0]["text"]
    return "".join(each["choices"][0]["text"] for each in await events(http, "/v1/completions", body))


def test_models_and_tokens_are_told(tiny_folder):
    async def scenario():
        async with api(tiny_folder) as http, http.get("/v1/models") as all_models, http.get("/v1/models/tiny") as one:
            async with http.get("/v1/models/other") as other:
                tokens = await post(http, "/tokenize", {"prompt": "abc"})
                text = await post(http, "/detokenize", {"tokens": tokens[1]["tokens"]})
                return await all_models.json(), await one.json(), other.status, tokens, text

    listed, one, other, tokens, text = asyncio.run(scenario())
    assert listed["data"] == [one]
    assert one["id"] == "tiny"
    assert one["max_model_len"] == MAX_LENGTH
    assert other == 404
    assert tokens[1]["count"] == 3
    assert text == (200, {"prompt": "abc"})


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


def test_a_token_counts_for_the_texts_of_its_http_requests(tiny_folder, tmp_path):
    """Its quota and its limit of a prompt hold for HTTP clients, with OpenAI's statuses."""
    file = TokenFile(tmp_path / "tokens.json")
    short, small = file.add("short", max_prompt_tokens=4), file.add("small", tokens_per_minute=5)
    body = {"prompt": "hello", "max_tokens": 4}

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


def test_log_probabilities_are_the_models_own_and_their_tokens_make_the_text(tiny_folder):
    body = {"prompt": "abc", "max_tokens": 20, "temperature": 0.8, "seed": 3, "logprobs": 2}

    async def scenario():
        async with api(tiny_folder) as http:
            return (await post(http, "/v1/completions", body))[1], await events(
                http, "/v1/completions", {**body, "stream": True}
            )

    whole, pieces = asyncio.run(scenario())
    (choice,) = whole["choices"]
    found, tokenizer = choice["logprobs"], load_tokenizer(tiny_folder)
    prompt = tokenizer.encode("abc")
    ids = decode_alone(load_model(tiny_folder), prompt, SamplingParams(0.8, seed=3), 20)
    with torch.inference_mode():
        logits = load_model(tiny_folder)(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, 2:-1]
    rows = logits.log_softmax(-1)
    assert found["token_logprobs"] == pytest.approx([float(rows[k, token]) for k, token in enumerate(ids)], abs=1e-3)
    best = [float(row.max()) for row in rows]
    assert [max(each.values()) for each in found["top_logprobs"]] == pytest.approx(best, abs=1e-3)
    assert len(found["tokens"]) == len(found["text_offset"]) == 20
    streamed = [each["choices"][0]["logprobs"] for each in pieces if each["choices"][0]["logprobs"]]
    assert [logprob for each in streamed for logprob in each["token_logprobs"]] == found["token_logprobs"]


@pytest.mark.parametrize("mode", ["rounds", "streams", "edge"])
def test_a_text_with_a_schema_fits_it_and_is_the_same_whoever_drafts(tiny_folder, mode):
    body = {"prompt": "Give: ", "temperature": 1, "seed": 4, "response_format": schema(CITY), "logprobs": 0}
    body["max_tokens"] = 120

    async def scenario():
        async with api(tiny_folder, mode="plain") as plain, api(tiny_folder, mode=mode) as far:
            async with device_of(tiny_folder, far) as near:
                return [await post(http, "/v1/completions", body) for http in (plain, near)]

    (status, plain), (_, helped) = asyncio.run(scenario())
    assert status == 200, plain
    (choice,) = plain["choices"]
    document = json.loads(choice["text"])
    assert document["city"] in ("Rome", "Paris")
    assert choice["finish_reason"] == "stop"
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert helped["choices"][0]["text"] == choice["text"]
    assert len(helped["choices"][0]["logprobs"]["tokens"]) == len(choice["logprobs"]["tokens"])
    figures = helped["metrics"]["speculative_decoding"]
    if mode == "rounds":  # in streams a quick edge may be done before a draft comes; its own drafts do not count
        assert figures["num_accepted_draft_tokens"] > 0.5 * figures["num_draft_tokens"] > 0


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_of_a_tool_comes_in_openais_shape_whole_and_streamed(tiny_chat_folder, choice):
    body = {"messages": [{"role": "user", "content": "Rome?"}], "tools": TOOLS, "tool_choice": choice, "seed": 5}
    body["parallel_tool_calls"] = False

    async def scenario():
        async with api(tiny_chat_folder) as http:
            path = "/v1/chat/completions"
            return (await post(http, path, body))[1], await events(http, path, {**body, "stream": True})

    whole, pieces = asyncio.run(scenario())
    (answer,) = whole["choices"]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] is None
    (call,) = answer["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    arguments = json.loads(call["function"]["arguments"])
    assert set(arguments) == {"city", "days"}
    deltas = [part for each in pieces for part in each["choices"][0]["delta"].get("tool_calls", ())]
    assert [each["function"].get("name") for each in deltas if "id" in each] == ["weather"]
    assert "".join(each["function"]["arguments"] for each in deltas) == call["function"]["arguments"]
    assert pieces[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_response_is_the_chats_text_and_its_events_build_the_same_document(tiny_chat_folder):
    body = {"input": "Hi", "instructions": "Be brief", "max_output_tokens": 12, "temperature": 0}
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]

    async def scenario():
        async with api(tiny_chat_folder) as http:
            chat = await post(http, "/v1/chat/completions", {"messages": messages, "max_tokens": 12, "temperature": 0})
            whole = await post(http, "/v1/responses", body)
            async with http.post("/v1/responses", json={**body, "stream": True}) as answer:
                lines = [line for line in (await answer.text()).split("\n\n") if line]
            refused = [
                await post(http, "/v1/responses", {**body, **more})
                for more in ({"store": True}, {"previous_response_id": "resp_1"}, {"include": ["x"]}, {"input": []})
            ]
            return chat[1], whole[1], lines, refused

    chat, whole, lines, refused = asyncio.run(scenario())
    (item,) = whole["output"]
    assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert whole["status"] == "incomplete"
    assert whole["usage"]["output_tokens"] == 12
    told = [json.loads(line.split("\ndata: ")[1]) for line in lines]
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    kinds = [each["type"] for each in told]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          "response.incomplete"]  # fmt: skip
    text = "".join(each["delta"] for each in told if each["type"] == "response.output_text.delta")
    assert text == item["content"][0]["text"] == told[-1]["response"]["output"][0]["content"][0]["text"]
    assert [(status, document["error"]["param"]) for status, document in refused] == [
        (400, name) for name in ("store", "previous_response_id", "include", "input")
    ]


def test_a_response_calls_tools_and_takes_their_results(tiny_chat_folder):
    flat = [{"type": "function", **TOOLS[0]["function"]}]
    body = {"input": "Rome?", "tools": flat, "tool_choice": "required", "parallel_tool_calls": False, "seed": 5}

    async def scenario():
        async with api(tiny_chat_folder) as http:
            first = (await post(http, "/v1/responses", body))[1]
            (call,) = first["output"]
            said = [{"role": "user", "content": "Rome?"}, call,
                    {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}]  # fmt: skip
            return call, await post(http, "/v1/responses", {"input": said, "max_output_tokens": 5})

    call, (status, second) = asyncio.run(scenario())
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    assert set(json.loads(call["arguments"])) == {"city", "days"}
    assert status == 200
    assert second["output"][0]["type"] == "message"


def test_the_apis_description_names_every_path_and_every_field(tiny_folder):
    async def scenario():
        async with api(tiny_folder) as http, http.get("/openapi.json") as answer:
            return await answer.json()

    document = asyncio.run(scenario())
    assert {"/v1/chat/completions", "/v1/responses", "/tokenize"} <= set(document["paths"])
    chat = document["components"]["schemas"]["ChatBody"]["properties"]
    assert {"messages", "tools", "response_format", "top_logprobs", "min_p"} <= set(chat)


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


@pytest.mark.parametrize("schedule", ["rounds", "streams"])
def test_drafts_of_the_edges_own_drafter_are_marked_apart_and_counted(tiny_folder, schedule):
    body = {"prompt": "abc", "max_tokens": 20, "temperature": 0}

    async def scenario():
        # A pass that takes its time: the edge's drafts pay on any machine, however busy.
        mode = "edge" if schedule == "rounds" else "streams"
        async with api(tiny_folder, mode=mode, pass_s=0.02, edge=True) as http:
            _, whole = await post(http, "/v1/completions", body)
            return whole, await events(http, "/v1/completions", body | {"stream": True, "mark_drafted": True})

    whole, pieces = asyncio.run(scenario())
    choices = [each["choices"][0] for each in pieces]
    assert whole["choices"][0]["text"] == "".join(each["text"] for each in choices) == alone(tiny_folder, "abc", 20)
    assert {each["drafted_by"] for each in choices if each.get("drafted")} == {"edge"}
    assert any(each["text"] and not each.get("drafted") for each in choices)
    counted = whole["metrics"]["speculative_decoding"]
    assert 0 < counted["num_accepted_draft_tokens"] <= counted["num_draft_tokens"]
    assert counted["num_accepted_draft_tokens"] + counted["num_spec_steps"] <= 20 + 1


@asynccontextmanager
async def device_of(folder, far):
    """A device with the same model as its drafter, that serves clients of its own from the edge."""
    tokenizer, grammars = load_tokenizer(folder), load_grammars(load_tokenizer(folder))
    hello = Hello(PROTOCOL_VERSION, tokenizer.fingerprint, "laptop", "same", True, Profile(0.001, 5.0))

    def make(on_progress):
        drafter = ModelDrafter(PackedModel.of(load_model(folder)), MAX_LENGTH, tokenizer.size, grammars)
        return DeviceClient(far.url, hello, drafter, on_progress=on_progress, decode=tokenizer.decode)

    pool, app = SessionPool(make, 2, MAX_LENGTH), web.Application()
    Gateway(pool, tokenizer, "tiny", 0, grammars).add_routes(app, guard(Access()))
    async with listening(app, port=0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        http.pool = pool
        yield http
    pool.close()


@pytest.fixture(scope="module")
def tiny_chat_folder(tiny_folder, tmp_path_factory):
    """The tiny model with a short chat template."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    template = "{% if tools %}t{% endif %}{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}a:"
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)
