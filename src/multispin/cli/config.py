"""Settings of a command from a TOML file. Every option of the command is a key.

The file replaces the defaults. Options on the command line take precedence over it.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from multispin.checks import shown
from multispin.cli.options import FILE, together
from multispin.control.document import read_document
from multispin.errors import InputError
from multispin.outside import toml_value

_ABOUT_FILES = ("config", "print_config")
"""Options about the settings themselves, which are no settings."""
_DOCUMENT = "multispin.config"
"""Key of the file that was read, in the command's context."""
SECRETS = ("credential",)
"""Settings that are never printed."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def printed(options: dict[str, Any]) -> bool:
    """Print the settings if --print-config is given, and return whether it is."""
    if not options.pop("print_config"):
        return False
    click.echo(astoml_value(click.get_current_context().command, options), nl=False)
    return True


def astoml_value(command: click.Command, options: dict[str, Any]) -> str:
    """The settings of a command as a TOML document that --config reads.

    A setting without a value is a comment, and so is a secret.
    """
    lines = []
    for key, option in sorted(options_by_key(command).items()):
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
    document, settings, defaults = read_document(path), options_by_key(ctx.command), {}
    for key, value in document.tables.items():
        option = settings.get(key)
        try:
            if option is None:
                raise InputError(_unknown(key, settings))
            defaults[option.name or ""] = _value(ctx, option, key, value)
        except InputError as error:
            raise document.refuse(InputError(str(error), where=(key,))) from None
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    ctx.meta[_DOCUMENT] = document


def _placed(error: InputError, ctx: click.Context) -> InputError:
    """The error with the place in the file of the setting that it is about, found by its option or its value."""
    message, document, found = str(error), ctx.meta.get(_DOCUMENT), dict[int, str]()
    for key, option in options_by_key(ctx.command).items():
        if ctx.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT_MAP:
            continue
        value, words = ctx.params[option.name or ""], [option.opts[0]]
        if not isinstance(option.type, click.Choice):
            words += [each for each in (value if option.multiple else [value]) if isinstance(each, str) and each]
        for word in words:
            if place := re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", message):
                found.setdefault(place.start(), key)
    if document is None or not found:
        return error
    key = found[min(found)]  # a message names what it is about first
    placed: InputError = document.refuse(InputError(f"{key}: {message}", where=(key,)))
    return placed


def options_by_key(command: click.Command) -> dict[str, click.Option]:
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
    """A value of the file, converted as on the command line; InputError if its type or range is wrong."""
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
    """Refuse a value that the command line would silently convert: 8.5 for a whole number, "yes" for a switch."""
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
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key} is not a number")
    if isinstance(value, str) and "\0" in value:  # no command line can have one
        raise InputError(f"{key} is {shown(value)}; it must not contain a zero byte")


_options = together(
    click.option("--print-config", is_flag=True, help="Print the settings as TOML that --config reads, and exit."),
    click.option(
        "--config",
        type=FILE,
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="TOML file with settings; keys are option names. Options on the command line take precedence.",
    ),
)


def config_options(function: _Function) -> _Function:
    """Add --config and --print-config to a command, which must call `printed` after checking its options."""

    @functools.wraps(function)
    def placing(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except InputError as error:
            raise _placed(error, click.get_current_context()) from error

    return _options(cast("_Function", placing))
