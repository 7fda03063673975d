"""What the files of commands share to declare options."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


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
