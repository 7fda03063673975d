"""`multispin simulate`: runs a site over many rounds under a virtual clock, and compares policies."""

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console

from multispin.cli.options import Command, Number, PathOption
from multispin.cli.process import check_outputs, check_plot, flag
from multispin.cli.progress import progress, stage
from multispin.cli.tables import figures_table, print_table
from multispin.cli.unused import idle_policies
from multispin.control import RUNTIME_POLICIES
from multispin.control.break_even import counted, time_text
from multispin.data import bundled_scenarios, scenario_path
from multispin.errors import InputError
from multispin.outside import in_markup
from multispin.passes.settings import MODES

if TYPE_CHECKING:
    from multispin.simulation.measures import Measures
    from multispin.simulation.study import Result, SimulatedRun

USUAL_POLICIES = ("heterogeneous", "uniform-bandwidth", "homogeneous", "fixed")
_HELP = f"""Simulate a site: run the real loop, sessions, controller and estimators under a virtual clock.

FILE is a scenario in TOML, as for `multispin plan`, and may have a [simulation] table for requests, arrivals, fading
and stragglers; docs/simulation.md lists the keys. FILE may also be the name of a bundled scenario:
{", ".join(bundled_scenarios())}.
The figures are means over the seeds, with 95 % intervals.

\b
Examples:
  multispin simulate paper-llama
  multispin simulate paper-llama --policy heterogeneous --policy fixed --knows --json
  multispin simulate a100-27b --mode plain --mode edge --mode rounds --mode auto
  multispin simulate paper-llama --sweep cell.bandwidth_hz=5e6:20e6:7 --plot sweep.png
  multispin simulate paper-llama --sweep devices=5,10,20 --sweep simulation.fading=none,rayleigh
"""


@click.command(cls=Command, help=_HELP, short_help="Run a site under a virtual clock.")
@click.argument("file", type=click.Path())
@click.option("--policy", "policies", type=click.Choice(RUNTIME_POLICIES), multiple=True,
              help="How the edge plans, in the modes rounds and mixture; repeat it to compare. In streams and auto "
              "only the policy fair has an effect.  "
              f"[default: {', '.join(USUAL_POLICIES)}]")  # fmt: skip
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True,
              help="Who drafts: nobody (plain), the edge's own drafter (edge), the devices as the policy plans "
              "(rounds), for each session the best of these (mixture), the devices while they are verified (streams), "
              "or whatever pays (auto); repeatable.  [default: rounds]")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 10_000_000), default=200, show_default=True,
              help="Rounds (in other modes: passes) of each run.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 10_000), default=5, show_default=True,
              help="Number of runs per policy, each with its own seed. A single run has no interval.")  # fmt: skip
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31),
    default=1,
    show_default=True,
    help="Seed of the first run; the others count up from it.",
)
@click.option("--knows/--learns", default=False, help="Whether the controller knows the true parameters, or learns "
              "them like the real one.  [default: learns]")  # fmt: skip
@click.option("--replan-tolerance", type=Number(0.0), default=0.02, show_default=True,
              help="Relative change of estimates after which the controller plans again.")  # fmt: skip
@click.option("--sweep", "sweeps", multiple=True, metavar="KEY=VALUES",
              help="Values of a key, FROM:TO:COUNT or a list with commas; twice for a grid. Keys: cell.K, verifier.K, "
              "edge_drafter.K, radio.K, simulation.K, device.K (of every device), devices (how many).")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 1024), default=os.cpu_count() or 1, show_default="one per core",
              help="Number of processes; with --live one, with --ray the cluster's.")  # fmt: skip
@click.option("--live", metavar="DRAFTER", help="Let real models write the texts, in virtual time: lookup, "
              "q3 … q8 (the target, rounded) or a model reference.")  # fmt: skip
@click.option("--target", default="embedded", show_default=True, help="With --live: the model that verifies.")
@click.option("--ray", "on_ray", is_flag=True,
              help="Run on the Ray cluster at RAY_ADDRESS, or on one started here. Needs the extra ray.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines instead of a table.")
@click.option(
    "--csv", "csv_file", type=PathOption(dir_okay=False, path_type=Path), help="Write a table with one row per run."
)
@click.option("--plot", "plot_file", type=PathOption(dir_okay=False, path_type=Path),
              help="Write a picture (.png, .svg or .pdf).")  # fmt: skip
