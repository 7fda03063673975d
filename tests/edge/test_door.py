import asyncio

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from tests.virtual_time import run

from multispin.edge import door, tally
from multispin.edge.door import Door, FullError, read_origin
from multispin.errors import InputError
from multispin.protocol import ProtocolError


def test_a_newcomer_takes_the_place_of_who_has_said_nothing_longest():
    left = []
    full = Door(most=3)
    numbers = [full.enter(lambda name=name: left.append(name)) for name in "abc"]
    full.greeted(numbers[0])
    full.enter(lambda: left.append("d"))
    assert left == ["b"]
    with pytest.raises(FullError):
        full.greeted(numbers[1])


def test_whoever_has_most_connections_makes_room_and_not_whoever_has_been_silent_longest():
    left = []
    full = Door(most=4)
    for name in ("other", "many", "many", "many", "many", "many", "new"):
        full.enter(lambda name=name: left.append(name), name)
    assert left == ["many", "many", "many"]


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


def test_a_wrong_credential_waits_and_is_logged_now_and_then(caplog):
    async def scenario():
        one, loop = Door(), asyncio.get_running_loop()
        await asyncio.gather(*(one.guessed(f"192.0.2.{guess % 250}", loop.time()) for guess in range(1000)))
        waited_s = loop.time()
        await asyncio.sleep(3.0 * tally.LOG_PERIOD_S)  # nobody guesses, and the log must have told all
        told = len(caplog.records)
        await one.guessed("192.0.2.1", loop.time())
        return one.guesses, waited_s, told

    assert run(scenario()) == (1001, door.GUESS_DELAY_S, 2)
    assert [record.getMessage().split()[2] for record in caplog.records] == ["1", "999", "1"]


def test_wrong_credentials_that_no_line_has_told_are_logged_as_the_edge_ends(caplog):
    async def scenario():
        one, loop = Door(), asyncio.get_running_loop()
        await asyncio.gather(*(one.guessed(f"192.0.2.{guess}", loop.time()) for guess in range(7)))
        one.close()
        await asyncio.sleep(3.0 * tally.LOG_PERIOD_S)

    run(scenario())
    assert [record.getMessage().split()[2] for record in caplog.records] == ["1", "6"]


def test_guesses_of_one_address_are_looked_at_one_a_second():
    async def scenario():
        one, loop, waited = Door(), asyncio.get_running_loop(), []

        async def timed(waiting):
            began_s = loop.time()
            await waiting
            waited.append(loop.time() - began_s)

        await timed(one.wait_turn("192.0.2.1", 0.0))
        await one.guessed("192.0.2.1", 0.0)
        for _ in range(10):
            await timed(one.wait_turn("192.0.2.1", 0.0))
        with pytest.raises(ProtocolError, match="too many wrong credentials") as refused:
            await one.wait_turn("192.0.2.1", 0.0)
        await timed(one.wait_turn("192.0.2.2", 0.0))  # somebody else
        await timed(one.wait_turn("192.0.2.1", 20.0))  # later
        return waited, refused.value

    waited, refused = run(scenario())
    assert waited == [float(turn) for turn in range(11)] + [0.0, 0.0]
    assert (refused.code, refused.retry_after_s) == ("too-fast", 11.0)


def test_remembered_guessers_are_bounded():
    async def scenario():
        one = Door(max_guessers=3)
        for guess in range(10):
            await one.guessed(f"192.0.2.{guess}", 0.0)
        return one.guessers

    assert run(scenario()) == 3


def test_one_address_holds_so_many_connections_and_no_more():
    one = Door(most_per_address=2)
    numbers = [one.enter(lambda: None, "192.0.2.1") for _ in range(2)]
    for number in numbers:
        one.greeted(number)
    with pytest.raises(FullError, match="limit for one address"):
        one.enter(lambda: None, "192.0.2.1")
    one.enter(lambda: None, "192.0.2.2")
    one.enter(lambda: None)
    one.gone(numbers[0])
    one.enter(lambda: None, "192.0.2.1")


