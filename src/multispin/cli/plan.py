"""`multispin plan`: chooses draft lengths and bandwidth shares for a scenario, with one policy or with all."""

import dataclasses
import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from multispin.cli.options import Command, Number
from multispin.cli.tables import BAR, figures_table, print_table
from multispin.control import (
    POLICIES,
    POLICY_TABLE,
    WITHOUT_DEVICES,
    DevicePlan,
    InfeasibleError,
    Plan,
    Scenario,
    load_scenario,
    plan,
)
from multispin.control.break_even import counted, time_text
from multispin.data import bundled_scenarios, scenario_path
from multispin.errors import InputError
from multispin.outside import in_markup

_HELP = f"""Choose every device's draft length and share of the uplink for the next round.

FILE is a scenario in TOML, with the tables [cell] and [verifier] and one [[device]] for each device; docs/control.md
lists the keys. FILE may also be the name of a bundled scenario: {", ".join(bundled_scenarios())}.

\b
Examples:
  multispin plan paper-llama
  multispin plan paper-qwen --policy algorithm1 --json
  multispin plan my-site.toml --compare
"""
_FULL_TABLE = 40
"""Most devices for which the table has a row each; with more, it has a row for each draft length."""


@click.command(cls=Command, help=_HELP, short_help="Choose draft lengths and bandwidth shares for a scenario file.")
@click.argument("file", type=click.Path())
@click.option(
    "--policy",
    type=click.Choice((*POLICIES, *WITHOUT_DEVICES)),
    default="heterogeneous",
    show_default=True,
    help="How to choose. heterogeneous is the exact optimum; plain and edge-drafts are what the edge can do alone.",
)
@click.option("--compare", is_flag=True, help="Compare all policies in one table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines instead of a table.")
@click.option(
    "--relative-gap",
    type=Number(0.0, 1.0, max_open=True),
    default=1e-6,
    show_default=True,
    help="The search ends when the proven upper bound is at most this share above the answer (heterogeneous and fair).",
)
@click.option("--all-devices", is_flag=True, help=f"Print a row for every device, even for more than {_FULL_TABLE}.")
def command(file: str, policy: str, compare: bool, as_json: bool, relative_gap: float, all_devices: bool) -> None:
    """The command behind `multispin plan`; its help is `_HELP`."""
    scenario = load_scenario(scenario_path(file))
    if compare:
        rows, skipped = _compare(scenario, relative_gap, quiet=as_json)
        if as_json:
            click.echo(_comparison_json(rows, skipped))
        else:
            _print_comparison(file, scenario, rows, skipped)
        return
    with Console(stderr=True, quiet=as_json).status("planning"):
        made = plan(scenario, policy, relative_gap=relative_gap)
    if as_json:
        click.echo(plan_json(made))
    else:
        _print_plan(file, scenario, made, all_devices or len(made.devices) <= _FULL_TABLE)


def plan_json(made: Plan) -> str:
    """The JSON of one plan, whose keys scripts rely on."""
    return json.dumps(
        {
            "policy": made.policy,
            "goodput_tokens_per_s": made.goodput_tokens_per_s,
            "upper_bound_tokens_per_s": made.upper_bound_tokens_per_s,
            "round_s": made.round_s,
            "devices": [_device_json(device) for device in made.devices],
        },
        indent=2,
    )


def _device_json(device: DevicePlan) -> dict[str, object]:
    """The JSON of one device; some keys exist only in scenarios that use them."""
    return {key: value for key, value in dataclasses.asdict(device).items() if value is not None}


def _compare(scenario: Scenario, relative_gap: float, *, quiet: bool) -> tuple[list[Plan], list[tuple[str, str]]]:
    """The plans of all policies, best first, and the policies without a plan with the reason."""
    plans: list[Plan] = []
    skipped: list[tuple[str, str]] = []
    with Console(stderr=True, quiet=quiet).status("planning") as status:
        for policy in (*POLICIES, *WITHOUT_DEVICES):
            status.update(f"planning: {policy}")
            try:
                plans.append(plan(scenario, policy, relative_gap=relative_gap))
            except InfeasibleError as error:
                skipped.append((policy, str(error)))
            except InputError as error:
                skipped.append((policy, str(error)))
    return sorted(plans, key=lambda made: -made.goodput_tokens_per_s), skipped


def _gain(made: Plan, plans: Sequence[Plan]) -> float:
    fixed = next(other for other in plans if other.policy == "fixed")
    return made.goodput_tokens_per_s / fixed.goodput_tokens_per_s - 1.0


def _comparison_json(plans: Sequence[Plan], skipped: Sequence[tuple[str, str]]) -> str:
    return json.dumps(
        {
            "policies": [
                {
                    "policy": made.policy,
                    "status": made.status,
                    "goodput_tokens_per_s": made.goodput_tokens_per_s,
                    "upper_bound_tokens_per_s": made.upper_bound_tokens_per_s,
                    "gain_over_fixed": _gain(made, plans),
                    "round_s": made.round_s,
                }
                for made in plans
            ],
            "skipped": [{"policy": policy, "reason": reason} for policy, reason in skipped],
        },
        indent=2,
    )


