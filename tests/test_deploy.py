"""The files of `deploy/`: their commands, ports and times are those of the program."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from multispin.cli.serve import command
from multispin.cli.serving import METRICS_PATH
from multispin.edge.listening import SHUTDOWN_TIMEOUT_S
from multispin.edge.server import FINISH_TIMEOUT_S
from multispin.protocol.limits import CLOSE_TIMEOUT_S

DEPLOY = Path(__file__).parents[1] / "deploy"
UNIT = (DEPLOY / "multispin.service").read_text(encoding="utf-8")
CONTAINER = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SETTINGS = tomllib.loads((DEPLOY / "edge.toml").read_text(encoding="utf-8"))
OPTIONS = {option.name: option for option in command.params}
ENDS_WITHIN_S = OPTIONS["finish_s"].default + FINISH_TIMEOUT_S + SHUTDOWN_TIMEOUT_S + CLOSE_TIMEOUT_S


def test_an_edge_may_end_in_order():
    assert ENDS_WITHIN_S == 25.0
    assert f"within {ENDS_WITHIN_S:.0f} s" in UNIT
    assert f"within {ENDS_WITHIN_S:.0f} s" in CONTAINER
    for text in (
        re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[1],
        COMPOSE["services"]["edge"]["stop_grace_period"],
    ):
        assert float(text.removesuffix("s")) > ENDS_WITHIN_S


def test_the_commands_are_the_programs():
    unit = re.search(r"^ExecStart=\S+/multispin (.*)$", UNIT, re.MULTILINE)[1]
    words = re.search(r"^CMD \[(.*)\]$", CONTAINER, re.MULTILINE)[1].replace('"', "").split(", ")
    assert unit.split() == words == ["serve", "--config", "/etc/multispin/edge.toml"]
    assert re.search(r'^ENTRYPOINT \["multispin"\]$', CONTAINER, re.MULTILINE)


def test_ports_and_paths_agree():
    edge = COMPOSE["services"]["edge"]
    assert edge["ports"] == [f"{SETTINGS['port']}:{SETTINGS['port']}"]
    assert f"http://127.0.0.1:{SETTINGS['port']}/readyz" in edge["healthcheck"]["test"][-1]
    metrics_port = SETTINGS["metrics_at"].rpartition(":")[2]
    assert f"EXPOSE {SETTINGS['port']} {metrics_port}" in CONTAINER
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    [job] = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"edge:{metrics_port}"]}]
    assert job.get("metrics_path", "/metrics") == METRICS_PATH
    mounted = {volume.split(":")[1] for volume in edge["volumes"]}
    assert {"/etc/multispin/edge.toml", SETTINGS["tokens"]} <= mounted
    assert edge["build"]["dockerfile"] == "deploy/Containerfile"


def test_an_image_is_built_from_all_that_a_wheel_is_made_of():
    root = DEPLOY.parent
    used = {line[1:] for line in (root / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    hatch = project["tool"]["hatch"]
    wheel = hatch["build"]["targets"]["wheel"]
    fragments = hatch["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"]
    needed = {"pyproject.toml", *project["project"]["license-files"], *(each["path"] for each in fragments)}
    assert needed | {"src", *wheel["force-include"]} == used
    assert all(package.startswith("src/") for package in wheel["packages"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    """With a program that exists here; a key that systemd does not know is an error."""

    def verify(text):
        (tmp_path / "multispin.service").write_text(text.replace("/opt/multispin/bin/multispin", sys.executable))
        found = subprocess.run(
            ["systemd-analyze", "verify", str(tmp_path / "multispin.service")],
            capture_output=True,
            text=True,
            timeout=60,
        )
        return found.returncode, found.stdout + found.stderr

    assert verify(UNIT) == (0, "")
    _, said = verify(UNIT.replace("NoNewPrivileges", "NoNewPrivilege"))
    assert re.search("Unknown key.*NoNewPrivilege", said)
