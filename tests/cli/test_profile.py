"""`multispin profile` on a tiny model: what it prints, what it writes, and what reads that."""

import json
import shutil

import pytest

from multispin.cli.main import run
from multispin.control import load_scenario
from multispin.data import TASKS
from multispin.estimation.traces import load_traces


@pytest.fixture(scope="module")
def profiled(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    arguments = [
        *("profile", "--target", tiny_folder, "--draft", "q6", "--draft", "lookup", "--temperature", "0.9"),
        *("--prompts", "1", "--tokens", "12", "--batches", "1,3", "--lengths", "0,2", "--context", "16"),
        *("--repeats", "2", "--threads", "1", "--json", "--advise"),
        *("--out", str(folder / "site.toml"), "--trace", str(folder / "t.json"), "--plot", str(folder / "p.png")),
    ]
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as said:
        assert run(arguments) == 0
    return folder, json.loads(said.getvalue())


@pytest.mark.long
def test_what_it_prints(profiled, tiny_folder):
    _, found = profiled
    assert found["target"] == tiny_folder
    verification = found["verification"]
    assert len(verification["points"]) == 4
    assert min(verification[key] for key in ("fixed_s", "per_device_s", "per_token_s")) >= 0
    assert 0 <= verification["relative_rms_error"] <= abs(verification["worst_relative_error"])
    assert [drafter["drafter"] for drafter in found["drafters"]] == ["q6", "lookup"]
    for drafter in found["drafters"]:
        assert drafter["seconds_per_token"] > 0
        assert set(drafter["tasks"]) == {"all", *TASKS}
        rate = drafter["tasks"]["all"]["acceptance_rate"]
        assert rate["low"] <= rate["mean"] <= rate["high"]
        assert (drafter["tasks"]["all"]["rejection_acceptance_rate"] is None) == (drafter["drafter"] == "lookup")


def test_the_scenario_is_read_by_plan_and_simulate(profiled, capsys):
    folder, found = profiled
    scenario = load_scenario(folder / "site.toml")
    assert scenario.verifier.fixed_s == pytest.approx(found["verification"]["fixed_s"])
    assert [device.name for device in scenario.devices] == [f"{d}-{t}" for d in ("q6", "lookup") for t in TASKS]
    text = (folder / "site.toml").read_text()
    assert text.startswith("# Measured by multispin profile on ")
    assert run(["plan", str(folder / "site.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["goodput_tokens_per_s"] > 0
    command = ["simulate", str(folder / "site.toml"), "--policy", "fixed", "--rounds", "5", "--seeds", "1"]
    assert run([*command, "--jobs", "1", "--json"]) == 0


def test_the_advice_is_for_what_was_measured(profiled):
    folder, found = profiled
    advice = found["advice"]
    assert advice["users"] == len(load_scenario(folder / "site.toml").devices)
    plain = next(option for option in advice["options"] if option["mode"] == "plain")
    fit = found["verification"]
    pass_s = fit["fixed_s"] + advice["users"] * (fit["per_device_s"] + fit["per_token_s"])
    assert plain["goodput_tokens_per_s"] == pytest.approx(advice["users"] / pass_s)
    assert {"rounds", "streams", "mixture"} <= {option["mode"] for option in advice["options"]}


def test_an_advice_needs_a_drafter(tiny_folder, capsys):
    assert run(["profile", "--target", tiny_folder, "--advise"]) == 2
    assert "--draft" in capsys.readouterr().err


def test_modes_let_a_plan_choose_the_rule(tiny_folder, tmp_path, capsys):
    site = tmp_path / "site.toml"
    arguments = [
        *("profile", "--target", tiny_folder, "--draft", "q4", "--draft", "lookup", "--temperature", "0.9"),
        *("--prompts", "1", "--tokens", "12", "--batches", "1,3", "--lengths", "0,2", "--context", "16"),
        *("--repeats", "2", "--threads", "1", "--out", str(site), "--modes", "--json"),
    ]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)["drafters"][0]["tasks"]
    devices = {device.name: device for device in load_scenario(site).devices}
    for task in TASKS:
        coupled, rejection, up = devices[f"q4-{task}"].modes
        assert [mode.name for mode in (coupled, rejection, up)] == ["coupled", "rejection", "rejection-up"]
        assert coupled.acceptance_rate == found[task]["acceptance_rate"]["mean"]
        overlap = min(0.9999, found[task]["rejection_acceptance_rate"]["mean"])
        assert rejection.acceptance_rate == up.acceptance_rate == overlap
        # V = 257: 9 bits per id; whole distributions keep all 257 tokens in 9 + 16 bits each.
        assert (coupled.bits_per_token, coupled.bits_per_rejection) == (9, 0)
        assert (rejection.bits_per_token, rejection.bits_per_rejection) == (257 * 25, 0)
        assert (up.bits_per_token, up.bits_per_rejection) == (9 + 16, 257 * 25)
        assert devices[f"lookup-{task}"].modes == ()  # it has no distribution to send
    assert run(["plan", str(site), "--json"]) == 0
    chosen = [device.get("mode") for device in json.loads(capsys.readouterr().out)["devices"]]
    assert set(chosen[: len(TASKS)]) <= {"coupled", "rejection", "rejection-up"}


def test_the_traces_are_read_by_the_simulator(profiled):
    folder, _ = profiled
    for name in ("q6", "lookup"):
        traces = load_traces(folder / f"t-{name}.json")
        assert (traces.drafter, traces.temperature) == (name, 0.9)
        assert all(len(text.accepts) <= 12 for text in traces.texts)
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batches", "0"], "--batches"),
        (["--batches", "1,x"], "--batches"),
        (["--lengths", "-1"], "--lengths"),
        (["--lengths", "1000"], "256"),
        (["--draft", "q6", "--draft", "q6"], "twice"),
        (["--out", "/no/such/folder/site.toml"], "no folder"),
        (["--target", "./nowhere"], "nowhere"),
        (["--engine-option", "a=1"], "--engine"),
        (["--modes", "--temperature", "1"], "--out"),
        (["--modes", "--out", "site.toml"], "--temperature"),
        (["--modes", "--out", "site.toml", "--temperature", "1", "--draft", "lookup"], "distribution to send"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, capsys):
    assert run(["profile", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.long
def test_of_a_drafter_with_a_long_path_the_end_is_shown(tiny_folder, tmp_path, capsys):
    folder = tmp_path / "a_folder_with_many_letters_in_its_name" / "and_another_one_at_its_end"
    shutil.copytree(tiny_folder, folder)
    few = ("--prompts", "1", "--tokens", "4", "--repeats", "1", "--batches", "1,2", "--lengths", "0,1")
    assert run(["profile", "--target", tiny_folder, "--draft", str(folder), *few]) == 0
    table = capsys.readouterr().out.rpartition("─")[2]
    assert "at_its_end" in "".join(line.split("  ")[0].strip() for line in table.splitlines())
