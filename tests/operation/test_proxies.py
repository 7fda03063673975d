"""The edge behind nginx, Caddy and HAProxy, set up as the guide says (docs/site.md)."""

import asyncio
import contextlib
import json
import re
import shutil
from pathlib import Path

import aiohttp
import pytest
from tests.cli.started import Started
from tests.operation.programs import free_port, running

from multispin.protocol.limits import SESSION_PATH

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "site.md").read_text(encoding="utf-8")
WAIT_S = 120
TOKENS = 100
WORDS = {"prompt": "the same words", "temperature": 0, "max_tokens": TOKENS, "min_tokens": TOKENS}
MOST_CONNECTIONS = 3

pytestmark = pytest.mark.processes


def snippet(language):
    """The guide's block of configuration for a proxy."""
    [found] = re.findall(rf"^{language}:\n\n```\w*\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    return found


def nginx(folder, port, edge_port):
    """The command of an nginx on this port, with the guide's block for its one site."""
    site = snippet("nginx").replace("127.0.0.1:8765", f"127.0.0.1:{edge_port}")
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/errors;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}server {{\nlisten 127.0.0.1:{port};\n{site}}}\n}}\n",
        encoding="utf-8",
    )
    return ["nginx", "-p", str(folder), "-e", str(folder / "errors"), "-c", str(folder / "nginx.conf")]


def caddy(folder, port, edge_port):
    """The command of a Caddy on this port, with the guide's block for its one site."""
    site = snippet("Caddy").replace("127.0.0.1:8765", f"127.0.0.1:{edge_port}")
    site = site.replace("edge.example", f"http://127.0.0.1:{port}", 1)
    (folder / "Caddyfile").write_text("{\nadmin off\n}\n" + site, encoding="utf-8")
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def haproxy(folder, port, edge_port):
    """The command of an HAProxy on this port, with the guide's configuration."""
    site = snippet("HAProxy").replace("127.0.0.1:8765", f"127.0.0.1:{edge_port}")
    (folder / "haproxy.cfg").write_text(site.replace("bind :80", f"bind 127.0.0.1:{port}", 1), encoding="utf-8")
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


@pytest.fixture(scope="module")
def edge(tiny_folder):
    """The address of an edge that trusts a proxy on this machine. A text takes it some two seconds."""
    trust = ("--trusted-proxy", "127.0.0.1", "--max-connections-per-address", MOST_CONNECTIONS)
    slow = ("--emulated-verification-s", 0.02, 0, 0)
    with Started("serve", "--target", tiny_folder, "--port", 0, "--json", *trust, *slow) as process:
        yield f"127.0.0.1:{json.loads(process.stdout.readline())['port']}"


@pytest.fixture(params=[nginx, caddy, haproxy], ids=lambda proxy: proxy.__name__)
def proxy(request, edge, tmp_path):
    """Address of a proxy, and how to start it: a context that gives its process."""
    if shutil.which(request.param.__name__) is None:
        pytest.skip(f"{request.param.__name__} is not installed")
    port = free_port()
    command = request.param(tmp_path, port, edge.rpartition(":")[2])
    return f"127.0.0.1:{port}", lambda: running(command, port, tmp_path)


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, WAIT_S))


def from_address(address):
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0)))


async def running_texts(edge):
    """How many texts the edge is writing."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{edge}/metrics") as answer:
        [found] = re.findall(r"^vllm:num_requests_running\S* (\S+)$", await answer.text(), re.MULTILINE)
        return float(found)


async def written_alone(edge, tokens=TOKENS):
    words = WORDS | {"max_tokens": tokens, "min_tokens": tokens}
    async with aiohttp.ClientSession() as session, session.post(f"http://{edge}/v1/completions", json=words) as answer:
        return (await answer.json())["choices"][0]["text"]


def test_a_stream_comes_while_it_is_written(edge, proxy):
    address, start = proxy

    async def scenario():
        texts, running_at_first = [], None
        async with aiohttp.ClientSession() as session:
            async with session.post(f"http://{address}/v1/completions", json=WORDS | {"stream": True}) as answer:
                assert answer.status == 200
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        texts.append(json.loads(line[6:])["choices"][0]["text"])
                        if running_at_first is None:
                            running_at_first = await running_texts(edge)
        return running_at_first, "".join(texts), await written_alone(edge)

    with start():
        running_at_first, text, expected = run(scenario())
    assert running_at_first == 1
    assert text == expected


def test_a_device_outlives_the_proxy(edge, proxy, tiny_folder):
    """Its connection breaks in mid-text, and it goes on through a proxy that is started anew."""
    address, start = proxy
    tokens = 2 * TOKENS  # not over before a busy machine has stopped the proxy
    words = ("--prompt", WORDS["prompt"], "--raw", "--max-tokens", tokens, "--min-tokens", tokens)

    async def until_it_writes():
        while not await running_texts(edge):
            await asyncio.sleep(0.02)

    with contextlib.ExitStack() as stack:
        with start():
            device = Started(
                "device", f"ws://{address}", "--target", tiny_folder, "--draft", "lookup", "--json", *words
            )
            stack.enter_context(device)
            run(until_it_writes())
        stack.enter_context(start())
        said, errors = device.communicate(WAIT_S)
        expected = run(written_alone(edge, tokens))
    events = [json.loads(line) for line in said.splitlines()]
    assert events[-1]["event"] == "done", said + errors
    assert events[-1]["text"] == expected
    assert "reconnect" in str(events)


def test_every_client_has_an_address_of_its_own(edge, proxy):
    """A client that opens too many connections hinders no other, and the address that it claims is not believed."""
    address, start = proxy

    async def scenario():
        async with from_address("127.0.0.2") as greedy, from_address("127.0.0.3") as other:
            url = f"http://{address}{SESSION_PATH}"
            async with other.ws_connect(url) as place:
                own = [
                    await greedy.ws_connect(url, headers={"X-Forwarded-For": f"10.0.0.{claimed}"})
                    for claimed in range(MOST_CONNECTIONS + 1)
                ]
                pushed_out = await own[0].receive_bytes()  # it has not greeted, so the newest takes its place
                with pytest.raises(TimeoutError):
                    await place.receive(1)
                return pushed_out, [each.closed for each in own[1:]]

    with start():
        pushed_out, closed = run(scenario())
    assert b"another connection took this place" in pushed_out
    assert not any(closed)
