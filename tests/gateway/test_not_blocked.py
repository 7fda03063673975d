"""The event loop serves others while a body is read, a long prompt is tokenised, a chat is put into its template, and a
pass runs."""

import asyncio
import threading

import aiohttp
import pytest
from tests.chaos import world

from multispin.gateway import app as gateway_app


class Held:
    """Holds a thread until it is let go; a loop that runs in that thread could never do so."""

    def __init__(self):
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __call__(self):
        self.entered.set()
        assert self.go_on.wait(30), "nobody let this thread go on: the event loop was blocked"


class SlowWords(world.Letters):
    def __init__(self, held):
        self._held = held

    def encode(self, text, special_tokens=True):
        self._held()
        return super().encode(text, special_tokens)


class SlowEngine(world.Engine):
    def __init__(self, held):
        super().__init__(2)
        self._held = held

    def verify(self, feeds):
        self._held()
        return super().verify(feeds)


PROMPT = chr(300) * 500
BODIES = {
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 4},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 4},
    "/tokenize": {"prompt": PROMPT},
    "/detokenize": {"tokens": [3, 4]},
}


SLOW = [
    *(("words", path) for path in BODIES if path != "/detokenize"),
    *(("body", path) for path in BODIES),
    ("engine", "/v1/completions"),
]


@pytest.mark.parametrize(("slow", "path"), SLOW)
def test_others_are_served_meanwhile(slow, path, monkeypatch):
    held = Held()
    if slow == "body":
        read_body = gateway_app.read_body

        def held_read(raw, kind):
            held()
            return read_body(raw, kind)

        monkeypatch.setattr(gateway_app, "read_body", held_read)
    parts = {"words": {"words": SlowWords(held)}, "engine": {"engine": SlowEngine(held)}}.get(slow, {})

    async def scenario():
        async with (
            world.an_edge(0, "plain", 2, **parts) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        ):
            asking = asyncio.create_task(http.post(path, json=BODIES[path]))
            await asyncio.to_thread(held.entered.wait, 30)
            async with http.get("/healthz") as answer:
                assert answer.status == 200
            held.go_on.set()
            return (await asking).status

    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == 200
