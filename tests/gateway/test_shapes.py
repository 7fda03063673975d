"""Texts in a shape: JSON schemas, calls of tools, and OpenAI's Responses."""

import asyncio
import json
import shutil

import pytest
from tests.gateway.site import api, device_of, events, post, schema
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}, "days": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}]


@pytest.fixture(scope="module")
def tiny_chat_folder(tiny_folder, tmp_path_factory):
    """The tiny model with a short chat template."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    template = "{% if tools %}t{% endif %}{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}a:"
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_tokens_are_counted_as_the_fields_of_a_request_say(tiny_chat_folder, tmp_path):
    folder = shutil.copytree(tiny_chat_folder, tmp_path / "begins")
    path = str(folder / "tokenizer.json")
    backend = Tokenizer.from_file(path)
    first = backend.encode("a").ids[0]
    backend.post_processor = TemplateProcessing(single="a $A", special_tokens=[("a", first)])
    backend.save(path)
    (folder / "chat_template.jinja").write_text(
        "{% if tools %}t{% endif %}{{ x }}{{ messages[0]['content'] }}{% if add_generation_prompt %}!{% endif %}"
    )
    chat = {"messages": [{"role": "user", "content": "bc"}]}

    async def scenario():
        async with api(str(folder)) as http:

            async def text_of(**fields):
                _, found = await post(http, "/tokenize", fields)
                assert found["count"] == len(found["tokens"])
                return (await post(http, "/detokenize", {"tokens": found["tokens"]}))[1]["prompt"]

            async def read(path, **fields):
                return (await post(http, path, {"max_tokens": 1, **fields}))[1]["usage"]["prompt_tokens"]

            texts = [
                await text_of(prompt="bc"),
                await text_of(prompt="bc", add_special_tokens=False),
                await text_of(prompt="", add_special_tokens=False),
                await text_of(**chat),
                await text_of(**chat, add_special_tokens=True, add_generation_prompt=False),
                await text_of(**chat, tools=TOOLS, chat_template_kwargs={"x": "y"}),
            ]
            used = [
                await read("/v1/completions", prompt="bc"),
                await read("/v1/completions", prompt="bc", add_special_tokens=False),
                await read("/v1/chat/completions", **chat),
                await read("/v1/chat/completions", **chat, add_special_tokens=True),
                await read("/v1/chat/completions", **chat, add_generation_prompt=False),
            ]
            return texts, used

    texts, used = asyncio.run(scenario())
    assert texts == ["abc", "bc", "", "bc!", "abc", "tybc!"]
    assert used == [3, 2, 3, 4, 2]


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
        async with api(tiny_chat_folder, pass_s=0.01) as http, device_of(tiny_chat_folder, http) as near:
            path = "/v1/chat/completions"
            whole, helped = [(await post(each, path, body))[1] for each in (http, near)]
            return whole, helped, await events(http, path, {**body, "stream": True})

    whole, helped, pieces = asyncio.run(scenario())
    assert helped["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] > 0
    (answer,), (through_a_device,) = whole["choices"], helped["choices"]
    assert through_a_device["message"]["tool_calls"][0]["function"] == answer["message"]["tool_calls"][0]["function"]
    assert through_a_device["finish_reason"] == answer["finish_reason"]
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


def test_a_call_that_a_stop_string_cuts_off_is_not_said_to_be_whole(tiny_chat_folder):
    body = {"tool_choice": "required", "parallel_tool_calls": False, "seed": 5, "stop": ['"days"']}
    flat = [{"type": "function", **TOOLS[0]["function"]}]

    async def scenario():
        async with api(tiny_chat_folder) as http:
            path, chat = "/v1/chat/completions", {"messages": [{"role": "user", "content": "Rome?"}], "tools": TOOLS}
            whole = (await post(http, path, {**body, **chat}))[1]["choices"][0]
            pieces = await events(http, path, {**body, **chat, "stream": True})
            return whole, pieces, (await post(http, "/v1/responses", {**body, "input": "Rome?", "tools": flat}))[1]

    whole, pieces, response = asyncio.run(scenario())
    assert whole["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"city": ')
    assert whole["finish_reason"] == pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert response["output"][0]["status"] == "incomplete"


def test_beside_tools_a_format_holds_for_an_answer_that_calls_nothing(tiny_chat_folder):
    inner = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
             "additionalProperties": False}  # fmt: skip
    body = {"tools": TOOLS, "response_format": schema(inner), "seed": 5}
    flat = {"tools": [{"type": "function", **TOOLS[0]["function"]}], "seed": 5, "input": "Rome?"}
    flat["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": inner}}

    async def scenario():
        async with api(tiny_chat_folder) as http:
            path, said = "/v1/chat/completions", {"messages": [{"role": "user", "content": "Rome?"}]}
            return (
                [await post(http, path, {**said, **body, "tool_choice": choice}) for choice in ("auto", "required")],
                [await post(http, "/v1/responses", {**flat, "tool_choice": each}) for each in ("auto", "required")],
            )

    chats, responses = asyncio.run(scenario())
    for (status, whole), must in zip(chats, (False, True), strict=True):
        assert status == 200, whole
        message = whole["choices"][0]["message"]
        assert (message["tool_calls"] is None) == (message["content"] is not None)
        assert not must or message["tool_calls"]
        assert message["tool_calls"] or set(json.loads(message["content"])) == {"ok"}
    for (status, whole), must in zip(responses, (False, True), strict=True):
        assert status == 200, whole
        for item in whole["output"]:
            assert item["type"] == "function_call" or not must
            assert item["type"] == "function_call" or set(json.loads(item["content"][0]["text"])) == {"ok"}
        assert set(whole["usage"]["input_tokens_details"]) == {"cached_tokens", "cache_write_tokens"}


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
                for more in (
                    {"max_output_tokens": 0},
                    {"previous_response_id": "resp_1"},
                    {"include": ["x"]},
                    {"input": []},
                )
            ]
            stored = await post(http, "/v1/responses", {**body, "store": True})
            return chat[1], whole[1], lines, refused, stored[1]

    chat, whole, lines, refused, stored = asyncio.run(scenario())
    assert stored["store"] is False  # nothing is kept, and the answer says so
    assert stored["output"][0]["content"] == whole["output"][0]["content"]
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
        (400, name) for name in ("max_output_tokens", "previous_response_id", "include", "input")
    ]


def test_reasoning_that_a_client_sends_back_is_ignored(tiny_chat_folder):
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Rain?"}],
               "encrypted_content": "gAAAA", "content": None, "status": None}  # fmt: skip
    asked = {"role": "user", "content": "Rome?"}
    answered = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "Sunny.", "annotations": []}]}  # fmt: skip
    again = {"role": "user", "content": "And Paris?"}
    bounds = {"max_output_tokens": 5, "temperature": 0}

    async def scenario():
        async with api(tiny_chat_folder) as http:
            inputs = ([asked, answered, again], [asked, thought, answered, again], [thought])
            return [await post(http, "/v1/responses", {"input": each, **bounds}) for each in inputs]

    (_, without), (status, beside), (alone, refused) = asyncio.run(scenario())
    assert status == 200
    assert beside["output"][0]["content"] == without["output"][0]["content"]
    assert beside["usage"]["input_tokens"] == without["usage"]["input_tokens"]
    assert (alone, refused["error"]["param"]) == (400, "input")


def test_a_response_calls_tools_and_takes_their_results(tiny_chat_folder):
    flat = [{"type": "function", **TOOLS[0]["function"]}]
    body = {"input": "Rome?", "tools": flat, "tool_choice": "required", "parallel_tool_calls": False, "seed": 5}

    async def scenario():
        async with api(tiny_chat_folder) as http:
            first = (await post(http, "/v1/responses", body))[1]
            (call,) = first["output"]
            said = [{"role": "user", "content": "Rome?"}, call,
                    {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}]  # fmt: skip
            parts = [*said[:-1], {**said[-1], "output": [{"type": "input_text", "text": "sunny"}]}]
            asked = {"max_output_tokens": 5, "temperature": 0}
            answers = [await post(http, "/v1/responses", {"input": each, **asked}) for each in (said, parts)]
            return call, answers

    call, ((status, second), (_, in_parts)) = asyncio.run(scenario())
    assert in_parts["output"][0]["content"] == second["output"][0]["content"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    assert set(json.loads(call["arguments"])) == {"city", "days"}
    assert status == 200
    assert second["output"][0]["type"] == "message"
