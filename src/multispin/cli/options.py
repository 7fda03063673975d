"""What the files of commands share to declare options."""

import math
import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A finite number in a range: click lets nan into every range, and inf into those without an end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a usage error if it is none, or outside."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{found} is not a finite number.", param, ctx)
        return found


class PathOption(click.Path):
    """A path of a file or folder; `Path("")` would be the folder that one is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a usage error for an empty text."""
        return super().convert(_named(self, value, param, ctx), param, ctx)


class _FileName(click.types.StringParamType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_named(self, value, param, ctx), param, ctx)


FILE = _FileName()
"""Type of an option that names a file to read, whose reader says what is wrong with it; "" names none."""


def _named(kind: "PathOption | _FileName", value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    if value == "":
        kind.fail("an empty text names no file and no folder.", param, ctx)
    return value


class _Secret(click.Option):
    """An option whose variable is not passed over where it is set but empty, as click's own are."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """What the variable holds; None if it is not set."""
        return os.environ.get(_CREDENTIAL_VARIABLE)


_CREDENTIAL_VARIABLE = "MULTISPIN_CREDENTIAL"


class Decorator(Protocol):
    """Adds one option or several to a command."""

    def __call__(self, function: _Function, /) -> _Function:
        """The command with them."""
        ...


def together(*options: Decorator) -> Decorator:
    """One decorator that adds several options; `--help` lists the last of them first."""

    def add(function: _Function) -> _Function:
        for option in options:
            function = option(function)
        return function

    return add


def credential_option(about: str) -> Decorator:
    """The option --credential, None if neither it nor its variable is given; `check_credential` refuses an empty one.

    Args:
        about: what `--help` says of it.

    """
    return click.option("--credential", cls=_Secret, envvar=_CREDENTIAL_VARIABLE, show_envvar=True, help=about)
