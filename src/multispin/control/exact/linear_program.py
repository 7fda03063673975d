"""Linear programs with sparse rows: collected block by block, solved by HiGHS. Knows nothing of devices and tokens."""

from typing import NamedTuple

import numpy as np

from multispin.control.goodput import Floats, Ints
from multispin.errors import InputError


class Solved(NamedTuple):
    """The optimum of a linear program with n unknowns and m rows.

    Attributes:
        unknowns: solution x, [n].
        prices: what the objective would fall by if the limit of a row rose by one, [m]. Never negative for a row that
            is at most its limit.
    """

    unknowns: Floats
    prices: Floats


_USUAL_COST = 1e6
"""Costs beyond this are given to HiGHS in another unit: it refuses very large ones."""


class LinearProgram:
    """min cᵀx over x ≥ 0 whose rows are at most, or exactly, their limits.

    Args:
        cost: objective c, [n].

    """

    def __init__(self, cost: Floats) -> None:
        self._cost = cost
        self._rows: list[Ints] = []
        self._columns: list[Ints] = []
        self._values: list[Floats] = []

    def add(self, rows: Ints | int, columns: Ints | int, values: Floats) -> None:
        """Add coefficients; those of one place add up.

        Args:
            rows: row of each coefficient, [V], or one for all.
            columns: its column, the number of an unknown, [V], or one for all.
            values: the coefficients, [V].
        """
        self._rows.append(np.broadcast_to(rows, values.shape))
        self._columns.append(np.broadcast_to(columns, values.shape))
        self._values.append(values)

    def solve(self, limits: Floats, exact: int = 0) -> Solved | None:
        """The optimum; None if there is none.

        Args:
            limits: right-hand side of every row, [m].
            exact: how many rows, the last ones, are equal to their limits; default none.

        """
        try:
            import highspy  # here, so that commands that solve nothing, such as --help, do not wait for it
        except ImportError as error:
            raise InputError(f"plans need the library HiGHS ({error}): pip install highspy") from None

        count, width = len(limits), len(self._cost)
        rows, columns = np.concatenate(self._rows), np.concatenate(self._columns)
        places, place = np.unique(columns * count + rows, return_inverse=True)
        program = highspy.HighsLp()
        program.num_row_, program.num_col_ = count, width
        greatest = float(np.abs(self._cost).max(initial=0.0))
        unit = greatest if greatest > _USUAL_COST else 1.0
        program.col_cost_ = self._cost / unit
        program.col_lower_, program.col_upper_ = np.zeros(width), np.full(width, np.inf)
        program.row_lower_ = np.where(np.arange(count) < count - exact, -np.inf, limits)
        program.row_upper_ = limits
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_ = np.searchsorted(places, np.arange(width + 1) * count)
        program.a_matrix_.index_ = places % count
        program.a_matrix_.value_ = np.asarray(np.bincount(place, np.concatenate(self._values)), dtype=np.float64)
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        if solver.passModel(program) == highspy.HighsStatus.kError:
            return None
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        found = solver.getSolution()
        return Solved(np.array(found.col_value), -unit * np.array(found.row_dual))
