"""Checks that vLLM is installed, and reads its options from the command line. It imports nothing heavy."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from multispin.errors import InputError, how_to_install
from multispin.outside import json_or_text


def check_installed() -> None:
    """InputError, with what to do, if there is no vLLM here."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"vLLM is not installed here: {how_to_install('vllm')} on a machine with an NVIDIA GPU, or `make vllm` "
            "for its CPU build"
        )


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options of vLLM's engine, each NAME=VALUE; values are JSON where they can be, and text elsewhere."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise InputError(f"{pair!r} is not of the form NAME=VALUE: write, for example, tensor_parallel_size=8")
        if (own := name.replace("-", "_")) in options:
            raise InputError(f"--engine-option gives {name} twice")
        options[own] = json_or_text(value, f"--engine-option {name}")
    return options
