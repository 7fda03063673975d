import numpy as np
import pytest
from scipy.optimize import nnls

from multispin.estimation.nonnegative import nonnegative_least_squares, nonnegative_minimum


@pytest.mark.parametrize("seed", range(40))
def test_it_is_scipys_solution(seed):
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(0, 1, (8, 3)), rng.normal(0, 1, 8)
    assert nonnegative_least_squares(matrix, target) == pytest.approx(nnls(matrix, target)[0], abs=1e-12)


def test_collinear_columns_fit_as_well_as_scipys():
    matrix = np.array([[1.0, 2.0, 3.0]] * 5) * np.arange(1.0, 6.0)[:, None]
    for target in (np.arange(1.0, 6.0), -np.arange(1.0, 6.0)):
        found = nonnegative_least_squares(matrix, target)
        assert found.min() >= 0
        assert np.linalg.norm(matrix @ found - target) == pytest.approx(nnls(matrix, target)[1], abs=1e-12)


def test_what_only_negative_coefficients_would_fit_is_zero():
    assert nonnegative_least_squares(np.eye(3), -np.ones(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(40))
def test_normal_equations_have_the_same_solution(seed):
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(0, 1, (8, 3)), rng.normal(0, 1, 8)
    found = nonnegative_minimum((matrix.T @ matrix).tolist(), (matrix.T @ target).tolist())
    assert found == pytest.approx(nnls(matrix, target)[0], abs=1e-9)
