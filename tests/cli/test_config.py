"""Settings of `serve` from a file."""

from pathlib import Path

import pytest

from multispin.cli.main import run
from multispin.cli.serve import command


def printed(capsys, *arguments):
    assert run(["serve", *arguments, "--print-config"]) == 0
    return capsys.readouterr().out


def test_what_is_printed_is_read_again(tmp_path, capsys):
    arguments = [
        *(
            "--slots",
            "3",
            "--no-api",
            "--mode",
            "rounds",
            "--model-name",
            'a "name"\\ \x7f é',
            "--prefill-share",
            "1e-3",
        ),
        *("--engine-option", "a=1", "--engine-option", "b=2", "--emulated-verification-s", "0.5", "0", "1e-9"),
    ]
    first = printed(capsys, *arguments)
    file = tmp_path / "edge.toml"
    file.write_text(first, encoding="utf-8")
    assert printed(capsys, "--config", str(file)) == first
    assert 'engine_option = ["a=1", "b=2"]' in first
    assert "slots = 3\n" in first


def test_every_setting_is_a_key(capsys):
    text = printed(capsys)
    for option in command.params:
        if not option.hidden and option.name not in ("config", "print_config"):
            assert option.opts[0].removeprefix("--").replace("-", "_") in text


def test_options_go_before_the_file_and_the_file_before_defaults(tmp_path, capsys):
    file = tmp_path / "edge.toml"
    file.write_text("slots = 5\nmax_waiting = 7\napi = false\n", encoding="utf-8")
    text = printed(capsys, "--config", str(file), "--slots", "4", "--api")
    for line in ("slots = 4", "max_waiting = 7", "max_sessions = 256", "api = true"):
        assert line in text.splitlines()


def test_a_secret_is_not_printed(tmp_path, capsys):
    file = tmp_path / "edge.toml"
    file.write_text('credential = "swordfish"\n', encoding="utf-8")
    text = printed(capsys, "--config", str(file))
    assert "swordfish" not in text
    assert "# credential is set" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nslot = 3", "line 2: unknown key 'slot': did you mean slots?"),
        ("max-length = 3", "did you mean max_length?"),
        ("attended = true", "unknown key 'attended'"),
        ("slots = 8.5", "slots is 8.5; it must be a whole number"),
        ("slots = true", "slots is True; it must be a whole number"),
        ("slots = 80000", "slots = 80000: 80000 is not in the range"),
        ("api = 'no'", "it must be true or false"),
        ("target = 3", "it must be a text"),
        ("mode = 'autos'", "is not one of 'plain'"),
        ("emulated_verification_s = [1, 2]", "a list of 3 values"),
        ("bandwidth_hz = nan", "not a number"),
        ("slots = 3\nslots = 4", "not valid TOML"),
        ("slots = 1" + 5000 * "0", "too long"),
        ("a" + 40 * ".a" + " = 1", "dots"),
    ],
)
def test_what_a_file_cannot_mean_is_refused(text, said, tmp_path, capsys):
    file = tmp_path / "edge.toml"
    file.write_text(text, encoding="utf-8")
    assert run(["serve", "--config", str(file), "--print-config"]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_a_file_that_is_not_there_is_named(capsys):
    assert run(["serve", "--config", "/nowhere/edge.toml"]) == 2
    assert "/nowhere/edge.toml cannot be read" in capsys.readouterr().err


def test_the_settings_that_come_with_the_service_are_accepted(capsys):
    file = Path(__file__).resolve().parents[2] / "deploy" / "edge.toml"
    text = printed(capsys, "--config", str(file))
    assert 'log_format = "json"' in text
