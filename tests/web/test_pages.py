"""What the pages' server promises, without a browser: headers, tokens, limits, slow readers."""

import asyncio
import base64
import re
from contextlib import asynccontextmanager

import aiohttp
import click
import pytest
from aiohttp import web

from multispin.edge import Access, listening
from multispin.edge.door import Door, read_network
from multispin.errors import InputError
from multispin.gateway import guard
from multispin.models import load_tokenizer
from multispin.models.token_table import token_table
from multispin.protocol.events import Connected
from multispin.web import Board, Dashboard, DevicePage, PageDrafter
from multispin.web.dashboard import MAX_VIEWERS
from multispin.web.device_page import MAX_PROMPT_BYTES
from multispin.web.files import STATIC, client_folder
from multispin.web.join import join_address, join_code, join_picture, own_addresses

SECRET = "open sesame"
BEARER = {"Authorization": f"Bearer {SECRET}"}
PUBLIC = ["/device", "/device/static/device.js", "/device/client/index.js", "/dashboard", "/dashboard/static/feed.js"]
GUARDED = ["/device/about", "/device/tokens", "/dashboard/feed", "/dashboard/join"]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return load_tokenizer(tiny_folder)


@asynccontextmanager
async def pages(tokenizer, tmp_path, proxies=(), **options):
    """An HTTP client of a server with both pages, and the dashboard."""
    (tmp_path / "wllama.js").write_text("export {};")
    drafter = tmp_path / "drafter.gguf"
    drafter.write_bytes(b"GGUF" * 1000)
    app, access = web.Application(), Access(SECRET, door=Door(proxies=proxies))
    page = DevicePage("tiny", tokenizer, token_table(tokenizer), 64, PageDrafter("small", drafter), tmp_path)
    page.add_routes(app, guard(access))
    board = Board("tiny")
    dashboard = Dashboard(board, lambda address: f"<svg>{address}</svg>", **options)
    dashboard.add_routes(app, guard(access))
    async with listening(app, port=0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        yield client, board, dashboard


def test_every_file_of_a_page_may_load_from_its_edge_only(tokenizer, tmp_path):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, _, _):
            for path in (*PUBLIC, "/device/about", "/dashboard/join"):
                async with client.get(path, headers=BEARER) as answer:
                    assert answer.status == 200, path
                    policy = answer.headers["Content-Security-Policy"]
                    assert "default-src 'none'" in policy
                    assert not re.search(r"https?:|\*|unsafe-inline|'unsafe-eval'", policy)
                    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
                    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"

    asyncio.run(scenario())


def test_an_edges_address_alone_leads_to_the_dashboard(tokenizer, tmp_path):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, _, _), client.get("/") as answer:
            return answer.status, answer.url.path, await answer.text()

    status, path, text = asyncio.run(scenario())
    assert (status, path) == (200, "/dashboard")
    assert "<!doctype html>" in text


@pytest.mark.parametrize("host", ["a; script-src *", "[fd00::2]:8765"])  # an IPv6 address makes the policy invalid
def test_a_strange_host_does_not_get_into_the_policy(tokenizer, tmp_path, host):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, _, _):
            async with client.get("/device", headers={"Host": host}) as answer:
                assert answer.headers["Content-Security-Policy"].endswith("connect-src 'self'")

    asyncio.run(scenario())


def test_no_file_of_a_page_names_another_host():
    own = re.compile(r"https?://(www\.w3\.org/2000/svg|github\.com/msgpack/)")
    for folder in (STATIC, client_folder()):
        for path in folder.iterdir():
            if path.is_file():
                found = re.sub(own, "", path.read_text(encoding="utf-8"))
                assert not re.search(r"https?://(?!\$)", found), path


def test_what_the_model_has_is_given_only_to_who_has_the_token(tokenizer, tmp_path):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, _, _):
            async with client.get("/device/about", headers=BEARER) as answer:
                about = await answer.json()
            for path in (*GUARDED, about["drafter"]["url"]):
                for headers in ({}, {"Authorization": "Bearer wrong"}):
                    async with client.get(path, headers=headers) as answer:
                        assert answer.status == 401, path
            async with client.post("/device/prompt", json={"messages": []}) as answer:
                assert answer.status == 401
            async with client.get(about["drafter"]["url"], headers=BEARER) as answer:
                assert len(await answer.read()) == about["drafter"]["bytes"]
                assert "immutable" in answer.headers["Cache-Control"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"messages":[{"role":"user","content":"ab"}]}', 200),
        (b'{"messages":[]}', 400),
        (b'{"messages":[{"role":"user","content":""}]}', 400),
        (b'{"messages":[{"role":"user"}]}', 400),
        (b'{"messages":[{"role":"user","content":"a","more":1}]}', 400),
        (b'{"messages":[{"role":"user","content":"a","content":"ab"}]}', 400),
        (b"\xff", 400),
        (b'{"messages":[{"role":"user","content":"' + b"a" * MAX_PROMPT_BYTES + b'"}]}', 413),
    ],
)
def test_a_prompt_becomes_ids_or_one_sentence(tokenizer, tmp_path, body, status):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, _, _):
            async with client.post("/device/prompt", data=body, headers=BEARER) as answer:
                found = await answer.json()
                assert answer.status == status
                assert found == {"ids": tokenizer.encode("ab")} if status == 200 else found["error"]

    asyncio.run(scenario())


