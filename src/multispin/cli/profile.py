"""`multispin profile`: its options, and what it prints and writes. `measuring` measures."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from multispin.cli.engine import check_engine_options, engine_options
from multispin.cli.measuring import described, measure_here
from multispin.cli.options import Command, Number, PathOption
from multispin.cli.process import check_outputs, check_plot, flag, place_option, prepare, threads_option
from multispin.cli.progress import progress
from multispin.control import RUNTIME_POLICIES, Scenario
from multispin.data import TASKS
from multispin.errors import InputError
from multispin.outside import in_markup, one_line

MAX_GRID = 16
FEWEST_POINTS = 3
"""Least number of batch sizes: the number of the latency model's coefficients."""


@click.command("profile", cls=Command, short_help="Measure on this machine what the controller needs.")
@click.option("--target", default="embedded", show_default=True, help="Hub id, model folder, .gguf file or 'embedded'.")
@click.option("--draft", "drafts", multiple=True,
              help="Drafter to measure; repeatable.  [default for embedded: large, "
              "medium, small and lookup]")  # fmt: skip
@engine_options
@click.option("--temperature", type=Number(0.0, 10.0), default=0.0, show_default=True,
              help="Temperature at which acceptance is measured; 0 is greedy decoding.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the sampling noise.")
@click.option("--prompts", "per_task", type=click.IntRange(1, 12), default=3, show_default=True,
              help="Number of bundled prompts from each task family.")  # fmt: skip
@click.option(
    "--tokens",
    type=click.IntRange(2, 4096),
    default=64,
    show_default=True,
    help="Most tokens of the text for a prompt.",
)
@click.option("--batches", default="1,2,4,8", show_default=True, help="Devices per batch to time, separated by commas.")
@click.option("--lengths", default="0,2,4,8", show_default=True, help="Draft lengths to time, separated by commas.")
@click.option("--context", type=click.IntRange(1, 10**6), default=128, show_default=True,
              help="Tokens in the cache of each session while timing.")  # fmt: skip
@click.option(
    "--repeats",
    type=click.IntRange(1, 1000),
    default=7,
    show_default=True,
    help="How often each batch is timed; after 2 minutes, 3 times are enough.",
)
@click.option("--out", type=PathOption(dir_okay=False, path_type=Path), help="Write a scenario file.")
@click.option("--trace", type=PathOption(dir_okay=False, path_type=Path),
              help="Write which drafted tokens were accepted. With several drafters NAME.json becomes "
              "NAME-DRAFTER.json.")  # fmt: skip
@click.option("--plot", type=PathOption(dir_okay=False, path_type=Path), help="Write a picture (.png, .svg or .pdf).")
@click.option("--bandwidth-hz", type=Number(0, min_open=True), default=20e3, show_default=True,
              help="For the scenario: the shared band [Hz].")  # fmt: skip
@click.option("--spectral-efficiency", type=Number(0, 1000, min_open=True), default=4.0, show_default=True,
              help="For the scenario: bit/s/Hz of every device.")  # fmt: skip
@click.option("--advise", "with_advice", is_flag=True,
              help="Also say whether these drafters should draft for this engine.")  # fmt: skip
@click.option("--modes", is_flag=True,
              help="Let each device of the scenario choose its acceptance rule. Needs a "
              "temperature above 0.")  # fmt: skip
@place_option
@click.option("--draft-on", "draft_place", default="cpu", show_default=True,
              help="Where the drafters run: cpu, or a GPU such as cuda:0 or mps.")  # fmt: skip
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on standard output.")
def command(**options: Any) -> None:
    """Measure on this machine what the controller needs.

    The command measures the drafting time per token of each drafter; the verification time by batch size and draft
    length, with a fitted model and its error; and the acceptance rates of each task family, with 95 % intervals.

    \b
    Examples:
      multispin profile --out site.toml --plot site.png
      multispin profile --draft small --advise
      multispin profile --draft small --temperature 1 --prompts 12 --trace small.json --json
      multispin profile --temperature 1 --modes --bandwidth-hz 1e6 --out site.toml && multispin plan site.toml
      multispin profile --target Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B --on cuda:0 --dtype bfloat16 --out gpu.toml
    """
    grid, drafts, threads = _settled(options)
    with progress() as show:
        found = measure_here(options, grid, drafts, show)
    found["machine"] = described(options, threads)
    # Print the results before writing them: a full disk must not lose minutes of work.
    if not options["as_json"]:
        _print(found)
    if options["with_advice"]:
        _advise(found, options)
    if options["as_json"]:
        click.echo(json.dumps(found, indent=2))
    _write(found, options)


