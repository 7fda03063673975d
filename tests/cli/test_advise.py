"""`multispin advise`: the answer in words, in a table, in JSON and as a picture."""

import json

import pytest
from click.testing import CliRunner

from multispin.cli.advise import aligned, command
from multispin.cli.main import run
from multispin.control.advice import Streamed, advise, curves
from multispin.control.files import load_scenario
from multispin.data import scenario_path
from multispin.data.presets import device_presets, engine_presets
from multispin.report.advice_figure import write_advice_figure

PRESETS = ("--engine", "desktop-32b", "--device", "laptop-m3", "--policy", "heterogeneous")


def output(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([25.94, 79.36, 117.3, 144.0], ["25.9", "79.4", "117.3", "144.0"]),
        ([0.0, 6.484, 36.0], ["0.00", "6.48", "36.00"]),
        ([999.6, 123456.0], ["1000", "123456"]),
        ([1e-6, 2.0], ["0.000", "2.000"]),
        ([0.0], ["0.00"]),
    ],
)
def test_numbers_of_a_column_have_the_same_decimals(values, written):
    assert aligned(values) == written


@pytest.mark.long
def test_json_has_the_keys_that_scripts_rely_on():
    document = json.loads(output(*PRESETS, "--users", "4", "--json"))
    assert list(document) == ["site", "users", "devices_pay", "options", "mix", "break_even", "skipped", "sentences"]
    assert list(document["options"][0]) == [
        *("mode", "policy", "goodput_tokens_per_s", "per_user_tokens_per_s", "slowest_user_tokens_per_s"),
        *("gain_over_plain", "gain_over_edge", "basis", "upper_bound_tokens_per_s"),
    ]
    assert [option["mode"] for option in document["options"]] == ["plain", "edge", "rounds", "streams", "mixture"]
    streams = document["options"][3]
    assert streams["basis"] == "simulated"
    assert 0 < streams["goodput_tokens_per_s"] <= 1.02 * streams["upper_bound_tokens_per_s"]
    assert list(document["break_even"][0]) == ["quantity", "pays", "value", "here"]
    assert list(document["mix"]["sessions"][0])[:4] == ["name", "drafter", "draft_length", "bandwidth_hz"]
    assert document["users"] == 4


SITE = """
[cell]
bandwidth_hz = 2e6
bits_per_token = 16
max_draft_length = 8
min_draft_length = 0
[verifier]
fixed_s = 0.1
per_device_s = 0.001
per_token_s = 0.0005
padded = true
[[device]]
name = "a"
seconds_per_token = 0.01
spectral_efficiency = 4.0
acceptance_rate = 0.8
[[device]]
name = "b"
seconds_per_token = 0.02
spectral_efficiency = 2.0
acceptance_rate = 0.7
"""
"""A site that cannot run streams, so that none are simulated, which takes seconds."""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site.toml").write_text(SITE)
    return str(tmp_path / "site.toml")


def test_the_table_and_the_words_say_the_same(site):
    text = output(site, "--edge-drafter-s", "0.004", "--edge-acceptance-rate", "0.1", "--policy", "fixed")
    assert "best mixture" in text
    assert "devices (fixed)" in text
    assert "the edge" in text
    assert "Devices pay" in text
    assert "padded = false" in text  # why there are no streams


def test_options_change_the_site(site):
    alike = ("--policy", "heterogeneous", "--json")
    document = json.loads(output(site, *alike, "--edge-drafter-s", "0.004", "--delay-s", "0.05", "--users", "3"))
    assert [option["mode"] for option in document["options"]] == ["plain", "edge", "rounds", "mixture"]
    assert document["users"] == 3
    assert next(b for b in document["break_even"] if b["quantity"] == "round_trip_s")["here"] == pytest.approx(0.1)
    slow = json.loads(output(site, *alike, "--seconds-per-token", "5", "--acceptance-rate", "0.1"))
    assert [option["mode"] for option in slow["options"]] == ["plain", "rounds", "mixture"]
    assert not slow["devices_pay"]
    given = {b["quantity"]: b["here"] for b in slow["break_even"]}
    assert given["seconds_per_token"] == 5.0
    assert given["acceptance_rate"] == pytest.approx(0.1)


def test_a_preset_goes_without_its_edge_drafter():
    document = json.loads(output(*PRESETS, "--json", "--edge-drafter-s", "0", "--users", "1"))
    assert [option["mode"] for option in document["options"]] == ["plain", "rounds", "streams", "mixture"]


def test_a_picture_is_written(site, tmp_path):
    path = tmp_path / "advice.svg"
    text = output(site, "--policy", "heterogeneous", "--plot", str(path))
    assert str(path) in text
    drawn = path.read_text(encoding="utf-8")
    assert "best mixture" in drawn
    assert "users" in drawn
    assert "in streams" not in drawn


@pytest.mark.long
def test_a_picture_shows_streams_where_they_were_simulated(tmp_path):
    """Of invented streams: to simulate those of a whole picture takes a while."""
    scenario, path = load_scenario(scenario_path("paper-llama")), tmp_path / "advice.svg"
    asked = []

    def streams(site, seeds):
        asked.append(len(site.devices))
        return Streamed(10.0 * len(site.devices), 10.0)

    advice = advise(scenario, ("fixed",), streams=streams)
    write_advice_figure(advice, curves(scenario, streams=streams), "a site", path)
    assert "devices, in streams" in path.read_text(encoding="utf-8")
    assert len(set(asked)) > 3


def test_presets_are_listed_with_their_sources_and_all_can_be_asked_about():
    text = output("--presets")
    for name, preset in {**engine_presets(), **device_presets()}.items():
        assert name in text
        assert preset.source.split()[0] in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "advise needs a SITE, or --engine with --device"),
        (["--engine", "desktop-32b"], "advise needs a SITE"),
        (
            ["--engine", "abacus", "--device", "laptop-m3"],
            "engine 'abacus' is no preset; it must be one of a100-llama2-7b",
        ),
        (["paper-llama", "--device", "abacus"], "device 'abacus' is no preset"),
        (["paper-llama", "--delay-s", "-1"], "delay_s is -1.0; it must be >= 0"),
        (["paper-llama", "--acceptance-rate", "2"], r"acceptance_rate is 2.0; it must be in [0, 1]"),
        (["paper-llama", "--edge-drafter-s", "nan"], "--edge-drafter-s: edge_drafter.fixed_s is nan"),
        (["paper-llama", "--seconds-per-token", "inf"], "--seconds-per-token: device 'phone-01-gsm8k': "),
        (["a100-7b", "--edge-acceptance-rate", "nan"], "--edge-acceptance-rate: edge_drafter.acceptance_rate is nan"),
        (["paper-llama", "--edge-acceptance-rate", "0.5"], "the edge has no drafter of its own"),
        (["paper-llama", "--plot", "advice.xyz"], "--plot advice.xyz: the name must end in"),
        (["paper-llama", "--plot", "nowhere/advice.png"], "nowhere/advice.png: there is no folder nowhere"),
        (["paper-llama", "--plot", "/proc/advice.png"], "/proc/advice.png cannot be written"),
        (["nowhere.toml"], "nowhere.toml cannot be read"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert run(["advise", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
