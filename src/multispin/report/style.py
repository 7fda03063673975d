"""One look for all figures: colours that colour-blind readers can tell apart, units on axes, a note below."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS: Mapping[str, str] = {
    "heterogeneous": "#0072B2",
    "algorithm1": "#56B4E9",
    "uniform-bandwidth": "#009E73",
    "homogeneous": "#E69F00",
    "fixed": "#555555",
    "centralized": "#CC79A7",
    "p2p": "#D55E00",
    "fair": "#A07000",
    "goodput-argmax": "#8C6BB1",
    "plain": "#000000",
    "edge-drafts": "#882255",
}
"""Colour of each scheme (after Okabe and Ito)."""
MODE_COLOURS: Mapping[str, str] = {
    "plain": COLOURS["plain"],
    "edge": "#CC79A7",
    "rounds": COLOURS["heterogeneous"],
    "mixture": "#D55E00",
    "streams": "#332288",
    "auto": "#117733",
}
"""Colour of each mode."""
MARKERS: Mapping[str, str] = {
    "heterogeneous": "o",
    "algorithm1": "x",
    "uniform-bandwidth": "s",
    "homogeneous": "^",
    "fixed": "D",
    "centralized": "v",
    "p2p": "P",
}
LINES: Mapping[str, str] = {"algorithm1": "--", "plain": ":", "edge-drafts": "-."}
"""Line of each scheme that has no solid one."""
RC: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "svg.hashsalt": "multispin",
    "svg.fonttype": "none",
}
"""For `matplotlib.rc_context`. The salt makes SVG files the same in every run."""
_NOTE_WIDTH = 172
_TITLE = 0.4
"""Height of the title [inch]."""
_LEGEND = 0.3
"""Height of a legend of one line [inch]."""
_LEGEND_LINE = 0.2
"""Height of each further line [inch]."""


def colour_of(mode: str, policy: str) -> str:
    """Colour of a way of serving a site: of the policy in rounds, which it plans, else of the mode."""
    return COLOURS.get(policy, "#888888") if mode == "rounds" else MODE_COLOURS[mode]


def canvas(
    title: str, note: str, rows: int, columns: int, height: float, *, legend: int = 0
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of rows × columns axes with its title above and its note below.

    Args:
        title: heading of the figure.
        note: settings and assumptions.
        rows: rows of axes.
        columns: columns of axes.
        height: height of all axes together [inch].
        legend: number of lines to keep free for `legend_above`; default 0.

    """
    lines = textwrap.wrap(note, _NOTE_WIDTH)
    below, above = 0.2 + 0.17 * len(lines), _TITLE + (_LEGEND + _LEGEND_LINE * (legend - 1) if legend else 0.0)
    total = height + below + above
    figure = Figure(figsize=(11.0, total), dpi=110, layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.0, below / total, 1.0, height / total))  # type: ignore[call-arg]
    figure.text(0.5, 1.0 - 0.1 / total, title, fontsize=13, fontweight="bold", ha="center", va="top")
    figure.text(0.012, 0.08 / total, "\n".join(lines), fontsize=8.5, color="#444444", va="bottom")
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def curve(panel: Axes, x: Any, spread: Sequence[Any], style: str = "-", *, shaded: bool = True, **line: Any) -> None:
    """A line through the means, with its interval shaded.

    Args:
        panel: axes to draw on.
        x: horizontal values, [N].
        spread: means, lower and upper ends of their intervals, three times [N].
        style: format of the line, such as "o-"; default "-".
        shaded: whether to draw the interval; default yes.
        line: further arguments of `Axes.plot`, `color` among them.

    """
    mean, low, high = spread
    panel.plot(x, mean, style, **line)
    if shaded:
        panel.fill_between(x, low, high, color=line["color"], alpha=0.13, linewidth=0)


def legend_above(figure: Figure, *panels: Axes, columns: int = 8) -> None:
    """One legend for these panels, between title and axes, where it covers no data; each label once."""
    entries: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="upper center",
        bbox_to_anchor=(0.5, 1.0 - (_TITLE - 0.05) / float(figure.get_size_inches()[1])),
        ncols=columns,
        fontsize=9,
        columnspacing=1.2,
    )
