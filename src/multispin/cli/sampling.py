"""The options by which every command names a sampling law."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])


def sampling_options(function: _Function) -> _Function:
    """Add --max-tokens, --temperature, --top-p, --top-k and --seed to a command."""
    for option in (
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Noise of the run; the text depends on it."),
        click.option("--top-k", type=click.IntRange(0), default=0, show_default="all", help="Keep the K likeliest."),
        click.option("--top-p", type=float, default=1.0, show_default=True, help="Keep this much probability."),
        click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy decoding."),
        click.option("--max-tokens", type=click.IntRange(1, 2**20), default=96, show_default=True),
    ):
        function = option(function)
    return function
