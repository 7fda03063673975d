"""Who may write a text next, and how many requests one address may have."""

import asyncio

import pytest
from tests.gateway.site import api
from tests.virtual_time import run

from multispin.edge import Access, Caller, TokenFile
from multispin.edge.door import Door, read_network
from multispin.gateway import app
from multispin.gateway.places import TextPlaces


def served(places, origins, leaves=()):
    """The order in which texts of these origins get places; each holds its place for 10 s."""

    async def scenario():
        order = []

        async def text(number, origin):
            async with places.place(origin):
                order.append(number)
                await asyncio.sleep(10.0)

        tasks = []
        for number, origin in enumerate(origins):
            tasks.append(asyncio.create_task(text(number, origin)))
            await asyncio.sleep(0.1)
        for number in leaves:
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return order

    return run(scenario())


def test_who_came_first_has_the_first_place():
    assert served(TextPlaces(1), "aaaa") == [0, 1, 2, 3]


def test_of_those_who_wait_whoever_has_the_fewest_places_is_next():
    assert served(TextPlaces(2), "aaaabc") == [0, 1, 4, 5, 2, 3]


def test_of_those_who_have_equally_many_whoever_got_none_for_longest_is_next():
    assert served(TextPlaces(1), "aaabab") == [0, 3, 1, 5, 2, 4]


def test_one_origin_has_no_more_places_than_it_may_even_if_there_are_some():
    assert served(TextPlaces(3, most_of_one=2), "aaaab") == [0, 1, 4, 2, 3]


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_a_text_that_is_given_up_gives_its_place_or_its_turn_back(leaver):
    places = TextPlaces(1)
    served(places, "aab", leaves=[leaver])
    assert served(places, "ab") == [0, 1]  # as if nothing had been


def test_one_address_has_a_share_of_the_requests_and_others_have_room(tiny_folder, monkeypatch):
    """Through a proxy that is trusted: each client counts as the address that the proxy names."""
    monkeypatch.setattr(app, "MAX_REQUESTS", 5)
    statuses = []

    async def ask(http, address):
        body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True}
        async with http.post("/v1/completions", json=body, headers={"X-Forwarded-For": address}) as answer:
            statuses.append((address, answer.status))

    async def scenario():
        access = Access(door=Door(proxies=[read_network("127.0.0.1")]))
        async with api(tiny_folder, access=access, max_share=0.5, pass_s=0.05) as http:
            addresses = ["192.0.2.1"] * 3 + ["192.0.2.2"]
            served = [asyncio.create_task(ask(http, address)) for address in addresses]
            while len(http.passes.sessions) < len(served):
                await asyncio.sleep(0.01)
            await ask(http, "192.0.2.1")
            for each in served:
                each.cancel()
            await asyncio.gather(*served, return_exceptions=True)

    asyncio.run(scenario())
    assert statuses == [("192.0.2.1", 429)]


def test_a_token_counts_as_itself_and_no_token_as_its_address(tmp_path):
    file = TokenFile(tmp_path / "tokens.json")
    secrets = [file.add(name) for name in ("anna", "ben")]
    access = Access("shared", file)

    async def callers():
        return [Caller(await access.admit(secret, "", 0.0), "192.0.2.1") for secret in (*secrets, secrets[0], "shared")]

    anna, ben, again, shared = (caller.origin for caller in asyncio.run(callers()))
    assert anna == again
    assert len({anna, ben, shared}) == 3
    assert shared == "192.0.2.1"
