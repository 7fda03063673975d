"""The figures of the paper's cell while it runs in the simulator: learning, lateness and streams."""

import numpy as np
from matplotlib.figure import Figure

from multispin.paper.cell import PAIRS
from multispin.paper.running import DEADLINE_LIMITS
from multispin.paper.schemes import EDGE_ALONE, TITLES
from multispin.paper.streaming import STREAMS
from multispin.paper.table import Table
from multispin.report.style import COLOURS, LINES, canvas, curve, legend_above

_SHADES = ("#0072B2", "#56B4E9", "#9AD0F5", "#009E73", "#8C6BB1", "#D55E00", "#555555", "#000000", "#882255")
_BANDS = ("#0072B2", "#9AD0F5")
_WAIT_STYLE = {
    "chosen": ("#D55E00", "D-"),
    "tight": ("#0072B2", "o-"),
    "usual": ("#E69F00", "s-"),
    "patient": ("#555555", "^-"),
}


def learning(table: Table) -> Figure:
    """Bars: goodput of each scheme, with its share of what full knowledge gives."""
    figure, axes = canvas(table.title, table.note, 1, 2, 4.6)
    for panel, pair in zip(axes[0], PAIRS.values(), strict=True):
        part = table.where(pair=pair.key)
        names = [str(name) for name in part.column("scheme")]
        at = np.arange(len(names))[::-1]
        mean, low, high = part.arrays("goodput_tokens_per_s", "low", "high")
        error = np.nan_to_num(np.stack([mean - low, high - mean]))
        panel.barh(at, mean, xerr=error, capsize=3, color=_SHADES[: len(names)], height=0.7)
        for y, value, top, share in zip(at, mean, mean + error[1], part.numbers("over_known"), strict=True):
            panel.annotate(
                f"{value:.0f}  ({100 * share:.0f} %)", (top, y), (5, 0), textcoords="offset points", va="center",
                fontsize=9,
            )  # fmt: skip
        panel.set_yticks(at, names)
        panel.grid(axis="y", visible=False)
        panel.set_xlim(0, 1.35 * float((mean + error[1]).max()))
        panel.set_xlabel("sum goodput [tokens/s]")
        panel.set_title(pair.title, fontsize=11)
    return figure


def lateness(table: Table) -> Figure:
    """Goodput over the share of late drafts, one curve per deadline."""
    figure, axes = canvas(table.title, table.note, 1, 2, 4.6, legend=2)
    for panel, pair in zip(axes[0], PAIRS.values(), strict=True):
        for wait in dict.fromkeys(str(value) for value in table.column("wait")):
            part = table.where(pair=pair.key, wait=wait)
            x, *spread = part.arrays("late_share", "goodput_tokens_per_s", "low", "high")
            colour, style = (COLOURS[wait], LINES[wait]) if wait in EDGE_ALONE else _WAIT_STYLE[wait]
            label = TITLES[wait] if wait in EDGE_ALONE else _deadline(wait)
            curve(panel, 100 * x, spread, style, color=colour, markersize=5, label=label)
        panel.set_title(pair.title, fontsize=11)
        panel.set_xlabel("share of drafts that are late [%]")
        panel.set_ylabel("sum goodput [tokens/s]")
        panel.set_ylim(bottom=0)
    legend_above(figure, *axes[0], columns=3)
    return figure


def streams(table: Table) -> Figure:
    """Bars: goodput of each scheme in both bands, with its ratio to Hete in the same band."""
    figure, axes = canvas(table.title, table.note, 1, 2, 5.6, legend=1)
    for panel, pair in zip(axes[0], PAIRS.values(), strict=True):
        part = table.where(pair=pair.key)
        names = [str(name) for name in dict.fromkeys(part.column("scheme"))]
        bands = sorted({float(str(band)) for band in part.column("bandwidth_hz")})
        at, height = np.arange(len(names))[::-1], 0.8 / len(bands)
        top = 0.0
        for index, band in enumerate(bands):
            own = part.where(bandwidth_hz=band)
            mean, low, high = own.arrays("goodput_tokens_per_s", "low", "high")
            error = np.nan_to_num(np.stack([mean - low, high - mean]))
            y = at + height * (0.5 * (len(bands) - 1) - index)
            colour, label = _BANDS[index], f"B = {band / 1e6:g} MHz"
            panel.barh(y, mean, xerr=error, capsize=2, color=colour, height=height, label=label)
            for where, value, end, ratio in zip(y, mean, mean + error[1], own.numbers("over_hete"), strict=True):
                panel.annotate(
                    f"{value:.0f}  (×{ratio:.2f})", (end, where), (4, 0), textcoords="offset points", va="center",
                    fontsize=8,
                )  # fmt: skip
            top = max(top, float((mean + error[1]).max()))
        panel.set_yticks(at, [STREAMS.get(name, TITLES.get(name, name)) for name in names], fontsize=8.5)
        panel.grid(axis="y", visible=False)
        panel.set_xlim(0, 1.38 * top)
        panel.set_xlabel("sum goodput [tokens/s]")
        panel.set_title(pair.title, fontsize=11)
    legend_above(figure, *axes[0])
    return figure


def _deadline(wait: str) -> str:
    factor, slack_s = DEADLINE_LIMITS[wait]
    names = {"chosen": "deadline chosen (the edge's way)", "patient": "wait for everybody"}
    return names.get(wait, f"deadline {factor:g} × planned + {slack_s:g} s")
