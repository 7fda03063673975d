"""`multispin plan` as a person and as a script use it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from multispin.cli.main import run
from multispin.cli.plan import command
from multispin.control import POLICIES, load_scenario, plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "scenarios"
LLAMA = str(EXAMPLES / "paper-llama.toml")


def output(*arguments):
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("policy", ["heterogeneous", "fixed"])
def test_json_has_the_keys_that_scripts_rely_on(policy):
    document = json.loads(output(LLAMA, "--policy", policy, "--json"))
    assert list(document) == ["policy", "goodput_tokens_per_s", "upper_bound_tokens_per_s", "round_s", "devices"]
    assert list(document["devices"][0]) == ["name", "draft_length", "bandwidth_hz", "expected_tokens"]
    assert document["policy"] == policy
    made = plan(load_scenario(LLAMA), policy, relative_gap=1e-6)
    assert document["goodput_tokens_per_s"] == pytest.approx(made.goodput_tokens_per_s)
    assert (document["upper_bound_tokens_per_s"] is None) == (policy == "fixed")
    assert len(document["devices"]) == 20


def test_modes_are_named_where_there_are_any():
    file = str(EXAMPLES / "modes-llama.toml")
    devices = json.loads(output(file, "--json"))["devices"]
    assert list(devices[0]) == ["name", "draft_length", "bandwidth_hz", "expected_tokens", "mode"]
    assert {device["mode"] for device in devices} == {"coupled", "rejection-up", "rejection"}
    assert "rejection-up" in output(file)


def test_table_names_devices_goodput_and_bound():
    text = output(LLAMA)
    assert "phone-05-mbpp" in text
    assert "tokens/s in rounds of" in text
    assert "proven" in text


def test_many_devices_are_summed_up_by_length():
    text = output(str(EXAMPLES / "thousand-phones.toml"))
    assert len(text.splitlines()) < 40
    assert "band together" in text
    assert len(output(str(EXAMPLES / "thousand-phones.toml"), "--all-devices").splitlines()) > 1000


def test_comparison_lists_every_policy_with_its_gain():
    text = output(LLAMA, "--compare")
    assert all(policy in text for policy in POLICIES)
    document = json.loads(output(LLAMA, "--compare", "--json"))
    rows = {row["policy"]: row for row in document["policies"]}
    assert set(rows) == {*POLICIES, "plain"}
    assert [row["policy"] for row in document["skipped"]] == ["edge-drafts"]
    assert rows["fixed"]["gain_over_fixed"] == 0.0
    gain = rows["heterogeneous"]["goodput_tokens_per_s"] / rows["fixed"]["goodput_tokens_per_s"] - 1
    assert rows["heterogeneous"]["gain_over_fixed"] == pytest.approx(gain)
    served = [name for name in POLICIES if name != "centralized"]
    assert max(served, key=lambda name: rows[name]["goodput_tokens_per_s"]) == "heterogeneous"


@pytest.mark.long
def test_comparison_says_why_a_policy_is_left_out():
    document = json.loads(output(str(EXAMPLES / "thousand-phones.toml"), "--compare", "--json"))
    assert [row["policy"] for row in document["skipped"]] == ["centralized", "edge-drafts"]
    assert "draft_seconds_per_token" in document["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("[cell", "is not valid TOML"),
        ("[cell]\nbandwidth_hz = -1\nbits_per_token = 1\n", "line 2: cell.bandwidth_hz is -1"),
        ("[cell]\nbandwidth = 1\n", "line 2: unknown key 'bandwidth'"),
    ],
)
def test_a_bad_file_gets_one_sentence_and_exit_code_2(text, message, tmp_path, capsys):
    file = tmp_path / "bad.toml"
    if text is not None:
        file.write_text(text)
    assert run(["plan", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(file) in captured.err
    assert message in captured.err


def test_what_cannot_be_met_is_said_with_the_best_possible(tmp_path, capsys):
    file = tmp_path / "hard.toml"
    text = Path(LLAMA).read_text(encoding="utf-8")
    file.write_text(text.replace("acceptance_rate = 0.8582", "acceptance_rate = 0.8582\nmin_goodput_tokens_per_s = 40"))
    assert run(["plan", str(file)]) == 2
    message = capsys.readouterr().err
    assert "infeasible" in message
    assert "the best possible is" in message
    text = output(str(file), "--compare")
    assert "breaks a minimum" in text
    assert "the best possible is" in text


def test_help_shows_examples_on_their_own_lines(capsys):
    assert run(["plan", "--help"]) == 0
    assert "\n    multispin plan paper-llama\n" in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_a_terminal_shows_that_it_plans_and_json_shows_nothing_beside(as_json):
    ours, theirs = pty.openpty()
    try:
        arguments = [sys.executable, "-m", "multispin", "plan", LLAMA, *["--json"] * as_json]
        environment = {**os.environ, "TERM": "xterm"}
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
        os.write(theirs, b"end")
        assert (b"planning" in os.read(ours, 65536)) is not as_json
    finally:
        os.close(ours)
        os.close(theirs)
