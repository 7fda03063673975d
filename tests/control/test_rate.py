"""A rate that a noise density limits: its inverse, Lemma 3 with it, and every policy against brute force."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.special import lambertw

from multispin.control import (
    POLICIES,
    Cell,
    Device,
    Scenario,
    Verification,
    dump_scenario,
    parse_scenario,
    plan,
    plan_for_lengths,
)
from multispin.control.bandwidth import bandwidth_shares, draft_time
from multispin.control.problem import as_problem
from multispin.control.rate import least_upload_s, needed_share, tangent_shares, upload_time
from multispin.control.uniform import candidates, homogeneous
from multispin.errors import InputError

ONE = np.ones(1)


def rate_with_noise_density(band_hz: float, snr_hz: float) -> float:
    """The formula of arXiv 2608.29618, written out."""
    return band_hz * math.log2(1 + snr_hz / band_hz)


def with_density(scenario, random, share=0.7):
    """The scenario with a noise density for some devices, weak and strong."""
    devices = tuple(
        dataclasses.replace(d, spectral_efficiency=None, snr_hz=float(10 ** random.uniform(4.5, 9)))
        if random.random() < share
        else d
        for d in scenario.devices
    )
    return dataclasses.replace(scenario, devices=devices)


def band_for(rate_bits_per_s, device):
    """Band [Hz] for a rate, by Lambert's W or by division; infinite where no band is enough."""
    if device.snr_hz is None:
        return rate_bits_per_s / device.spectral_efficiency
    y = rate_bits_per_s * math.log(2) / device.snr_hz
    if y >= 1 - 1e-9:
        return math.inf
    w = lambertw(-y * math.exp(-y), -1).real
    return device.snr_hz * y / (-w - y)


def by_brute_force(scenario, fair=False):
    """The best score over all lengths, with root finding in seconds and hertz."""
    cell, verifier = scenario.cell, scenario.verifier
    problem = as_problem(scenario)
    bits = [cell.bits_per_token if d.bits_per_token is None else d.bits_per_token for d in scenario.devices]
    best = -math.inf
    for lengths in itertools.product(*(range(low, high + 1) for low, high in map(scenario.limits, scenario.devices))):
        loads = [(n, d, q) for n, d, q in zip(lengths, scenario.devices, bits, strict=True) if n]

        def spare(phi, loads=loads):
            bands = [
                band_for(q * n / (phi - n * d.seconds_per_token), d) if phi > n * d.seconds_per_token else math.inf
                for n, d, q in loads
            ]
            return cell.bandwidth_hz - sum(bands) if sum(bands) < 1e30 else -1e30

        phi = 0.0
        if loads:
            alone = [n * d.seconds_per_token + q * n / d.rate_bits_per_s(cell.bandwidth_hz) for n, d, q in loads]
            high = max(alone)
            while spare(high) <= 0:
                high *= 1.5
            phi = brentq(spare, min(max(alone) * (1 - 1e-9), high), high, xtol=1e-16, rtol=1e-14)
        tokens = len(lengths) * (max(lengths) + 1) if verifier.padded else sum(lengths) + len(lengths)
        time = phi + verifier.fixed_s + len(lengths) * verifier.per_device_s + tokens * verifier.per_token_s
        expected = np.array([problem.tokens[n, k] for k, n in enumerate(lengths)])
        score = (problem.weight * np.log(expected / time)).sum() if fair else problem.weight @ expected / time
        best = max(best, float(score))
    return best


@given(st.floats(1e-4, 1e8), st.floats(1e-5, 1e6), st.floats(1e-9, 1e3))
@settings(max_examples=500, deadline=None)
def test_the_inverse_rate_is_the_root_and_its_slope_the_derivative(snr, room, upload):
    upload_s, room_s, sigma = upload * ONE, room * upload * ONE, snr * ONE
    share, slope = needed_share(upload_s, room_s, sigma)
    time = float((room_s + least_upload_s(upload_s, sigma))[0])
    # R(share) / R(1) must be upload / time: by root finding in the logarithm of the share.
    root = brentq(
        lambda s: s + math.log(math.log1p(snr * math.exp(-s)) / math.log1p(snr) * time / upload), -90, 90, xtol=1e-14
    )
    # Near the least upload time the share is a pole, and its digits go.
    digits = 1e-12 * time / float(room_s[0])
    assert share[0] == pytest.approx(math.exp(root), rel=digits)
    assert upload_time(upload_s, share, sigma)[0] == pytest.approx(time, rel=1e-12)
    step = 1e-4 * room_s
    numeric = (needed_share(upload_s, room_s - step, sigma)[0] - needed_share(upload_s, room_s + step, sigma)[0]) / (
        2 * step
    )
    assert slope[0] == pytest.approx(numeric[0], rel=1e-5 + 1e4 * digits)


