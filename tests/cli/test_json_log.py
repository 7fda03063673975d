"""The log of a running `serve --log-format json`."""

import asyncio
import json

import aiohttp
import pytest
from tests.cli.started import Started

from multispin.device import DeviceClient, Patience
from multispin.models import load_tokenizer
from multispin.protocol import PROTOCOL_VERSION, Hello, Profile, RefusedError, Request
from multispin.speculation import NoDrafter, SamplingParams

EVIL = "lap\x1b[2Jtop\n\u202e"


@pytest.mark.processes
def test_every_line_is_an_object_that_names_session_device_and_request(tiny_folder):
    """A text of an HTTP client, one of a device with an evil name, a refusal and the end: nothing breaks a line."""
    with Started("serve", "--target", tiny_folder, "--port", 0, "--json", "--log-format", "json") as server:
        port = json.loads(server.stdout.readline())["port"]
        asyncio.run(_texts(port, load_tokenizer(tiny_folder).fingerprint))
        server.terminate()
        _, errors = server.communicate(timeout=60)
        assert server.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert "\x1b" not in errors
    assert "\u202e" not in errors
    http, device = (line for line in lines if "finish" in line)
    assert (http["request"], http["device"], http["tokens"], http["finish"]) == ("req.7", "http", 5, "length")
    assert (device["device"], device["tokens"]) == (EVIL, 4)
    assert "request" not in device
    assert http["session"] != device["session"]
    assert f"{EVIL}: 4 tokens" in device["message"]
    assert any(line["message"].startswith("stopping") for line in lines)


async def _texts(port, fingerprint):
    body = {"prompt": "hello", "max_tokens": 5, "ignore_eos": True}
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        http.post("/v1/completions", json=body, headers={"X-Request-Id": "req.7"}) as answer,
    ):
        assert answer.headers["X-Request-Id"] == "req.7"
    for known, name in ((fingerprint, EVIL), ("0" * 16, "refused")):
        hello = Hello(PROTOCOL_VERSION, known, name, "none", False, Profile(0.01, 5.0))
        url = f"ws://127.0.0.1:{port}/v1/session"
        client = DeviceClient(url, hello, NoDrafter(), patience=Patience(0.0, 0.0))
        try:
            assert len(await client.generate(Request((5, 6), SamplingParams(), 4))) == 4
        except RefusedError:
            assert name == "refused"
        finally:
            client.close()
