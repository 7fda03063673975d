"""`multispin device --serve`: an API on this machine, whose texts an edge verifies."""

import json
import re
import signal
import urllib.error
import urllib.request

import pytest
from tests.cli.started import Started

OWN = "https://chat.example"
TOKENS = 12

pytestmark = pytest.mark.processes


def ask(address, origin, prompt="abc"):
    """The answer's status, the origin that may read it, and its document; an origin of None is no page's."""
    body = json.dumps({"prompt": prompt, "max_tokens": TOKENS, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json"} | ({} if origin is None else {"Origin": origin})
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/completions", body, headers)) as answer:
            return answer.status, answer.headers["Access-Control-Allow-Origin"], json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers["Access-Control-Allow-Origin"], json.load(refused)


def test_pages_of_an_allowed_origin_may_use_a_device(tiny_folder):
    with Started("serve", "--target", tiny_folder, "--port", 0, "--json") as edge:
        url = f"ws://127.0.0.1:{json.loads(edge.stdout.readline())['port']}"
        what = ("--target", tiny_folder, "--draft", "lookup", "--serve", "127.0.0.1:0", "--allowed-origin", OWN)
        what += ("--model-name", "large")
        with Started("device", url, *what) as device:
            address = re.search(r"http://\S+/v1", device.stdout.readline())[0]
            status, reader, document = ask(address, OWN)
            assert (status, reader, document["usage"]["completion_tokens"]) == (200, OWN, TOKENS)
            assert document["model"] == "large"
            with urllib.request.urlopen(address.removesuffix("/v1") + "/health") as answer:
                assert json.load(answer) == {"status": "ok"}
            status, reader, document = ask(address, "https://evil.example")
            assert (status, reader) == (403, None)
            assert "may not use this edge" in document["error"]["message"]


@pytest.mark.parametrize("serves", [False, True])
def test_a_drafter_with_too_little_room_is_told_of_once(tiny_folder, serves):
    with Started("serve", "--target", tiny_folder, "--mode", "streams", "--port", 0, "--json") as edge:
        url = f"ws://127.0.0.1:{json.loads(edge.stdout.readline())['port']}"
        what = ("--target", tiny_folder, "--draft", tiny_folder, "--context", 16)
        text = "a text of more than sixteen bytes"
        if serves:
            with Started("device", url, *what, "--serve", "127.0.0.1:0", "--sessions", 1) as device:
                address = re.search(r"http://\S+/v1", device.stdout.readline())[0]
                for _ in range(2):
                    assert ask(address, OWN, text)[0] == 403  # of another page
                    assert ask(address, None, text)[0] == 200
                device.send_signal(signal.SIGTERM)
                _, said = device.communicate()
        else:
            with Started("device", url, *what, "--raw", "--prompt", text, "--max-tokens", TOKENS) as device:
                _, said = device.communicate()
        (note,) = [line for line in said.splitlines() if "without drafts" in line]
        assert re.fullmatch(
            rf"multispin: \d+ of {TOKENS} tokens were written without drafts of this device: the text is longer than "
            r"the 16 tokens that its drafter can read \(--context\)",
            note,
        )
