"""`multispin reproduce`: the paper's figures from its own model, beside what it reports."""

import os
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table as RichTable

from multispin.cli.options import Command, PathOption
from multispin.cli.process import make_folder
from multispin.cli.progress import progress
from multispin.errors import InputError, require
from multispin.outside import in_markup
from multispin.paper.calibration import Calibration, Fit, calibrate
from multispin.paper.cell import REALISATIONS, SEEDS
from multispin.paper.claims import Claim, claims_of, summary_json
from multispin.paper.experiments import BLOCKS, Study, settings_of, table_of
from multispin.paper.reported import OUTLIER
from multispin.paper.running import ROUNDS, RUN_REALISATIONS, cases_of, run_cases
from multispin.paper.streaming import planned_settings, run_streams
from multispin.paper.table import Table
from multispin.paper.theory import figure_3, figure_4, figure_5
from multispin.report.page import readable_number

RUNNING = ("learning", "lateness")
"""Figures from the simulator, of the cell over time."""
FIGURES = ("3", "4", "5", "6", "7", "8", "payload", "fairness", *RUNNING, "streams")
"""All figures: the paper's by number, and some beyond the paper."""
_HELP = f"""Reproduce figures 3 to 8 of the Multi-SPIN paper (arXiv 2606.04581), and go a little beyond.

It writes each figure as CSV, PNG and SVG, a file summary.json (what the paper says, what we get, why they differ) and
one self-contained report.html. Each figure states the assumptions made where the paper leaves values open.

\b
Figures: {", ".join(FIGURES)}

\b
Examples:
  multispin reproduce
  multispin reproduce --figures 7,8 --realisations 3 --out build/quick
  multispin reproduce --calibrate
"""
INTRODUCTION = (
    "The experiments of “Multi-SPIN: Multi-Access Speculative Inference for Cooperative Token Generation at the Edge” "
    "(arXiv 2606.04581), computed with this project's planner on the paper's own model: analytic expected tokens, "
    "affine verification latency, Rayleigh block fading. No language model runs here.",
    "The paper prints neither transmit power nor drafting times. They were calibrated once, for all figures together, "
    "by the least squared log ratio to the numbers that the paper reports; “multispin reproduce --calibrate” repeats "
    "that search. One number, Qwen's absolute goodput, fits no calibration that fits the others and was left out. So "
    "the numbers called reproduced were partly fitted: three free values against eight numbers, and one value each "
    "for the two ratios to Cen-SPIN. The order of schemes, the shapes of the curves and Uni-BW against Homo were not.",
    "Verdicts: reproduced, the paper's number lies in our 95 % interval and differs by at most 10 % as a ratio of "
    "goodputs; close, only the second; undecided, only the first; not reproduced, neither. The intervals of numbers "
    "that were fitted include what the calibration leaves open.",
    "Two schemes that the paper does not compare with stand beside its own: plain batched decoding, in which nobody "
    "drafts, and drafts by the edge's own drafter. They show whether the devices help at all. A last "
    "figure shows the cell in streams, where devices draft on while they are verified.",
)


@click.command(cls=Command, help=_HELP, short_help="Reproduce the paper's figures.")
@click.option("--out", type=PathOption(file_okay=False, path_type=Path), default=Path("build/reproduce"),
              show_default=True, help="Folder to write to. It is made if it does not exist.")  # fmt: skip
@click.option(
    "--figures", default=",".join(FIGURES), show_default="all of them", help="Figures to compute, separated by commas."
)
@click.option("--realisations", type=click.IntRange(1, 1000), default=REALISATIONS, show_default=True,
              help="Number of draws of tasks, speeds and mean channel gains from each seed.")  # fmt: skip
@click.option("--blocks", type=click.IntRange(1, 10_000), default=BLOCKS, show_default=True,
              help="Number of fading blocks in each realisation.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(10, 100_000), default=ROUNDS, show_default=True,
              help="Number of rounds of each simulated run (learning, lateness, streams).")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=SEEDS[0], show_default=True, help="First seed of the draws.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=len(SEEDS), show_default=True,
              help="Number of seeds, counted up from the first.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 256), default=min(2, os.cpu_count() or 1), show_default=True,
              help="Number of processes.")  # fmt: skip
