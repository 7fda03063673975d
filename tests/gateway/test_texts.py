"""Texts over the API are the target's own, whole and streamed, with seeds, penalties, stop strings and marks."""

import asyncio

import pytest
import torch
from tests.gateway.site import MAX_LENGTH, alone, api, events, post

from multispin.models import (
    decode_alone,
    load_model,
    load_tokenizer,
)
from multispin.speculation import SamplingParams, derive_seed


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


def test_models_and_tokens_are_told(tiny_folder):
    async def scenario():
        async with api(tiny_folder) as http, http.get("/v1/models") as all_models, http.get("/v1/models/tiny") as one:
            async with http.get("/v1/models/other") as other:
                tokens = await post(http, "/tokenize", {"prompt": "abc"})
                text = await post(http, "/detokenize", {"tokens": tokens[1]["tokens"]})
                end = await post(http, "/detokenize", {"tokens": [special]})
                return await all_models.json(), await one.json(), other.status, tokens, text, end

    special = load_tokenizer(tiny_folder).stop_ids[0]
    listed, one, other, tokens, text, end = asyncio.run(scenario())
    assert listed["data"] == [one]
    assert one["id"] == "tiny"
    assert one["max_model_len"] == MAX_LENGTH
    assert other == 404
    assert tokens[1]["count"] == 3
    assert text == (200, {"prompt": "abc"})
    assert end == (200, {"prompt": "<|end|>"})


def test_the_apis_description_names_every_path_and_every_field(tiny_folder):
    async def scenario():
        async with api(tiny_folder) as http, http.get("/openapi.json") as answer:
            return await answer.json()

    document = asyncio.run(scenario())
    assert {"/v1/chat/completions", "/v1/responses", "/tokenize"} <= set(document["paths"])
    chat = document["components"]["schemas"]["ChatBody"]["properties"]
    assert {"messages", "tools", "response_format", "top_logprobs", "min_p"} <= set(chat)


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
    assert whole["usage"]["completion_tokens"] == 20  # not one for each pass
    counted = whole["metrics"]["speculative_decoding"]
    assert 0 < counted["num_accepted_draft_tokens"] <= counted["num_draft_tokens"]
    assert counted["num_accepted_draft_tokens"] + counted["num_spec_steps"] <= 20 + 1
