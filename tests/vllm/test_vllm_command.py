"""`multispin serve --engine vllm` as a process of its own, asked over HTTP."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from multispin.models import decode_alone, load_tokenizer
from multispin.speculation import SamplingParams

PROMPT = list(b"the quick brown fox")


@pytest.fixture(scope="module", params=[1, 2], ids=["fewer threads than OpenMP's", "more threads"])
def edge(request, folder):
    """Its worker is in the edge's process, which computes with another number of threads than the environment says."""
    number = request.param
    command = [*(sys.executable, "-m", "multispin", "serve", "--engine", "vllm", "--target", folder, "--port", "0")]
    options = ["--slots", "2", "--max-length", "96", "--threads", str(number), "--json"]
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(3 - number)},
    ) as process:
        try:
            yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}/v1/completions"
        finally:
            process.kill()


def ask(url, **fields):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 12, "temperature": 0, **fields})
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_an_edge_answers_from_its_first_pass_on(edge, folder, model):
    alone = decode_alone(model, PROMPT, SamplingParams(), 12)
    texts = [ask(edge)["choices"][0]["text"] for _ in range(2)]
    assert texts == [load_tokenizer(folder).decode(alone)] * 2


@pytest.mark.parametrize(
    "field", [{"logprobs": 1}, {"presence_penalty": 0.5}, {"response_format": {"type": "json_object"}}]
)
def test_what_the_engine_cannot_do_is_refused_by_name(edge, field):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(edge, **field)
    assert caught.value.code == 400
    name = next(iter(field)).replace("response_format", "grammar")
    assert f"cannot apply {name}" in json.loads(caught.value.read())["error"]["message"]
