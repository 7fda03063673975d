"""Settings of `serve` from a file."""

import importlib.util
import tomllib
from pathlib import Path

import click
import pytest

from multispin.cli.config import options_by_key
from multispin.cli.main import run
from multispin.cli.serve import command
from multispin.outside import toml_value

needs_page = pytest.mark.skipif(
    importlib.util.find_spec("multispin_wllama") is None, reason="multispin-wllama is not installed (make web)"
)


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
        ("bandwidth_hz = nan", "edge.toml, line 1: bandwidth_hz is not a number"),
        ("bandwidth_hz = -1", "edge.toml, line 1: bandwidth_hz = -1"),
        ("finish_s = inf", "edge.toml, line 1: finish_s is not a number"),
        ('tokens = "\\u0000"', "edge.toml, line 1: tokens is '\\x00'; it must not contain a zero byte"),
        ('mode = "edge"', "edge.toml, line 1: mode: --mode edge needs a drafter"),
        pytest.param(
            'target = "embedded"\nweb = true\nweb_draft = "none-such"',
            "line 3: web_draft: there is no model 'none-such'",
            marks=needs_page,
        ),
        ('port = 0\nweb_draft = "x"', "edge.toml, line 2: web_draft: --web-draft is for the page"),
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('tokens = "no.json"', "edge.toml, line 1: tokens: the file of tokens no.json is not there"),
        ('trusted_proxy = ["::1", "a"]', "edge.toml, line 1: trusted_proxy: --trusted-proxy 'a' is no address"),
        ('tls_certificate = "no.pem"', "edge.toml, line 1: tls_certificate: --tls-certificate: no.pem cannot be read"),
        (
            'metrics_at = ""',
            "edge.toml, line 1: metrics_at: --metrics-at '' is not of the form HOST:PORT",
        ),
        ('port = 0\ntarget = "no-model"', "edge.toml, line 2: target: there is no model 'no-model'"),
    ],
)
def test_what_only_the_edge_itself_finds_wrong_is_told_with_its_place(text, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("edge.toml").write_text(text, encoding="utf-8")
    assert run(["serve", "--config", "edge.toml"]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_what_the_command_line_says_wrong_is_not_blamed_on_the_file(tmp_path, capsys):
    file = tmp_path / "edge.toml"
    file.write_text('metrics_at = "127.0.0.1:1"\n', encoding="utf-8")
    assert run(["serve", "--config", str(file), "--metrics-at", "x"]) == 2
    assert "edge.toml" not in capsys.readouterr().err


@needs_page
def test_every_setting_with_another_value_is_read_and_printed_again(tmp_path, capsys):
    """From a file and from the command line alike; only the secret is not printed."""
    words = {
        "allowed_origin": ["https://a.example", "app://b"],
        "engine_option": ["a=1"],
        "metrics_at": "127.0.0.1:9",
        "edge_draft": "small",
        "engine": "embedded",  # the only one with a drafter of the edge's own
        "mode": "mixture",
        "web_draft": "small",
        "max_share": 0.75,
    }
    document, arguments = {}, []
    for key, option in options_by_key(command).items():
        if key == "credential":
            continue
        if option.is_flag:
            value = option.default is not True
        elif option.nargs > 1:
            value = [0.25] * option.nargs
        elif isinstance(option.type, click.Choice):
            value = next(each for each in option.type.choices if each != option.default)
        elif isinstance(option.type, click.IntRange | click.FloatRange):
            value = 11 if isinstance(option.type, click.IntRange) else 11.5
        else:
            value = [f'"{key}" \\ \x7f é'] if option.multiple else f'"{key}" \\ \x7f é'
        document[key] = value = words.get(key, value)
        if option.is_flag:
            arguments += option.opts if value else option.secondary_opts
        elif option.multiple:
            arguments += [part for each in value for part in (option.opts[0], each)]
        else:
            arguments += [option.opts[0], *map(str, value if option.nargs > 1 else [value])]
    file = tmp_path / "edge.toml"
    file.write_text("".join(f"{key} = {toml_value(value)}\n" for key, value in document.items()), encoding="utf-8")
    text = printed(capsys, "--config", str(file))
    assert tomllib.loads(text) == document
    assert printed(capsys, *arguments) == text


def test_a_file_that_is_not_there_is_named(capsys):
    assert run(["serve", "--config", "/nowhere/edge.toml"]) == 2
    assert "/nowhere/edge.toml cannot be read" in capsys.readouterr().err


def test_the_settings_that_come_with_the_service_are_accepted(capsys):
    file = Path(__file__).resolve().parents[2] / "deploy" / "edge.toml"
    text = printed(capsys, "--config", str(file))
    assert 'log_format = "json"' in text
