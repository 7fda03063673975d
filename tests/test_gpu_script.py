"""The script for GPUs runs to its end where there is none, in tiny shapes; what it measures there says nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], text=True, capture_output=True, check=False)


@pytest.mark.processes
def test_the_script_writes_one_report(tmp_path):
    done = run("--tiny", "--on", "cpu", "--steps", "distill,vllm", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert [step["state"] for step in found["steps"].values()] == ["done", "done"]
    [written] = [fact for fact in found["steps"]["distill"]["facts"] if fact["what"] == "written"]
    assert written["tokens"] == 128 * 16
    assert "no GPU" in (tmp_path / "report.md").read_text()


@pytest.mark.processes
def test_steps_that_do_not_exist_are_named():
    done = run("--steps", "tabel")
    assert done.returncode == 2
    assert "tabel is none of" in done.stderr
