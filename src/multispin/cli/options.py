"""Option types and helpers that several commands share."""

import math
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A finite number in a range. click's own type accepts nan in every range, and inf in open ones."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a usage error if it is not finite or out of range."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{found} is not a finite number.", param, ctx)
        return found


class PathOption(click.Path):
    """A path of a file or folder. An empty one is refused, since `Path("")` is the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a usage error for an empty text."""
        return super().convert(_named(self, value, param, ctx), param, ctx)


class _FileName(click.types.StringParamType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_named(self, value, param, ctx), param, ctx)


FILE = _FileName()
"""Type of an option for a file to read. The file's reader reports what is wrong with it; "" is refused here."""


def _named(kind: "PathOption | _FileName", value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    if value == "":
        kind.fail("the name of a file or folder is empty.", param, ctx)
    return value


class _Secret(click.Option):
    """An option whose variable is not passed over where it is set but empty, as click's own are."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """What the variable holds; None if it is not set."""
        return os.environ.get(CREDENTIAL_VARIABLE)


CREDENTIAL_VARIABLE = "MULTISPIN_CREDENTIAL"


class Command(click.Command):
    """A command that refuses an option given twice, unless it takes several values. click's own takes the last one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments that are left; a usage error for an option that was given twice."""
        given = list(args)  # click takes the words out of the list that it reads
        rest = super().parse_args(ctx, args)
        for option, times in Counter(self.make_parser(ctx).parse_args(given)[2]).items():
            if isinstance(option, click.Option) and times > 1 and not option.multiple:
                ctx.fail(f"{option.opts[0]} is given {'twice' if times == 2 else f'{times} times'}; give it once")
        return rest


class CommandGroup(Command, click.Group):
    """A command that has commands of its own."""

    command_class = Command


class Decorator(Protocol):
    """Adds one or several options to a command."""

    def __call__(self, function: _Function, /) -> _Function:
        """The command with these options."""
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
    return click.option("--credential", cls=_Secret, envvar=CREDENTIAL_VARIABLE, show_envvar=True, help=about)
