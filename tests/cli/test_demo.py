"""The commands as a user runs them: real processes, real sockets, a tiny model or the embedded one."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.started import Started
from tests.contract.recorded import check_keys, keys_of

from multispin.cli.main import run as multispin
from multispin.errors import InputError

pytestmark = pytest.mark.processes

KEYS = {"policy", "target", "goodput_tokens_per_s", "predicted_goodput_tokens_per_s", "rounds", "wall_s", "devices"}
DEVICE_KEYS = {
    *("name", "drafter", "prompt", "text", "tokens", "drafted", "accepted", "acceptance_rate"),
    *("mean_draft_length", "uplink_bytes", "identical_to_target"),
}


def command(*arguments):
    return [sys.executable, "-m", "multispin", *map(str, arguments)]


def run(*arguments, timeout=280):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False
    )


def run_here(capsys, *arguments):
    """(exit code, standard output, standard error) of a demo whose parent is this process: it has torch already."""
    code = multispin([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def no_process_left(stderr):
    pids = [int(pid) for pid in re.findall(r"is process (\d+)", stderr)]
    assert pids
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if not alive:
            return True
        time.sleep(0.1)
    return False


def check_result(result, devices):
    assert set(result) >= KEYS
    assert len(result["devices"]) == devices
    for device in result["devices"]:
        assert set(device) >= DEVICE_KEYS
        assert device["identical_to_target"] is True
        assert device["tokens"] > 0
        assert 0 <= device["accepted"] <= device["drafted"]
        assert device["uplink_bytes"] > 0
    assert result["rounds"] > 0
    assert result["goodput_tokens_per_s"] > 0
    assert result["predicted_goodput_tokens_per_s"] > 0


def test_a_demo_of_three_devices_with_stop_strings_a_minimal_length_and_biases(tiny_folder, capsys):
    options = ("--min-tokens", 16, "--stop", "e", "--stop", "o", "--stop", " ", "--stop", "t")
    code, stdout, stderr = run_here(
        capsys,
        *("demo", "--json", "--devices", 3, "--target", tiny_folder, "--max-tokens", 40, "--policy", "fixed"),
        *("--draft", tiny_folder, "--draft", "none", "--draft", "lookup", "--temperature", 0.9, "--seed", 5),
        *("--prompt", "one two one two one", "--prompt", "three"),
        *("--logit-bias", "5=-100", "--logit-bias", "7=3.5", *options),
    )
    assert code == 0, stderr
    result = json.loads(stdout)
    check_result(result, 3)
    assert all(16 <= device["tokens"] <= 40 for device in result["devices"])
    assert any(device["tokens"] < 40 for device in result["devices"])
    assert result["policy"] == "fixed"
    log = [entry for entry in result["round_log"] if entry["drafted"]]
    for device in result["devices"]:
        assert sum(entry["tokens"].get(device["name"], 0) for entry in log) == device["tokens"]
        assert sum(entry["drafted"].get(device["name"], 0) for entry in log) == device["drafted"]
    # The loop's clock counts whole milliseconds, and a pass may take less.
    assert all(a["time_s"] <= b["time_s"] for a, b in itertools.pairwise(log))
    assert log[0]["time_s"] < log[-1]["time_s"]
    speeds = [entry["seconds_per_token"]["laptop-1"] for entry in log if "laptop-1" in entry["drafted"]]
    assert speeds[-1] >= 0.029  # a laptop is never quicker than 0.03, however small its drafter
    assert len(set(speeds)) > 1  # learned, not what its profile says
    first = result["devices"][0]
    assert first["accepted"] > 0.8 * first["drafted"] > 0  # it drafts with the target itself
    assert no_process_left(stderr)


SITE = """
[cell]
bandwidth_hz = 1e6
bits_per_token = 9
min_draft_length = 0
[verifier]
fixed_s = 0.06
per_device_s = 0.005
per_token_s = 0.001
[edge_drafter]
fixed_s = 0.002
per_device_s = 0.001
acceptance_rate = 0.5
[[device]]
name = "near"
seconds_per_token = 0.01
spectral_efficiency = 4.0
acceptance_rate = 0.9
delay_s = 0.001
[[device]]
name = "far"
seconds_per_token = 0.02
spectral_efficiency = 2.0
acceptance_rate = 0.5
delay_s = 0.02
"""


def test_a_demo_of_a_site_plays_the_same_prompts_in_several_ways(tiny_folder, tmp_path, capsys):
    (tmp_path / "site.toml").write_text(SITE)
    code, stdout, stderr = run_here(
        capsys,
        *("demo", "--json", "--site", tmp_path / "site.toml", "--target", tiny_folder, "--draft", tiny_folder),
        *("--draft", "lookup", "--max-tokens", 16, "--edge-draft", "q4"),
        *("--mode", "plain", "--mode", "edge", "--mode", "rounds"),
        *("--policy", "fixed", "--prompt", "one two one"),
    )
    assert code == 0, stderr
    result = json.loads(stdout)
    check_result(result, 2)
    check_keys("keys-demo", {"printed": keys_of(result)})
    assert [device["name"] for device in result["devices"]] == ["near", "far"]
    assert (result["mode"], result["policy"], result["site"]) == ("rounds", "fixed", str(tmp_path / "site.toml"))
    assert result["slower"] >= 1
    plain, edge, rounds = result["comparison"]
    assert [(play["mode"], play["policy"]) for play in result["comparison"]] == [
        ("plain", None),
        ("edge", None),
        ("rounds", "fixed"),
    ]
    for play in (plain, edge, rounds):
        assert play["identical"] is True
        assert play["goodput_tokens_per_s"] == pytest.approx(sum(user["tokens_per_s"] for user in play["users"]))
        # No pass is quicker than the site's; each gives a user of plain decoding one token.
        assert play["per_user_tokens_per_s"] <= (1 if play is plain else 17) / 0.06
    assert sum(user["drafted"] for user in plain["users"]) == 0
    assert sum(user["drafted"] for user in edge["users"]) > 0  # by the edge itself
    assert sum(user["accepted"] for user in rounds["users"]) > 0
    assert stderr.count("edge is process") == 3
    assert stderr.count("near is process") == 1
    assert no_process_left(stderr)


def test_an_edge_drafts_itself_only_where_the_site_says_how_fast(tmp_path, capsys, monkeypatch):
    def ordered(order):
        raise InputError(", ".join(f"{play.mode} {play.edge_drafter}" for play in order.plays))

    monkeypatch.setattr("multispin.demo.program.play_all", ordered)
    (tmp_path / "with.toml").write_text(SITE)
    (tmp_path / "without.toml").write_text(re.sub(r"\[edge_drafter\].*?\[\[", "[[", SITE, count=1, flags=re.DOTALL))
    (tmp_path / "turns.toml").write_text(
        re.sub(r"delay_s = .*", "", SITE).replace("[cell]", "[cell]\nmultiple_access = 'tdma'")
    )
    for name, arguments, sentence in [
        ("with", (), "plain None, edge small, rounds None, rounds None, streams small, auto small"),
        ("with", ("--edge-draft", "q4", "--mode", "edge"), "edge q4"),
        ("without", (), "plain None, rounds None, rounds None, streams None, auto None"),
        ("without", ("--mode", "edge"), "has no [edge_drafter]"),
        ("without", ("--edge-draft", "small"), "--edge-draft is not for this site"),
        ("turns", (), "the demo cannot emulate multiple_access = 'tdma'"),
    ]:
        code, stdout, stderr = run_here(capsys, "demo", "--site", tmp_path / f"{name}.toml", *arguments)
        check_refusal(stdout, stderr, sentence)
        assert code == 2


def test_a_demo_under_a_rejection_rule_says_why_there_is_nothing_to_compare_with(tiny_folder, capsys):
    code, stdout, stderr = run_here(
        capsys,
        *("demo", "--json", "--devices", 2, "--target", tiny_folder, "--max-tokens", 12, "--policy", "fixed"),
        *("--draft", tiny_folder, "--draft", "lookup", "--temperature", 0.9, "--seed", 7, "--prompt", "one two one"),
        *("--rule", "rejection-up", "--retained", 64, "--probability-bits", 12),
    )
    assert code == 0, stderr
    result = json.loads(stdout)
    assert result["rule"] == "rejection-up"
    assert "distribution" in result["not_compared"]
    assert [device["identical_to_target"] for device in result["devices"]] == [None, None]
    # A text may end before its twelfth token: under this rule it depends on what was drafted.
    assert all(0 < device["tokens"] <= 12 for device in result["devices"])
    assert result["devices"][0]["accepted"] > 0


def start_demo(*arguments):
    return Started("demo", "--json", *arguments)


def read_until(process, pattern, limit_s=120):
    """Read standard error line by line until one matches."""
    heard, deadline = "", time.monotonic() + limit_s
    while time.monotonic() < deadline:
        line = process.stderr.readline()
        heard += line
        if found := re.search(pattern, line):
            return found, heard
        if not line:
            break
    raise AssertionError(f"no {pattern!r} in {heard}")


def test_killing_one_device_leaves_the_others_to_finish_and_is_told(tiny_folder):
    process = start_demo(
        *("--devices", "3", "--target", tiny_folder, "--draft", "lookup", "--max-tokens", "60", "--policy", "fixed"),
    )
    found, heard = read_until(process, r"tablet-2 is process (\d+)")
    _, more = read_until(process, r"(pass|round) [1-9]")
    os.kill(int(found[1]), signal.SIGKILL)
    stdout, rest = process.communicate(timeout=200)
    assert process.returncode == 0, rest
    devices = {device["name"]: device for device in json.loads(stdout)["devices"]}
    assert devices["laptop-1"]["identical_to_target"] is True
    assert devices["phone-3"]["identical_to_target"] is True
    assert devices["tablet-2"]["lost"]
    assert "tablet-2 was lost" in rest
    assert no_process_left(heard + more + rest)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_when_the_demo_ends_early_all_its_processes_end(tiny_folder, end):
    process = start_demo("--devices", "2", "--target", tiny_folder, "--draft", "lookup", "--max-tokens", "200")
    _, heard = read_until(process, r"(pass|round) [1-9]")
    process.send_signal(end)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == (130 if end is signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in rest
    assert no_process_left(heard + rest)


def test_ctrl_c_in_a_terminal_while_libraries_are_imported_is_no_traceback(tiny_folder):
    """A terminal sends it to every process of its group."""
    process = start_demo("--devices", "1", "--target", tiny_folder, "--draft", "lookup")
    _, heard = read_until(process, "starting")
    os.killpg(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in heard + rest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--logit-bias", "999999=1", "--draft", "none"], "outside 0 …"),
        (["--draft", "OTHER"], "tokenizer"),
    ],
    ids=lambda value: value[0] + "-" + value[1] if isinstance(value, list) else "",
)
def test_what_a_process_of_the_demo_refuses_is_the_demos_own_sentence(
    tiny_folder, other_vocabulary_folder, arguments, sentence, capsys
):
    code, stdout, stderr = run_here(
        capsys,
        *("demo", "--target", tiny_folder, "--devices", 1),
        *(other_vocabulary_folder if argument == "OTHER" else argument for argument in arguments),
    )
    assert code == 2, stderr
    check_refusal(stdout, stderr, sentence)
    if "OTHER" in arguments:  # a tokenizer mismatch names the token that differs
        assert "'<|other|>' here and '<|end|>' there" in stderr


def check_refusal(stdout, stderr, sentence):
    assert "Traceback" not in stderr
    said = [line for line in stderr.splitlines() if line.startswith("multispin")]
    assert len(said) == 1
    assert sentence in said[0]
    assert stdout == ""


def test_an_occupied_port_is_named(tiny_folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, stderr = run_here(capsys, "serve", "--target", tiny_folder, "--port", port)
    assert code == 2
    assert f"port {port}" in stderr
    assert "--port" in stderr


def test_serve_and_device_work_as_two_commands(tiny_folder):
    with Started("serve", "--target", tiny_folder, "--port", 0, "--json", "--credential", "sesame") as server:
        url = f"ws://127.0.0.1:{json.loads(server.stdout.readline())['port']}"
        device = ["device", url, "--target", tiny_folder, "--draft", "lookup", "--prompt", "hello", "--max-tokens", 8]
        refused = run(*device)
        assert refused.returncode == 2
        assert "credential" in refused.stderr
        done = run(*device, "--credential", "sesame", "--json")
        last = json.loads(done.stdout.splitlines()[-1])
        assert last["event"] == "done"
        assert last["tokens"] == 8
        person = run(*device, "--credential", "sesame")
        assert person.stdout.rstrip("\n") == last["text"].rstrip("\n")
        assert "8 tokens" in person.stderr
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) in (0, 130)


@pytest.mark.embedded
def test_the_embedded_pair_writes_the_targets_own_text(capsys):
    """At temperature 0 the tests above do, with tiny models."""
    options = ("--max-tokens", 12, "--temperature", 0.8, "--draft", "large", "--draft", "lookup")
    code, stdout, stderr = run_here(capsys, "demo", "--json", "--devices", 2, *options)
    assert code == 0, stderr
    result = json.loads(stdout)
    check_result(result, 2)
    assert result["devices"][0]["accepted"] > 0
