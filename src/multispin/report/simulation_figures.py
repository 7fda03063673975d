"""A simulation as a picture: bars without a sweep, curves over one key, maps over two."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multispin.control.break_even import counted
from multispin.estimation.intervals import Estimate
from multispin.report.style import MARKERS, RC, canvas, colour_of, legend_above
from multispin.simulation.study import Result, labels

_UNITS = {"bandwidth_hz": ("shared band [MHz]", 1e6), "devices": ("devices", 1.0)}
"""Nicer names for keys that are often swept."""


def write_simulation_figure(results: Sequence[Result], scenario: str, rounds: int, knows: bool, path: Path) -> None:
    """Write the picture of these results; its kind follows from the file's suffix."""
    with rc_context(RC):
        simulation_figure(results, scenario, rounds, knows).savefig(path)


def simulation_figure(results: Sequence[Result], scenario: str, rounds: int, knows: bool) -> Figure:
    """The picture of these results."""
    seeds = len(results[0].seeds)
    note = (
        f"{scenario}: {counted(rounds, 'round')} under a virtual clock, the controller "
        + ("knows the truth. " if knows else "learns. ")
        + (f"Means over {seeds} seeds with 95 % intervals." if seeds > 1 else "One seed, no intervals.")
    )
    swept = len(results[0].point)
    return (_bars, _curves, _maps)[swept](results, note)


def _bars(results: Sequence[Result], note: str) -> Figure:
    drawn, axes = canvas("Ways to serve this site, side by side", note, 1, 3, 4.2)
    goodput, speed, shares = axes[0]
    at = np.arange(len(results))
    names, colours = labels(results), [colour_of(result.mode, result.policy) for result in results]
    found = [result.estimates() for result in results]
    _bar(goodput, at, [each["goodput_tokens_per_s"] for each in found], 0.7, colours)
    goodput.set_ylabel("goodput [tokens/s]")
    for x, each in zip(at, found, strict=True):
        label = f"Jain\n{each['jain_index'].mean:.3f}"
        goodput.annotate(label, (x, 0), (0, 4), textcoords="offset points", ha="center", fontsize=8, color="white")
    for index, (part, shade) in enumerate((("p50", 1.0), ("p95", 0.65), ("p99", 0.35))):
        values = [each[f"time_per_token_s_{part}"] for each in found]
        _bar(speed, at + 0.26 * (index - 1), values, 0.26, "#0072B2", alpha=shade, label=part)
    speed.set_ylabel("time per token [s]")
    speed.set_ylim(bottom=0)  # the interval of few seeds may reach below
    kinds = (("server", "#0072B2"), ("device", "#E69F00"), ("uplink", "#009E73"))
    for index, (kind, colour) in enumerate(kinds):
        values = [each[f"{kind}_utilisation"] for each in found]
        _bar(shares, at + 0.2 * (index - 1.5), values, 0.2, colour, label=f"{kind} busy")
    _bar(shares, at + 0.3, [each["wasted_draft_fraction"] for each in found], 0.2, "#999999", label="drafts wasted")
    shares.set_ylabel("share")
    shares.set_ylim(0, 1.25)  # room for the legend above a server that is always busy
    shares.set_yticks(np.linspace(0, 1, 6))
    for panel in axes[0]:
        panel.set_xticks(at, names, fontsize=8, rotation=25, ha="right", rotation_mode="anchor")
        panel.grid(axis="x", visible=False)
    speed.legend(fontsize=8.5)
    shares.legend(fontsize=8.5, ncols=2, loc="upper center")
    return drawn


def _curves(results: Sequence[Result], note: str) -> Figure:
    key = results[0].point[0][0]
    label, unit = _axis(key)
    drawn, axes = canvas(f"Over {label}", note, 1, 3, 4.0, legend=1)
    panels = (
        ("goodput_tokens_per_s", "goodput [tokens/s]"),
        ("time_per_token_s_p95", "time per token, 95th percentile [s]"),
        ("jain_index", "Jain's index of the devices' tokens/s"),
    )
    values = list(dict.fromkeys(result.point[0][1] for result in results))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    x = np.array(values) / unit if numeric else np.arange(len(values))
    ways = {name: (each.mode, each.policy) for name, each in zip(labels(results), results, strict=True)}
    for panel, (measure, title) in zip(axes[0], panels, strict=True):
        for name, (mode, policy) in ways.items():
            found = [
                result.estimates()[measure] for result in results if (result.mode, result.policy) == (mode, policy)
            ]
            mean, low, high = (np.array([getattr(each, part) for each in found]) for part in ("mean", "low", "high"))
            colour, marker = colour_of(mode, policy), MARKERS.get(policy, ".") if mode == "rounds" else "*"
            panel.plot(x, mean, color=colour, marker=marker, markersize=5, label=name)
            panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_xlabel(label)
        panel.set_ylabel(title)
        if measure == "jain_index":
            panel.set_ylim(top=1.02)  # it is 1 at most, but the interval of few seeds may reach above
        else:
            panel.set_ylim(bottom=0)
        if not numeric:
            panel.set_xticks(x, [str(value) for value in values])
    legend_above(drawn, *axes[0])
    return drawn


def _maps(results: Sequence[Result], note: str) -> Figure:
    names = labels(results)
    policies = list(dict.fromkeys(names))
    (first, _), (second, _) = results[0].point
    rows = list(dict.fromkeys(result.point[1][1] for result in results))
    columns = list(dict.fromkeys(result.point[0][1] for result in results))
    goodput = {
        (name, result.point[0][1], result.point[1][1]): result.estimates()["goodput_tokens_per_s"].mean
        for name, result in zip(names, results, strict=True)
    }
    grids = [np.array([[goodput[policy, x, y] for x in columns] for y in rows]) for policy in policies]
    low, high = min(grid.min() for grid in grids), max(grid.max() for grid in grids)
    drawn, axes = canvas("Goodput [tokens/s]", note, 1, len(policies), 4.2)
    (across, x_unit), (up, y_unit) = _axis(first), _axis(second)
    for panel, policy, grid in zip(axes[0], policies, grids, strict=True):
        panel.imshow(grid, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(grid):
            light = value > 0.5 * (low + high)
            panel.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=8,
                       color="black" if light else "white")  # fmt: skip
        panel.set_xticks(range(len(columns)), [_tick(value, x_unit) for value in columns], fontsize=8)
        panel.set_yticks(range(len(rows)), [_tick(value, y_unit) for value in rows], fontsize=8)
        panel.grid(visible=False)
        panel.set_title(policy, fontsize=11)
        panel.set_xlabel(across)
    axes[0][0].set_ylabel(up)
    return drawn


def _bar(panel: Axes, at: Any, found: Sequence[Estimate], width: float, colour: Any, **more: Any) -> None:
    mean = np.array([each.mean for each in found])
    error = np.nan_to_num(np.array([[each.mean - each.low, each.high - each.mean] for each in found]).T)
    panel.bar(at, mean, yerr=error, width=width, color=colour, capsize=2, error_kw={"linewidth": 1}, **more)


def _axis(key: str) -> tuple[str, float]:
    return _UNITS.get(key.split(".")[-1], (key, 1.0))


def _tick(value: Any, unit: float) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value / unit:.4g}" if number else str(value)
