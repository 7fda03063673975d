"""`multispin advise`: compares every way to serve a site, and says where devices begin to pay."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from multispin.cli.options import Command, PathOption
from multispin.cli.process import check_plot, flag
from multispin.cli.progress import progress
from multispin.cli.tables import figures_table, print_table
from multispin.control import RUNTIME_POLICIES, Cell, Device, EdgeDrafter, Scenario, Verification, load_scenario
from multispin.control.advice import Advice, Curve, Option, advise, curves, sentences
from multispin.control.break_even import counted, with_users
from multispin.data import scenario_path
from multispin.data.presets import EnginePreset, device_preset, device_presets, engine_preset, engine_presets
from multispin.errors import InputError
from multispin.outside import in_markup, one_line

_HELP = f"""Say whether devices should draft at a site, before anyone buys anything.

SITE is a scenario file or the name of a bundled one (docs/control.md lists the keys). Use presets for what
you have not measured: --engine replaces the site's verifier and edge drafter, --device the drafting of all devices.
Without a SITE both are needed. The figures come from the planner's model, which knows all parameters exactly and has
neither jitter nor stragglers. The figures of streams are simulated, with all parameters known, too. Texts and prompts
are as long as the SITE's [simulation] table says; without one, texts are endless.

Each row of the table is a mode of `serve`: "nobody" is plain, "the edge" is edge, "devices (POLICY)" is rounds,
"devices, in streams" is streams, and "best mixture" is mixture. The default mode, auto, decides as streams do.

Engines: {", ".join(engine_presets())}

Devices: {", ".join(device_presets())}

\b
Examples:
  multispin advise paper-llama
  multispin advise site.toml --json
  multispin advise --engine desktop-32b --device phone-pixel-10-pro --users 8
  multispin advise --engine h100-7b-graphs --device laptop-m3 --users 30 --delay-s 0.01 --plot advice.svg
  multispin advise --presets