def _settled(options: Mapping[str, Any]) -> tuple[list[tuple[int, int]], Sequence[str], int]:
    """Batches to time, drafters to measure and processor threads; InputError before long work begins."""
    grid = [
        (k, length)
        for k in _numbers("--batches", options["batches"], 1)
        for length in _numbers("--lengths", options["lengths"], 0)
    ]
    if len(grid) < FEWEST_POINTS:
        raise InputError(
            f"--batches and --lengths give {len(grid)} kinds of batches; the fit needs at least {FEWEST_POINTS}"
        )
    drafts = options["drafts"] or (("large", "medium", "small", "lookup") if options["target"] == "embedded" else ())
    _check_results(options, drafts)
    threads = options["threads"] or os.cpu_count() or 1
    prepare(threads)
    check_engine_options(options)
    _check_drafters(drafts, options["draft_place"])
    return grid, drafts, threads


def _check_results(options: Mapping[str, Any], drafts: Sequence[str]) -> None:
    """InputError if the options for output ask for what these drafters cannot give."""
    check_outputs(options["out"], options["trace"])
    check_plot(options["plot"])
    if options["out"] is not None and not drafts:
        raise InputError("--out: a scenario needs a drafter: name one with --draft")
    if options["with_advice"] and not drafts:
        raise InputError("--advise needs a drafter: name one with --draft")
    if options["modes"] and (options["out"] is None or options["temperature"] == 0.0):
        raise InputError("--modes needs --out FILE and a --temperature above 0, since at 0 there is only one rule")
    if options["modes"] and all(draft in ("lookup", "none") for draft in drafts):
        raise InputError("--modes: none of these drafters has a distribution to send: name a model with --draft")


def _check_drafters(drafts: Sequence[str], place: str) -> None:
    """InputError if a drafter is unknown, named twice, or cannot run at `place`."""
    from multispin.models import DrafterName, check_drafter_name
    from multispin.models.draft_source import check_drafter_place

    if len(set(drafts)) < len(drafts):
        raise InputError("--draft names a drafter twice")
    for spec in drafts:
        check_drafter_name(spec)
        if place != "cpu":
            with flag("--draft-on"):
                check_drafter_place(DrafterName.parse(spec), place)


