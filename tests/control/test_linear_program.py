"""Linear programs against scipy's, which has a solver of its own version."""

import sys

import numpy as np
import pytest
from scipy.optimize import linprog

from multispin.control.exact.linear_program import LinearProgram
from multispin.errors import InputError


def program_of(cost, matrix):
    program = LinearProgram(cost)
    rows, columns = np.nonzero(matrix)
    program.add(rows, columns, matrix[rows, columns])
    return program


@pytest.mark.parametrize("seed", range(10))
def test_optimum_and_prices_are_scipys(seed):
    rng = np.random.default_rng(seed)
    loads, one = rng.uniform(0, 1, (5, 12)), np.kron(np.eye(3), np.ones(4))
    cost, limits = -rng.uniform(1, 2, 12), rng.uniform(0.5, 2, 5)
    loads[:, ::4] = 0.0  # so that one option of each kind always fits
    expected = linprog(cost, loads, limits, one, np.ones(3))
    solved = program_of(cost, np.vstack([loads, one])).solve(np.concatenate([limits, np.ones(3)]), exact=3)
    assert cost @ solved.unknowns == pytest.approx(expected.fun, rel=1e-9)
    assert solved.unknowns == pytest.approx(expected.x, abs=1e-7)
    assert solved.prices[:5] == pytest.approx(-expected.ineqlin.marginals, abs=1e-7)
    assert solved.prices[5:] == pytest.approx(-expected.eqlin.marginals, abs=1e-7)


def test_coefficients_of_one_place_add_up_and_a_single_row_or_column_stands_for_all():
    program = LinearProgram(np.array([-1.0, -1.0]))
    program.add(0, np.array([0, 1]), np.array([1.0, 1.0]))
    program.add(0, np.array([0]), np.array([1.0]))
    program.add(np.array([1]), 1, np.array([1.0]))
    solved = program.solve(np.array([4.0, 1.0]))
    assert solved.unknowns.tolist() == [1.5, 1.0]
    assert solved.prices.tolist() == [0.5, 0.5]


def test_what_has_no_optimum_is_none():
    assert program_of(np.array([-1.0]), np.array([[-1.0]])).solve(np.array([1.0])) is None  # without bound
    assert program_of(np.array([1.0]), np.array([[1.0]])).solve(np.array([-1.0])) is None  # without a point
    assert program_of(np.array([1.0]), np.array([[1.0]])).solve(np.array([np.nan])) is None


def test_a_solver_says_nothing_on_the_standard_output(capfd):
    """There the commands write their JSON."""
    assert program_of(np.array([-1.0]), np.array([[1.0]])).solve(np.array([1.0])) is not None
    assert capfd.readouterr() == ("", "")


def test_where_the_library_is_missing_one_sentence_says_what_to_install(monkeypatch):
    """It has no wheel for Windows on ARM; a device there never needs it."""
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(InputError, match=r"plans need the library HiGHS .*: pip install highspy"):
        LinearProgram(np.array([1.0])).solve(np.array([]))
