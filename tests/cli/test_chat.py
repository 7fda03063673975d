"""`multispin chat` in a pseudo-terminal, with a real edge and with a server that sends what it should not."""

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import trustme
from aiohttp import web
from tests.cli.started import Started

from multispin.cli.chat import MAX_ANSWER_BYTES, MAX_LINE_BYTES
from multispin.cli.main import run
from multispin.edge import listening

pytestmark = pytest.mark.processes
TIMEOUT_S = 120.0


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, *arguments, **environment):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in a terminal, also where tests run in the background
            os.execve(
                sys.executable,
                [sys.executable, "-m", "multispin", "chat", *arguments],
                {**os.environ, "TERM": "xterm", "NO_COLOR": "", **environment},
            )
        self.seen = ""

    def type(self, text):
        os.write(self.file, text.encode())

    def wait(self, pattern):
        """Read on until the pattern has come; returns what was read up to its end."""
        end_s = time.monotonic() + TIMEOUT_S
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < end_s, self.seen
            if select.select([self.file], [], [], 1.0)[0]:
                try:
                    self.seen += os.read(self.file, 4096).decode(errors="replace")
                except OSError:  # it has ended
                    assert re.search(pattern, self.seen), self.seen
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def code(self):
        with contextlib.suppress(OSError):
            while os.read(self.file, 4096):
                pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.file)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture(scope="module")
def edge(tmp_path_factory, tiny_folder):
    """The API of a running edge with a tiny model and a chat template."""
    import shutil

    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"
    )
    with Started(
        *("serve", "--target", folder, "--port", 0, "--json", "--max-length", 500, "--model-name", "tiny")
    ) as process:
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.start()
        try:
            ports = (json.loads(line)["port"] for line in process.stdout if '"listening"' in line)
            port = next(ports)
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            timer.cancel()


def test_a_conversation_with_an_edge(edge):
    chat = Terminal(edge, "--temperature", "0", "--max-tokens", "12")
    assert "tiny at http" in chat.wait("> ")
    chat.type("hello\n")
    assert re.search(r"\[1[0-2] tokens, [0-9.]+ tokens/s\]", first := chat.wait(r"tokens/s\].*\r\n> "))
    chat.type("/clear\n")
    chat.wait("forgotten\r\n> ")
    chat.type("hello\n")
    again = chat.wait(r"tokens/s\].*\r\n> ")
    assert again.split("[1")[0] == first.split("[1")[0]  # it began anew
    chat.type("/system Be brief\n")
    chat.wait("is set\r\n> ")
    chat.type("/help\n")
    assert "/quit" in chat.wait("Ctrl-C  .*\r\n> ")
    chat.type("/nonsense\n")
    chat.wait("no command /nonsense")
    chat.type("\x03")
    chat.wait("quit leaves")
    chat.type("/quit\n")
    assert chat.code() == 0


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(edge):
    chat = Terminal(edge, "--temperature", "0", "--max-tokens", "400")
    chat.wait("> ")
    chat.type("hi\n")
    chat.wait("hi\r\n.{10}")
    chat.type("\x03")
    chat.wait(r"\[stopped\].*\r\n> ")
    chat.type("\x04")
    assert chat.code() == 0


def test_the_address_of_the_edge_alone_leads_a_browser_to_its_dashboard(edge):
    with urllib.request.urlopen(edge.removesuffix("v1")) as answer:
        assert answer.url.endswith("/dashboard")
        assert b"<!doctype html>" in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{edge}/nothing")


