"""Checks that vLLM is installed, and reads its options from the command line. It imports nothing heavy."""

import importlib.util
import json
from collections.abc import Sequence
from typing import Any

from multispin.errors import InputError, how_to_install


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
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except (ValueError, RecursionError):  # not JSON, nested too deeply, or a number of very many digits
            options[name.replace("-", "_")] = value
    return options
