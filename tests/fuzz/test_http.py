"""Damaged bodies over real HTTP: each is served or refused, and none is a fault of the server."""

import asyncio
import random
from collections import Counter

import aiohttp
import pytest
from tests.chaos import world
from tests.fuzz import decoders

REQUESTS = 300
PATHS = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "response": "/v1/responses",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}


@pytest.mark.parametrize("seed", [1])
def test_no_body_is_a_server_error(seed):
    rng, statuses = random.Random(seed), Counter()

    async def ask(http):
        name = rng.choice(list(PATHS))
        body = decoders.damaged(rng, decoders.DECODERS[name][1])
        async with http.post(PATHS[name], data=body) as answer:
            said = await answer.read()
            assert answer.status < 500, (name, body, answer.status, said)
            statuses[answer.status] += 1

    async def scenario():
        async with world.an_edge(0, "auto", 4) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            for _ in range(REQUESTS // 10):
                await asyncio.gather(*(ask(http) for _ in range(10)))

    asyncio.run(asyncio.wait_for(scenario(), 200))
    assert set(statuses) <= {200, 400, 404, 413, 429}
    assert statuses[400] > 100