"""
_USERS = 8
"""Number of users of a site made of presets only."""
_CELL = Cell(bandwidth_hz=2e6, bits_per_token=16, max_draft_length=25, min_draft_length=0)
"""Uplink of a site made of presets only: token ids over 2 MHz."""
_SPECTRAL_EFFICIENCY = 3.0
_NAMES = {
    "plain": "nobody",
    "edge": "the edge",
    "streams": "devices, in streams",
    "mixture": "[bold]best mixture, no streams[/bold]",
}


@click.command(cls=Command, help=_HELP, short_help="Say whether devices should draft at a site.")
@click.argument("site", required=False)
@click.option("--engine", metavar="PRESET", help="Preset for the engine of the edge and its own drafter.")
@click.option("--device", metavar="PRESET", help="Preset for the drafting speed and acceptance rate of all devices.")
@click.option(
    "--users",
    type=click.IntRange(1, 1000),
    show_default=f"the site's, or {_USERS}",
    help="Number of devices; they are like the site's.",
)
@click.option("--seconds-per-token", type=float, help="Drafting time per token of all devices [s].")
@click.option("--acceptance-rate", type=float, help="Probability that a token drafted by a device is accepted.")
@click.option("--delay-s", type=float, help="One-way delay between edge and devices [s].")
@click.option(
    "--edge-drafter-s", type=float, help="Time of one step of the edge's own drafter for all users [s]; 0 for none."
)
@click.option(
    "--edge-acceptance-rate",
    type=float,
    help="Probability that a token drafted by the edge is accepted.  [default: the devices' mean]",
)
@click.option(
    "--policy",
    "policies",
    type=click.Choice(RUNTIME_POLICIES),
    multiple=True,
    help="Policy of the rounds to compare; repeatable.  [default: all]",
)
@click.option("--plot", type=PathOption(dir_okay=False, path_type=Path), help="Write a picture (.png, .svg or .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines instead of a table.")
@click.option("--presets", is_flag=True, help="List the presets with their sources, and exit.")
def command(
    site: str | None, policies: tuple[str, ...], plot: Path | None, as_json: bool, presets: bool, **given: Any
) -> None:
    """The command behind `multispin advise`; its help is `_HELP`."""
    if presets:
        _print_presets()
        return
    check_plot(plot)
    scenario, title = _scenario(site, **given)
    advice = asked_advice(scenario, title, policies or RUNTIME_POLICIES, plot, site)
    if as_json:
        click.echo(json.dumps(document(advice, title), indent=2))
    else:
        show_advice(advice, scenario, title)
        if plot is not None:
            click.echo(f"Picture: {one_line(str(plot))}")


def asked_advice(
    scenario: Scenario, title: str, policies: Sequence[str], plot: Path | None, site: str | None = None
) -> Advice:
    """The advice for a site, with progress on standard error; draws a picture to `plot` if it is given.

    Texts and prompts are those of the scenario file `site`; default None: texts are endless.
    """
    from multispin.simulation.steady import streamed, texts_of  # imported late: the simulator loads slowly

    texts = None if site is None else texts_of(scenario_path(site))
    simulated = cache(partial(streamed, texts=texts))  # the picture needs the site's own figure again
    with progress() as show:
        advice = advise(scenario, policies, lambda stage, done: show(f"advice: {stage}", done, 1.0), simulated, texts)
        can_stream = advice.option("streams") is not None
        if plot is not None:
            streams = simulated if can_stream else None
            drawn = curves(scenario, lambda stage, done: show(stage, done, 1.0), streams, texts)
            _draw(advice, drawn, title, plot)
    return advice


def _scenario(
    site: str | None,
    engine: str | None,
    device: str | None,
    users: int | None,
    seconds_per_token: float | None,
    acceptance_rate: float | None,
    delay_s: float | None,
    edge_drafter_s: float | None,
    edge_acceptance_rate: float | None,
) -> tuple[Scenario, str]:
    """The scenario of the site, and its title."""
    if site is None and (engine is None or (device is None and (seconds_per_token is None or acceptance_rate is None))):
        raise InputError(
            "advise needs a SITE, or --engine with --device (or with --seconds-per-token and --acceptance-rate); "
            "`multispin advise --presets` lists the presets"
        )
    titles = [site] if site is not None else []
    if site is not None:
        scenario = load_scenario(scenario_path(site))
    else:
        devices = tuple(Device(f"user-{k + 1}", 1.0, _SPECTRAL_EFFICIENCY, 0.5) for k in range(users or _USERS))
        scenario = Scenario(_CELL, Verification(1.0, 0.0), devices)
    if device is not None:
        preset = device_preset(device)
        titles.append(preset.title)
        seconds_per_token = preset.seconds_per_token if seconds_per_token is None else seconds_per_token
        acceptance_rate = preset.acceptance_rate if acceptance_rate is None else acceptance_rate
    scenario = _with_devices(scenario, seconds_per_token, acceptance_rate, delay_s)
    if users is not None:
        scenario = with_users(scenario, users)
    if engine is not None:
        chosen = engine_preset(engine)
        titles.insert(0, chosen.title)
        scenario = _on_engine(scenario, chosen)
    return _with_edge_drafter(scenario, edge_drafter_s, edge_acceptance_rate), ", ".join(titles)


def _with_devices(
    scenario: Scenario, seconds_per_token: float | None, acceptance_rate: float | None, delay_s: float | None
) -> Scenario:
    """The scenario with these values for all of its devices; None keeps the devices' own."""
    changes: dict[str, dict[str, Any]] = {}  # by option, for the error message
    if seconds_per_token is not None:
        changes["--seconds-per-token"] = {"seconds_per_token": seconds_per_token}
    if acceptance_rate is not None:
        changes["--acceptance-rate"] = {
            "acceptance_rate": acceptance_rate,
            "acceptance_profile": None,
            "modes": (),
        }
    if delay_s is not None:
        changes["--delay-s"] = {"delay_s": delay_s}
    for option, changed in changes.items():
        with flag(option):
            scenario = replace(scenario, devices=tuple(replace(each, **changed) for each in scenario.devices))
    return scenario


def _on_engine(scenario: Scenario, engine: EnginePreset) -> Scenario:
    """The scenario with the times of an engine and of its drafter, which is as accurate as the devices'."""
    drafter = None
    if engine.drafter_fixed_s is not None:
        drafter = EdgeDrafter(engine.drafter_fixed_s, engine.drafter_per_device_s, _mean_acceptance(scenario))
    verifier = Verification(engine.fixed_s, engine.per_device_s, engine.per_token_s)
    return replace(scenario, verifier=verifier, edge_drafter=drafter)


def _with_edge_drafter(scenario: Scenario, fixed_s: float | None, acceptance_rate: float | None) -> Scenario:
    """The scenario with another step time [s] or acceptance rate of the edge's drafter; a time of 0 removes it."""
    own = scenario.edge_drafter
    if fixed_s == 0.0:
        own = None
    elif fixed_s is not None:
        with flag("--edge-drafter-s"):
            own = replace(own, fixed_s=fixed_s) if own else EdgeDrafter(fixed_s, 0.0, _mean_acceptance(scenario))
    if acceptance_rate is not None:
        if own is None:
            raise InputError(
                "--edge-acceptance-rate: the edge has no drafter of its own; add one with --edge-drafter-s"
            )
        with flag("--edge-acceptance-rate"):
            own = replace(own, acceptance_rate=acceptance_rate)
    return replace(scenario, edge_drafter=own)


