"""A server that is told to stop."""

import json
import signal
import subprocess
import sys

import pytest

from multispin.protocol import decode_downlink

pytestmark = pytest.mark.processes


def ignores_ctrl_c():
    """What a shell does to the programs that a script runs in its background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint in the background"])
def test_serve_stops_in_order(tiny_folder, number):
    """Its devices see a goodbye, not a broken connection, and the exit code is 0."""
    import asyncio

    import aiohttp

    server = subprocess.Popen(
        [sys.executable, "-m", "multispin", "serve", "--target", tiny_folder, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignores_ctrl_c,
    )
    try:
        port = json.loads(server.stdout.readline())["port"]

        async def scenario():
            async with aiohttp.ClientSession() as http, http.ws_connect(f"ws://127.0.0.1:{port}/v1/session") as socket:
                server.send_signal(number)
                return [await socket.receive(timeout=20) for _ in range(2)]

        last, goodbye = asyncio.run(scenario())
        assert server.wait(timeout=20) == 0
        last = decode_downlink(last.data)
        assert (last.code, last.retry_after_s) == ("shutdown", 10.0)
        assert (goodbye.type, goodbye.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)
        assert "Traceback" not in server.stderr.read()
    finally:
        server.kill()
        server.wait()