@pytest.mark.parametrize("encoding", ["gzip, br", "identity"])
def test_the_table_of_tokens_spells_any_text(tokenizer, tmp_path, encoding):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, _, _):
            async with client.get("/device/tokens", headers={**BEARER, "Accept-Encoding": encoding}) as answer:
                assert ("Content-Encoding" in answer.headers) == (encoding != "identity")
                return await answer.read()

    table = asyncio.run(scenario())
    pieces = unpacked(table)
    text = "Grüße, ☎ und ein\n\tTab"
    assert b"".join(pieces[index] for index in tokenizer.encode(text)).decode() == text
    assert pieces[tokenizer.stop_ids[0]] == b""


def unpacked(table):
    pieces, at = [], 0
    while at < len(table):
        size = int.from_bytes(table[at : at + 2], "big")
        pieces.append(table[at + 2 : at + 2 + size])
        at += 2 + size
    return pieces


def test_a_tokenizer_whose_pieces_cannot_be_joined_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids: "x".join(str(each) for each in ids))
    with pytest.raises(InputError, match="cannot show its texts"):
        token_table(tokenizer)


def test_the_dashboards_feed_says_what_happens(tokenizer, tmp_path):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, board, _):
            async with client.get("/dashboard/feed", headers=BEARER) as answer:
                assert answer.headers["Content-Type"].startswith("text/event-stream")
                first = await answer.content.readline()
                assert b'"sessions":[]' in first
                board.tell(Connected(1, "phone", "small", False))
                await answer.content.readline()
                assert b'"name":"phone"' in await answer.content.readline()

    asyncio.run(scenario())


def test_viewers_are_counted_and_bounded(tokenizer, tmp_path):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, _, dashboard):
            open_ones = [await client.get("/dashboard/feed", headers=BEARER) for _ in range(MAX_VIEWERS)]
            async with client.get("/dashboard/feed", headers=BEARER) as answer:
                assert answer.status == 429
            for each in open_ones:
                each.close()
            async with asyncio.timeout(20):
                while dashboard.viewers:
                    await asyncio.sleep(0.05)

    asyncio.run(scenario())


def test_one_address_has_a_share_of_the_viewers_and_another_has_room(tokenizer, tmp_path):
    async def scenario():
        async with pages(tokenizer, tmp_path, [read_network("127.0.0.1")], max_share=0.5) as (client, _, _):

            async def look(address):
                return await client.get("/dashboard/feed", headers={**BEARER, "X-Forwarded-For": address})

            answers = [await look("192.0.2.1") for _ in range(MAX_VIEWERS // 2 + 1)]
            answers.append(await look("192.0.2.2"))
            for each in answers:
                each.close()
            return [each.status for each in answers]

    assert asyncio.run(scenario()) == [200] * (MAX_VIEWERS // 2) + [429, 200]


def test_who_asks_for_the_feeds_headers_alone_takes_no_viewers_place(tokenizer, tmp_path):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, _, dashboard):
            answer = await client.head("/dashboard/feed", headers=BEARER)
            return answer.status, dashboard.viewers

    assert asyncio.run(scenario()) == (405, 0)


def test_a_viewer_that_does_not_read_is_let_go_and_holds_up_nobody(tokenizer, tmp_path):
    async def scenario():
        times = {"period_s": 0.001, "write_timeout_s": 0.5}
        async with pages(tokenizer, tmp_path, **times) as (client, board, dashboard):
            for session in range(64):
                board.tell(Connected(session, "☎" * 80, "d" * 80, False))
            async with client.get("/device", headers=BEARER) as answer:
                address = answer.url
            reader, writer = await asyncio.open_connection(address.host, address.port, limit=2**12)
            request = f"GET /dashboard/feed HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n\r\n"
            writer.write(request.encode())
            await reader.readline()
            writer.transport.pause_reading()
            seen_at_once = dashboard.viewers
            async with asyncio.timeout(60):
                while dashboard.viewers:
                    async with client.get("/device", headers=BEARER) as answer:  # others are served meanwhile
                        assert answer.status == 200
            writer.close()
            assert seen_at_once == 1

    asyncio.run(scenario())


def test_a_phone_is_shown_the_way_with_the_viewers_own_token(tokenizer, tmp_path):
    async def scenario():
        async with pages(tokenizer, tmp_path) as (client, _, dashboard):
            dashboard.invite("10.0.0.5:8765")
            async with client.get("/dashboard/join", headers=BEARER) as answer:
                found = await answer.json()
            assert found["address"] == "http://10.0.0.5:8765/device"
            picture = base64.b64decode(found["picture"].removeprefix("data:image/svg+xml;base64,")).decode()
            assert picture == f"<svg>{join_address('10.0.0.5:8765', SECRET)}</svg>"

    asyncio.run(scenario())


def test_a_code_is_drawn_for_a_terminal_and_for_a_page():
    address = join_address("10.0.0.5:8765", "a b/c")
    assert address == "http://10.0.0.5:8765/device#token=a%20b%2Fc"
    assert join_address("https://edge.example.org/") == "https://edge.example.org/device"
    lines = join_code(address).splitlines()
    assert len(lines) > 10
    assert all(line.startswith("\x1b[97;40m") and line.endswith("\x1b[0m") for line in lines)  # on any terminal
    assert {*click.unstyle("".join(lines))} == {*"█▀▄ "}
    assert join_picture(address).startswith("<svg")


def test_a_server_on_this_machine_only_has_no_address_for_others():
    assert own_addresses("127.0.0.1") == own_addresses("localhost") == own_addresses("::1") == []
    assert own_addresses("10.1.2.3") == ["10.1.2.3"]
    assert all(each != "0.0.0.0" for each in own_addresses("0.0.0.0"))
