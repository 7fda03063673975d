"""One HTML page that loads no other file: the claims in a table, the figures embedded."""

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from multispin.paper.claims import Agreement, Claim

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.4rem 0.7rem; border-bottom: 1px solid #ddd; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr.reproduced td:first-child { border-left: 4px solid #009e73; }
tr.close td:first-child { border-left: 4px solid #e69f00; }
tr.missed td:first-child { border-left: 4px solid #d55e00; }
tr.other td:first-child { border-left: 4px solid #999; }
img { max-width: 100%; height: auto; } .wide { overflow-x: auto; }
"""


_ROW_CLASS = {Agreement.REPRODUCED: "reproduced", Agreement.CLOSE: "close", Agreement.MISSED: "missed"}
"""Colour of a row by verdict."""


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Args:
        title: heading above it.
        note: settings and assumptions; also the description for readers who do not see the picture.
        png: bytes of the PNG file.
    """

    title: str
    note: str
    png: bytes


def page(title: str, introduction: Sequence[str], claims: Sequence[Claim], pictures: Sequence[Picture]) -> str:
    """The page as text. No script, and nothing is fetched from anywhere."""
    paragraphs = "".join(f"<p>{html.escape(text)}</p>\n" for text in introduction)
    rows = "\n".join(_row(claim) for claim in claims)
    figures = "\n".join(_picture(picture) for picture in pictures)
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n{paragraphs}"
        "<h2>What the paper says, what we get, and why they differ</h2>\n"
        '<div class="wide"><table><thead><tr><th>claim</th><th>paper says</th><th>we get</th>'
        "<th>low … high</th><th>why they differ</th></tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>\n{figures}\n</body></html>\n"
    )


def readable_number(value: float | str | None) -> str:
    """A number for readers: three digits that count; words as they are; a dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _row(claim: Claim) -> str:
    span = f"{readable_number(claim.low)} … {readable_number(claim.high)}" if claim.low != claim.high else "–"
    cells = (
        f"<td>{html.escape(claim.claim)}</td>"
        f'<td class="number">{html.escape(readable_number(claim.paper))}</td>'
        f'<td class="number">{readable_number(claim.ours)}</td><td class="number">{span}</td>'
        f"<td>{html.escape(claim.finding)}</td>"
    )
    return f'<tr class="{_ROW_CLASS.get(claim.verdict, "other")}">{cells}</tr>'


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f"<h2>{html.escape(picture.title)}</h2>\n"
        f'<p><img alt="{html.escape(picture.title)}. {html.escape(picture.note)}" '
        f'src="data:image/png;base64,{data}"></p>'
    )