def test_at_the_limit_of_its_address_a_newcomer_takes_a_place_of_that_address_that_has_not_greeted():
    one, left = Door(most_per_address=2), []
    one.enter(lambda: left.append("elsewhere"), "192.0.2.9")
    first, second = [one.enter(lambda name=name: left.append(name), "192.0.2.1") for name in ("first", "second")]
    third = one.enter(lambda: pytest.fail("a greeted connection was ended"), "192.0.2.1")
    assert left == ["first"]
    one.greeted(third)
    with pytest.raises(FullError, match="make room"):
        one.greeted(first)
    one.gone(first)  # which gives no place back a second time
    fourth = one.enter(lambda: pytest.fail("a greeted connection was ended"), "192.0.2.1")
    one.greeted(fourth)
    assert left == ["first", "second"]
    one.gone(second)
    with pytest.raises(FullError, match="limit for one address"):
        one.enter(lambda: None, "192.0.2.1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.7", "", "192.0.2.7"),
        ("192.0.2.7", "198.51.100.1", "192.0.2.7"),  # anybody can send this header
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "203.0.113.5, 198.51.100.1", "198.51.100.1"),  # the first is what the client says itself
        ("127.0.0.1", "203.0.113.5, 10.1.2.3", "203.0.113.5"),
        ("127.0.0.1", "nonsense", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("::ffff:192.0.2.7", "", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "", "fe80::/64"),
    ],
)
def test_an_address_is_the_peers_or_what_a_trusted_proxy_says(peer, forwarded, address):
    one = Door(proxies=[door.read_network("127.0.0.1"), door.read_network("10.0.0.0/8")])
    request = make_mocked_request("GET", "/", headers={"X-Forwarded-For": forwarded} if forwarded else {})
    assert one.address_of(request.clone(remote=peer)) == address


def test_what_a_client_says_of_itself_does_not_count_where_a_proxy_adds_a_line_of_its_own():
    """As HAProxy does; most others add to the client's line."""
    one = Door(proxies=[door.read_network("127.0.0.1")])
    lines = CIMultiDict([("X-Forwarded-For", "203.0.113.5"), ("X-Forwarded-For", "198.51.100.1")])
    assert one.address_of(make_mocked_request("GET", "/", headers=lines).clone(remote="127.0.0.1")) == "198.51.100.1"


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
        ({"Host": "127.0.0.1:8765", "Origin": "http://[::1"}, True),
        ({"Host": "[::1", "Origin": "http://[::1"}, True),
        ({"Origin": "http://127.0.0.1:8765"}, True),
        ({"Host": "evil.example:8765", "User-Agent": "Mozilla/5.0 (X11)"}, True),
        ({"Host": "edge.local:8765", "User-Agent": "Mozilla/5.0 (X11)"}, False),
        ({"Host": "127.0.0.1:8765", "User-Agent": "Mozilla/5.0 (X11)"}, False),
        ({"Host": "edge.example:8765", "User-Agent": "OpenAI/Python 2.8.0"}, False),
    ],
)
def test_only_pages_of_the_edge_itself_may_use_it(headers, refused):
    request = make_mocked_request("GET", "/", headers=headers)
    assert bool(Door(allowed_hosts=["edge.local"]).refuses(request)) == refused


def test_pages_of_an_allowed_origin_may_use_it_too():
    door = Door(allowed_origins=[read_origin("https://Chat.example/"), read_origin("app://notes")])
    for origin, refused in (
        ("https://chat.example", False),
        ("app://notes", False),
        ("http://chat.example", True),
        ("https://chat.example:444", True),
        ("https://chat.example.evil", True),
        ("null", True),
        ("", True),
    ):
        request = make_mocked_request("GET", "/", headers={"Host": "edge.example", "Origin": origin})
        assert bool(door.refuses(request)) == refused, origin


@pytest.mark.parametrize(
    "text", ["*", "null", "", "chat.example", "https://", "https://a/b", "https://a?b", "https://u:p@a", "https://a:b"]
)
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(InputError, match="no origin of web pages"):
        read_origin(text)
