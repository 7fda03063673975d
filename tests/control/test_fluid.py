"""The best rates of streams, against a general solver, and their certificate."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.control.exact.fluid import fluid
from multispin.errors import InputError


def site(seed: int, *, dense: bool = False, bandwidth_hz: float = 1e6, bits: float = 60, devices: int = 6) -> Scenario:
    draw = np.random.default_rng(seed)
    made = []
    for k in range(devices):
        link = {"snr_hz": 10 ** draw.uniform(4.5, 6.5)} if dense else {"spectral_efficiency": draw.uniform(1, 5)}
        made.append(
            Device(
                f"d{k}",
                draw.uniform(0.004, 0.03),
                acceptance_rate=draw.uniform(0.4, 0.9),
                weight=draw.uniform(0.5, 2.0),
                delay_s=float(draw.choice([0.0, 0.01])),
                **link,
            )
        )
    engine = Verification(draw.uniform(0.01, 0.1), draw.uniform(0.0, 0.015), draw.choice([0.0, 1e-4]))
    return Scenario(Cell(bandwidth_hz, bits, 12, 0), engine, tuple(made))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("bits", [60, 30_000])
@pytest.mark.parametrize("seed", range(4))
def test_the_prices_prove_the_rates(seed: int, bits: float, dense: bool) -> None:
    made = fluid(site(seed, dense=dense, bits=bits))
    assert made.goodput_tokens_per_s <= made.upper_bound_tokens_per_s * (1 + 1e-9)
    assert made.goodput_tokens_per_s >= made.upper_bound_tokens_per_s * (1 - 2e-3)


@pytest.mark.parametrize("seed", range(8))
def test_the_prices_prove_the_rates_where_no_band_carries_what_somebody_could_draft(seed: int) -> None:
    """Rates stay below snr / ln 2 however wide the band is, and near that a little more needs much of it."""
    wide = site(seed, dense=True, bandwidth_hz=1e8, bits=60_000)
    wide = replace(
        wide, devices=tuple(replace(each, snr_hz=10.0 ** (3 + k % 3)) for k, each in enumerate(wide.devices))
    )
    made = fluid(wide)
    assert made.goodput_tokens_per_s >= made.upper_bound_tokens_per_s * (1 - 2e-3)
    for device, truth in zip(made.devices, wide.devices, strict=True):
        assert device.drafted_tokens_per_s * 60_000 <= truth.rate_bits_per_s(device.bandwidth_hz) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [60, 30_000])
@pytest.mark.parametrize("seed", range(3))
def test_rates_keep_every_line(seed: int, bits: float) -> None:
    scenario = site(seed, bits=bits)
    made = fluid(scenario)
    plain = 1.0 / scenario.verifier.verify_s([0] * 6)
    assert sum(device.bandwidth_hz for device in made.devices) == pytest.approx(1e6)
    for device, truth in zip(made.devices, scenario.devices, strict=True):
        assert device.rides_per_s <= made.passes_per_s * (1 + 1e-9)
        assert device.drafted_tokens_per_s <= 1.0 / truth.seconds_per_token
        assert device.drafted_tokens_per_s * bits <= truth.rate_bits_per_s(device.bandwidth_hz) * (1 + 1e-9)
        assert device.tokens_per_s >= plain * (1 - 1e-6)
    assert made.band_tokens_per_s == pytest.approx(0.0, abs=1e-6) if bits == 60 else made.band_tokens_per_s > 0


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_split_of_a_scarce_band_is_that_of_a_general_solver(seed: int, dense: bool) -> None:
    """Everybody rides in every pass and drafting is free: only the split of the band matters, and it is concave."""
    base = site(seed, dense=dense, bits=20_000, devices=4)
    engine = Verification(0.1, 0.0)
    scenario = replace(
        base,
        verifier=engine,
        devices=tuple(replace(device, seconds_per_token=1e-6, delay_s=0.0) for device in base.devices),
    )
    weights = np.array([device.weight for device in scenario.devices])
    tables = [np.cumsum(device.acceptance_rate ** np.arange(13.0)) for device in scenario.devices]

    def goodput(shares: np.ndarray) -> float:
        lengths = [d.rate_bits_per_s(s * 1e6) / 20_000 * 0.1 for d, s in zip(scenario.devices, shares, strict=True)]
        tokens = [np.interp(length, np.arange(13), table) for length, table in zip(lengths, tables, strict=True)]
        return float(weights @ np.array(tokens)) / 0.1

    best = 0.0
    for start in (np.full(4, 0.25), *np.random.default_rng(seed).dirichlet(np.ones(4), 4)):
        found = minimize(
            lambda shares: -goodput(shares),
            start,
            method="SLSQP",
            bounds=[(1e-6, 1)] * 4,
            constraints=[{"type": "ineq", "fun": lambda shares: 1 - shares.sum()}],
        )
        best = max(best, goodput(found.x / max(1.0, found.x.sum())))
    made = fluid(scenario)
    own = goodput(np.array([device.bandwidth_hz for device in made.devices]) / 1e6)
    assert best <= made.upper_bound_tokens_per_s * (1 + 1e-6)
    assert own >= best * (1 - 2e-3)


def test_a_band_that_nobody_needs_makes_the_most_useful_frames_short() -> None:
    """Of 2,000 other splits none has a shorter sum of what drafts add times the time of a frame."""
    scenario = site(3, bandwidth_hz=1e9)
    never_right = replace(scenario.devices[0], acceptance_rate=0.0)
    scenario = replace(scenario, devices=(never_right, *scenario.devices[1:]))
    bands_hz = np.array([device.bandwidth_hz for device in fluid(scenario).devices])

    alpha, efficiency, weight = np.array(
        [(d.acceptance_rate, d.spectral_efficiency, d.weight) for d in scenario.devices]
    ).T
    added = weight * alpha * (1.0 - alpha**12) / (1.0 - alpha)

    def late(split_hz: np.ndarray) -> float:
        return float((added / (efficiency * split_hz)).sum())

    assert bands_hz[0] == pytest.approx(0.0, abs=1e-3 * bands_hz.max())
    draw = np.random.default_rng(0)
    best = late(np.maximum(bands_hz, 1.0))
    for _ in range(2000):
        other_hz = np.maximum(bands_hz, 1.0) * np.exp(0.2 * draw.normal(size=6))
        assert late(1e9 * other_hz / other_hz.sum()) >= best * (1 - 1e-6)


def test_no_ride_rates_of_two_devices_do_better() -> None:
    """Brute force over how often each of two devices rides, at one length each."""
    engine = Verification(0.02, 0.03)
    devices = (Device("a", 0.01, 4.0, 0.8), Device("b", 0.02, 4.0, 0.6))
    made = fluid(Scenario(Cell(1e6, 60, 12, 0), engine, devices))
    best, plain = 0.0, 1 / engine.verify_s([0, 0])
    for share_a in np.linspace(0.05, 1, 20):
        for share_b in np.linspace(0.05, 1, 20):
            passes = 1 / (0.02 + 0.03 * (share_a + share_b)) if max(share_a, share_b) == 1 else 0.0
            rates = []
            for device, share in zip(devices, (share_a, share_b), strict=True):
                alpha, rides = device.acceptance_rate or 0.0, share * passes
                fits = [
                    n
                    for n in range(13)
                    if n == 0 or rides * (n * device.seconds_per_token + (1 - alpha ** (n + 1)) * 0.05) <= 1
                ]
                rates.append(rides * sum(alpha**j for j in range(max(fits) + 1)))
            if min(rates) >= plain:
                best = max(best, sum(rates))
    assert 0.9 * made.goodput_tokens_per_s < best <= made.upper_bound_tokens_per_s


def test_the_edge_drafter_raises_the_price_of_time() -> None:
    scenario = site(1)
    alone, helped = fluid(scenario), fluid(replace(scenario, edge_drafter=EdgeDrafter(0.001, 0.0, 0.9)))
    assert helped.goodput_tokens_per_s > alone.goodput_tokens_per_s
    assert helped.goodput_tokens_per_s == pytest.approx(helped.upper_bound_tokens_per_s, rel=1e-3)


def test_least_goodputs_are_met_or_it_says_that_they_cannot_be() -> None:
    scenario = site(2)
    first = scenario.devices[0]
    more = replace(first, min_goodput_tokens_per_s=fluid(scenario).devices[0].tokens_per_s * 1.01)
    made = fluid(replace(scenario, devices=(more, *scenario.devices[1:])))
    assert made.status == "feasible"
    assert made.devices[0].tokens_per_s >= (more.min_goodput_tokens_per_s or 0.0) * (1 - 1e-6)
    never = replace(first, min_goodput_tokens_per_s=1e6)
    assert fluid(replace(scenario, devices=(never, *scenario.devices[1:]))).status == "infeasible"


def test_who_sends_in_turns_has_no_rate() -> None:
    scenario = site(1)
    devices = tuple(replace(device, delay_s=0.0) for device in scenario.devices)
    with pytest.raises(InputError, match="multiple_access = 'fdma'"):
        fluid(replace(scenario, cell=replace(scenario.cell, multiple_access="tdma"), devices=devices))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e-30, 1e-20, 1e-10, 1e-6, 1e6, 1e10, 1e20, 1e30])
@pytest.mark.parametrize(
    "key",
    [
        *("seconds_per_token", "delay_s", "spectral_efficiency", "snr_hz", "weight"),
        *("fixed_s", "per_device_s", "per_token_s", "bandwidth_hz", "bits_per_token"),
    ],
)
def test_numbers_that_are_many_orders_apart_have_rates_too(key: str, value: float) -> None:
    """A scenario may hold any of these; the solver takes no numbers that are much larger than its others."""
    scenario = site(1)
    link = {"spectral_efficiency": None} if key == "snr_hz" else {}
    first, *others = scenario.devices
    odd = {
        "cell": lambda: replace(scenario, cell=replace(scenario.cell, **{key: value})),
        "verifier": lambda: replace(scenario, verifier=replace(scenario.verifier, **{key: value})),
        "device": lambda: replace(scenario, devices=(replace(first, **{key: value}, **link), *others)),
    }
    part = next((name for name in ("cell", "verifier") if hasattr(getattr(scenario, name), key)), "device")
    made = fluid(odd[part]())
    assert 0 < made.goodput_tokens_per_s <= made.upper_bound_tokens_per_s * (1 + 1e-6)
