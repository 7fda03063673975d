"""The data behind a figure: named columns, rows of numbers and words, and the assumptions behind them."""

import csv
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TableValue = str | int | float | bool


@dataclass(frozen=True)
class Table:
    """The data of one figure.

    Args:
        name: file name without its ending, such as "fig-7".
        title: the title: one sentence that says what it shows.
        note: settings and assumptions, printed on the figure.
        columns: names, with units.
        rows: one value per column each.
    """

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableValue, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.name}: row {row!r} has {len(row)} values for {len(self.columns)} columns")

    def csv(self) -> str:
        """The table as CSV with a header line; numbers with all their digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def where(self, **equal: TableValue) -> "Table":
        """The rows whose columns have these values."""
        at = {self.columns.index(name): value for name, value in equal.items()}
        rows = tuple(row for row in self.rows if all(row[i] == value for i, value in at.items()))
        return Table(self.name, self.title, self.note, self.columns, rows)

    def column(self, name: str) -> list[TableValue]:
        """One column."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def numbers(self, name: str) -> list[float]:
        """One column of numbers."""
        return [float(value) for value in self.column(name)]

    def arrays(self, *names: str) -> tuple[NDArray[np.float64], ...]:
        """Columns of numbers as arrays, one per name."""
        return tuple(np.array(self.numbers(name)) for name in names)
