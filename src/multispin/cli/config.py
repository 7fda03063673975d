"""Settings of a command from a TOML file: every option is a key, and the options of the command are the only list.

A file gives defaults. What stands on the command line goes before it.
"""

import difflib
from typing import Any

import click

from multispin.checks import shown
from multispin.cli.options import together
from multispin.control.document import read_document
from multispin.errors import InputError
from multispin.outside import toml_value

_ABOUT_FILES = ("config", "print_config")
"""Options that say where settings come from and go to; they are no settings."""
SECRETS = ("credential",)
"""Settings that are never printed."""


def printed(options: dict[str, Any]) -> bool:
    """Print the settings if that is asked for, and say whether it was."""
    if not options.pop("print_config"):
        return False
    click.echo(astoml_value(click.get_current_context().command, options), nl=False)
    return True


def astoml_value(command: click.Command, options: dict[str, Any]) -> str:
    """The settings of a command as a TOML document that --config reads.

    A setting without a value is a comment, and so is a secret.
    """
    lines = []
    for key, option in sorted(_settings(command).items()):
        value = options[option.name or ""]
        if option.name in SECRETS and value:
            lines.append(f"# {key} is set; a secret is not printed")
        elif value is None:
            lines.append(f"# {key} is not set")
        else:
            lines.append(f"{key} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def _read(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    """Take the settings of a file as the defaults of the command's options."""
    if path is None:
        return
    document, settings, defaults = read_document(path), _settings(ctx.command), {}
    for key, value in document.tables.items():
        option = settings.get(key)
        try:
            if option is None:
                raise InputError(_unknown(key, settings))
            defaults[option.name or ""] = _value(ctx, option, key, value)
        except InputError as error:
            raise document.refuse(InputError(str(error), where=(key,))) from None
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _settings(command: click.Command) -> dict[str, click.Option]:
    """The settings of a command by their key: the option's first long name, with _ for -."""
    return {
        option.opts[0].removeprefix("--").replace("-", "_"): option
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and option.name not in _ABOUT_FILES
    }


def _unknown(key: str, settings: dict[str, click.Option]) -> str:
    near = difflib.get_close_matches(key.replace("-", "_"), settings, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(settings))}"
    return f"unknown key {shown(key)}: {hint}"


def _value(ctx: click.Context, option: click.Option, key: str, value: Any) -> Any:
    """A value of a file as the option takes it; InputError if it has another type or is out of range."""
    several = option.multiple or option.nargs != 1
    if several and (not isinstance(value, list) or (option.nargs > 1 and len(value) != option.nargs)):
        wanted = f"{option.nargs} values" if option.nargs > 1 else "values"
        raise InputError(f"{key} is {shown(value)}; it must be a list of {wanted}")
    for each in value if several else [value]:
        _check_type(option, key, each)
    try:
        return option.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise InputError(f"{key} = {shown(value)}: {error.message.rstrip('.')}") from None


def _check_type(option: click.Option, key: str, value: Any) -> None:
    """Refuse a value that the command line's own conversion would bend: 8.5 for a whole number, "yes" for a switch."""
    if option.is_flag:
        wanted, right = "true or false", isinstance(value, bool)
    elif isinstance(option.type, click.types.IntParamType):
        wanted, right = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(option.type, click.types.FloatParamType):
        wanted, right = "a number", isinstance(value, int | float) and not isinstance(value, bool)
    else:
        wanted, right = "a text", isinstance(value, str)
    if not right:
        raise InputError(f"{key} is {shown(value)}; it must be {wanted}")


config_options = together(
    click.option("--print-config", is_flag=True, help="Print the settings as TOML that --config reads, and end."),
    click.option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="TOML file with settings: the options' names as keys. Options on the command line take precedence.",
    ),
)
"""--config and --print-config, for a command; it calls `printed` when its options are checked."""
