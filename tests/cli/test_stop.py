"""A server and a device that are told to stop."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tests.cli.started import Started

from multispin.protocol import decode_downlink

pytestmark = pytest.mark.processes


def serve(target, *options, **how):
    return Started("serve", "--target", target, "--port", 0, "--json", *options, **how)


def ignores_ctrl_c():
    """What a shell does to the programs that a script runs in its background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
    ids=["sigterm", "sigint in the background", "closed terminal"],
)
def test_serve_stops_in_order(tiny_folder, number):
    """Its devices see a goodbye, not a broken connection, and the exit code is 0."""
    import asyncio

    import aiohttp

    server = serve(tiny_folder, ignores_ctrl_c=True)
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


@pytest.mark.parametrize("signals", [1, 2])
def test_serve_lets_the_text_of_an_http_client_end_unless_it_is_told_twice(tiny_folder, signals):
    import asyncio

    import aiohttp

    slow = ["--emulated-verification-s", "0.05", "0", "0", "--mode", "plain", "--finish-s", "60"]
    server = serve(tiny_folder, *slow)
    try:
        port = json.loads(server.stdout.readline())["port"]

        async def scenario():
            body = {"prompt": "hello", "max_tokens": 60, "ignore_eos": True, "stream": True}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                async with http.post("/v1/completions", json=body) as answer:
                    lines = [await answer.content.readline()]
                    server.terminate()
                    if signals == 2:
                        while (await (await http.get("/readyz")).json())["status"] != "stopping":
                            await asyncio.sleep(0.01)
                        server.terminate()
                    return lines + [line async for line in answer.content]

        lines = [line for line in asyncio.run(scenario()) if line.strip()]
        assert server.wait(timeout=60) == 0
        assert lines[-1].strip() == b"data: [DONE]"
        last = json.loads(lines[-2].removeprefix(b"data: "))
        if signals == 1:
            assert last["choices"][0]["finish_reason"] == "length"
        else:
            assert last["error"]["code"] == "shutdown"
        assert "Traceback" not in server.stderr.read()
    finally:
        server.kill()
        server.wait()


def test_a_device_that_is_told_to_stop_says_goodbye(tiny_folder):
    """The edge hears a Close, so that what the session held is free at once."""
    server = serve(tiny_folder)
    device = None
    try:
        port = json.loads(server.stdout.readline())["port"]
        asked = [f"ws://127.0.0.1:{port}", "--target", tiny_folder, "--draft", "lookup", "--raw"]
        slow = ["--seconds-per-token", "0.3", "--prompt", "abcabcabcabc", "--max-tokens", "200", "--json"]
        device = Started("device", *asked, *slow)
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


def test_serve_that_a_script_has_in_its_background_stops_at_kill_int(tiny_folder):
    """A shell has SIGINT ignored there; the exit code is 0 all the same."""
    script = f"""
        {sys.executable} -m multispin serve --target {tiny_folder} --port 0 > "$1/out" 2> "$1/err" &
        pid=$!
        until grep -q "$2" "$1/out" "$1/err"; do sleep 0.1; kill -0 $pid || exit 99; done
        kill -INT $pid
        wait $pid
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["bash", "-c", script, "bash", folder, "listens on"], timeout=120)
        errors = (Path(folder) / "err").read_text()
    assert done.returncode == 0, errors
    assert "stopping" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_at_once_while_a_model_is_loaded(number):
    """A model that takes ten minutes to load."""
    code = (
        "import multispin.cli.serving as serving, time, sys\n"
        "def load(options): print('loading', flush=True); time.sleep(600)\n"
        "serving.load = load\n"
        "from multispin.cli.main import main\n"
        "sys.argv = ['multispin', 'serve', '--port', '0']\n"
        "main()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=ignores_ctrl_c,
    )  # fmt: skip
    try:
        assert server.stdout.readline() == "loading\n"
        server.send_signal(number)
        _, errors = server.communicate(timeout=60)
        assert server.returncode == 0
        assert "stopped before the model was loaded" in errors
        assert "Traceback" not in errors
    finally:
        server.kill()
        server.wait()


def test_a_log_that_nobody_reads_stops_nothing(tiny_folder):
    """Both pipes of the edge are full, and it still answers, writes texts and ends in order."""
    import asyncio

    import aiohttp

    server = serve(tiny_folder)
    try:
        port = json.loads(server.stdout.readline())["port"]

        async def scenario():
            url = f"http://127.0.0.1:{port}"
            body = {"model": tiny_folder, "prompt": "hello", "max_tokens": 200, "ignore_eos": True}
            async with aiohttp.ClientSession(url) as http:
                for _ in range(3):  # some 600 events of 300 bytes: three times what a pipe takes
                    async with http.post("/v1/completions", json=body) as answer:
                        assert (await answer.json())["usage"]["completion_tokens"] == 200
                async with http.get("/readyz") as answer:
                    assert answer.status == 200
                async with http.get("/metrics") as answer:
                    return await answer.text()

        metrics = asyncio.run(asyncio.wait_for(scenario(), 120))
        assert 'vllm:generation_tokens_total{engine="0"' in metrics
        server.terminate()
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.communicate()


def test_a_termination_that_a_destructor_swallows_while_a_model_is_loaded_is_not_forgotten():
    from multispin.cli.main import Termination
    from multispin.cli.serving import stops_at_once

    termination = Termination()
    with stops_at_once(termination) as stopped:
        assert not stopped()
        with contextlib.suppress(SystemExit):  # as Python does where an object is destroyed
            termination(signal.SIGTERM, None)
    assert stopped()


def _below(pid):
    """The processes that a process has begun, and those that they have begun."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(each for child in children for each in _below(child))]


def _computes(pid):
    """Whether a process has begun to compute: it leaves Ctrl-C to the command from then on."""
    try:
        [ignored] = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(ignored, 16) >> signal.SIGINT - 1 & 1)


def _runs(pid):
    """Whether a process is there, and more than an entry which nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list a process's children so")
@pytest.mark.parametrize("ready", [_computes, _runs], ids=["while they compute", "while they begin"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_of_a_simulation_computes_on_when_the_command_has_ended(number, ready):
    """Six runs of hours each: two are computed and four wait. A signal may come while the processes begin."""
    asked = ["simulate", "paper-llama", "--rounds", "10000000", "--seeds", "3", "--jobs", "2"]
    command = subprocess.Popen(
        [sys.executable, "-m", "multispin", *asked], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    computing = []
    try:
        until = time.monotonic() + 240
        wanted = 2 if ready is _computes else 1
        while len(computing := list(filter(ready, _below(command.pid)))) < wanted and time.monotonic() < until:
            time.sleep(0.1 if ready is _computes else 0.001)
        assert len(computing) >= wanted
        command.send_signal(number)
        code = command.wait(timeout=120)
        until = time.monotonic() + 120
        while any(map(_runs, computing)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(_runs, computing))
        assert code == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[number]
        assert "Traceback" not in command.stderr.read()
    finally:
        command.kill()
        for pid in filter(_runs, computing):
            os.kill(pid, signal.SIGKILL)
        command.communicate()