def test_the_inverse_is_that_of_the_radio_and_the_linear_case_its_limit():
    device = Device("a", 0.01, acceptance_rate=0.8, snr_hz=3e6)
    for band in (1e3, 1e5, 1e7):
        assert device.rate_bits_per_s(band) == pytest.approx(rate_with_noise_density(band, 3e6))
    upload, sigma = np.array([0.02, 0.02]), np.array([0.3, np.nan])
    share = needed_share(upload, 0.05 - least_upload_s(upload, sigma), sigma)[0]
    rate = 0.3 * 10e6 * share[0] / 0.3 * math.log2(1 + 0.3 / share[0])
    assert rate * 0.05 == pytest.approx(10e6 * math.log2(1.3) * 0.02)
    assert share[1] == pytest.approx(0.4)


@given(st.floats(1e-3, 1e6), st.floats(1e-6, 1), st.floats(1e-6, 10), st.floats(1e-6, 10), st.floats(0, 1))
@settings(max_examples=500, deadline=None)
def test_tangents_are_below_the_share_needed(snr, upload, start, width, where):
    upload_s, sigma = upload * ONE, snr * ONE
    first, last = start * ONE, (start + width) * ONE
    left, right = tangent_shares(upload_s, first, last, np.array([True]), sigma)
    room = start + where * width
    chord = left[0] + where * (right[0] - left[0])
    share = needed_share(upload_s, room * ONE, sigma)[0][0]
    assert chord <= share * (1 + 1e-15)


def test_lemma_3_with_a_noise_density_is_the_minimum_over_all_splits():
    random = np.random.default_rng(0)
    for _ in range(8):
        length = random.integers(1, 9, 4)
        seconds, upload = random.uniform(0.004, 0.02, 4), random.uniform(1e-4, 2e-3, 4)
        snr = np.array([*10 ** random.uniform(-1.5, 2, 3), np.nan])
        phi = float(draft_time(length, seconds, upload, snr))
        shares = bandwidth_shares(length, seconds, upload, snr)
        assert shares.sum() == pytest.approx(1.0, rel=1e-12)
        assert length * seconds + upload_time(length * upload, shares, snr) == pytest.approx(phi, rel=1e-11)

        def spare(x, length=length, seconds=seconds, upload=upload, snr=snr, phi=phi):
            return x[0] - (length * seconds + upload_time(length * upload, x[1:], snr)) / phi

        found = minimize(
            lambda x: x[0],
            np.array([3.0, *np.full(4, 0.25)]),
            method="SLSQP",
            bounds=[(0, None), *[(1e-4, 1)] * 4],
            constraints=[{"type": "ineq", "fun": spare}, {"type": "ineq", "fun": lambda x: 1 - x[1:].sum()}],
            options={"maxiter": 500, "ftol": 1e-13},
        )
        assert found.fun == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("fair", [False, True])
def test_equals_brute_force(fair, draw):
    random = np.random.default_rng(12)
    for _ in range(30):
        size = int(random.integers(1, 4))
        scenario = with_density(draw(random, size, int(random.integers(1, (25, 7, 4)[size - 1] + 1))), random)
        best = by_brute_force(scenario, fair)
        made = plan(scenario, "fair" if fair else "heterogeneous")
        assert made.status == "optimal"
        lengths = [d.draft_length for d in made.devices]
        if fair:
            weight = np.array([d.weight for d in scenario.devices])
            score = float(weight @ np.log([d.expected_tokens / made.round_s for d in made.devices]))
            assert score == pytest.approx(best, rel=1e-9, abs=1e-9), lengths
            continue
        assert made.goodput_tokens_per_s == pytest.approx(best, rel=1e-9), lengths
        assert best * (1 - 1e-12) <= made.upper_bound_tokens_per_s <= best * (1 + 1e-8)
        assert made.goodput_tokens_per_s <= made.upper_bound_tokens_per_s


