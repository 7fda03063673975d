"""`multispin device --serve`: an API on this machine, whose texts an edge verifies."""

import json
import re
import urllib.error
import urllib.request

import pytest
from tests.cli.started import Started

OWN = "https://chat.example"

pytestmark = pytest.mark.processes


def ask(address, origin):
    """The answer's status, the origin that may read it, and its document."""
    body = json.dumps({"prompt": "abc", "max_tokens": 3, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json", "Origin": origin}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/completions", body, headers)) as answer:
            return answer.status, answer.headers["Access-Control-Allow-Origin"], json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers["Access-Control-Allow-Origin"], json.load(refused)


def test_pages_of_an_allowed_origin_may_use_a_device(tiny_folder):
    with Started("serve", "--target", tiny_folder, "--port", 0, "--json") as edge:
        url = f"ws://127.0.0.1:{json.loads(edge.stdout.readline())['port']}"
        what = ("--target", tiny_folder, "--draft", "lookup", "--serve", "127.0.0.1:0", "--allowed-origin", OWN)
        with Started("device", url, *what) as device:
            address = re.search(r"http://\S+/v1", device.stdout.readline())[0]
            status, reader, document = ask(address, OWN)
            assert (status, reader, document["usage"]["completion_tokens"]) == (200, OWN, 3)
            status, reader, document = ask(address, "https://evil.example")
            assert (status, reader) == (403, None)
            assert "may not use this edge" in document["error"]["message"]