@contextlib.contextmanager
def server(chunks, asked, tls=None, end=b"data: [DONE]\n\n", model="evil\x1b[2J", thinks_s=0.0, status=200):
    """An API of a model that thinks so long, streams these choices and this end.

    `asked` takes the bodies and keys of its requests.
    """
    address, stop = [], threading.Event()

    async def models(request):
        return web.json_response({"data": [{"id": model, "owned_by": "multispin"}]})

    async def complete(request):
        asked.append((await request.json(), request.headers.get("Authorization")))
        response = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(thinks_s)
        for chunk in chunks:
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(end)
        return response

    async def run():
        app = web.Application()
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/chat/completions", complete)
        async with listening(app, port=0, tls=tls) as port:
            address.append(f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1")
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        while not address:
            time.sleep(0.01)
        yield address[0]
    finally:
        stop.set()
        thread.join()


def choice(text, **more):
    return {"choices": [{"index": 0, "delta": {"content": text}, **more}]}


def test_what_a_server_sends_cannot_obey_the_terminal_and_accepted_drafts_are_green():
    asked = []
    with server([choice("one "), choice("two", drafted=True), choice("\x1b[2J\x07")], asked) as url:
        chat = Terminal(url, MULTISPIN_API_KEY="secret")
        assert "\x1b[2J" not in chat.wait("> ")
        chat.type("hi\n")
        shown = chat.wait(r"x07.*\r\n> ")
        assert "one \x1b[32mtwo\x1b[0m" in shown
        assert r"\x1b[2J\x07" in shown
        assert "\x1b[2J" not in shown
        chat.type("more\n")
        chat.wait(r"x07.*\r\n> ")
        chat.type("/quit\n")
        assert chat.code() == 0
    (first, key), (second, _) = asked
    assert key == "Bearer secret"
    assert first["mark_drafted"] is True
    assert [each["role"] for each in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "one two\x1b[2J\x07"


def test_the_speed_of_an_answer_that_comes_in_one_part_counts_from_its_request():
    usage = {"choices": [], "usage": {"completion_tokens": 20}}
    with server([choice("all of it at once"), usage], [], thinks_s=0.4) as url:
        chat = Terminal(url)
        chat.wait("> ")
        chat.type("hi\n")
        speed = re.search(r"\[20 tokens, ([0-9.]+) tokens/s\]", chat.wait(r"tokens/s\].*\r\n> "))
        assert 0.0 < float(speed[1]) <= 20 / 0.4 + 0.1
        chat.type("/quit\n")
        assert chat.code() == 0


@pytest.mark.parametrize("without", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colours_gets_none(without):
    with server([choice("one "), choice("two", drafted=True)], []) as url:
        chat = Terminal(url, **without)
        chat.wait("> ")
        chat.type("hi\n")
        shown = chat.wait(r"one .*\r\n> ")
        assert "one two" in shown
        assert "\x1b[3" not in shown
        chat.type("/quit\n")
        assert chat.code() == 0


def test_a_servers_refusal_is_one_sentence_and_the_conversation_goes_on():
    with server([{"error": {"message": "no \x1b[1mroom"}}], []) as url:
        found = subprocess.run(
            [sys.executable, "-m", "multispin", "chat", url],
            input="hi\nhi\n",
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert found.returncode == 2  # so that a script knows
    assert found.stderr == "the server refuses: no \\x1b[1mroom\n" * 2


@pytest.mark.parametrize(
    ("url", "key", "sentence"),
    [
        ("http://[::1/v1", "", "is not the base URL"),
        ("http://:80/v1", "", "is not the base URL"),
        ("http://127.0.0.1:99999/v1", "", "is not the base URL"),
        ("http://a..b/v1", "", "no API answers"),
        ("http://127.0.0.1:9/v1", "", "no API answers at http://127.0.0.1:9/v1 (Connection refused): start"),
        ("http://127.0.0.1:9/v1", "secret\n", "MULTISPIN_API_KEY has a line break"),
        ("http://127.0.0.1:9/v1", "\udcff", "MULTISPIN_API_KEY has a line break"),
    ],
)
def test_what_can_be_no_address_and_no_key_is_one_sentence(url, key, sentence, monkeypatch, capsys):
    monkeypatch.setenv("MULTISPIN_API_KEY", key)
    assert run(["chat", url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


@pytest.mark.parametrize(
    ("said", "code", "answers"),
    [
        ("\ufeffhi\n".encode(), 0, 1),
        (b"hi", 0, 1),
        (b"hi\nGr\xfc\xdfe\n", 2, 1),
        (None, 0, 0),
    ],
    ids=["byte order mark", "no line feed", "latin-1", "closed"],
)
def test_what_a_program_says_is_read_as_text_or_refused(said, code, answers, monkeypatch, capsys):
    asked = []
    with server([choice("yes")], asked) as url:
        monkeypatch.setattr(sys, "stdin", None if said is None else io.TextIOWrapper(io.BytesIO(said)))
        assert run(["chat", url]) == code
    assert len(asked) == answers
    if answers:
        assert asked[0][0]["messages"][0]["content"] == "hi"
    assert ("standard input is not UTF-8 text: byte 0xfc at position 2" in capsys.readouterr().err) == (code == 2)


def test_an_answer_without_end_is_refused(capsys):
    with server([choice("yes")], [], model="m" * MAX_ANSWER_BYTES) as url:
        assert run(["chat", url]) == 2
    assert f"the server's answer is longer than {MAX_ANSWER_BYTES} bytes" in capsys.readouterr().err


def test_a_private_authority_is_trusted_where_it_is_named(monkeypatch, capsys, tmp_path):
    authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    with server([choice("Hello")], [], tls) as url:
        for options, code in (([], 2), (["--ca-file", str(tmp_path / "authority.pem")], 0)):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
            assert run(["chat", url, *options]) == code
    found = capsys.readouterr()
    assert found.out == "Hello\n"
    assert re.search(r"certificate of https://.* is not trusted: .*--ca-file", found.err)
    assert run(["chat", url, "--ca-file", str(tmp_path / "none.pem")]) == 2
    assert "--ca-file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "sentence"), [("http://127.0.0.1:9/v1", "start `multispin serve`"), ("ftp://x", "base URL")]
)
def test_without_a_server_there_is_one_sentence_and_exit_code_2(url, sentence, capsys):
    assert run(["chat", url]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("chunks", "end", "status", "sentence"),
    [
        (1, b": the end", 200, "the server's answer ended in the middle, without [DONE]: ask again"),
        (1, b"data: " + b"x" * (MAX_LINE_BYTES + 2**18), 200, "the server sent a line of over 1048576 bytes"),
        (0, b"<html>Bad Gateway</html>", 502, "the server answered with HTTP status 502"),
        (0, b"", 504, "the server answered with HTTP status 504"),
        (0, b'{"error": {"message": "no room"}}', 429, "the server refuses: no room"),
    ],
    ids=["early", "endless line", "page of a proxy", "nothing of a proxy", "refusal"],
)
def test_an_answer_that_ends_early_or_never_is_told(chunks, end, status, sentence, monkeypatch, capsys):
    with server([choice("yes")] * chunks, [], end=end, status=status) as url:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi")))
        assert run(["chat", url]) == 2
    shown = capsys.readouterr()
    assert shown.out == "yes" * chunks
    assert sentence in shown.err
