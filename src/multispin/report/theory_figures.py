"""Figures 3, 4 and 5 of arXiv 2606.04581: draws their tables."""

import numpy as np
from matplotlib.figure import Figure

from multispin.paper.cell import PAIRS
from multispin.paper.schemes import TITLES
from multispin.paper.table import Table
from multispin.report.style import COLOURS, LINES, canvas, legend_above

_PAIR_COLOUR = {"llama": "#0072B2", "qwen": "#D55E00"}


def draw_figure_3(table: Table) -> Figure:
    """τ(L): formula, counted tokens, and the optimum."""
    figure, axes = canvas(f"Fig. 3  {table.title}", table.note, 1, 2, 4.4, legend=1)
    for panel, pair in zip(axes[0], PAIRS.values(), strict=True):
        part = table.where(pair=pair.key)
        length = part.numbers("draft_length")
        panel.plot(length, part.numbers("theory_tokens_per_s"), color=_PAIR_COLOUR[pair.key], label="formula")
        mean, low = np.array(part.numbers("counted_tokens_per_s")), np.array(part.numbers("low"))
        panel.errorbar(length, mean, yerr=mean - low, fmt="k.", capsize=2, label="counted in simulated rounds")
        best = part.where(optimum=True).numbers("draft_length")[0]
        panel.axvline(best, color="#888888", linestyle=":")
        panel.annotate(f" L* = {best:.0f}", (best, 0), (0, 4), textcoords="offset points", fontsize=9)
        for scheme, column in (("plain", "plain_tokens_per_s"), ("edge-drafts", "edge_drafts_tokens_per_s")):
            panel.plot(length, part.numbers(column), LINES[scheme], color=COLOURS[scheme], label=TITLES[scheme])
        panel.set_title(pair.title, fontsize=11)
        panel.set_xlabel("common draft length L [tokens]")
        panel.set_ylabel("sum goodput τ [tokens/s]")
        panel.set_ylim(bottom=0)
    legend_above(figure, *axes[0])
    return figure


def draw_figure_4(table: Table) -> Figure:
    """L* over T_ver, ϑ and α."""
    figure, axes = canvas(f"Fig. 4  {table.title}", table.note, 1, 3, 4.4, legend=1)
    labels = {
        "verification_s": ("verification latency T_ver [ms]", 1e3),
        "token_latency_s": ("latency per token ϑ [ms]", 1e3),
        "acceptance_rate": ("acceptance rate α", 1.0),
    }
    for panel, (swept, (label, unit)) in zip(axes[0], labels.items(), strict=True):
        for pair in PAIRS.values():
            part = table.where(pair=pair.key, swept=swept)
            x = unit * np.array(part.numbers("value"))
            colour = _PAIR_COLOUR[pair.key]
            panel.plot(x, part.numbers("closed_form_length"), color=colour, label=f"{pair.key.title()}: L̃, Theorem 1")
            panel.plot(
                x,
                part.numbers("best_whole_length"),
                ".",
                color=colour,
                label=f"{pair.key.title()}: best whole L, by trial",
            )
        panel.set_xlabel(label)
        panel.set_ylabel("best common draft length [tokens]")
        panel.set_ylim(bottom=0)
    legend_above(figure, *axes[0])
    return figure


def draw_figure_5(table: Table) -> Figure:
    """T_ver over the batch size."""
    figure, axes = canvas(f"Fig. 5  {table.title}", table.note, 1, 1, 4.2)
    panel = axes[0][0]
    for pair in PAIRS.values():
        part = table.where(pair=pair.key)
        devices, latency = np.array(part.numbers("devices")), 1e3 * np.array(part.numbers("verification_s"))
        colour = _PAIR_COLOUR[pair.key]
        line = f"{1e3 * pair.fixed_s:.2f} + {1e3 * pair.per_device_s:.2f} K ms"
        panel.plot(devices[:16], latency[:16], "o-", markersize=4, color=colour, label=f"{pair.title}: {line}")
        panel.plot(devices[15:], latency[15:], "--", color=colour)
    panel.set_xlabel("devices in the batch K")
    panel.set_ylabel("verification latency T_ver [ms]")
    panel.set_ylim(bottom=0)
    panel.legend(loc="upper left", fontsize=9)
    return figure
