"""What connections may hold that say nothing, half of it, or do not listen: with real sockets."""

import asyncio
import contextlib
import gc
import socket
import ssl
import subprocess
import sys
import textwrap

import aiohttp
import pytest
import trustme
from aiohttp import web

from multispin.device import trusting
from multispin.edge import Certificate, Gate, listening
from multispin.edge.gate import Guarded

HALF = b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n"
WHOLE = b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"


async def echo(request):
    return web.Response(body=await request.read())


async def flood(request):
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)


def application():
    app = web.Application()
    app.router.add_post("/v1/echo", echo)
    app.router.add_get("/flood", flood)
    return app


async def until_closed(reader):
    """What still comes; the connection must end."""
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:
        return b""


async def say(port, data, own="127.0.0.1"):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(own, 0))
    writer.write(data)
    return reader, writer


async def echoed(port):
    """Ask for something, and let the connection end."""
    async with aiohttp.ClientSession() as http, http.post(f"http://127.0.0.1:{port}/v1/echo", data=b"x") as answer:
        assert await answer.read() == b"x"


@pytest.mark.parametrize("said", [b"", b"GET / HT", HALF, b"\x00\xff" * 10])
def test_a_connection_that_asks_for_nothing_is_closed(run, said):
    async def scenario():
        one = Gate(request_timeout_s=0.2)
        async with listening(application(), port=0, gate=one) as port:
            reader, _ = await say(port, said)
            await until_closed(reader)
            gc.collect()
            return one.connections, one.silent, [each for each in gc.get_objects() if type(each) is Guarded]

    assert run(scenario()) == (0, 0, [])  # and nothing is kept of it


def test_a_body_that_stops_coming_is_answered_with_408(run, caplog):
    async def scenario():
        async with listening(application(), port=0, gate=Gate(body_timeout_s=0.2)) as port:
            reader, _ = await say(port, HALF + b"\r\nhalf")
            return await until_closed(reader)

    assert b" 408 " in run(scenario())
    assert not [record for record in caplog.records if record.exc_info]  # a stranger may send a thousand of them


def test_whole_requests_are_served_one_after_the_other(run):
    async def scenario():
        gate = Gate(request_timeout_s=1.0)
        async with listening(application(), port=0, gate=gate) as port, aiohttp.ClientSession() as http:
            for _ in range(2):
                async with http.post(f"http://127.0.0.1:{port}/v1/echo", data=b"0123456789") as answer:
                    assert await answer.read() == b"0123456789"
                await asyncio.sleep(1.2)  # longer than a stranger may say nothing

    run(scenario())


