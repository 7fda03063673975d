"""The figures that compare schemes by their plans: 6, 7 and 8 of arXiv 2606.04581, payload and fairness."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multispin.paper.cell import PAIRS
from multispin.paper.experiments import PAYLOADS
from multispin.paper.reported import PAPER_GOODPUT, REPORTED
from multispin.paper.schemes import COMPARED, EDGE_ALONE, TITLES
from multispin.paper.table import Table
from multispin.report.style import COLOURS, LINES, MARKERS, canvas, curve, legend_above

_PAYLOAD_COLOUR = {"distribution": "#0072B2", "scalar": "#009E73", "ids": "#D55E00"}
_TICKS = {
    "heterogeneous": "Hete,\nexact",
    "algorithm1": "Hete,\nAlg. 1",
    "fixed": "Fixed\nBW&L",
    "centralized": "Cen-\nSPIN",
    "p2p": "P2P-\nSPIN",
    "plain": "Plain",
    "edge-drafts": "Edge\ndrafts",
}
"""Narrow names, for the places under bars."""


def figure_6(table: Table) -> Figure:
    """Bars of all schemes, one panel per pair, and the paper's numbers where its text gives them."""
    figure, axes = canvas(f"Fig. 6  {table.title}", table.note, 1, 2, 4.6)
    for panel, pair in zip(axes[0], PAIRS.values(), strict=True):
        part = table.where(pair=pair.key)
        schemes = [str(scheme) for scheme in part.column("scheme")]
        mean, low, high = part.arrays("goodput_tokens_per_s", "low", "high")
        error = np.nan_to_num(np.stack([mean - low, high - mean]))
        at = np.arange(len(schemes))
        panel.bar(at, mean, yerr=error, capsize=3, color=[COLOURS[scheme] for scheme in schemes], width=0.7)
        for x, value, top in zip(at, mean, mean + error[1], strict=True):
            panel.annotate(f"{value:.0f}", (x, top), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        known = [(x, PAPER_GOODPUT[pair.key, s]) for x, s in enumerate(schemes) if (pair.key, s) in PAPER_GOODPUT]
        places, said = (np.array(values) for values in zip(*known, strict=True))
        panel.hlines(said, places - 0.42, places + 0.42, "black", linewidth=2, label="paper, as far as its text says")
        panel.set_xticks(at, [_TICKS.get(scheme, TITLES[scheme]) for scheme in schemes])
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
    figure, axes = canvas(f"Fig. {number}  {table.title}", table.note, 2, 2, 7.6, legend=2)
    for upper, lower, pair in zip(*axes, PAIRS.values(), strict=True):
        part = table.where(pair=pair.key)
        for scheme in COMPARED:
            _scheme_curve(upper, part.where(scheme=scheme), swept, unit, ("goodput_tokens_per_s", "low", "high"), 1.0)
        upper.set_title(pair.title, fontsize=11)
        upper.set_ylabel("sum goodput [tokens/s]")
        gain = ("over_fixed", "over_fixed_low", "over_fixed_high")
        for scheme in ("heterogeneous", "uniform-bandwidth", "homogeneous", *EDGE_ALONE):
            _scheme_curve(lower, part.where(scheme=scheme), swept, unit, gain, 100.0)
        said = [r for r in REPORTED if r.figure == number and r.pair == pair.key and r.percent]
        where = [(r.bandwidth_hz if swept == "bandwidth_hz" else r.devices) / unit for r in said]
        lower.plot(where, [r.shown(r.value) for r in said], "k*", markersize=13, label="paper: Hete", zorder=5)
        lower.axhline(0.0, color=COLOURS["fixed"], linewidth=0.8)  # below it, Fixed makes more
        lower.set_ylabel("gain over Fixed BW&L [%]")
        upper.set_ylim(bottom=0)
        for panel in (upper, lower):
            panel.set_xlabel(label)
    legend_above(figure, *axes[0], *axes[1], columns=5)
    return figure


def _scheme_curve(
    panel: Axes, part: Table, swept: str, unit: float, columns: tuple[str, str, str], scale: float
) -> None:
    """One scheme's quantity over what is swept, both in the units of the axes."""
    scheme = str(part.column("scheme")[0])
    (x,), spread = part.arrays(swept), part.arrays(*columns)
    # Algorithm 1 lies on the exact optimum: a dashed line on top of it leaves both visible.
    on_top = scheme == "algorithm1"
    curve(
        panel, x / unit, [scale * values for values in spread], LINES.get(scheme, "-"), shaded=not on_top,
        color=COLOURS[scheme], marker=MARKERS.get(scheme), markersize=5, label=TITLES[scheme], zorder=3 + on_top,
    )  # fmt: skip


def payload(table: Table) -> Figure:
    """Goodput over the band for what is sent per drafted token."""
    figure, axes = canvas(table.title, table.note, 1, 2, 4.6, legend=2)
    for panel, pair in zip(axes[0], PAIRS.values(), strict=True):
        for mode, name in PAYLOADS.items():
            for scheme, style in (("heterogeneous", "o-"), ("uniform-bandwidth", "s:")):
                part = table.where(pair=pair.key, payload=mode, scheme=scheme)
                x, *spread = part.arrays("bandwidth_hz", "goodput_tokens_per_s", "low", "high")
                label = name if style == "o-" else None
                curve(panel, x / 1e6, spread, style, color=_PAYLOAD_COLOUR[mode], markersize=4, label=label)
        panel.plot([], [], "s:", color="#555555", markersize=4, label="the same with equal bands (Uni-BW)")
        for scheme in EDGE_ALONE:
            part = table.where(pair=pair.key, payload="distribution", scheme=scheme)
            _scheme_curve(panel, part, "bandwidth_hz", 1e6, ("goodput_tokens_per_s", "low", "high"), 1.0)
        panel.set_xscale("log")
        panel.set_xticks([0.1, 0.3, 1, 3, 10, 20], ["0.1", "0.3", "1", "3", "10", "20"])
        panel.minorticks_off()
        panel.set_title(pair.title, fontsize=11)
        panel.set_xlabel("shared band B [MHz]")
        panel.set_ylabel("sum goodput [tokens/s]")
        panel.set_ylim(bottom=0)
    legend_above(figure, *axes[0], columns=3)
    return figure


def fairness(table: Table) -> Figure:
    """Goodput against Jain's index."""
    figure, axes = canvas(table.title, table.note, 1, 2, 4.6, legend=2)
    for panel, pair in zip(axes[0], PAIRS.values(), strict=True):
        part = table.where(pair=pair.key)
        for scheme in (str(value) for value in part.column("scheme")):
            own = part.where(scheme=scheme)
            x, y, low, high = own.arrays("jain_index", "goodput_tokens_per_s", "low", "high")
            error = np.nan_to_num(np.stack([y - low, high - y]))
            panel.errorbar(x, y, yerr=error, fmt="o", color=COLOURS[scheme], capsize=3, label=TITLES[scheme])
        panel.set_title(pair.title, fontsize=11)
        panel.set_xlabel("Jain's fairness index (1: all get the same)")
        panel.set_ylabel("sum goodput [tokens/s]")
        panel.set_ylim(bottom=0)
        panel.margins(x=0.1)
    legend_above(figure, *axes[0], columns=5)
    return figure
