"""Links that no band limits: what is measured of one must not take its band from plan to plan."""

import random

import pytest

from multispin.estimation import LinkEstimator, RoundTripEstimator
from multispin.estimation.link import MOST_EFFICIENCY

WHOLE_HZ = 2e5


@pytest.mark.parametrize("estimator", [LinkEstimator, RoundTripEstimator])
def test_no_band_shrinks_to_nothing_however_often_it_is_split_by_what_was_measured(estimator):
    """Frames take a fixed time, whatever band is granted; the band is split so that all should take equally long."""
    rng, times_s = random.Random(1), (0.001, 0.002, 0.004)
    links = [estimator(5.0) for _ in times_s]
    bands_hz = [WHOLE_HZ / 3] * 3
    for _ in range(300):
        for link, band_hz, time_s in zip(links, bands_hz, times_s, strict=True):
            bits = 176 + 16 * rng.randint(1, 8)
            link.observe(bits, band_hz, time_s * rng.uniform(0.9, 1.1))
        needs = [1.0 / link.spectral_efficiency for link in links]
        bands_hz = [WHOLE_HZ * need / sum(needs) for need in needs]
    # Every band still carries a usual frame, at the greatest efficiency that is believed, as soon as the slowest link.
    assert 248 / (MOST_EFFICIENCY * min(bands_hz)) < 1.1 * max(times_s)
    assert min(bands_hz) > 0.01 * WHOLE_HZ
    assert max(link.spectral_efficiency for link in links) <= MOST_EFFICIENCY * (1 + 1e-9)


@pytest.mark.parametrize("estimator", [LinkEstimator, RoundTripEstimator])
def test_a_link_that_claims_more_and_keeps_it_is_believed(estimator):
    link, rng = estimator(40.0), random.Random(1)
    for _ in range(60):
        bits = 176 + 16 * rng.randint(1, 60)
        link.observe(bits, 1e4, bits / (40.0 * 1e4))
    assert link.spectral_efficiency == pytest.approx(40.0, rel=0.1)
