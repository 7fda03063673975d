"""The options of `serve`, `demo` and `profile` for the engine and its number type."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from multispin.cli.options import together
from multispin.cli.process import flag
from multispin.errors import InputError
from multispin.models.numbers import NUMBERS

ENGINES = ("embedded", "vllm")


engine_options = together(
    click.option(
        "--dtype",
        type=click.Choice(NUMBERS),
        default="float32",
        show_default=True,
        help="Number type that the target computes in; int8 on a CPU only. Except in float32, a text may depend on who "
        "shares its passes.",
    ),
    click.option(
        "--engine-option",
        "engine_options",
        multiple=True,
        help="NAME=VALUE for vLLM's engine, such as tensor_parallel_size=8; repeatable.",
    ),
    click.option(
        "--engine", type=click.Choice(ENGINES), default="embedded", show_default=True, help="What runs the target."
    ),
)
"""--engine, --engine-option and --dtype, for a command."""


def engine_arguments(options: Mapping[str, Any]) -> list[str]:
    """The same options as arguments of another command."""
    arguments = ["--engine", options["engine"], "--dtype", options["dtype"]]
    for pair in options["engine_options"]:
        arguments += ["--engine-option", pair]
    return arguments


def check_engine_options(options: Mapping[str, Any]) -> None:
    """InputError if the engine's options do not fit the engine, or vLLM cannot run here."""
    from multispin.models.vllm_options import check_installed, parse_options

    if options["engine"] == "vllm":
        check_installed()
        with flag("--engine-option"):
            parse_options(options["engine_options"])
        if options["dtype"] == "int8":
            raise InputError("--dtype int8 is for the embedded engine: give vLLM a quantised checkpoint as --target")
        if options.get("batch_invariant"):
            raise InputError(
                "--batch-invariant is for the embedded engine: set VLLM_BATCH_INVARIANT=1 in the environment for vLLM"
            )
    elif options["engine_options"]:
        raise InputError("--engine-option is for --engine vllm; the embedded engine has no such options: leave it out")


def check_edge_draft(options: Mapping[str, Any], modes: Sequence[str]) -> None:
    """InputError if the edge's own drafter is not used in any of these modes, or not with this engine."""
    if options["edge_draft"] is None:
        return
    if all(mode in ("plain", "rounds") for mode in modes):
        raise InputError(
            f"in --mode {' and '.join(modes)} the edge never drafts: leave --edge-draft out, or use --mode auto"
        )
    if options["engine"] == "vllm":
        raise InputError(
            "--edge-draft is for --engine embedded: vLLM drafts only inside its own step, for every text and with a "
            "fixed length, so its drafts cannot be combined with those of devices"
        )


def check_edge_drafter_name(options: Mapping[str, Any]) -> None:
    """InputError if --edge-draft names an unknown drafter, before minutes of loading a target."""
    from multispin.models import check_drafter_name

    if options["edge_draft"] is not None:
        with flag("--edge-draft"):
            check_drafter_name(options["edge_draft"])


def load_engine(options: Mapping[str, Any]) -> Any:
    """The engine that the options of `serve` name."""
    check_engine_options(options)
    if options["engine"] == "vllm":
        from multispin.models.vllm_engine import VllmEngine
        from multispin.models.vllm_options import parse_options

        if options["place"] != "cpu":
            raise InputError("--on does not go with --engine vllm, whose build decides where it computes: leave it out")
        # vLLM's workers are separate processes, which take their thread count from the environment.
        os.environ.setdefault("OMP_NUM_THREADS", str(options["threads"] or os.cpu_count() or 1))
        return VllmEngine.load(
            options["target"],
            options["slots"],
            options["max_length"],
            options["dtype"],
            options["max_draft_length"],
            parse_options(options["engine_options"]),
        )
    from multispin.models import load_verifier

    return load_verifier(
        *(options["target"], options["slots"], options["max_length"], options["dtype"], options["place"]),
        batch_invariant=options.get("batch_invariant", False),
    )
