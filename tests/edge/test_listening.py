import asyncio
import contextlib
import logging
import socket
import sys
from pathlib import Path

import pytest
from aiohttp import web

from multispin.device import session_url
from multispin.edge import listening, place_of


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("127.0.0.1", "127.0.0.1:8765"),
        ("edge.example", "edge.example:8765"),
        ("::1", "[::1]:8765"),
        ("::", "[::]:8765"),
    ],
)
def test_a_place_is_written_so_that_a_device_can_read_it(host, place):
    assert place_of(host, 8765) == place
    assert session_url(f"ws://{place}") == f"ws://{place}/v1/session"


def test_a_connection_that_comes_while_the_server_stops_is_no_error():
    said = []

    async def scenario():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with listening(web.Application(), port=0) as port:
            await asyncio.sleep(0.05)
            with socket.create_connection(("127.0.0.1", port)):
                await asyncio.sleep(0)  # its event is seen in the same turn of the loop in which the server stops

    asyncio.run(scenario())
    assert said == []


def test_a_crowd_that_comes_while_the_server_is_busy_is_kept_by_the_system():
    crowd = 300
    try:
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    except OSError:
        pytest.skip("how many connections the system keeps is not known here")
    if most <= crowd:
        pytest.skip(f"the system keeps {most} connections at most")

    async def scenario():
        async with listening(web.Application(), port=0) as port:
            with contextlib.ExitStack() as held:
                for _ in range(crowd):  # all in one turn of the loop, which accepts nobody meanwhile
                    each = held.enter_context(socket.socket())
                    each.settimeout(0.9)  # without room, the first packet is dropped and sent again after 1 s
                    each.connect(("127.0.0.1", port))

    asyncio.run(scenario())


@pytest.mark.parametrize("period_s", [0.05, 3600.0], ids=["later", "at the end"])
def test_requests_that_are_none_are_counted_in_the_log_and_not_told_one_by_one(
    stub_site, run, caplog, monkeypatch, period_s
):
    monkeypatch.setattr(sys.modules["multispin.edge.tally"], "LOG_PERIOD_S", period_s)  # the name is a function

    def told():
        return [record for record in caplog.records if record.levelno >= logging.INFO]

    async def scenario():
        async with stub_site() as site:
            for junk in [b"\x16\x03\x01\x1b[2J\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n"] * 10:
                reader, writer = await asyncio.open_connection(site.host, site.port)
                writer.write(junk)
                assert b" 400 " in await reader.readline()
                writer.close()
            if period_s > 1.0:
                assert len(told()) == 1  # the first one is told at once
            while period_s < 1.0 and sum(int(line.getMessage().split()[0]) for line in told()) < 20:
                await asyncio.sleep(0.01)

    with caplog.at_level(logging.INFO):
        run(scenario())
    assert all("requests were not HTTP" in line.getMessage() and line.exc_info is None for line in told())
    assert sum(int(line.getMessage().split()[0]) for line in told()) == 20
    assert len(told()) == 2 or period_s < 1.0
