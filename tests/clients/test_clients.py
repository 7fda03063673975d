"""Ordinary scripts of ordinary clients, unchanged, against a real edge with the embedded model (`make clients`).

The clients live in an environment of their own; MULTISPIN names the command that serves.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.edge_process import EXPECTED, QUESTION, running_edge

LIMITS = {
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
EXAMPLES = int(os.environ.get("MULTISPIN_FUZZ_EXAMPLES", "25"))
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def edge():
    """The address of a running edge."""
    with running_edge() as port:
        yield f"http://127.0.0.1:{port}/v1"


def test_openai(edge):
    import openai

    client = openai.OpenAI(base_url=edge, api_key="unused")
    options = {"model": "embedded", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    answer = client.chat.completions.create(**options)
    assert answer.choices[0].message.content == EXPECTED
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == EXPECTED
    assert chunks[-1].usage.completion_tokens == 12
    assert [model.id for model in client.models.list()] == ["embedded"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**options, "model": "another"})
    with pytest.raises(openai.BadRequestError, match="audio"):
        client.chat.completions.create(**options, audio={"voice": "alloy", "format": "mp3"})


def test_openai_completions_and_several_choices(edge):
    import openai

    client = openai.OpenAI(base_url=edge, api_key="unused")
    options = {"model": "embedded", "prompt": "Once upon a", "max_tokens": 8, "temperature": 0.8, "seed": 3, "n": 2}
    first, again = (client.completions.create(**options) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) == 2
    assert [choice.text for choice in again.choices] == texts


def test_litellm(edge):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    options = {"model": "openai/embedded", "api_base": edge, "api_key": "unused", "messages": MESSAGES}
    options |= {"max_tokens": 12, "temperature": 0}
    assert litellm.completion(**options).choices[0].message.content == EXPECTED
    chunks = litellm.completion(**options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == EXPECTED


def test_langchain(edge):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="embedded", base_url=edge, api_key="unused", max_tokens=12, temperature=0)
    assert model.invoke(QUESTION).content == EXPECTED
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == EXPECTED


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_llm(edge, options, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: edge\n  model_name: embedded\n  api_base: {edge}\n"
    )
    found = subprocess.run(
        [
            *(Path(sys.executable).parent / "llm", "-m", "edge", "--no-log", *options),
            *("-o", "max_tokens", "12", "-o", "temperature", "0", QUESTION),
        ],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "unused"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout.strip() == EXPECTED, found.stderr


def test_openai_log_probabilities_schemas_and_tools(edge):
    import openai

    client = openai.OpenAI(base_url=edge, api_key="unused")
    options = {"model": "embedded", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    content = client.chat.completions.create(**options, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert b"".join(bytes(each.bytes) for each in content).decode() == EXPECTED
    assert all(each.top_logprobs[0].logprob == each.logprob and len(each.top_logprobs) == 3 for each in content)
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["blue", "green"]}, "why": {"type": "string", "maxLength": 40}},
        "required": ["color", "why"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(**{**options, "max_tokens": 80}, response_format=form)
    assert set(json.loads(answer.choices[0].message.content)) == {"color", "why"}
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError, match="cannot be compiled"):
        client.chat.completions.create(**options, response_format=wrong)
    tool = {"name": "look_up", "description": "Look a word up.", "parameters": {
        "type": "object", "properties": {"word": {"enum": ["sky", "blue"]}}, "required": ["word"],
        "additionalProperties": False}}  # fmt: skip
    calling = {**options, "max_tokens": 80, "tools": [{"type": "function", "function": tool}]}
    (call,) = (
        client.chat.completions.create(**calling, tool_choice="required", parallel_tool_calls=False)
        .choices[0]
        .message.tool_calls
    )
    assert (call.function.name, set(json.loads(call.function.arguments))) == ("look_up", {"word"})
    with client.chat.completions.stream(**calling, tool_choice="required", parallel_tool_calls=False) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    said = [*MESSAGES, {"role": "assistant", "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": "a colour"}]  # fmt: skip
    assert client.chat.completions.create(**{**options, "messages": said}).choices[0].message.content


def test_openai_responses(edge):
    import openai

    client = openai.OpenAI(base_url=edge, api_key="unused")
    options = {"model": "embedded", "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
    answer = client.responses.create(**options)
    assert answer.output_text == EXPECTED
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 12
    with client.responses.stream(**options) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == EXPECTED
    assert events[0].type == "response.created"
    assert (events[-1].type, events[-1].response.output_text) == ("response.incomplete", EXPECTED)
    form = {"type": "json_schema", "name": "sky", "schema": {"enum": ["blue", "green"]}}
    with client.responses.stream(**{**options, "max_output_tokens": 30}, text={"format": form}) as stream:
        for _ in stream:
            pass
        assert json.loads(stream.get_final_response().output_text) in ("blue", "green")
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(**options, previous_response_id="resp_1")


def test_langchain_structured_output(edge):
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel, Field

    class Sky(BaseModel):
        """A colour of the sky."""

        color: str = Field(max_length=12)

    model = ChatOpenAI(model="embedded", base_url=edge, api_key="unused", max_tokens=60, temperature=0)
    assert isinstance(model.with_structured_output(Sky, method="json_schema").invoke(QUESTION), Sky)
    assert isinstance(model.with_structured_output(Sky, method="function_calling").invoke(QUESTION), Sky)


def test_guidellm_measures_an_edge(edge, tmp_path):
    """A load generator's ordinary command; it wants the tokenizer's files, which the edge has converted."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    tokenizer = max(cache.glob("multispin/models/SmolLM2-135M-Instruct*"))
    report = tmp_path / "report.json"
    found = subprocess.run(
        [
            *(Path(sys.executable).parent / "guidellm", "run", "--disable-console-interactive"),
            *("--backend", f"kind=openai_http,target={edge.removesuffix('/v1')}"),
            *("--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=4"),
            *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
            *("--data", "kind=synthetic_text,prompt_tokens=20,output_tokens=8", "--output", f"kind=json,path={report}"),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["successful"] >= 4, totals
    assert totals["errored"] == 0, totals


def test_no_request_is_a_server_error(edge):
    """schemathesis makes right and wrong bodies from the API's own description."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    base = edge.removesuffix("/v1")
    schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
    statuses = set()

    for operation in schema.get_all_operations():

        @given(case=operation.ok().as_strategy(generation_mode=GenerationMode.NEGATIVE) | operation.ok().as_strategy())
        @settings(
            max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        def try_one(case):
            limit = LIMITS.get(case.path)
            if isinstance(case.body, dict) and limit is not None:
                asked = case.body.get(limit)
                if asked is None or (isinstance(asked, int) and asked > 2):  # texts take time
                    case.body[limit] = 2
            answer = case.call(base_url=base, timeout=60)
            assert answer.status_code < 500, (case.path, case.body, answer.text)
            assert answer.status_code in (200, 400, 404, 405, 413, 415, 429)
            statuses.add(answer.status_code)

        try_one()
    assert {200, 400} <= statuses