@click.option("--calibrate", "calibrating", is_flag=True, help="Only search the assumed values again, and print them.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of a table.")
def command(
    out: Path,
    figures: str,
    realisations: int,
    blocks: int,
    rounds: int,
    seed: int,
    seeds: int,
    processes: int,
    calibrating: bool,
    as_json: bool,
) -> None:
    """The command behind `multispin reproduce`; its help is `_HELP`."""
    drawn_from = tuple(range(seed, seed + seeds))
    if calibrating:
        with progress() as show:
            calibration = calibrate(
                processes, drawn_from, realisations=realisations, progress=partial(show, "searching the grid")
            )
        _print_calibration(calibration)
        return
    require("matplotlib")
    from multispin.report.bundle import write_bundle

    wanted = _wanted(figures)
    make_folder(out)
    study = Study(seeds=drawn_from, realisations=realisations, blocks=blocks)
    settings = [setting for figure in wanted for setting in settings_of(figure)]
    if "streams" in wanted:
        settings += planned_settings()
    simulated = [draw for draw in study.draws if draw[1] < RUN_REALISATIONS]
    with progress() as show:
        study.run(settings, processes, partial(show, "planning rounds"))
    tables = {figure: _table(figure, study) for figure in wanted if figure not in (*RUNNING, "streams")}
    for figure in RUNNING:
        if figure in wanted:
            with progress() as show:
                tables[figure] = run_cases(
                    figure,
                    cases_of(figure),
                    study.assumed,
                    simulated,
                    rounds,
                    processes,
                    lambda part, figure=figure: show(f"simulating {figure}", part, 1.0),  # type: ignore[misc]
                )
    if "streams" in wanted:
        with progress() as show:
            tables["streams"] = run_streams(
                study, simulated, rounds, processes, lambda part: show("simulating streams", part, 1.0)
            )
    claims = claims_of(study, tables, wanted)
    files = write_bundle(out, list(tables.values()), claims, INTRODUCTION)
    if as_json:
        click.echo(summary_json(claims), nl=False)
    else:
        _print_claims(claims)
    Console(stderr=True, highlight=False).print(f"{len(files)} files; open {in_markup(str(files[0]))}", soft_wrap=True)


def _wanted(figures: str) -> list[str]:
    names = [name.strip() for name in figures.split(",") if name.strip()]
    for name in names:
        if name not in FIGURES:
            raise InputError(f"--figures has {name!r}; it must be some of {', '.join(FIGURES)}")
    if not names:
        raise InputError(f"--figures is empty; it must be some of {', '.join(FIGURES)}")
    return [figure for figure in FIGURES if figure in names]


def _table(figure: str, study: Study) -> Table:
    if figure == "3":
        return figure_3(study.assumed, study.seeds[0])
    if figure == "4":
        return figure_4(study.assumed, study.seeds[0])
    return figure_5() if figure == "5" else table_of(figure, study)


def _print_claims(claims: list[Claim]) -> None:
    table = RichTable(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("claim", "paper", "ours", "low", "high", "verdict"):
        left = name not in ("ours", "low", "high")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "claim")
    for claim in claims:
        numbers = (readable_number(value) for value in (claim.paper, claim.ours, claim.low, claim.high))
        table.add_row(claim.claim, *numbers, claim.verdict.capitalize())
    Console(highlight=False).print(table)


def _print_calibration(found: Calibration) -> None:
    fits = {
        "all numbers but Qwen's absolute goodput (in use)": found.used,
        "all numbers": found.all_numbers,
        "without both absolute goodputs": found.ratios,
    }
    for title, fit in fits.items():
        click.echo(f"{title}: root mean square of ln(ours / paper's) = {fit.misfit:.3f}")
        for pair, assumed in fit.chosen.items():
            click.echo(f"  {pair}: {assumed}")
        for claim, residual in fit.residuals.items():
            click.echo(f"    {residual:+.3f}  {claim}" + ("  (not fitted)" if claim in fit.left_out else ""))
    click.echo("\nEach number in use left out in turn:")
    for fit in found.leave_one_out:
        click.echo(f"  {_left_out(fit)}")
    click.echo("\nWhat the calibration leaves open, standard deviation of ln(ours):")
    for claim, spread in found.spread.items():
        click.echo(f"  {spread:.3f}  {claim}")
    click.echo("\nUni-BW ÷ Homo over the whole grid:")
    for pair, (low, high) in found.order.items():
        click.echo(f"  {pair}: {low:.3f} … {high:.3f}")


def _left_out(fit: Fit) -> str:
    """One line: the number that was left out, the values that fit the rest, and their residual for it."""
    (claim,) = (claim for claim in fit.left_out if claim != OUTLIER)
    values = "/".join(f"{1e3 * assumed.draft_s:g}" for assumed in fit.chosen.values())
    snr = next(iter(fit.chosen.values())).snr_db
    return f"{claim}: {snr:g} dB, Tˢ {values} ms, misfit {fit.misfit:.3f}, its own residual {fit.residuals[claim]:+.3f}"
