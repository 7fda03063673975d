"""`multispin profile --engine vllm`: vLLM is timed, and the rest is measured as for the embedded verifier."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest

from multispin.cli.main import run
from multispin.control import load_scenario

# vLLM's state is the process's: where one engine follows another, their workers need processes of their own.
WORKERS = "distributed_executor_backend=mp"


def test_vllm_is_profiled_and_the_controller_reads_it(folder, tmp_path):
    site, picture = tmp_path / "site.toml", tmp_path / "p.png"
    arguments = [
        *("profile", "--engine", "vllm", "--engine-option", WORKERS, "--target", folder, "--draft", "lookup"),
        *("--prompts", "1", "--tokens", "8", "--batches", "1,3", "--lengths", "0,2", "--context", "40"),
        *("--repeats", "2", "--threads", "1", "--json", "--out", str(site), "--plot", str(picture)),
    ]
    with redirect_stdout(StringIO()) as said:
        assert run(arguments) == 0
    found = json.loads(said.getvalue())  # nothing of vLLM's stands among it
    assert found["engine"] == "vllm"
    assert ", vLLM 0." in found["machine"]
    verification = found["verification"]
    assert [(p["devices"], p["draft_length"]) for p in verification["points"]] == [(1, 0), (1, 2), (3, 0), (3, 2)]
    assert all(point["seconds"] > 0 for point in verification["points"])
    assert "on the vllm engine" in site.read_text()
    assert load_scenario(site).verifier.fixed_s == pytest.approx(verification["fixed_s"])
    assert picture.read_bytes().startswith(b"\x89PNG")
