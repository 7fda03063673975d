"""Writes a reproduction into a folder: CSV, PNG and SVG per figure, summary.json, and one HTML page."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from multispin.paper.claims import Claim, summary_json
from multispin.paper.table import Table
from multispin.report import running_figures, scheme_figures, theory_figures
from multispin.report.page import Picture, page
from multispin.report.style import RC

_DRAW: Mapping[str, Callable[[Table], Figure]] = {
    "fig-3": theory_figures.draw_figure_3,
    "fig-4": theory_figures.draw_figure_4,
    "fig-5": theory_figures.draw_figure_5,
    "fig-6": scheme_figures.figure_6,
    "fig-7": scheme_figures.figure_7,
    "fig-8": scheme_figures.figure_8,
    "beyond-payload": scheme_figures.payload,
    "beyond-fairness": scheme_figures.fairness,
    "beyond-learning": running_figures.learning,
    "beyond-lateness": running_figures.lateness,
    "beyond-streams": running_figures.streams,
}
"""How each table is drawn, by its name."""


def write_bundle(
    folder: Path, tables: Sequence[Table], claims: Sequence[Claim], introduction: Sequence[str]
) -> list[Path]:
    """Write everything and return the files, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    pictures = []
    for table in tables:
        png, svg = draw_table(table)
        for ending, data in (("csv", table.csv().encode()), ("png", png), ("svg", svg)):
            file = folder / f"{table.name}.{ending}"
            file.write_bytes(data)
            files.append(file)
        pictures.append(Picture(_heading(table), table.note, png))
    summary = folder / "summary.json"
    summary.write_text(summary_json(claims), encoding="utf-8")
    html = folder / "report.html"
    html.write_text(page("Multi-SPIN, reproduced", introduction, claims, pictures), encoding="utf-8")
    return [html, summary, *files]


def draw_table(table: Table) -> tuple[bytes, bytes]:
    """The picture of a table as PNG and as SVG, the same bytes in every run."""
    with matplotlib.rc_context(RC):
        figure = _DRAW[table.name](table)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def _heading(table: Table) -> str:
    return f"Figure {table.name[4:]}" if table.name.startswith("fig-") else table.title
