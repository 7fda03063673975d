"""Ordinary scripts of ordinary clients, unchanged, against a real edge with the embedded model (`make clients`).

The clients live in an environment of their own; MULTISPIN names the command that serves.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

COMMAND = os.environ["MULTISPIN"]
START_TIMEOUT_S = 180.0
QUESTION = "Why is the sky blue?"
EXPECTED = "The answer to this question lies in the intricate dance of light"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def edge():
    """The address of a running edge."""
    with subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        timer = threading.Timer(START_TIMEOUT_S, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                if '"listening"' in line:
                    port = json.loads(line)["port"]
                    break
            else:
                pytest.fail("the edge did not start")
            timer.cancel()
            drain = threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True)
            drain.start()
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            timer.cancel()
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


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
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.chat.completions.create(**options, logprobs=True)


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