def test_who_does_not_read_is_hung_up_on(run):
    async def scenario():
        one = Gate(stall_timeout_s=0.3)
        async with listening(application(), port=0, gate=one) as port:
            _, writer = await say(port, b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
            while one.connections != 1:
                await asyncio.sleep(0.01)
            while one.connections:
                await asyncio.sleep(0.01)
            writer.close()

    run(scenario())


def test_one_address_has_so_many_connections(run):
    async def scenario():
        one = Gate(most_per_address=2)
        async with listening(application(), port=0, gate=one) as port:
            held = [await say(port, b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
            for reader, _ in held:
                await reader.readexactly(10)
            reader, _ = await say(port, b"G")
            assert await until_closed(reader) == b""
            assert one.refused == 1
            held.pop()[1].close()
            while one.connections == 2:
                await asyncio.sleep(0.01)
            async with aiohttp.ClientSession() as http:
                async with http.post(f"http://127.0.0.1:{port}/v1/echo", data=b"x") as answer:
                    held.pop()[1].close()
                    return await answer.read()

    assert run(scenario()) == b"x"


def test_at_the_limit_of_its_address_a_newcomer_takes_a_silent_place_of_that_address(run):
    async def scenario():
        one = Gate(most_per_address=2)
        async with listening(application(), port=0, gate=one) as port:
            elsewhere, kept = await say(port, b"G", own="127.0.0.2")
            silent = [await say(port, b"G") for _ in range(2)]
            reader, _ = await say(port, WHOLE)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\nx"), 20)
            assert await until_closed(silent[0][0]) == b""
            assert not elsewhere.at_eof()
            kept.close()
            return one.refused, one.connections

    assert run(scenario()) == (0, 3)


def test_a_handshake_that_is_not_finished_makes_room(run, tmp_path):
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")

    async def scenario():
        one, tls = Gate(most_per_address=2), Certificate(tmp_path / "both.pem").context
        async with listening(application(), port=0, gate=one, tls=tls) as port:
            halves = [await say(port, b"\x16\x03\x01") for _ in range(2)]
            async with aiohttp.ClientSession() as http:
                url, trusted = f"https://127.0.0.1:{port}/v1/echo", trusting(tmp_path / "authority.pem")
                async with http.post(url, data=b"x", ssl=trusted) as answer:
                    assert await answer.read() == b"x"
            assert await until_closed(halves[0][0]) == b""
            while one.connections > 1:  # the client's has ended
                await asyncio.sleep(0.01)
            return one.refused, one.silent

    assert run(scenario()) == (0, 1)


@pytest.mark.parametrize("place", [0, 40, 64])
def test_who_waits_to_be_accepted_in_a_silent_crowd_is_served(place, run):
    async def scenario():
        async with listening(application(), port=0, gate=Gate(most_per_address=16)) as port:
            crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(65)]  # in the system's queue
            crowd[place].sendall(WHOLE)
            crowd[place].setblocking(False)
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(crowd[place], 1000), 20)
            for each in crowd:
                each.close()
            return answer

    assert run(scenario()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("said", [b"P", WHOLE[:-1], WHOLE])
def test_a_flood_pushes_out_nobody_of_its_own_address_who_has_come_further(said, run):
    async def scenario():
        one = Gate(most_per_address=8)
        async with listening(application(), port=0, gate=one) as port:
            further = await say(port, said)
            if said == WHOLE:
                await further[0].readuntil(b"\r\n\r\nx")
            else:
                while not one.silent:
                    await asyncio.sleep(0)
                await echoed(port)  # what the other has said was read before
            flood = [await say(port, b"") for _ in range(40)]
            await echoed(port)
            further[1].write((WHOLE * 2)[len(said) : len(WHOLE) * (2 if said == WHOLE else 1)])
            answer = await asyncio.wait_for(further[0].readuntil(b"\r\n\r\nx"), 20)
            for _, writer in flood:
                writer.close()
            return answer

    assert run(scenario()).startswith(b"HTTP/1.1 200")


def test_a_flood_pushes_out_no_handshake_that_has_begun(run, tmp_path):
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = context.wrap_bio(there, here)

    def steps():
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        return here.read()

    async def scenario():
        one, tls = Gate(most_per_address=8), Certificate(tmp_path / "both.pem").context
        async with listening(application(), port=0, gate=one, tls=tls) as port:
            reader, writer = await say(port, steps())
            there.write(await reader.read(65536))  # the server's half
            flood = [await say(port, b"") for _ in range(40)]
            while one.connections < 8:
                await asyncio.sleep(0.01)
            for each, _ in flood[:20]:
                await until_closed(each)
            writer.write(steps())
            client.write(WHOLE)
            writer.write(here.read())
            while True:
                there.write(await asyncio.wait_for(reader.readexactly(1), 20))
                with contextlib.suppress(ssl.SSLWantReadError):
                    return client.read(12)

    assert run(scenario()) == b"HTTP/1.1 200"


def test_a_full_gate_makes_room_by_those_that_have_asked_for_nothing(run):
    async def scenario():
        one = Gate(most=3)
        async with listening(application(), port=0, gate=one) as port:
            silent = [await say(port, b"G") for _ in range(3)]
            async with aiohttp.ClientSession() as http:
                async with http.post(f"http://127.0.0.1:{port}/v1/echo", data=b"x") as answer:
                    assert await answer.read() == b"x"
            assert await until_closed(silent[0][0]) == b""
            return one.refused

    assert run(scenario()) == 0


def test_a_flood_from_one_address_pushes_out_nobody_of_another(run):
    async def scenario():
        async with listening(application(), port=0, gate=Gate(4)) as port:
            reader, writer = await say(port, b"", own="127.0.0.2")
            flood = [await say(port, b"", own="127.0.0.3") for _ in range(9)]
            writer.write(HALF + b"\r\n0123456789")
            answer = await reader.readuntil(b"0123456789")
            for _, each in (*flood, (reader, writer)):
                each.close()
            return answer

    assert run(scenario()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("said", "answered"), [(WHOLE, True), (HALF + b"\r\nhalf", False)])
def test_neither_an_answered_request_nor_half_a_body_keeps_a_place(run, said, answered):
    async def scenario():
        one = Gate(most=3)
        async with listening(application(), port=0, gate=one) as port:
            held = [await say(port, said) for _ in range(3)]
            for reader, _ in held if answered else ():
                await reader.readuntil(b"\r\n\r\nx")
            reader, _ = await say(port, WHOLE)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\nx"), 20)
            assert await until_closed(held[0][0]) == b""
            return one.refused

    assert run(scenario()) == 0


def test_a_request_that_is_being_served_keeps_its_place(run):
    async def scenario():
        one = Gate(most=2)
        async with listening(application(), port=0, gate=one) as port:
            reader, _ = await say(port, b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readexactly(10)
            for _ in range(4):
                newcomer, _ = await say(port, WHOLE)
                await asyncio.wait_for(newcomer.readuntil(b"\r\n\r\nx"), 20)
            return len(await asyncio.wait_for(reader.readexactly(1000), 20))

    assert run(scenario()) == 1000


STARVED = """
    import asyncio, logging, resource, socket, sys
    from aiohttp import web
    from multispin.edge import Gate, listening
    logging.basicConfig(stream=sys.stderr)

    async def hello(_):
        return web.Response(text="hello")

    async def main():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        app = web.Application()
        app.router.add_get("/", hello)
        async with listening(app, port=0, gate=Gate(most=1000, most_per_address=1000)) as port:
            print(port, flush=True)
            await asyncio.to_thread(sys.stdin.readline)

    asyncio.run(main())
"""


@pytest.mark.processes
def test_without_descriptors_a_server_pauses_and_says_so_once(run):
    """Accepting goes on when descriptors are free again; the log does not grow meanwhile."""
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STARVED)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port = int(server.stdout.readline())
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]

        async def ask(seconds):
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as http:
                async with http.get(f"http://127.0.0.1:{port}/") as answer:
                    return await answer.text()

        with pytest.raises((TimeoutError, aiohttp.ClientError)):
            run(ask(3.0))
        for each in held:
            each.close()
        assert run(ask(20.0)) == "hello"
        _, errors = server.communicate("\n", timeout=30)
        assert server.returncode == 0
        assert "no connection can be accepted for now" in errors
        assert len(errors) < 4000
    finally:
        server.kill()
        server.wait()
