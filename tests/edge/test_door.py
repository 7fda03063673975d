import asyncio

import pytest
from aiohttp.test_utils import make_mocked_request

from multispin.edge import door
from multispin.edge.door import Door, FullError


def test_a_newcomer_takes_the_place_of_who_has_said_nothing_longest():
    left = []
    full = Door(most=3)
    numbers = [full.enter(lambda name=name: left.append(name)) for name in "abc"]
    full.greeted(numbers[0])
    full.enter(lambda: left.append("d"))
    assert left == ["b"]
    with pytest.raises(FullError):
        full.greeted(numbers[1])


def test_who_has_greeted_keeps_its_place():
    full = Door(most=2)
    for _ in range(2):
        full.greeted(full.enter(lambda: pytest.fail("a greeted connection was ended")))
    with pytest.raises(FullError, match="2 connections"):
        full.enter(lambda: None)


def test_a_place_is_free_again_when_its_connection_has_ended():
    full = Door(most=1)
    for greets in (True, False, True):
        number = full.enter(lambda: pytest.fail("there was a free place"))
        if greets:
            full.greeted(number)
        full.gone(number)


def test_a_wrong_credential_waits_and_is_logged_now_and_then(monkeypatch, caplog):
    waited = []

    async def sleep(delay_s):
        waited.append(delay_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def scenario():
        one = Door()
        for guess in range(1000):
            await one.guessed(0.01 * guess)
        await one.guessed(100.0)

    asyncio.run(scenario())
    assert waited == [door.GUESS_DELAY_S] * 1001
    assert len(caplog.records) == 2
    assert "1000 in the last" in caplog.text


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"Host": "127.0.0.1:8765"}, False),
        ({"Host": "edge.example:8765"}, False),
        ({"Host": "127.0.0.1:8765", "Origin": "http://127.0.0.1:8765"}, False),
        ({"Host": "localhost:8765", "Origin": "http://localhost:8765"}, False),
        ({"Host": "[::1]:8765", "Origin": "http://[::1]:8765"}, False),
        ({"Host": "edge.local:8765", "Origin": "http://edge.local:8765"}, False),
        ({"Host": "127.0.0.1:8765", "Origin": "https://evil.example"}, True),
        ({"Host": "evil.example:8765", "Origin": "http://evil.example:8765"}, True),
        ({"Host": "127.0.0.1:8765", "Origin": "null"}, True),
        ({"Origin": "http://127.0.0.1:8765"}, True),
    ],
)
def test_only_pages_of_the_edge_itself_may_use_it(headers, refused):
    request = make_mocked_request("GET", "/", headers=headers)
    assert bool(Door(allowed_hosts=["edge.local"]).refuses(request)) == refused
