"""Each `curl` line of the README and the documentation, as it stands there, against a running `serve`."""

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cli.started import Started

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEFAULT, GUIDE = "http://127.0.0.1:8765", "https://edge.lan:8765"

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


def curl_lines(address=DEFAULT):
    """(page, command) of every curl command in a block of code that asks the edge at `address`."""
    for page in PAGES:
        for block in re.findall(
            r"(?:^ {4,}curl .*\n(?: {4,}.*\n|\n(?= {8}))*)", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            for command in re.split(r"^ +(?=curl )", block, flags=re.MULTILINE):
                if address in command:
                    yield page.name, command.strip()
                elif command.strip():
                    assert DEFAULT in command or GUIDE in command, command


@pytest.fixture(scope="module")
def answers():
    """What comes of each line, by page and command: (exit code, output, errors). All are asked at once."""

    def ask(edge, command):
        here = command.replace("curl ", "curl -sS --fail-with-body ", 1).replace(DEFAULT, edge)
        done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, timeout=280)
        return done.returncode, done.stdout, done.stderr

    lines = list(curl_lines())
    with Started("serve", "--port", 0, "--json") as process, ThreadPoolExecutor(len(lines)) as threads:
        edge = f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        return dict(zip(lines, threads.map(lambda line: ask(edge, line[1]), lines), strict=True))


def test_there_are_some():
    assert {page for page, _ in curl_lines()} >= {"README.md", "api.md"}


@pytest.mark.parametrize(("page", "command"), list(curl_lines()), ids=lambda text: text[:60])
def test_a_curl_line_works(answers, page, command):
    code, said, errors = answers[page, command]
    assert code == 0, said + errors
    answer = json.loads(said)
    if answer["object"] == "response":
        assert answer["output"][0]["content"][0]["text"]
    else:
        assert answer["choices"][0]["message"]["content"]


def test_the_guides_authority_token_and_curl_lines_work(tmp_path):
    """One box and ten laptops (docs/site.md): its openssl lines, a token, an edge with TLS, and what asks it."""
    page = (ROOT / "docs" / "site.md").read_text(encoding="utf-8")
    (making,) = re.findall(r"(?:^ {4}(?:openssl|echo| {4,}-).*\n)+", page, re.MULTILINE)
    (adding,) = re.findall(r"^ +multispin (token add .*) > laptop-1.token", page, re.MULTILINE)
    subprocess.run(["bash", "-ec", making], cwd=tmp_path, check=True, capture_output=True)
    files = {name: tmp_path / name for name in ("edge.pem", "edge-key.pem", "tokens.json", "laptop-1.token")}
    with Started(*adding.replace("tokens.json", str(files["tokens.json"])).split()) as process:
        files["laptop-1.token"].write_text(process.stdout.read(), encoding="utf-8")
    secure = ("--tls-certificate", files["edge.pem"], "--tls-key", files["edge-key.pem"])
    with Started("serve", "--port", 0, "--json", *secure, "--tokens", files["tokens.json"]) as process:
        port = json.loads(process.stdout.readline())["port"]
        found = []
        for _, command in curl_lines(GUIDE):
            here = command.replace("curl ", f"curl -sS --fail-with-body --resolve edge.lan:{port}:127.0.0.1 ", 1)
            here = here.replace(GUIDE, f"https://edge.lan:{port}")
            done = subprocess.run(["bash", "-c", here], cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
            found.append(json.loads(done.stdout))
    ready, models = found
    assert ready == {"status": "ok"}
    assert models["data"]
