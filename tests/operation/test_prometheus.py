"""A real Prometheus with the settings of `deploy/`: it reads the edge's metrics and answers the dashboard's queries."""

import json
import shutil
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from tests.cli.started import Started
from tests.operation.programs import free_port, running

DEPLOY = Path(__file__).parents[2] / "deploy"
WAIT_S = 120

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


def queries():
    """The dashboard's queries, each with a range of a minute."""
    found = []

    def look(part):
        if isinstance(part, dict):
            found.extend(text for name, text in part.items() if name == "expr")
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            look(inner)

    look(json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8")))
    return sorted({text.replace("$__rate_interval", "1m") for text in found})


def asked(address, query):
    """How many series Prometheus finds; an error of its own for a query that it does not understand."""
    url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
        return len(json.load(answer)["data"]["result"])


def test_every_query_of_the_dashboard_has_an_answer(tiny_folder, tmp_path):
    metrics, port = free_port(), free_port()
    settings = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    assert "edge:9100" in settings
    settings = settings.replace("edge:9100", f"127.0.0.1:{metrics}").replace(
        "scrape_interval: 10s", "scrape_interval: 1s"
    )
    (tmp_path / "prometheus.yml").write_text(settings, encoding="utf-8")
    listen = f"--web.listen-address=127.0.0.1:{port}"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data", listen]
    slow = ("--mode", "rounds", "--emulated-verification-s", 0.05, 0, 0)
    served = ("--target", tiny_folder, "--port", 0, "--json", "--metrics-at", f"127.0.0.1:{metrics}")
    with running(command, port, tmp_path), Started("serve", *served, *slow) as edge:
        url = f"ws://127.0.0.1:{json.loads(edge.stdout.readline())['port']}"
        words = ("--prompt", "the same the same", "--max-tokens", 400, "--min-tokens", 400)
        missing, end = queries(), time.monotonic() + WAIT_S
        assert len(missing) > 30
        while missing and time.monotonic() < end:
            # A device's own numbers are there while it is: so there is always one.
            with Started("device", url, "--target", tiny_folder, "--draft", "lookup", "--json", *words) as device:
                while missing and time.monotonic() < end and device.returncode is None:
                    missing = [query for query in missing if not asked(f"127.0.0.1:{port}", query)]
                    time.sleep(1)
    assert missing == []