@pytest.mark.long
def test_no_policy_beats_the_bound_and_bands_fit(draw):
    random = np.random.default_rng(13)
    for index in range(100):
        scenario = with_density(draw(random, int(random.integers(1, 13)), int(random.integers(1, 26))), random)
        exact = plan(scenario, relative_gap=0.0)
        for policy in POLICIES:
            if policy in ("centralized", "p2p", "fair") or (policy == "algorithm1" and index % 15):
                continue
            made = plan(scenario, policy)
            assert made.goodput_tokens_per_s <= exact.goodput_tokens_per_s * (1 + 1e-9), (policy, scenario)
            assert made.goodput_tokens_per_s <= exact.upper_bound_tokens_per_s
            assert sum(d.bandwidth_hz for d in made.devices) <= scenario.cell.bandwidth_hz * (1 + 1e-12)


def test_a_plan_keeps_its_round_time_by_the_radios_own_formula(draw):
    random = np.random.default_rng(14)
    for policy in ("heterogeneous", "homogeneous", "fixed", "uniform-bandwidth", "p2p"):
        scenario = with_density(draw(random, 5, 9), random, share=1.0)
        made = plan(scenario, policy)
        ends = [0.0]
        for planned, device in zip(made.devices, scenario.devices, strict=True):
            if planned.draft_length:
                rate = rate_with_noise_density(planned.bandwidth_hz, device.snr_hz)
                bits = device.bits_per_token or scenario.cell.bits_per_token
                ends.append(planned.draft_length * (device.seconds_per_token + bits / rate))
        single = dataclasses.replace(scenario, devices=scenario.devices[:1])
        lengths = np.array([d.draft_length for d in made.devices])
        problem = as_problem(scenario)
        verification = float(problem.verification_s(lengths))
        if policy == "p2p":
            lengths = lengths[[d.expected_tokens > 0 for d in made.devices]]
            verification = float(as_problem(single).verification_s(lengths))
        assert made.round_s == pytest.approx(max(ends) + verification, rel=1e-9)


def test_theorem_1_and_lemma_1_hold_as_shares_depend_on_the_rate_alone():
    random = np.random.default_rng(15)
    for _ in range(30):
        devices = tuple(
            Device(f"d{k}", float(random.uniform(0.002, 0.05)), acceptance_rate=0.8, snr_hz=10 ** random.uniform(6, 9))
            for k in range(5)
        )
        scenario = Scenario(Cell(5e6, 31744), Verification(float(random.uniform(0.01, 0.3)), 0.001), devices)
        problem = as_problem(scenario)
        assert problem.draft_time(np.full(5, 7)) == pytest.approx(7 * problem.token_latency()[0])
        best = problem.goodput(candidates(problem)).max()
        assert float(problem.goodput(homogeneous(problem))) == pytest.approx(best, rel=1e-12)


def test_great_powers_make_no_difference_between_the_distributions():
    # With 90 dB over the whole band, halving the band costs next to nothing in bit/s/Hz.
    devices = tuple(Device(f"d{k}", 0.01, acceptance_rate=0.8, snr_hz=1e16) for k in range(4))
    dense = Scenario(Cell(1e6, 31744), Verification(0.05, 0.01), devices)
    linear = dataclasses.replace(
        dense, devices=tuple(Device(d.name, 0.01, math.log2(1 + 1e16 / 2.5e5), 0.8) for d in devices)
    )
    made, same = plan(dense), plan(linear)
    assert [d.draft_length for d in made.devices] == [d.draft_length for d in same.devices]
    assert made.goodput_tokens_per_s == pytest.approx(same.goodput_tokens_per_s, rel=1e-9)


def test_a_wider_band_cannot_lift_the_rate_above_the_noise_density():
    device = Device("far", 0.01, acceptance_rate=0.8, snr_hz=1e5)
    for band in (1e6, 1e9, 1e12):
        made = plan_for_lengths(Scenario(Cell(band, 31744), Verification(0.05, 0.01), (device,)), [4])
        assert made.round_s >= 0.06 + 4 * (0.01 + 31744 * math.log(2) / 1e5)


def test_exactly_one_of_both_and_files_come_back(draw):
    with pytest.raises(InputError, match="device 'a': give either spectral_efficiency or snr_hz, and not both"):
        Device("a", 0.01, 5.0, 0.8, snr_hz=1e6)
    with pytest.raises(InputError, match="device 'a': snr_hz is -1"):
        Device("a", 0.01, acceptance_rate=0.8, snr_hz=-1)
    scenario = with_density(draw(np.random.default_rng(1), 6), np.random.default_rng(1))
    assert parse_scenario(dump_scenario(scenario)) == scenario
