import math

import numpy as np
import pytest
from scipy import special, stats

from multispin.errors import InputError
from multispin.estimation.beta import beta_quantile, beta_share, t_quantile

PARAMETERS = [(0.5, 0.5), (1.0, 1.0), (2.5, 0.7), (0.3, 40.0), (60.0, 45.0), (900.0, 4_000.0), (1e5, 3e5), (1.0, 0.01)]


@pytest.mark.parametrize(("a", "b"), PARAMETERS)
def test_the_share_below_a_value_is_scipys(a, b):
    for x in np.concatenate([np.linspace(0, 1, 41), stats.beta(a, b).ppf([1e-6, 0.05, 0.5, 0.95, 1 - 1e-6])]):
        assert beta_share(a, b, float(x)) == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(("a", "b"), PARAMETERS)
def test_the_quantile_is_scipys(a, b):
    for share in (0.0, 1e-6, 0.025, 0.05, 0.5, 0.95, 0.999, 1.0):
        assert beta_quantile(a, b, share) == pytest.approx(special.betaincinv(a, b, share), rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 29, 400, 100_000])
def test_students_t_is_scipys(degrees):
    for share in (0.001, 0.025, 0.5, 0.9, 0.975, 0.9999):
        assert t_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=1e-9, abs=1e-12)


def test_what_is_no_parameter_is_refused():
    for a, b, share in ((0.0, 1.0, 0.5), (1.0, math.nan, 0.5), (1.0, 1.0, 1.5)):
        with pytest.raises(InputError):
            beta_quantile(a, b, share)
    with pytest.raises(InputError, match="share"):
        t_quantile(1.0, 3)
