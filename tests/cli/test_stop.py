"""A server and a device that are told to stop."""

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


def test_a_device_that_is_told_to_stop_says_goodbye(tiny_folder):
    """The edge hears a Close, so that what the session held is free at once."""
    server = subprocess.Popen(
        [sys.executable, "-m", "multispin", "serve", "--target", tiny_folder, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    device = None
    try:
        port = json.loads(server.stdout.readline())["port"]
        asked = [f"ws://127.0.0.1:{port}", "--target", tiny_folder, "--draft", "lookup", "--raw"]
        slow = ["--seconds-per-token", "0.3", "--prompt", "abcabcabcabc", "--max-tokens", "200", "--json"]
        device = subprocess.Popen(
            [sys.executable, "-m", "multispin", "device", *asked, *slow],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while json.loads(server.stdout.readline())["event"] != "round":
            pass
        device.send_signal(signal.SIGTERM)
        assert device.wait(timeout=20) == 128 + signal.SIGTERM
        assert "Traceback" not in device.stderr.read()
        events = []
        while not events or events[-1] not in ("closed", "lost"):
            events.append(json.loads(server.stdout.readline())["event"])
        assert events[-1] == "closed"
    finally:
        for process in (server, device):
            if process is not None:
                process.kill()
                process.wait()
