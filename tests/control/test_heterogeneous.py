"""The exact optimum against brute force, its bound, and what must not change it."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from multispin.control import POLICIES, Cell, Device, InfeasibleError, Scenario, Verification, plan
from multispin.control.exact.objective import LogGoodput, SumGoodput
from multispin.control.exact.relaxation import Intervals, relax
from multispin.control.exact.search import Search, around_best
from multispin.control.problem import as_problem
from multispin.errors import InputError


def lengths(made):
    return [device.draft_length for device in made.devices]


@pytest.mark.parametrize("seed", range(4))
def test_equals_brute_force(seed, draw, brute_force):
    random = np.random.default_rng(seed)
    compared = 0
    for _ in range(40):
        size = int(random.integers(1, 5))
        scenario = draw(random, size, int(random.integers(1, (25, 9, 5, 3)[size - 1] + 1)), minimum=True)
        best = brute_force(scenario)
        if best == -math.inf:
            with pytest.raises(InfeasibleError, match="infeasible for all devices together, the best possible is"):
                plan(scenario)
            continue
        made = plan(scenario)
        assert made.status == "optimal"
        assert made.goodput_tokens_per_s == pytest.approx(best, rel=1e-9)
        assert made.upper_bound_tokens_per_s >= best
        assert made.upper_bound_tokens_per_s <= best * (1 + 1e-8)
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("kind", [SumGoodput, LogGoodput])
def test_bound_of_any_interval_covers_every_choice_in_it(kind, draw, all_lengths):
    # The heart of the proof: priced with any level, an interval's bound is above all choices with φ inside it.
    random = np.random.default_rng(7)
    checked = 0
    for _ in range(400):
        scenario = draw(random, int(random.integers(1, 4)), int(random.integers(2, 7)))
        problem = as_problem(scenario)
        choices = all_lengths(problem)
        round_s = problem.round_s(choices)
        phi = round_s - problem.verification_s(choices)
        if phi.max() == 0:
            continue
        objective = kind(problem)
        scores = objective.score(choices, round_s)
        start = float(phi.max()) * random.uniform(0, 1)
        end = start + float(phi.max()) * 10 ** random.uniform(-4, 0)
        level = objective.goal(float(scores.max()), random.uniform(-0.7, 0.2))
        cap = int(problem.longest.max())
        one = np.ones(1)
        interval = Intervals(start * one, end * one, 0 * one, np.inf * one, np.array([cap]), 0 * one)
        relaxed = relax(problem, objective, level, interval, problem.shortest)
        excess = relaxed.excess()
        bound = objective.bound(level, excess, relaxed.earliest, relaxed.latest)[0]
        inside = (phi >= start) & (phi <= end)
        if problem.padded and problem.per_token_s:
            # A padded batch is charged for the cap: choices below it belong to another interval.
            inside &= choices.max(axis=-1) == cap
        if inside.any():
            checked += 1
            assert scores[inside].max() <= bound
    assert checked > 100


@pytest.mark.parametrize("kind", [SumGoodput, LogGoodput])
def test_the_intervals_cover_every_choice_that_could_be_better(kind, draw, all_lengths):
    random = np.random.default_rng(8)
    checked = 0
    for _ in range(100):
        scenario = draw(random, int(random.integers(1, 4)), int(random.integers(2, 7)))
        problem = as_problem(scenario)
        search = Search(problem, kind(problem), problem.shortest, 1e-10)
        choices = all_lengths(problem)
        search.offer(choices[random.integers(0, len(choices), 1)])
        intervals = around_best(search)
        round_s = problem.round_s(choices)
        phi = round_s - problem.verification_s(choices)
        better = np.flatnonzero((search.objective.score(choices, round_s) > search.level) & (phi > 0))
        for index in better:
            inside = (intervals.start <= phi[index]) & (phi[index] <= intervals.end)
            inside &= (intervals.earliest <= round_s[index]) & (round_s[index] <= intervals.latest)
            if problem.padded and problem.per_token_s:
                inside &= intervals.cap == choices[index].max()
            assert inside.any()
            checked += 1
    assert checked > 500


@pytest.mark.long
def test_at_least_as_good_as_every_other_policy(draw):
    random = np.random.default_rng(11)
    others = [p for p in POLICIES if p not in ("heterogeneous", "centralized", "algorithm1")]
    for index in range(400):
        scenario = draw(random, int(random.integers(1, 13)), int(random.integers(1, 26)))
        exact = plan(scenario, relative_gap=0.0)
        # p2p runs in a batch of one, which P2 has no notion of.
        for policy in others if index % 4 else [*others, "algorithm1"]:
            if policy == "algorithm1" and index % 40:
                continue
            other = plan(scenario, policy)
            if policy != "p2p":
                assert other.goodput_tokens_per_s <= exact.goodput_tokens_per_s * (1 + 1e-9), (policy, scenario)
                assert other.goodput_tokens_per_s <= exact.upper_bound_tokens_per_s
        assert exact.goodput_tokens_per_s <= exact.upper_bound_tokens_per_s


def test_bound_is_tight_in_the_papers_scenario_and_refined_on_request(paper_scenario):
    for seed in range(10):
        scenario = paper_scenario(seed)
        for gap in (1e-3, 1e-6):
            made = plan(scenario, relative_gap=gap)
            assert made.status == "optimal"
            assert 1.0 <= made.upper_bound_tokens_per_s / made.goodput_tokens_per_s <= 1 + gap + 1e-12
            assert sum(device.bandwidth_hz for device in made.devices) <= 10e6 * (1 + 1e-12)
        exact = plan(scenario, relative_gap=0.0)
        assert exact.goodput_tokens_per_s >= plan(scenario, "algorithm1").goodput_tokens_per_s * (1 - 1e-12)


def test_units_do_not_matter(draw):
    random = np.random.default_rng(3)
    for _ in range(40):
        scenario = draw(random, int(random.integers(1, 8)), 9)
        factor = float(10 ** random.uniform(-9, 9))
        cell = dataclasses.replace(scenario.cell, bandwidth_hz=scenario.cell.bandwidth_hz / factor)
        verifier = dataclasses.replace(
            scenario.verifier,
            fixed_s=scenario.verifier.fixed_s * factor,
            per_device_s=scenario.verifier.per_device_s * factor,
            per_token_s=scenario.verifier.per_token_s * factor,
        )
        devices = tuple(
            dataclasses.replace(d, seconds_per_token=d.seconds_per_token * factor) for d in scenario.devices
        )
        made, slow = plan(scenario), plan(Scenario(cell, verifier, devices))
        assert slow.goodput_tokens_per_s * factor == pytest.approx(made.goodput_tokens_per_s, rel=1e-9)


def test_order_of_devices_does_not_matter(draw):
    random = np.random.default_rng(4)
    for _ in range(40):
        scenario = draw(random, 6, 9)
        order = random.permutation(6)
        shuffled = plan(Scenario(scenario.cell, scenario.verifier, tuple(scenario.devices[i] for i in order)))
        made = plan(scenario)
        assert shuffled.goodput_tokens_per_s == pytest.approx(made.goodput_tokens_per_s, rel=1e-9)
        assert [device.name for device in shuffled.devices] == [scenario.devices[i].name for i in order]


def test_remark_2_higher_acceptance_gets_more_band():
    # For a given length and round, a device's band does not depend on α; through its longer draft it does.
    def bands(alpha):
        devices = (Device("a", 0.008, 6, alpha), *(Device(f"d{k}", 0.008, 6, 0.75) for k in range(7)))
        return plan(Scenario(Cell(5e6, 31744), Verification(0.1, 0.01), devices)).devices[0]

    made = [bands(alpha) for alpha in (0.1, 0.4, 0.6, 0.75, 0.85, 0.93)]
    assert all(a.draft_length <= b.draft_length for a, b in itertools.pairwise(made))
    assert made[-1].bandwidth_hz > made[0].bandwidth_hz


def test_more_of_anything_good_never_hurts(draw):
    random = np.random.default_rng(5)
    for _ in range(30):
        scenario = draw(random, 4, 9)
        base = plan(scenario).goodput_tokens_per_s
        cell = dataclasses.replace(scenario.cell, bandwidth_hz=2 * scenario.cell.bandwidth_hz)
        assert plan(dataclasses.replace(scenario, cell=cell)).goodput_tokens_per_s >= base * (1 - 1e-9)
        quick = tuple(dataclasses.replace(d, seconds_per_token=d.seconds_per_token / 2) for d in scenario.devices)
        assert plan(dataclasses.replace(scenario, devices=quick)).goodput_tokens_per_s >= base * (1 - 1e-9)


def test_warm_start_only_makes_it_quicker(paper_scenario):
    for seed in range(5):
        before, now = paper_scenario(seed), paper_scenario(seed, bandwidth_hz=9e6)
        warm = plan(now, relative_gap=1e-6, warm_start=plan(before))
        cold = plan(now, relative_gap=1e-6)
        assert warm.goodput_tokens_per_s == pytest.approx(cold.goodput_tokens_per_s, rel=2e-6)
    # Newcomers and leavers are no obstacle.
    assert plan(paper_scenario(0, 7), warm_start=plan(paper_scenario(0, 12))).status == "optimal"


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("size", [1, 3, 20])
def test_acceptance_at_its_ends(alpha, size):
    devices = tuple(Device(f"d{k}", 0.01, 5, alpha) for k in range(size))
    made = plan(Scenario(Cell(10e6, 1000), Verification(0.1, 0.01), devices))
    expected = [1.0] * size if alpha == 0 else [length + 1.0 for length in lengths(made)]
    assert [device.expected_tokens for device in made.devices] == expected
    assert set(lengths(made)) == ({1} if alpha == 0 else {25})


def test_nobody_can_draft():
    devices = tuple(Device(f"d{k}", 0.01, 5, 0.9, max_draft_length=0) for k in range(3))
    scenario = Scenario(Cell(10e6, 1000), Verification(0.1, 0.01), devices)
    for policy in POLICIES:
        if policy == "centralized":
            continue
        made = plan(scenario, policy)
        assert lengths(made) == [0, 0, 0]
        assert [device.bandwidth_hz for device in made.devices] == [0, 0, 0]
    made = plan(scenario)
    assert made.round_s == pytest.approx(0.13)
    assert made.goodput_tokens_per_s == pytest.approx(3 / 0.13)
    assert made.upper_bound_tokens_per_s == pytest.approx(3 / 0.13)


def test_a_device_that_gains_nothing_decodes_plainly():
    slow = Device("slow", 2.0, 5, 0.9)
    devices = (Device("a", 0.01, 5, 0.9), Device("b", 0.01, 5, 0.9), slow)
    made = plan(Scenario(Cell(10e6, 1000, min_draft_length=0), Verification(0.1, 0.01), devices))
    assert lengths(made)[2] == 0
    assert made.devices[2].bandwidth_hz == 0
    assert made.devices[2].expected_tokens == 1


def test_wildly_different_magnitudes():
    devices = (
        Device("fast", 1e-9, 1e3, 0.99),
        Device("slow", 1e3, 1e-9, 0.5),
        Device("usual", 0.01, 5.0, 0.8),
    )
    for minimum in (0, 1):
        made = plan(Scenario(Cell(1e7, 1e5, min_draft_length=minimum), Verification(0.01, 0.01), devices))
        assert made.status == "optimal"
        assert 0 < made.goodput_tokens_per_s <= made.upper_bound_tokens_per_s < math.inf
        assert lengths(made)[1] == minimum


@pytest.mark.parametrize("per_token", [0.0, 3e-5])
def test_a_thousand_devices_are_certified_to_a_millionth(per_token, paper_scenario):
    # Large tables find the band's price by search instead of sorting.
    scenario = paper_scenario(1, 1000, bandwidth_hz=4e8, min_draft_length=0)
    scenario = dataclasses.replace(scenario, verifier=Verification(0.05, 3e-4, per_token))
    made = plan(scenario, relative_gap=1e-6)
    assert made.status == "optimal"
    assert made.iterations < 200
    assert made.upper_bound_tokens_per_s <= made.goodput_tokens_per_s * (1 + 1.1e-6)


def test_ten_thousand_devices(paper_scenario):
    scenario = paper_scenario(0, 10_000, bandwidth_hz=5e9)
    scenario = dataclasses.replace(scenario, verifier=Verification(0.02, 2e-5))
    made = plan(scenario)
    assert made.status == "optimal"
    assert made.upper_bound_tokens_per_s <= made.goodput_tokens_per_s * 1.001
    # The number of intervals does not grow with K, so that the cost grows no faster than K.
    assert made.iterations < 200


def test_least_goodputs_are_kept_and_cost_something(draw):
    random = np.random.default_rng(6)
    kept = 0
    for _ in range(60):
        scenario = draw(random, 6, 12, minimum=True)
        free = tuple(dataclasses.replace(d, min_goodput_tokens_per_s=None) for d in scenario.devices)
        try:
            made = plan(scenario)
        except InfeasibleError as error:
            best = error.best
            assert best.status == "infeasible"
            reach = [
                planned.expected_tokens / best.round_s / device.min_goodput_tokens_per_s
                for planned, device in zip(best.devices, scenario.devices, strict=True)
                if device.min_goodput_tokens_per_s
            ]
            assert 0 <= min(reach) < 1
            continue
        kept += 1
        for planned, device in zip(made.devices, scenario.devices, strict=True):
            assert planned.expected_tokens / made.round_s >= (device.min_goodput_tokens_per_s or 0) * (1 - 1e-9)
        unbound = plan(dataclasses.replace(scenario, devices=free))
        assert made.goodput_tokens_per_s <= unbound.upper_bound_tokens_per_s
    assert kept > 10


def test_unknown_policy_and_gap_are_refused(paper_scenario):
    with pytest.raises(InputError, match="policy is 'best'; it must be one of heterogeneous"):
        plan(paper_scenario(0), "best")
    with pytest.raises(InputError, match="relative_gap is -1"):
        plan(paper_scenario(0), relative_gap=-1)


def _hard(seed: int) -> Scenario:
    """Magnitudes so far apart that the proof takes seconds."""
    random = np.random.default_rng(seed)
    cell = Cell(10 ** random.uniform(3, 8), 40, 16, 0)
    verifier = Verification(
        10 ** random.uniform(-4, 0),
        10 ** random.uniform(-5, -1),
        float(random.integers(0, 2)) * 10 ** random.uniform(-6, -1),
    )
    return Scenario(
        cell,
        verifier,
        tuple(
            Device(str(k), 10 ** random.uniform(-6, 3.5), 10 ** random.uniform(-9, 3), float(random.uniform(0, 1)))
            for k in range(32)
        ),
    )


@pytest.mark.parametrize("policy", ["heterogeneous", "fair"])
def test_a_limited_search_ends_early_at_the_same_point_with_a_valid_bound(policy):
    scenario = _hard(13)
    made = plan(scenario, policy, max_effort=1e6)
    assert made.status == "feasible"
    assert made == plan(scenario, policy, max_effort=1e6)
    assert made.iterations < plan(scenario, policy, max_effort=1e7).iterations
    if policy == "heterogeneous":
        assert made.upper_bound_tokens_per_s >= plan(scenario, policy, max_effort=1e7).goodput_tokens_per_s
        for other in ("homogeneous", "uniform-bandwidth", "goodput-argmax"):
            assert made.goodput_tokens_per_s >= plan(scenario, other).goodput_tokens_per_s * (1 - 1e-12)
    with pytest.raises(InputError, match="max_effort is 0; it must be > 0"):
        plan(scenario, policy, max_effort=0)
