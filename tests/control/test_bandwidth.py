"""Lemmas 1 and 3 against their defining equations and against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from multispin.control.bandwidth import bandwidth_shares, draft_time, token_latency

positive = st.floats(1e-9, 1e9)
device = st.tuples(st.integers(0, 25), positive, positive)


@given(st.lists(device, min_size=1, max_size=12))
@settings(max_examples=400, deadline=None)
def test_all_devices_finish_together_and_use_the_whole_band(devices):
    length, seconds, upload = (np.array(column, dtype=float) for column in zip(*devices, strict=True))
    phi = float(draft_time(length, seconds, upload))
    share = bandwidth_shares(length, seconds, upload)
    if not length.any():
        assert phi == 0
        assert not share.any()
        return
    assert share.sum() == pytest.approx(1.0, rel=1e-12)
    on = length > 0
    finish = length[on] * seconds[on] + length[on] * upload[on] / share[on]
    # A device that waits for the others anyway has a share that its own time barely depends on.
    assert finish == pytest.approx(phi, rel=1e-9)
    assert (share[~on] == 0).all()


def test_example_of_the_docstring():
    seconds, upload = np.array([0.010, 0.010]), np.array([0.0005, 0.0005])
    assert float(draft_time([4, 4], seconds, upload)) == pytest.approx(0.044)
    assert bandwidth_shares([4, 4], seconds, upload) == pytest.approx([0.5, 0.5])


def test_lemma_3_is_the_minimum_over_all_splits():
    random = np.random.default_rng(0)
    for _ in range(10):
        length = random.integers(1, 9, 4)
        seconds, upload = random.uniform(0.004, 0.02, 4), random.uniform(1e-4, 2e-3, 4)

        # Variables φ and the shares, in units of φ; the latest device bounds φ.
        phi = float(draft_time(length, seconds, upload))

        def spare(x, length=length, seconds=seconds, upload=upload, phi=phi):
            return x[0] - length * (seconds + upload / x[1:]) / phi

        found = minimize(
            lambda x: x[0],
            np.array([3.0, *np.full(4, 0.25)]),
            method="SLSQP",
            bounds=[(0, None), *[(1e-4, 1)] * 4],
            constraints=[{"type": "ineq", "fun": spare}, {"type": "ineq", "fun": lambda x: 1 - x[1:].sum()}],
            options={"maxiter": 500, "ftol": 1e-13},
        )
        assert found.fun == pytest.approx(1.0, rel=1e-6)


def test_lemma_1_is_lemma_3_with_one_length_and_compensates_weak_devices():
    seconds, upload = np.array([0.008, 0.009, 0.012]), np.array([3e-4, 1e-3, 5e-4])
    theta = token_latency(seconds, upload)
    assert float((upload / (theta - seconds)).sum()) == pytest.approx(1.0)
    assert float(draft_time([7, 7, 7], seconds, upload)) == pytest.approx(7 * theta)
    share = bandwidth_shares([7, 7, 7], seconds, upload)
    # Remark 1: B_k grows with T_k and falls with r_k.
    assert bandwidth_shares([7, 7, 7], seconds * [1.2, 1, 1], upload)[0] > share[0]
    assert bandwidth_shares([7, 7, 7], seconds, upload * [1, 1.5, 1])[1] > share[1]


@given(st.lists(st.tuples(st.integers(1, 25), st.floats(1e-4, 1), st.floats(1e-6, 1)), min_size=2, max_size=8))
@settings(max_examples=200, deadline=None)
def test_longer_drafts_and_slower_links_take_longer(devices):
    length, seconds, upload = (np.array(column, dtype=float) for column in zip(*devices, strict=True))
    phi = float(draft_time(length, seconds, upload))
    more = length.copy()
    more[0] += 1
    assert float(draft_time(more, seconds, upload)) > phi
    assert float(draft_time(length, seconds, upload * 1.01)) > phi
    assert float(draft_time(length, seconds * 1.01, upload)) > phi


def test_a_nearly_free_radio_keeps_its_digits():
    seconds, upload = np.array([0.01, 0.01]), np.array([1e-15, 3e-15])
    assert bandwidth_shares([5, 5], seconds, upload) == pytest.approx([0.25, 0.75], rel=1e-9)


@given(st.lists(st.tuples(st.floats(1e-3, 1), st.floats(1e-5, 1e-1)), min_size=2, max_size=8), st.floats(1.01, 3))
@settings(max_examples=200, deadline=None)
def test_remark_1_a_common_length_compensates_slow_drafters_and_poor_channels(devices, factor):
    seconds, upload = (np.array(column) for column in zip(*devices, strict=True))
    length, first = np.full(len(devices), 5), np.eye(len(devices))[0].astype(bool)
    share = bandwidth_shares(length, seconds, upload)[0]
    assert bandwidth_shares(length, np.where(first, seconds * factor, seconds), upload)[0] > share
    assert bandwidth_shares(length, seconds, np.where(first, upload * factor, upload))[0] > share
