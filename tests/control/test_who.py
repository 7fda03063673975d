"""Who drafts: the decision against brute force, against each pure choice, and by the rules that it states."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from multispin.control import (
    REACTIVE,
    RUNTIME_POLICIES,
    Cell,
    Device,
    EdgeDrafter,
    Scenario,
    Verification,
    decide,
    plan,
    plan_for_lengths,
    policy_named,
)
from multispin.control.who import DEVICE, EDGE, NOBODY, ROUND_MODES
from multispin.errors import InputError

_PASSES = 12
"""Extra passes that brute force tries, from 0 on."""


def _draw(random: np.random.Generator, size: int, longest: int, *, minimum: bool = False) -> Scenario:
    """A site of any kind: slow or quick engines, drafters and links, near or far, the edge with a drafter or not."""
    devices = []
    for k in range(size):
        extra: dict[str, object] = {}
        if random.random() < 0.3:
            extra["weight"] = float(random.uniform(0.2, 4))
        if random.random() < 0.15:
            extra["max_draft_length"] = 0
        if random.random() < 0.3:
            extra["edge_acceptance_rate"] = float(random.uniform(0, 1))
        if random.random() < 0.15:
            extra["edge_max_draft_length"] = int(random.integers(0, longest))
        if minimum and random.random() < 0.4:
            extra["min_goodput_tokens_per_s"] = float(random.uniform(1, 25))
        devices.append(
            Device(
                f"d{k}",
                float(10 ** random.uniform(-3, -1.2)),
                float(10 ** random.uniform(-0.3, 1)),
                float(random.uniform(0, 1)),
                delay_s=float(random.choice([0.0, 10 ** random.uniform(-3, -1)])),
                **extra,  # type: ignore[arg-type]
            )
        )
    drafter = EdgeDrafter(
        float(10 ** random.uniform(-3.2, -1.7)), float(random.choice([0.0, 1e-3])), random.uniform(0, 0.95)
    )
    return Scenario(
        Cell(float(10 ** random.uniform(4, 6.5)), 2000, longest, int(random.integers(0, 2))),
        Verification(
            float(10 ** random.uniform(-2.3, -0.8)),
            float(random.choice([0.0, 10 ** random.uniform(-3, -1.5)])),
            float(random.choice([0.0, 10 ** random.uniform(-4, -2)])),
            bool(random.random() < 0.2),
        ),
        tuple(devices),
        drafter if random.random() < 0.8 else None,
    )


def _phase_s(scenario: Scenario, lengths: tuple[int, ...]) -> float:
    used = [(d, n) for d, n in zip(scenario.devices, lengths, strict=True) if n]
    if not used:
        return 0.0
    busy = [2 * d.delay_s + n * d.seconds_per_token for d, n in used]
    air = [scenario.cell.bits_per_token * n / (d.spectral_efficiency * scenario.cell.bandwidth_hz) for d, n in used]

    def spare(x: float) -> float:
        return sum(a / (x + max(busy) - w) for a, w in zip(air, busy, strict=True)) - 1.0

    return max(busy) + float(brentq(spare, 1e-3 * min(air) / len(used), 2 * sum(air), xtol=1e-18, rtol=1e-14))


def _tokens(rate: float, length: int) -> float:
    return sum(rate**j for j in range(length + 1))


def _verify_s(verifier: Verification, lengths: list[int]) -> float:
    if not lengths:
        return 0.0
    fed = len(lengths) * (max(lengths) + 1) if verifier.padded else sum(lengths) + len(lengths)
    return verifier.fixed_s + len(lengths) * verifier.per_device_s + fed * verifier.per_token_s


def _rates(scenario: Scenario, own: tuple[int, ...], edge: tuple[int, ...], extra: int) -> tuple[list[float], float]:
    """Tokens per second of each session, and the period, by the definition in the module."""
    drafter, size = scenario.edge_drafter, len(own)
    others = [k for k in range(size) if not own[k]]
    drafting = 0.0
    if drafter is not None and others:
        for step in range(1, max(edge[k] for k in others) + 1):
            drafting += drafter.fixed_s + drafter.per_device_s * sum(edge[k] >= step for k in others)
    pass_s = drafting + _verify_s(scenario.verifier, [edge[k] for k in others])
    joint = _verify_s(scenario.verifier, [own[k] or edge[k] for k in range(size)])
    period = max(_phase_s(scenario, own), extra * pass_s + drafting) + joint
    rates = []
    for k, device in enumerate(scenario.devices):
        alpha = device.edge_acceptance_rate
        if alpha is None:
            alpha = 0.0 if drafter is None else drafter.acceptance_rate
        tokens = _tokens(device.acceptance_rate, own[k]) if own[k] else (extra + 1) * _tokens(alpha, edge[k])
        rates.append(tokens / period)
    return rates, period


def _value(scenario: Scenario, rates: list[float], fair: bool) -> float:
    for device, rate in zip(scenario.devices, rates, strict=True):
        if rate < (device.min_goodput_tokens_per_s or 0.0) * (1 - 1e-9):
            return -math.inf
    return sum(d.weight * (math.log(r) if fair else r) for d, r in zip(scenario.devices, rates, strict=True))


def _brute_force(scenario: Scenario, fair: bool) -> float:
    best, longest = -math.inf, scenario.cell.max_draft_length
    options = []
    for device in scenario.devices:
        least, most = scenario.limits(device)
        edge = 0 if scenario.edge_drafter is None else longest
        if scenario.edge_drafter is not None and device.edge_max_draft_length is not None:
            edge = device.edge_max_draft_length
        options.append([*((n, 0) for n in range(max(least, 1), most + 1)), *((0, n) for n in range(edge + 1))])
    for choice in itertools.product(*options):
        own, edge = zip(*choice, strict=True)
        for extra in range(_PASSES if any(own) and not all(own) else 1):
            best = max(best, _value(scenario, _rates(scenario, own, edge, extra)[0], fair))
    return best


def _split(made) -> tuple[tuple[int, ...], tuple[int, ...]]:
    own = tuple(choice.draft_length if choice.drafter == DEVICE else 0 for choice in made.sessions)
    return own, tuple(choice.draft_length if choice.drafter == EDGE else 0 for choice in made.sessions)


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_the_decision_is_as_good_as_brute_force_finds(seed, fair):
    scenario = _draw(np.random.default_rng(seed), 1 + seed % 3, 3)
    made = decide(scenario, "fair" if fair else "heterogeneous")
    value = _value(scenario, [choice.tokens_per_s for choice in made.sessions], fair)
    best = _brute_force(scenario, fair)
    weight = sum(device.weight for device in scenario.devices)
    short = math.exp((value - best) / weight) if fair else value / best
    assert 0.97 <= short <= 1 + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_least_goodputs_are_met_wherever_they_can_be(seed):
    scenario = _draw(np.random.default_rng(seed), 2 + seed % 2, 3, minimum=True)
    best = _brute_force(scenario, False)
    made = decide(scenario)
    value = _value(scenario, [choice.tokens_per_s for choice in made.sessions], False)
    assert (made.status == "infeasible") == (best == -math.inf)
    if best > -math.inf:
        assert value / best >= 0.85
        assert made.extra_passes >= _PASSES or value / best <= 1 + 1e-9


@pytest.mark.parametrize("policy", [name for name in RUNTIME_POLICIES if name != REACTIVE])
@pytest.mark.parametrize("seed", range(6))
def test_no_policy_is_below_the_best_of_its_pure_choices_and_figures_follow_from_the_choice(seed, policy):
    scenario = _draw(np.random.default_rng(100 + seed), 2 + 2 * seed, 8)
    fair = policy == "fair"
    made = decide(scenario, policy)
    value = _value(scenario, [choice.tokens_per_s for choice in made.sessions], fair)
    for mode in ROUND_MODES:
        if mode != "edge" or scenario.edge_drafter is not None:
            pure = decide(scenario, policy, mode=mode)
            assert value >= _value(scenario, [c.tokens_per_s for c in pure.sessions], fair) * (1 - 1e-9) - 1e-9 * fair
    if not policy_named(policy).equal_bands:
        rates, period = _rates(scenario, *_split(made), made.extra_passes)
        assert made.period_s == pytest.approx(period, rel=1e-9)
        assert [choice.tokens_per_s for choice in made.sessions] == pytest.approx(rates, rel=1e-9)
    assert sum(choice.bandwidth_hz for choice in made.sessions) <= scenario.cell.bandwidth_hz * (1 + 1e-9)
    for choice in made.sessions:
        assert (choice.drafter == NOBODY) == (choice.draft_length == 0)
        assert (choice.bandwidth_hz > 0) == (choice.drafter == DEVICE)


@pytest.mark.parametrize("seed", range(8))
def test_the_edges_own_drafts_are_the_best_of_all_lengths(seed):
    random = np.random.default_rng(seed)
    scenario = replace(_draw(random, 3, 4), edge_drafter=EdgeDrafter(0.004, float(random.choice([0.0, 2e-3])), 0.7))
    made = plan(scenario, "edge-drafts")
    most = [4 if d.edge_max_draft_length is None else d.edge_max_draft_length for d in scenario.devices]
    best = max(
        sum(d.weight * rate for d, rate in zip(scenario.devices, _rates(scenario, (0, 0, 0), edge, 0)[0], strict=True))
        for edge in itertools.product(*(range(n + 1) for n in most))
    )
    assert made.goodput_tokens_per_s == pytest.approx(best, rel=1e-12)
    assert made.goodput_tokens_per_s >= plan(scenario, "plain").goodput_tokens_per_s


def _site(devices: tuple[Device, ...], drafter: EdgeDrafter | None = None, **verifier: float) -> Scenario:
    return Scenario(Cell(2e6, 40, 16, 0), Verification(**verifier), devices, drafter)  # type: ignore[arg-type]


def test_a_useless_a_far_and_a_slow_device_are_not_asked_and_nobody_waits_for_them():
    good = tuple(Device(f"good-{k}", 0.004, 4.0, 0.85) for k in range(4))
    odd = (
        Device("wrong", 0.004, 4.0, 0.0),
        Device("far", 0.004, 4.0, 0.85, delay_s=5.0),
        Device("slow", 3.0, 4.0, 0.85),
        Device("deaf", 0.004, 1e-9, 0.85),
    )
    alone = decide(_site(good, fixed_s=0.1, per_device_s=0.0))
    made = decide(_site((*good, *odd), fixed_s=0.1, per_device_s=0.0))
    drafters = {choice.name: choice.drafter for choice in made.sessions}
    assert all(drafters[device.name] == DEVICE for device in good)
    assert all(drafters[device.name] == NOBODY for device in odd)
    for ours, theirs in zip(alone.sessions, made.sessions[:4], strict=True):
        assert theirs.tokens_per_s >= 0.95 * ours.tokens_per_s


def test_sessions_without_drafts_are_served_while_the_devices_draft():
    # One device has nearly everything right and takes 8 ms a token; a pass of the others takes 20 ms.
    slow = Device("slow", 0.008, 4.0, 0.99, weight=20.0)
    others = tuple(Device(f"other-{k}", 1.0, 4.0, 0.1, max_draft_length=0) for k in range(4))
    made = decide(_site((slow, *others), fixed_s=0.02, per_device_s=0.0))
    assert made.sessions[0].drafter == DEVICE
    assert made.kind == "mixed"
    assert made.extra_passes > 3
    assert all(choice.tokens_per_s > 0.8 / 0.02 for choice in made.sessions[1:])
    waiting = decide(_site((slow, *others), fixed_s=0.02, per_device_s=0.0), mode="rounds")
    assert all(choice.tokens_per_s < 15 for choice in waiting.sessions[1:])


def test_the_edge_helps_those_whom_no_device_helps():
    fast = tuple(Device(f"fast-{k}", 0.002, 4.0, 0.9) for k in range(3))
    bare = tuple(Device(f"bare-{k}", 1.0, 4.0, 0.1, max_draft_length=0) for k in range(3))
    made = decide(_site((*fast, *bare), EdgeDrafter(0.003, 0.0, 0.6), fixed_s=0.1, per_device_s=0.01))
    assert [choice.drafter for choice in made.sessions] == [DEVICE] * 3 + [EDGE] * 3


def test_modes_say_what_is_allowed():
    site = _site((Device("a", 0.001, 4.0, 0.9),), EdgeDrafter(0.001, 0.0, 0.5), fixed_s=0.1, per_device_s=0.0)
    assert decide(site, mode="plain").kind == "plain"
    assert decide(site, mode="edge").sessions[0].drafter == EDGE
    assert decide(site, mode="rounds").sessions[0].drafter == DEVICE
    assert {kind for kind, _ in decide(site).alternatives} >= {"plain", "edge", "rounds"}
    with pytest.raises(InputError, match="mode is 'both'; it must be one of plain, edge, rounds, mixture"):
        decide(site, mode="both")
    with pytest.raises(InputError, match="mode 'edge' needs an edge drafter"):
        decide(replace(site, edge_drafter=None), mode="edge")
    with pytest.raises(InputError, match="policy is 'best'"):
        decide(site, "best")


def test_a_policy_that_plans_from_what_happened_brings_its_rounds():
    scenario = _draw(np.random.default_rng(5), 4, 8)
    given = plan_for_lengths(scenario, [3, 5, 2, 6], policy=REACTIVE, equal_bands=True)
    made = decide(scenario, REACTIVE, rounds=given)
    lengths = [device.draft_length for device in given.devices]
    assert all(c.draft_length == n for c, n in zip(made.sessions, lengths, strict=True) if c.drafter == DEVICE)
    assert made.goodput_tokens_per_s >= given.goodput_tokens_per_s * (1 - 1e-9)
    with pytest.raises(InputError, match="plans from the result of the last round"):
        decide(scenario, REACTIVE)


@pytest.mark.parametrize("seed", range(5))
def test_a_warm_start_finds_nearly_the_same(seed):
    scenario = _draw(np.random.default_rng(200 + seed), 10, 8)
    cold = decide(scenario)
    changed = replace(
        scenario, devices=tuple(replace(d, seconds_per_token=1.02 * d.seconds_per_token) for d in scenario.devices[:9])
    )
    warm, fresh = decide(changed, warm_start=cold), decide(changed)
    assert warm.goodput_tokens_per_s >= 0.98 * fresh.goodput_tokens_per_s
    more = replace(scenario, devices=(*scenario.devices, Device("new", 0.01, 3.0, 0.5)))
    assert decide(more, warm_start=cold) == decide(more)


def test_many_sessions_and_odd_ends_stay_finite():
    devices = tuple(Device(str(k), 0.001 + 0.0003 * k, 3.0, (k % 10) / 9, delay_s=0.001 * (k % 3)) for k in range(150))
    made = decide(_site(devices, EdgeDrafter(0.002, 1e-5, 1.0), fixed_s=0.02, per_device_s=0.001))
    assert math.isfinite(made.goodput_tokens_per_s)
    alone = decide(_site((Device("a", 1e-9, 1e3, 1.0),), EdgeDrafter(1e-9, 0.0, 1.0), fixed_s=1e-9, per_device_s=0.0))
    assert math.isfinite(alone.goodput_tokens_per_s)
    nobody = decide(_site((Device("a", 1.0, 1.0, 0.5, max_draft_length=0),), fixed_s=0.02, per_device_s=0.0))
    assert nobody.kind == "plain"


@pytest.mark.parametrize("seed", range(40))
def test_cooperation_pays_exactly_where_the_break_even_rule_says(seed):
    random = np.random.default_rng(seed)
    size, alpha = int(random.integers(1, 12)), float(random.uniform(0.1, 0.95))
    per_token, trip = float(random.choice([0.0, 5e-4])), float(random.choice([0.0, 0.01]))
    devices = tuple(
        Device(str(k), float(10 ** random.uniform(-2.5, -1)), 3.0, alpha, delay_s=trip / 2) for k in range(size)
    )
    scenario = Scenario(
        Cell(2e6, 1000, 16, 0),
        Verification(float(10 ** random.uniform(-2, -1)), float(10 ** random.uniform(-4, -2.3)), per_token),
        devices,
    )
    plain_s = 1.0 / plan(scenario, "plain").goodput_tokens_per_s * size
    for length in (1, 2, 5):
        made = plan_for_lengths(scenario, [length] * size)
        phase = made.round_s - plain_s - per_token * length * size  # drafting, upload and round trip
        accepted = _tokens(alpha, length) - 1
        rule = accepted * plain_s > phase + per_token * length * size
        assert rule == (made.goodput_tokens_per_s > size / plain_s)
    if trip == 0.0:  # then some common length pays if and only if one token does: α (C + c K) > ϑ + c K
        theta = plan_for_lengths(scenario, [1] * size).round_s - plain_s - per_token * size
        best = max(plan_for_lengths(scenario, [n] * size).goodput_tokens_per_s for n in range(1, 17))
        assert (alpha * plain_s > theta + per_token * size) == (best > size / plain_s)


@pytest.mark.parametrize("edge_drafter", [EdgeDrafter(0.001, 0.0, 0.6), None])
def test_passes_that_take_no_time_without_sessions_are_compared_without_a_division_by_zero(edge_drafter):
    """An edge that learns may believe that a pass itself takes nothing."""
    devices = tuple(Device(f"d{k}", 0.001, 3.0, 0.8) for k in range(2))
    cell = Cell(1e6, 16, max_draft_length=4, min_draft_length=0)
    site = Scenario(cell, Verification(0.0, 0.01, 0.0), devices, edge_drafter=edge_drafter)
    with np.errstate(divide="raise", invalid="raise"):
        assert decide(site).kind == "rounds"