def _print_plan(file: str, scenario: Scenario, made: Plan, every: bool) -> None:
    console = Console(highlight=False)
    console.print(
        f"[bold]{made.policy}[/bold] for {counted(len(made.devices), 'device')} on "
        f"{_hertz(scenario.cell.bandwidth_hz)}, {in_markup(file)}",
        soft_wrap=True,
    )
    print_table(console, _device_table(made) if every else _length_table(scenario, made))
    weighted = " (weighted)" if any(device.weight != 1.0 for device in scenario.devices) else ""
    console.print(
        f"[bold]{made.goodput_tokens_per_s:.4g} tokens/s[/bold]{weighted} in rounds of {time_text(made.round_s)}"
    )
    bound = made.upper_bound_tokens_per_s
    if bound is not None:
        over = bound / made.goodput_tokens_per_s - 1.0
        console.print(
            f"No choice of lengths and bands exceeds {bound:.6g} tokens/s ({100 * over:.2g} % more): proven.",
            soft_wrap=True,
        )
    if made.status == "infeasible":
        console.print("[yellow]At least one device gets less than its min_goodput_tokens_per_s.[/yellow]")


def _device_table(made: Plan) -> Table:
    modes = any(device.mode for device in made.devices)
    turns = any(device.start_s is not None for device in made.devices)
    # A line has room for one of bars, modes and, where devices send one after the other, beginnings.
    fourth = "mode" if modes else "starts at" if turns else BAR
    table = figures_table("device", "draft", "band", fourth, "tokens", "tokens/s")
    widest = max((device.bandwidth_hz for device in made.devices), default=0.0)
    for device in made.devices:
        table.add_row(
            in_markup(device.name),
            str(device.draft_length) if device.draft_length else "–",
            _hertz(device.bandwidth_hz) if device.bandwidth_hz else "–",
            (device.mode or "–")
            if modes
            else ("–" if device.start_s is None else time_text(device.start_s))
            if turns
            else _bar(device.bandwidth_hz, widest),
            f"{device.expected_tokens:.2f}",
            f"{device.expected_tokens / made.round_s:.2f}",
        )
    return table


def _length_table(scenario: Scenario, made: Plan) -> Table:
    """One row per draft length: a thousand rows tell a person less."""
    table = figures_table("draft", "devices", BAR, "band together", "band each", "tokens/s each")
    groups: dict[int, list[DevicePlan]] = {}
    for device in made.devices:
        groups.setdefault(device.draft_length, []).append(device)
    most = max(len(group) for group in groups.values())
    for length in sorted(groups):
        group = groups[length]
        total = sum(device.bandwidth_hz for device in group)
        tokens = sum(device.expected_tokens for device in group)
        table.add_row(
            str(length),
            str(len(group)),
            _bar(len(group), most),
            f"{100 * total / scenario.cell.bandwidth_hz:.1f} %",
            _hertz(total / len(group)) if total else "–",
            f"{tokens / len(group) / made.round_s:.2f}",
        )
    return table


def _print_comparison(file: str, scenario: Scenario, plans: Sequence[Plan], skipped: Sequence[tuple[str, str]]) -> None:
    console = Console(highlight=False)
    band = _hertz(scenario.cell.bandwidth_hz)
    console.print(
        f"[bold]All policies[/bold] for {counted(len(scenario.devices), 'device')} on {band}, {in_markup(file)}",
        soft_wrap=True,
    )
    table = figures_table("policy", "tokens/s", "over fixed", BAR, "round", "drafts")
    most = max(made.goodput_tokens_per_s for made in plans)
    for made in plans:
        lengths = [device.draft_length for device in made.devices]
        served = [length for length in lengths if length] or [0]
        note = " [yellow]breaks a minimum[/yellow]" if made.status == "infeasible" else ""
        table.add_row(
            made.policy + note,
            f"{made.goodput_tokens_per_s:.4g}",
            "" if made.policy == "fixed" else f"{100 * _gain(made, plans):+.1f} %",
            _bar(made.goodput_tokens_per_s, most),
            time_text(made.round_s),
            f"{min(served)}" if min(served) == max(served) else f"{min(served)}–{max(served)}",
        )
    print_table(console, table)
    for policy in ("edge-drafts", "centralized"):
        if any(made.policy == policy for made in plans):
            console.print(f"[dim]{policy}: {POLICY_TABLE[policy].lengths}[/dim]", soft_wrap=True)
    for policy, reason in skipped:
        console.print(f"[dim]Left out: {policy}, because {in_markup(reason)}[/dim]", soft_wrap=True)


def _bar(value: float, most: float, width: int = 16) -> str:
    """A bar of at most `width` cells, drawn in eighths."""
    eighths = round(8 * width * value / most) if most > 0 else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _hertz(value: float) -> str:
    for unit, size in (("GHz", 1e9), ("MHz", 1e6), ("kHz", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.3g} Hz"