def _write(found: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Write the scenario and the picture that were asked for."""
    if options["out"] is not None:
        text = _scenario_file(found, options)
        options["out"].write_text(text, encoding="utf-8")
        print(f"wrote {one_line(str(options['out']))}", file=sys.stderr)
    if options["plot"] is not None:
        from multispin.report.profile_figures import write_profile

        write_profile(options["plot"], found)
        print(f"wrote {one_line(str(options['plot']))}", file=sys.stderr)


def _numbers(flag: str, text: str, least: int) -> list[int]:
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or values[0] < least or len(values) > MAX_GRID:
        raise InputError(f"{flag} {text!r} is not a list of at most {MAX_GRID} whole numbers ≥ {least}")
    if values[-1] > 256:
        raise InputError(f"{flag} {text!r} has a number above 256, the limit")
    return values


def _advise(found: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Add to `found`, or print, whether the measured drafters should draft for the measured engine."""
    from multispin.cli.advise import asked_advice, document, show_advice

    scenario, title = _scenario(found, options), f"{found['target']} as measured here"
    advice = asked_advice(scenario, title, RUNTIME_POLICIES, None)
    if options["as_json"]:
        found["advice"] = document(advice, title)
    else:
        show_advice(advice, scenario, title)


def _scenario(found: Mapping[str, Any], options: Mapping[str, Any]) -> Scenario:
    """One device for each drafter and task family."""
    from multispin.control import Verification
    from multispin.profiling.scenario import MeasuredDevice, measured_scenario

    fit = found["verification"]
    devices = []
    for drafter in found["drafters"]:
        for task in TASKS:
            rate, overlap = (drafter["tasks"][task][key] for key in ("acceptance_rate", "rejection_acceptance_rate"))
            if rate["mean"] is not None:
                own = None if overlap is None else overlap["mean"]
                name = f"{drafter['drafter']}-{task}"
                devices.append(MeasuredDevice(name, drafter["seconds_per_token"], rate["mean"], own))
    return measured_scenario(
        found["vocabulary"],
        Verification(fit["fixed_s"], fit["per_device_s"], fit["per_token_s"]),
        devices,
        options["bandwidth_hz"],
        options["spectral_efficiency"],
        modes=options["modes"],
    )


def _scenario_file(found: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The scenario, and comments that say where and when it was measured."""
    from multispin.control import dump_scenario
    from multispin.profiling.scenario import measured_format

    fit, form = found["verification"], measured_format(found["vocabulary"])
    head = [
        f"Measured by multispin profile on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {found['machine']}.",
        f"Target {found['target']} on the {found['engine']} engine; verification fitted over {len(fit['points'])} "
        f"kinds of batches, relative error {fit['relative_rms_error']:.1%} (root mean square), "
        f"{fit['worst_relative_error']:+.1%} at worst.",
        f"Acceptance at temperature {found['temperature']:g} by the {'coupled' if found['temperature'] else 'greedy'} "
        f"rule, {options['per_task']} prompts per task family, up to {options['tokens']} tokens each.",
        "Band and spectral efficiency were not measured. One device per drafter and task family.",
    ]
    if options["modes"]:
        head.append(
            "Modes: the rejection rules accept min(1, p/q) of whole distributions; their bits are for those cut "
            f"to {form.retained} tokens, in {form.probability_bits} bits each."
        )
    return "".join(f"# {line}\n" for line in head) + "\n" + dump_scenario(_scenario(found, options))


def _print(found: Mapping[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console, fit = Console(highlight=False), found["verification"]
    worst = fit["worst"]
    console.print(in_markup(found["machine"]))
    console.print(
        f"verification by {in_markup(found['engine'])}: {1e3 * fit['fixed_s']:.2f} ms + "
        f"{1e3 * fit['per_device_s']:.2f} ms per device + {1e3 * fit['per_token_s']:.3f} ms per token; relative error "
        f"{fit['relative_rms_error']:.1%} rms, {fit['worst_relative_error']:+.1%} at worst "
        f"(K = {worst['devices']}, L = {worst['draft_length']})"
    )
    if not found["drafters"]:
        return
    title = f"acceptance rate per drafted token at temperature {found['temperature']:g}, 95 % intervals"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)  # fits 80 columns
    table.add_column("drafter", overflow="fold")  # folded, since long names differ at the end
    table.add_column("ms/token", justify="right")
    for task in ("all", *TASKS):
        table.add_column(task, justify="right")
    table.add_column("min(1,p/q)", justify="right")
    for drafter in found["drafters"]:
        cells = [_shown(drafter["tasks"][task]["acceptance_rate"]) for task in ("all", *TASKS)]
        overlap = drafter["tasks"]["all"]["rejection_acceptance_rate"]
        table.add_row(
            in_markup(drafter["drafter"]), f"{1e3 * drafter['seconds_per_token']:.1f}", *cells, _shown(overlap)
        )
    console.print(table)


def _shown(rate: Mapping[str, Any] | None) -> str:
    if rate is None or rate["mean"] is None:
        return "–"
    if rate["low"] is None:
        return f"{rate['mean']:.2f}"
    half = max(rate["high"] - rate["mean"], rate["mean"] - rate["low"])  # one side may be cut at 0 or 1
    return f"{rate['mean']:.2f}±{half:.2f}"
