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
DEFAULT = "http://127.0.0.1:8765"

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


def curl_lines():
    """(page, command) of every curl command in a block of code."""
    for page in PAGES:
        for block in re.findall(
            r"(?:^ {4,}curl .*\n(?: {4,}.*\n|\n(?= {8}))*)", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            for command in re.split(r"^ +(?=curl )", block, flags=re.MULTILINE):
                if command.strip():
                    yield page.name, command.strip()


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


@pytest.mark.parametrize(("page", "command"), curl_lines(), ids=lambda text: text[:60])
def test_a_curl_line_works(answers, page, command):
    assert DEFAULT in command
    code, said, errors = answers[page, command]
    assert code == 0, said + errors
    answer = json.loads(said)
    if answer["object"] == "response":
        assert answer["output"][0]["content"][0]["text"]
    else:
        assert answer["choices"][0]["message"]["content"]
