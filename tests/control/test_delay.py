"""Round trips: a device with a draft waits for its grant and its draft to travel, one without waits for nothing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from multispin.control import POLICIES, Cell, Device, EdgeDrafter, Scenario, Verification, parse_scenario, plan
from multispin.control.baselines import equal_shares
from multispin.control.files import dump_scenario
from multispin.control.problem import as_problem
from multispin.errors import InputError


def _delayed(draw, seed: int, size: int = 3, longest: int = 5) -> Scenario:
    random = np.random.default_rng(seed)
    scenario = draw(random, size, longest)
    devices = tuple(replace(d, delay_s=float(random.choice([0.0, random.uniform(0, 0.1)]))) for d in scenario.devices)
    return replace(scenario, devices=devices)


def _round_s(scenario: Scenario, lengths: tuple[int, ...]) -> float:
    """Duration of a round with the best bands, by the definition: everybody's draft is there after φ."""
    phi, used = 0.0, [(d, n) for d, n in zip(scenario.devices, lengths, strict=True) if n]
    if used:
        bits = [d.bits_per_token or scenario.cell.bits_per_token for d, _ in used]
        busy = [2 * d.delay_s + n * d.seconds_per_token for d, n in used]
        air = [
            b * n / (d.spectral_efficiency * scenario.cell.bandwidth_hz) for b, (d, n) in zip(bits, used, strict=True)
        ]  # type: ignore[operator]

        def spare(x: float) -> float:
            return sum(a / (x + max(busy) - w) for a, w in zip(air, busy, strict=True)) - 1.0

        phi = max(busy) + brentq(spare, 1e-3 * min(air) / len(used), 2 * sum(air), xtol=1e-18, rtol=1e-15)
    verifier, size = scenario.verifier, len(lengths)
    tokens = size * (max(lengths) + 1) if verifier.padded else sum(lengths) + size
    return phi + verifier.fixed_s + size * verifier.per_device_s + tokens * verifier.per_token_s


def _tokens(device: Device, length: int) -> float:
    profile = device.acceptance_profile or (device.acceptance_rate,)
    survival = [float(profile[min(j, len(profile) - 1)]) for j in range(length)]  # type: ignore[arg-type]
    return 1.0 + float(np.cumprod(survival).sum()) if length else 1.0


@pytest.mark.parametrize("seed", range(12))
def test_the_exact_plan_equals_brute_force(seed, draw):
    scenario = _delayed(draw, seed)
    ranges = [range(low, high + 1) for low, high in map(scenario.limits, scenario.devices)]
    best = max(
        sum(d.weight * _tokens(d, n) for d, n in zip(scenario.devices, lengths, strict=True))
        / _round_s(scenario, lengths)
        for lengths in itertools.product(*ranges)
    )
    made = plan(scenario)
    assert made.goodput_tokens_per_s == pytest.approx(best, rel=1e-9)
    assert made.upper_bound_tokens_per_s >= best * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", [p for p in POLICIES if p not in ("p2p", "centralized")])
def test_every_plan_charges_the_round_trip_of_those_who_draft(policy, seed, draw):
    scenario = _delayed(draw, seed, 5, 8)
    made = plan(scenario, policy)
    lengths = tuple(device.draft_length for device in made.devices)
    problem = as_problem(scenario)
    if policy in ("fixed", "uniform-bandwidth", "goodput-argmax"):
        shares = equal_shares(problem, np.array(lengths))
        upload = problem.upload_time(np.array(lengths), shares)
        travel = np.array([2 * d.delay_s * (n > 0) for d, n in zip(scenario.devices, lengths, strict=True)])
        busy = np.array(lengths) * problem.seconds_per_token + travel
        assert made.round_s == pytest.approx((busy + upload).max() + problem.verification_s(np.array(lengths)))
    else:
        assert made.round_s == pytest.approx(_round_s(scenario, lengths), rel=1e-9)


def test_a_longer_way_never_helps_and_far_devices_stop_drafting():
    devices = tuple(Device(f"d{k}", 0.005, 4.0, 0.8) for k in range(4))
    scenario = Scenario(Cell(2e6, 16, min_draft_length=0), Verification(0.03, 0.0), devices)
    goodputs = []
    for delay_s in (0.0, 0.01, 0.05, 0.2):
        made = plan(replace(scenario, devices=(replace(devices[0], delay_s=delay_s), *devices[1:])))
        goodputs.append(made.goodput_tokens_per_s)
    assert goodputs == sorted(goodputs, reverse=True)
    assert made.devices[0].draft_length == 0
    assert min(device.draft_length for device in made.devices[1:]) > 0


def test_files_carry_delays_and_the_edge_drafter():
    device = Device("a", 0.01, 3.0, 0.7, delay_s=0.02, edge_acceptance_rate=0.5)
    scenario = Scenario(Cell(1e6, 16), Verification(0.02, 0.001), (device,), EdgeDrafter(0.004, 0.0002, 0.65))
    text = dump_scenario(scenario)
    assert parse_scenario(text) == scenario
    with pytest.raises(InputError, match=r"line 10: key 'acceptance_rate' is missing in \[edge_drafter\]"):
        parse_scenario("\n" + text.replace("acceptance_rate = 0.65\n", "").replace("edge_acceptance_rate = 0.5\n", ""))
    with pytest.raises(InputError, match=r"edge_drafter\.fixed_s is -1; it must be >= 0"):
        parse_scenario(text.replace("fixed_s = 0.004", "fixed_s = -1"))
    with pytest.raises(InputError, match="delay_s is nan"):
        parse_scenario(text.replace("delay_s = 0.02", "delay_s = nan"))
    with pytest.raises(InputError, match="delay_s is not supported with multiple_access = 'tdma'"):
        replace(scenario, cell=replace(scenario.cell, multiple_access="tdma"))
