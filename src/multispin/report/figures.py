"""Figures 6, 7 and 8 of arXiv 2606.04581 as pictures of their tables."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multispin.paper.cell import PAIRS
from multispin.paper.measure import SCHEMES
from multispin.paper.reported import PAPER_GOODPUT, REPORTED
from multispin.paper.table import Table
from multispin.report.style import COLOURS, MARKERS, canvas, legend_above

_TICKS = {"heterogeneous": "Hete,\nexact", "algorithm1": "Hete,\nAlg. 1", "fixed": "Fixed\nBW&L"}
"""Narrow names, for the places under bars."""


def figure_6(table: Table) -> Figure:
    """Bars of all schemes, one panel per pair, with the paper's numbers as far as its text gives them."""
    figure, axes = canvas(f"Fig. 6  {table.title}", table.note, 1, 2, 4.6)
    for panel, pair in zip(axes[0], PAIRS.values(), strict=True):
        part = table.where(pair=pair.key)
        schemes = [str(scheme) for scheme in part.column("scheme")]
        mean, low, high = (np.array(part.numbers(name)) for name in ("goodput_tokens_per_s", "low", "high"))
        at = np.arange(len(schemes))
        error = np.nan_to_num(np.stack([mean - low, high - mean]))
        panel.bar(at, mean, yerr=error, capsize=3, color=[COLOURS[scheme] for scheme in schemes], width=0.7)
        for x, value, top in zip(at, mean, mean + error[1], strict=True):
            panel.annotate(f"{value:.0f}", (x, top), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        known = [(x, PAPER_GOODPUT[pair.key, s]) for x, s in enumerate(schemes) if (pair.key, s) in PAPER_GOODPUT]
        places, said = (np.array(values) for values in zip(*known, strict=True))
        panel.hlines(said, places - 0.42, places + 0.42, "black", linewidth=2, label="paper, as far as its text says")
        panel.set_xticks(at, [_TICKS.get(scheme, SCHEMES[scheme]) for scheme in schemes])
        panel.tick_params(axis="x", labelsize=8.5)
        panel.grid(axis="x", visible=False)
        panel.set_ylim(0, 1.2 * float((mean + error[1]).max()))
        panel.set_title(pair.title, fontsize=11)
        panel.set_ylabel("sum goodput [tokens/s]")
        panel.legend(loc="upper right", fontsize=9)
    return figure


def figure_7(table: Table) -> Figure:
    """Goodput and gain over Fixed against the band."""
    return _sweep(table, 7, "bandwidth_hz", 1e6, "shared band B [MHz]")


def figure_8(table: Table) -> Figure:
    """Goodput and gain over Fixed against the number of devices."""
    return _sweep(table, 8, "devices", 1.0, "devices K")


def _sweep(table: Table, number: int, swept: str, unit: float, label: str) -> Figure:
    figure, axes = canvas(f"Fig. {number}  {table.title}", table.note, 2, 2, 7.6, legend=True)
    for column, pair in enumerate(PAIRS.values()):
        part = table.where(pair=pair.key)
        upper, lower = axes[0][column], axes[1][column]
        for scheme, name in SCHEMES.items():
            _curve(upper, part.where(scheme=scheme), scheme, name, swept, unit, "goodput_tokens_per_s", 1.0)
        upper.set_title(pair.title, fontsize=11)
        upper.set_ylabel("sum goodput [tokens/s]")
        upper.set_ylim(bottom=0)
        for scheme in ("heterogeneous", "uniform-bandwidth", "homogeneous"):
            _curve(lower, part.where(scheme=scheme), scheme, SCHEMES[scheme], swept, unit, "over_fixed", 100.0)
        said = [r for r in REPORTED if r.figure == number and r.pair == pair.key and r.percent]
        where = [(r.bandwidth_hz if swept == "bandwidth_hz" else r.devices) / unit for r in said]
        lower.plot(where, [r.shown(r.value) for r in said], "k*", markersize=13, label="paper: Hete", zorder=5)
        lower.set_ylabel("gain over Fixed BW&L [%]")
        lower.set_ylim(bottom=0)
        for panel in (upper, lower):
            panel.set_xlabel(label)
    legend_above(figure, *axes[0], *axes[1])
    return figure


def _curve(
    panel: Axes, part: Table, scheme: str, name: str, swept: str, unit: float, quantity: str, scale: float
) -> None:
    low, high = ("low", "high") if quantity == "goodput_tokens_per_s" else (f"{quantity}_low", f"{quantity}_high")
    x = np.array(part.numbers(swept)) / unit
    mean, bottom, top = (scale * np.array(part.numbers(column)) for column in (quantity, low, high))
    dashed = scheme == "algorithm1"
    panel.plot(
        x, mean, color=COLOURS[scheme], marker=MARKERS[scheme], markersize=5, linestyle="--" if dashed else "-",
        label=name, zorder=4 if dashed else 3,
    )  # fmt: skip
    if not dashed:
        panel.fill_between(x, bottom, top, color=COLOURS[scheme], alpha=0.13, linewidth=0)
