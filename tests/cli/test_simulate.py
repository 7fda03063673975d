"""`multispin simulate` as a person and as a script use it."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from multispin.cli.main import run
from multispin.cli.process import check_outputs
from multispin.cli.simulate import USUAL_POLICIES, command

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "scenarios"
LLAMA = str(EXAMPLES / "paper-llama.toml")
SMALL = ("--rounds", "8", "--seeds", "2", "--jobs", "1", "--sweep", "devices=3")


def output(*arguments):
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json_has_the_keys_that_scripts_rely_on():
    document = json.loads(output(LLAMA, *SMALL, "--policy", "fixed", "--json"))
    assert list(document)[:3] == ["scenario", "rounds", "seeds"]
    assert (document["scenario"], document["rounds"], document["seeds"]) == (LLAMA, 8, 2)
    (result,) = document["results"]
    assert (result["policy"], result["mode"], result["sweep"]) == ("fixed", "rounds", {"devices": 3})
    assert set(result) >= {
        "goodput_tokens_per_s", "jain_index", "time_to_first_token_s_p50", "time_per_token_s_p50",
        "time_per_token_s_p95", "time_per_token_s_p99", "server_utilisation", "device_utilisation",
        "uplink_utilisation", "wasted_draft_fraction",
    }  # fmt: skip
    for name, value in result.items():
        if name not in ("policy", "mode", "sweep"):
            assert list(value) == ["mean", "low", "high"]
    assert result["rounds"] == {"mean": 8.0, "low": 8.0, "high": 8.0}


def test_policies_stand_side_by_side():
    text = output(LLAMA, *SMALL)
    assert all(policy in text for policy in USUAL_POLICIES)
    assert "…" not in text  # nothing is cut off
    text = output(LLAMA, *SMALL, "--policy", "fixed", "--policy", "fair", "--knows")
    assert "fair" in text
    assert "heterogeneous" not in text
    assert "knows the truth" in text


def test_one_row_per_run_and_a_picture_of_each_kind(tmp_path):
    for sweeps in (
        (),
        ("--sweep", "devices=2,3"),
        ("--sweep", "devices=2,3", "--sweep", "simulation.fading=none,rayleigh"),
    ):
        rows, picture = tmp_path / "runs.csv", tmp_path / "picture.png"
        output(LLAMA, "--rounds", "3", "--seeds", "1", "--jobs", "1", "--policy", "fixed", *sweeps,
               "--csv", str(rows), "--plot", str(picture))  # fmt: skip
        with rows.open(encoding="utf-8") as stream:
            read = list(csv.DictReader(stream))
        assert len(read) == 2 ** (len(sweeps) // 2)
        assert float(read[0]["goodput_tokens_per_s"]) > 0
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()


@pytest.mark.long
def test_modes_stand_side_by_side():
    modes = [word for mode in ("plain", "edge", "rounds", "mixture", "auto") for word in ("--mode", mode)]
    site = ("a100-27b", "--rounds", "60", "--seeds", "1", "--jobs", "1", *modes)
    results = json.loads(output(*site, "--json"))["results"]
    assert [(result["mode"], result["policy"]) for result in results] == [
        (mode, "heterogeneous") for mode in ("plain", "edge", "rounds", "mixture", "auto")
    ]
    plain, edge, rounds, mixture, auto = (result["goodput_tokens_per_s"]["mean"] for result in results)
    assert min(edge, rounds, mixture, auto) > plain  # a pass takes 154 ms there, a drafted token 12 ms
    printed = output(*site)
    assert "\nmixture, heterogeneous" in printed
    assert "\nrounds, heterogeneous" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no.toml",), "cannot be read"),
        ((LLAMA, "--policy", "p2p"), "p2p"),
        ((LLAMA, "--rounds", "0"), "--rounds"),
        ((LLAMA, "--sweep", "cell.bandwidth_hz"), "--sweep 'cell.bandwidth_hz'"),
        ((LLAMA, "--sweep", "cell.colour=1"), "with cell.colour = 1: "),
        ((LLAMA, "--sweep", "cell.colour=1"), "unknown key 'colour'"),
        ((LLAMA, "--sweep", "cell.bandwidth_hz=-1"), "bandwidth_hz is -1"),
        ((LLAMA, *("--sweep", "devices=2") * 3), "3 times"),
        ((LLAMA, "--sweep", "cell.multiple_access=tdma"), "needs a controller that knows the truth"),
        ((LLAMA, "--plot", "picture.doc"), "--plot picture.doc"),
        ((LLAMA, "--csv", "nowhere/runs.csv"), "there is no folder nowhere"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert run(["simulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_that_has_a_name_is_no_output(tmp_path, capsys):
    pipe = tmp_path / "runs.csv"
    os.mkfifo(pipe)  # to open it would take until somebody reads it
    assert run(["simulate", LLAMA, "--csv", str(pipe)]) == 2
    assert capsys.readouterr().err == f"multispin: {pipe} cannot be written: it is not a file\n"


def test_devices_and_pipes_that_are_open_are_outputs():
    reads, writes = os.pipe()
    check_outputs(Path(os.devnull), *([Path(f"/dev/fd/{writes}")] if os.name == "posix" else []))
    os.close(reads)
    os.close(writes)


def test_without_ray_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert run(["simulate", LLAMA, "--rounds", "8", "--policy", "fixed", "--ray"]) == 2
    assert "pip install '.[ray]'" in capsys.readouterr().err


@pytest.mark.long
def test_ray_gives_the_same_figures_as_this_process():
    pytest.importorskip("ray")
    arguments = (LLAMA, "--rounds", "8", "--seeds", "2", "--sweep", "devices=3", "--policy", "fixed", "--json")
    assert output(*arguments, "--ray") == output(*arguments, "--jobs", "1")


def test_help_shows_examples_on_their_own_lines(capsys):
    assert run(["simulate", "--help"]) == 0
    assert "\n    multispin simulate paper-llama\n" in capsys.readouterr().out
