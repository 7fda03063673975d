"""What `--help` of every command says."""

import click
import pytest
from click.testing import CliRunner

from multispin.cli.main import cli, run
from multispin.cli.options import Command


def commands() -> dict[str, click.Command]:
    """Every command by its words, such as "token add"."""
    found: dict[str, click.Command] = {}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {word}": each for word, each in command.commands.items()}
        else:
            found[name] = command
    return found


def help_of(name):
    return CliRunner().invoke(cli, [*name.split(), "--help"], terminal_width=80, prog_name="multispin").output


@pytest.mark.parametrize("name", commands())
def test_every_option_says_what_it_is(name):
    for parameter in commands()[name].params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.opts


@pytest.mark.parametrize("name", commands())
def test_help_has_an_example_and_fits_a_terminal_of_80_columns(name):
    """Examples are whole lines, to be copied, and choices are not broken by click."""
    text = help_of(name)
    assert f"multispin {name}" in text.partition("Usage:")[2].partition("\n")[2]
    assert [line for line in text.splitlines() if len(line) > 80 and "multispin " not in line and "|" not in line] == []


@pytest.mark.parametrize("name", commands())
def test_help_breaks_no_word_of_a_default(name):
    text = help_of(name)
    for parameter in commands()[name].params:
        if isinstance(parameter, click.Option) and parameter.show_default is True and not parameter.is_flag:
            assert all(word in text for word in str(parameter.default).split()), parameter.opts


def test_help_of_the_demo_says_how_long_texts_are_at_a_site():
    assert "[default: (96, or 32 at a site);" in " ".join(help_of("demo").split())
    assert "[default: 96;" in " ".join(help_of("device").split())


@pytest.mark.parametrize("name", commands())
def test_every_command_has_the_class_that_refuses_an_option_given_twice(name):
    assert isinstance(commands()[name], Command)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["device", "--prompt", "A", "--prompt", "B"], "multispin device: --prompt is given twice; give it once"),
        (["device", "--prompt", "A", "--prompt=A"], "--prompt is given twice"),
        (["device", "--thinking", "--no-thinking"], "--thinking is given twice"),
        (["serve", "--on", "cpu", "--device", "cpu", "--on", "cpu"], "--on is given 3 times; give it once"),
        (["token", "add", "anna", "--tokens", "a", "--tokens", "b"], "multispin token add: --tokens is given twice"),
        (["plan", "paper-llama", "--json", "--json"], "--json is given twice"),
    ],
)
def test_an_option_that_takes_one_value_is_refused_if_it_is_given_twice(arguments, sentence, capsys):
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_options_that_take_several_values_may_be_given_twice_and_help_comes_first(capsys):
    assert run(["plan", "paper-llama", "--compare", "--compare", "--help"]) == 0
    device = commands()["device"].make_context("device", ["--stop", "a", "--stop", "a", "--prompt", "x"])
    assert device.params["stops"] == ("a", "a")
