"""What `--help` of every command says."""

import click
import pytest
from click.testing import CliRunner

from multispin.cli.main import cli


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


@pytest.mark.parametrize("name", commands())
def test_every_option_says_what_it_is(name):
    for parameter in commands()[name].params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.opts


@pytest.mark.parametrize("name", commands())
def test_help_has_an_example_and_fits_a_terminal_of_80_columns(name):
    """Examples are whole lines, to be copied, and choices are not broken by click."""
    text = CliRunner().invoke(cli, [*name.split(), "--help"], terminal_width=80, prog_name="multispin").output
    assert f"multispin {name}" in text.partition("Usage:")[2].partition("\n")[2]
    assert [line for line in text.splitlines() if len(line) > 80 and "multispin " not in line and "|" not in line] == []
