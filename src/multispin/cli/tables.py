"""Tables of figures on a terminal of any width: no figure is cut.

Rich shortens the cells of a table that is wider than the terminal, so that 1.21 s becomes "1.21…". Here the table keeps
its width and the terminal wraps its lines; bars, which say nothing that the figures do not, are left out first.
"""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

BAR = ""
"""Heading of a column of bars."""


def figures_table(first: str, *others: str) -> Table:
    """A table without lines: names to the left, figures to the right.

    Args:
        first: heading of the first column.
        *others: headings of the others; `BAR` for a column of bars.

    """
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name == BAR else "right", no_wrap=True)
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table of `figures_table` at its own width; without its bars where the terminal is narrower.

    Args:
        console: where to; as wide as the table from then on, if it was narrower.
        table: what to print.

    """
    if _width(table) > console.width:
        table = _without_bars(table)
    console.width = max(console.width, _width(table))
    console.print(table)


def _without_bars(table: Table) -> Table:
    kept = [column for column in table.columns if column.header != BAR]
    other = figures_table(*(str(column.header) for column in kept))
    for cells in zip(*(column.cells for column in kept), strict=True):
        other.add_row(*cells)
    return other


def _width(table: Table) -> int:
    """How many characters wide the table is where there is room."""
    wide = Console(width=100_000)
    return Measurement.get(wide, wide.options, table).maximum