@click.pass_context
def command(
    context: click.Context,
    /,
    file: str,
    policies: tuple[str, ...],
    modes: tuple[str, ...],
    rounds: int,
    seeds: int,
    seed: int,
    knows: bool,
    replan_tolerance: float,
    sweeps: tuple[str, ...],
    jobs: int,
    live: str | None,
    target: str,
    on_ray: bool,
    as_json: bool,
    csv_file: Path | None,
    plot_file: Path | None,
) -> None:
    """The command behind `multispin simulate`; its help is `_HELP`."""
    if live is None and target != "embedded":
        raise InputError("--target is the model that verifies with --live: add --live, or leave --target out")
    if context.get_parameter_source("jobs") is ParameterSource.COMMANDLINE and (live is not None or on_ray):
        why = "--live: one process holds the models" if live is not None else "--ray: the cluster says how many run"
        raise InputError(f"--jobs cannot go with {why}")
    _check_flags(sweeps, live, knows, on_ray, csv_file, plot_file)
    from multispin.simulation.setup import ScenarioFile  # loads torch, so only after the options are checked
    from multispin.simulation.study import (
        NeedsTruthError,
        as_document,
        as_rows,
        parse_sweep,
        points,
        results_of,
        runs_of,
    )

    modes = tuple(dict.fromkeys(modes)) or ("rounds",)
    if idle := idle_policies(policies, modes):
        click.echo(idle, err=True)
    chosen = tuple(dict.fromkeys(policies)) or (USUAL_POLICIES if modes == ("rounds",) else USUAL_POLICIES[:1])
    with flag("--sweep"):
        grid = points([parse_sweep(sweep) for sweep in sweeps])
    numbers = range(seed, seed + seeds)
    try:
        scenario = ScenarioFile(scenario_path(file))
        todo = runs_of(scenario, grid, chosen, numbers, rounds, knows, replan_tolerance, modes)
    except NeedsTruthError as error:
        raise InputError(f"{error}; add --knows") from error
    results = results_of(_measured(todo, jobs, target, live, on_ray), grid, chosen, numbers, modes)
    if csv_file is not None:
        _write_csv(csv_file, as_rows(results))
    if plot_file is not None:
        from multispin.report.simulation_figures import write_simulation_figure

        write_simulation_figure(results, Path(file).name, rounds, knows, plot_file)
    if as_json:
        click.echo(json.dumps(as_document(file, rounds, results, knows), indent=2))
    else:
        _print(file, results, rounds, knows)


def _check_flags(
    sweeps: Sequence[str],
    live: str | None,
    knows: bool,
    on_ray: bool,
    csv_file: Path | None,
    plot_file: Path | None,
) -> None:
    """InputError if options do not go together or a file cannot be written."""
    if len(sweeps) > 2:
        raise InputError(f"--sweep was given {len(sweeps)} times; use it once or twice")
    check_outputs(csv_file)
    check_plot(plot_file)
    if live is not None and (knows or on_ray):
        why = "--knows: nobody knows real models' acceptance" if knows else "--ray: the models run in one process"
        raise InputError(f"--live does not go with {why}")


def _measured(
    todo: "Sequence[SimulatedRun]", jobs: int, target: str, live: str | None, on_ray: bool
) -> "list[Measures]":
    """Results of all runs, in processes on this machine, with real models, or on a Ray cluster."""
    from multispin.simulation.study import run_all, run_on_ray

    models = None
    with progress() as show:
        if live is not None:
            from multispin.simulation.live import load_live

            with stage(show, f"loading {target}"), flag("--live"):
                models = load_live(target, live)

        def told(done: float) -> None:
            show(f"{len(todo)} runs", done, 1.0)

        if on_ray:
            with flag("--ray"):
                return run_on_ray(todo, told)
        return run_all(todo, jobs, told, models)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _print(file: str, results: "Sequence[Result]", rounds: int, knows: bool) -> None:
    from multispin.simulation.study import labels

    console = Console(highlight=False)
    seeds = len(results[0].seeds)
    how = "knows the truth" if knows else "learns"
    console.print(
        f"[bold]{in_markup(file)}[/bold]: {counted(rounds, 'round')}, {counted(seeds, 'seed')}, the controller {how}",
        soft_wrap=True,
    )
    all_rounds = all(result.mode == "rounds" for result in results)
    keys = [key for key, _ in results[0].point]
    shares = ("server", "devices", "uplink", "wasted")
    headings = (*keys, "tokens/s", "95 %", "Jain", "first", "token p50", "p95", *shares)
    table = figures_table("policy" if all_rounds else "mode", *headings)
    for name, result in zip(labels(results), results, strict=True):
        found = result.estimates()
        goodput = found["goodput_tokens_per_s"]
        half = goodput.high - goodput.mean
        table.add_row(
            name,
            *(f"{value:.5g}" if isinstance(value, float) else str(value) for _, value in result.point),
            _number(goodput.mean),
            f"± {float(f'{half:.2g}'):g}" if math.isfinite(half) else "",
            _number(found["jain_index"].mean, 3),
            _seconds(found["time_to_first_token_s_p50"].mean),
            _seconds(found["time_per_token_s_p50"].mean),
            _seconds(found["time_per_token_s_p95"].mean),
            *(
                _percent(found[name].mean)
                for name in (
                    "server_utilisation",
                    "device_utilisation",
                    "uplink_utilisation",
                    "wasted_draft_fraction",
                )
            ),
        )
    print_table(console, table)
    fewest = min(run.rounds for result in results for run in result.runs)
    if fewest < rounds:
        console.print(f"[yellow]Some run ended after {counted(round(fewest), 'round')}: no device was left.[/yellow]")


def _number(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if math.isfinite(value) else "–"


def _seconds(value: float) -> str:
    return time_text(value) if math.isfinite(value) else "–"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if math.isfinite(value) else "–"
