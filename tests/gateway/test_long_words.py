"""What a client says comes back in an error's sentence in one line, and never whole."""

import asyncio
import json

import pytest
from tests.gateway.site import api

from multispin.protocol.limits import MAX_SENTENCE_CHARACTERS

CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TURN = {"role": "user", "content": "a"}


def chat(**fields):
    return CHAT, {"messages": [TURN], "max_tokens": 1, **fields}


def schema_of(schema):
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})


def tool(**fields):
    return chat(tools=[{"type": "function", "function": {"name": "f", **fields}}])


REFUSED = {
    "model": lambda word: chat(model=word),
    "model of a text": lambda word: (TEXT, {"prompt": "a", "model": word}),
    "model of a response": lambda word: (RESPONSE, {"input": "a", "model": word}),
    "model of a count": lambda word: ("/tokenize", {"prompt": "a", "model": word}),
    "role without content": lambda word: (CHAT, {"messages": [{"role": word}]}),
    "kind of a part": lambda word: (CHAT, {"messages": [{"role": "user", "content": [{"type": word, "text": "a"}]}]}),
    "kind of a format": lambda word: chat(response_format={"type": word}),
    "dialect": lambda word: schema_of({"$schema": word}),
    "kind in a schema": lambda word: schema_of({"type": word}),
    "reference": lambda word: schema_of({"$ref": f"#/{word}"}),
    "pattern": lambda word: schema_of({"type": "string", "pattern": f"({word}"}),
    "kind of a tool": lambda word: chat(tools=[{"type": word}]),
    "tool": lambda word: tool(name=f"{word} "),
    "unsupported field": lambda word: chat(guided_regex=word),
    "bias": lambda word: chat(logit_bias={word: 1}),
    "kind of an item": lambda word: (RESPONSE, {"input": [{"type": word}]}),
    "kind of an item's part": lambda word: (RESPONSE, {"input": [{"role": "user", "content": [{"type": word}]}]}),
    "included": lambda word: (RESPONSE, {"input": "a", "include": [word]}),
    "response before": lambda word: (RESPONSE, {"input": "a", "previous_response_id": word}),
    "chosen tool": lambda word: (*tool()[:1], {**tool()[1], "tool_choice": word}),
    "path": lambda word: (f"/v1/{word[:500]}", {}),
    "key twice": lambda word: (TEXT, f'{{"{word}": 1, "{word}": 2}}'),
}
WORDS = {"long": "x" * 10_000, "control characters": "a\x1b[31m\u202e\n\u2028" * 3, "emoji": "\N{PARTY POPPER}" * 3000}


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_what_is_refused_is_named_in_one_short_line(tiny_folder, word):
    async def scenario():
        async with api(tiny_folder) as http:
            for name, made in REFUSED.items():
                path, body = made(word if name != "path" else word.replace("\n", ""))
                data = body if isinstance(body, str) else json.dumps(body)
                if isinstance(body, str):  # JSON writes no control characters
                    data = data.replace(word, json.dumps(word)[1:-1])
                async with http.post(path, data=data, headers={"Content-Type": "application/json"}) as answer:
                    text = await answer.text()
                    assert answer.status in (400, 404), (name, text)
                sentence = json.loads(text)["error"]["message"]
                assert len(sentence) <= MAX_SENTENCE_CHARACTERS, name
                assert all(each.isprintable() for each in sentence), (name, sentence)

    asyncio.run(scenario())