def _mean_acceptance(scenario: Scenario) -> float:
    """Mean α of the devices' first drafted tokens."""
    first = [device.ways[0] for device in scenario.devices]
    rates = [w.acceptance_profile[0] if w.acceptance_profile else w.acceptance_rate or 0.0 for w in first]
    return sum(rates) / len(rates)


def document(advice: Advice, title: str) -> dict[str, Any]:
    """The JSON of an advice, whose keys scripts rely on."""
    best = advice.option("mixture")
    assert best is not None
    assert best.decision is not None
    return {
        "site": title,
        "users": best.users,
        "devices_pay": advice.devices_pay,
        "options": [
            {
                "mode": option.mode,
                "policy": option.policy,
                "goodput_tokens_per_s": option.goodput_tokens_per_s,
                "per_user_tokens_per_s": option.per_user_tokens_per_s,
                "slowest_user_tokens_per_s": option.slowest_tokens_per_s,
                "gain_over_plain": option.gain_over_plain,
                "gain_over_edge": option.gain_over_edge,
                "basis": option.basis,
                "upper_bound_tokens_per_s": option.upper_bound_tokens_per_s,
            }
            for option in advice.options
        ],
        "mix": {
            "kind": best.decision.kind,
            "period_s": best.decision.period_s,
            "extra_passes": best.decision.extra_passes,
            "sessions": [asdict(choice) for choice in best.decision.sessions],
        },
        "break_even": [asdict(found) for found in advice.break_evens],
        "skipped": [{"policy": policy, "reason": reason} for policy, reason in advice.skipped],
        "sentences": sentences(advice),
    }


def show_advice(advice: Advice, scenario: Scenario, title: str) -> None:
    """Print an advice for a person: a table, then sentences."""
    console = Console(highlight=False)
    console.print(
        f"[bold]Will it help?[/bold] {counted(len(scenario.devices), 'user')}, {in_markup(title)}", soft_wrap=True
    )
    table = figures_table("who drafts", "tokens/s", "per user", "slowest", "over plain", "over edge")
    options = sorted(advice.options, key=lambda each: each.goodput_tokens_per_s)
    rates = zip(
        aligned([each.goodput_tokens_per_s for each in options]),
        aligned([each.per_user_tokens_per_s for each in options]),
        aligned([each.slowest_tokens_per_s for each in options]),
        strict=True,
    )
    for option, written in zip(options, rates, strict=True):
        table.add_row(
            _name(option),
            *written,
            "" if option.mode == "plain" else f"{100 * option.gain_over_plain:+.0f} %",
            "" if option.gain_over_edge is None or option.mode == "edge" else f"{100 * option.gain_over_edge:+.0f} %",
        )
    print_table(console, table)
    for said in sentences(advice):
        console.print(in_markup(said), soft_wrap=True)
    for policy, reason in advice.skipped:
        console.print(f"[dim]Left out: {policy}, because {in_markup(reason)}[/dim]", soft_wrap=True)


def _name(option: Option) -> str:
    if option.mode == "rounds":
        return f"devices ({option.policy})"
    return _NAMES[option.mode]


def aligned(values: Sequence[float]) -> list[str]:
    """Numbers of a column, all with enough decimals to show three digits of the least one above 0."""
    least = min((value for value in values if value > 0), default=1.0)
    decimals = min(max(2 - math.floor(math.log10(least)), 0), 3)
    return [f"{value:.{decimals}f}" for value in values]


def _print_presets() -> None:
    console = Console(highlight=False)
    for name, engine in engine_presets().items():
        console.print(f"[bold]{name}[/bold]: {engine.title}", soft_wrap=True)
        console.print(
            f"  {1e3 * engine.fixed_s:.4g} ms + {1e3 * engine.per_device_s:.4g} ms per session + "
            f"{1e3 * engine.per_token_s:.3g} ms per token: {engine.source}",
            soft_wrap=True,
        )
        if engine.drafter_fixed_s is not None:
            console.print(
                f"  its drafter {1e3 * engine.drafter_fixed_s:.3g} ms per step: {engine.drafter_source}", soft_wrap=True
            )
    for name, device in device_presets().items():
        console.print(f"[bold]{name}[/bold]: {device.title}", soft_wrap=True)
        console.print(
            f"  {1e3 * device.seconds_per_token:.3g} ms per token, {100 * device.acceptance_rate:.0f} % accepted: "
            f"{device.source}",
            soft_wrap=True,
        )


def _draw(advice: Advice, drawn: tuple[Curve, Curve], title: str, path: Path) -> None:
    from multispin.report.advice_figure import write_advice_figure

    write_advice_figure(advice, drawn, title, path)
