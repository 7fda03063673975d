"""The one table of policies, and the one entry point: a scenario and a policy's name in, a plan for the round out."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from multispin.checks import number, one_of, positive
from multispin.control import baselines
from multispin.control.access import ACCESS
from multispin.control.algorithm1 import algorithm1
from multispin.control.edge import EdgePass, edge_drafts, plain
from multispin.control.exact.objective import LogGoodput, Objective, SumGoodput
from multispin.control.exact.search import MAX_EFFORT, Optimum, maximise
from multispin.control.goodput import Floats, Ints
from multispin.control.minimum import best_fraction, least_lengths
from multispin.control.plans import DevicePlan, InfeasibleError, Plan, assemble, first_modes
from multispin.control.problem import Problem, as_problem
from multispin.control.scenario import Scenario
from multispin.control.uniform import homogeneous
from multispin.errors import InputError

_ROUNDING = 1e-9
"""Relative shortfall of a least goodput that counts as met."""


@dataclass(frozen=True)
class Policy:
    """A way to choose who drafts how much: a row of the table.

    Args:
        name: its name in commands.
        lengths: how it chooses draft lengths, in words.
        choose: function that makes its plan; None if it plans from the outcome of the last round alone.
        equal_bands: whether each device that can draft gets B/K, rather than the best split for the lengths.
        splits_band: whether it has no meaning where devices send one after the other.
        runtime: whether a running edge can serve everybody by it; the others are for comparison on paper.
        devices_draft: whether devices draft; else the edge does, or nobody.
        fair: whether it maximises Σ w_k log goodput_k rather than Σ w_k goodput_k.
        chooses_modes: whether it picks a mode for each device; else each is in its first one.
    """

    name: str
    lengths: str
    choose: "Callable[[_Task], Plan] | None"
    equal_bands: bool = False
    splits_band: bool = False
    runtime: bool = True
    devices_draft: bool = True
    fair: bool = False
    chooses_modes: bool = False

    def value(self, rates: Sequence[float], weights: Sequence[float]) -> float:
        """The policy's objective, Σ w_k goodput_k, or Σ w_k log goodput_k for `fair`.

        Args:
            rates: goodputs of the devices [tokens/s], K; above 0 for `fair`.
            weights: w_k, one for each.
        """
        each = [math.log(rate) if self.fair else rate for rate in rates]
        return sum(weight * value for weight, value in zip(weights, each, strict=True))


@dataclass(frozen=True)
class _Task:
    """The arguments of one call of a policy."""

    scenario: Scenario
    problem: Problem
    policy: Policy
    relative_gap: float
    warm_start: Plan | None
    max_effort: float

    def assemble(self, lengths: Ints, shares: Floats, **more: Any) -> Plan:
        """The plan of options and shares of the band."""
        return assemble(self.scenario, self.problem, self.policy.name, lengths, shares, **more)


def plan(
    scenario: Scenario,
    policy: str = "heterogeneous",
    *,
    relative_gap: float = 1e-3,
    warm_start: Plan | None = None,
    max_effort: float = MAX_EFFORT,
) -> Plan:
    """Choose every device's draft length and share of the band for the next round. A pure function.

    Args:
        scenario: the site as it is known.
        policy: name of any policy of the table but `REACTIVE`; default "heterogeneous".
        relative_gap: for `heterogeneous` and `fair`, how far the proven bound may be above the answer; up to 32 devices
            always get the optimum, to 1e-10; default 0.001.
        warm_start: an earlier plan for (nearly) the same devices; only makes the search quicker; default None.
        max_effort: how much the search of `heterogeneous` and `fair` may work through [table entries, of 15 to 50 ns
            each on one core]. Beyond, `status` is "feasible", and the bound and the plan are the best so far. The same
            scenario always ends at the same point, however busy the machine is. Default `MAX_EFFORT`.

    Raises:
        InfeasibleError: `heterogeneous` or `fair` cannot meet the devices' least goodputs. Other policies know of
            no such constraint: their plan says "infeasible" in `status` if it breaks one.
        InputError: the policy is unknown or does not fit the multiple access, or `centralized` lacks
            `verifier.draft_seconds_per_token`, or `edge-drafts` lacks an edge drafter, or devices with least goodputs
            are to choose between modes.
    """
    row = policy_named(policy)
    if row.choose is None:
        raise InputError(f"policy {policy!r} plans from the result of the last round, so it cannot plan a scenario")
    if not 0 <= number("relative_gap", relative_gap, allowed="in [0, 1)") < 1:
        raise InputError(f"relative_gap is {relative_gap!r}; it must be in [0, 1)")
    if row.splits_band and not ACCESS[scenario.cell.multiple_access].splits_band:
        raise InputError(f"policy {policy!r} splits the band, which is not possible with multiple_access = 'tdma'")
    if not row.chooses_modes:
        scenario = first_modes(scenario)
    positive("max_effort", max_effort)
    return row.choose(_Task(scenario, as_problem(scenario), row, relative_gap, warm_start, max_effort))


def policy_named(name: str) -> Policy:
    """The row of a policy.

    Args:
        name: its name, a key of `POLICY_TABLE`.

    Raises:
        InputError: there is no such policy.
    """
    return POLICY_TABLE[one_of("policy", name, tuple(POLICY_TABLE))]


def rank(scenario: Scenario, policy: Policy, rates: Sequence[float]) -> tuple[float, float]:
    """Order of ways to serve a scenario: by how far all least goodputs are met, then by what the policy maximises.

    Args:
        scenario: the site, with the weights and least goodputs of its devices.
        policy: name of the policy whose objective counts.
        rates: tokens per second of each device.

    Returns: the least share of a least goodput that anybody has, 1 if all are met; and Σ w_k goodput_k, or
        Σ w_k log goodput_k for `fair`.
    """
    asked = [
        rate / device.min_goodput_tokens_per_s
        for device, rate in zip(scenario.devices, rates, strict=True)
        if device.min_goodput_tokens_per_s
    ]
    met = min(asked, default=1.0)
    weights = [device.weight for device in scenario.devices]
    return (1.0 if met >= 1.0 - _ROUNDING else met), policy.value(rates, weights)


def plan_for_lengths(
    scenario: Scenario, draft_lengths: Sequence[int], *, policy: str = "given", equal_bands: bool = False
) -> Plan:
    """The plan that follows from given draft lengths, clipped to each device's limits.

    For policies that choose lengths elsewhere, such as `next_length` in a simulator. A device with modes is in its
    first one.

    Args:
        scenario: the site as it is known.
        draft_lengths: L_k [tokens], one per device.
        policy: the name to put on the plan; default "given".
        equal_bands: B/K for each device instead of the best split (Lemma 3); no difference under TDMA; default False.
    """
    scenario = first_modes(scenario)
    return _with_lengths(scenario, as_problem(scenario), draft_lengths, policy, equal_bands)


def plans_for_lengths(
    scenario: Scenario, choices: Iterable[Sequence[int]], *, policy: str, equal_bands: bool
) -> Iterator[Plan]:
    """The plans of several choices of draft lengths, each when it is asked for; arguments as for `plan_for_lengths`.

    A device whose length is 0 in a choice cannot draft there, whatever its least draft length.
    """
    scenario = first_modes(scenario)
    problem = as_problem(scenario)
    for lengths in choices:
        able = np.asarray(lengths) > 0
        shortest, longest = np.where(able, problem.shortest, 0), np.where(able, problem.longest, 0)
        yield _with_lengths(
            scenario, replace(problem, shortest=shortest, longest=longest), lengths, policy, equal_bands
        )


def _with_lengths(
    scenario: Scenario, problem: Problem, draft_lengths: Sequence[int], policy: str, equal_bands: bool
) -> Plan:
    if len(draft_lengths) != problem.size:
        raise InputError(f"draft_lengths has {len(draft_lengths)} values; it must have {problem.size}, one per device")
    lengths = np.clip(np.asarray(draft_lengths, dtype=np.int64), problem.shortest, problem.longest)
    shares = baselines.equal_shares(problem, lengths) if equal_bands else problem.shares(lengths)
    return assemble(scenario, problem, policy, lengths, shares)


def _best_sum(task: _Task) -> Plan:
    return _exact(task, SumGoodput(task.problem))


def _best_fair(task: _Task) -> Plan:
    return _exact(task, LogGoodput(task.problem))


def _exact(task: _Task, objective: Objective) -> Plan:
    scenario, problem = task.scenario, task.problem
    if problem.constrained and problem.mode_upload_s is not None:
        raise InputError(
            "min_goodput_tokens_per_s cannot be kept where a device chooses between modes; leave one of the two out"
        )
    shortest = least_lengths(problem) if problem.constrained else problem.shortest
    if shortest is None:
        raise _infeasible(task)
    found: Optimum = maximise(
        problem,
        objective,
        shortest,
        relative_gap=task.relative_gap,
        warm_start=_earlier(task.warm_start, scenario, problem),
        max_effort=task.max_effort,
    )
    made = task.assemble(found.options, problem.shares(found.options))
    bound = None
    if not task.policy.fair:
        # Room for the rounding of the plan's own figures, so that the bound is never below them.
        bound = max(found.bound, made.goodput_tokens_per_s) * (1.0 + 1e-13)
    status = "optimal" if found.proved and made.status != "infeasible" else made.status
    return replace(made, status=status, upper_bound_tokens_per_s=bound, iterations=found.nodes)


def _infeasible(task: _Task) -> InfeasibleError:
    scenario, problem = task.scenario, task.problem
    fraction, lengths = best_fraction(problem)
    best = task.assemble(lengths, problem.shares(lengths))
    need = problem.minimum_goodput
    with np.errstate(divide="ignore"):
        reach = problem.expected(lengths) / best.round_s / np.where(need > 0, need, 0.0)
    worst = int(np.argmin(reach))
    got = problem.expected(lengths)[worst] / best.round_s
    return InfeasibleError(
        f"min_goodput_tokens_per_s is infeasible for all devices together; the best possible is "
        f"{100 * fraction:.1f} % of what each asks for (device {scenario.devices[worst].name!r} would get "
        f"{got:.3g} of {need[worst]:.3g} tokens/s)",
        best,
    )


def _earlier(warm_start: Plan | None, scenario: Scenario, problem: Problem) -> Ints | None:
    """Options of an earlier plan, by device name; newcomers start with what the others had on average."""
    if warm_start is None:
        return None
    known = {device.name: device.draft_length for device in warm_start.devices}
    usual = round(sum(known.values()) / max(len(known), 1))
    lengths = np.array([known.get(device.name, usual) for device in scenario.devices], dtype=np.int64)
    modes = {device.name: device.mode for device in warm_start.devices}
    names = [[mode.name for mode in device.modes] for device in scenario.devices]
    chosen = [modes.get(device.name) for device in scenario.devices]
    mode = np.array([own.index(was) if was in own else 0 for own, was in zip(names, chosen, strict=True)])
    return np.asarray(np.clip(lengths, problem.shortest, problem.longest) + problem.reach * mode)


def _algorithm1(task: _Task) -> Plan:
    lengths, tried = algorithm1(task.problem)
    return task.assemble(lengths, task.problem.shares(lengths), iterations=tried)


def _homogeneous(task: _Task) -> Plan:
    lengths = homogeneous(task.problem)
    return task.assemble(lengths, task.problem.shares(lengths))


def _under_equal_bands(choose: Callable[[Problem], Ints]) -> Callable[[_Task], Plan]:
    def make(task: _Task) -> Plan:
        lengths = choose(task.problem)
        return task.assemble(lengths, baselines.equal_shares(task.problem, lengths))

    return make


def _centralized(task: _Task) -> Plan:
    """Cen-SPIN: the server drafts one common length for all, as well as the devices would."""
    step_s = task.scenario.verifier.draft_seconds_per_token
    if step_s is None:
        raise InputError("policy 'centralized' needs verifier.draft_seconds_per_token, which is not given")
    # Devices upload no drafts, so no time follows a refused one.
    task = replace(task, problem=replace(task.problem, after_s=None))
    lengths = baselines.centralized(task.problem, step_s)
    time = float(lengths.max()) * step_s + float(task.problem.verification_s(lengths))
    return task.assemble(lengths, np.zeros(task.problem.size), round_s=time)


def _plain(task: _Task) -> Plan:
    return _of_pass(task, plain(task.scenario))


def _edge_drafts(task: _Task) -> Plan:
    return _of_pass(task, edge_drafts(task.scenario))


def _of_pass(task: _Task, made: EdgePass) -> Plan:
    """A pass without devices' drafts as a plan: nothing is uploaded, and nobody needs a band."""
    return Plan(
        policy=task.policy.name,
        status="feasible" if made.meets_minimum else "infeasible",
        goodput_tokens_per_s=made.goodput_tokens_per_s,
        upper_bound_tokens_per_s=None,
        round_s=made.pass_s,
        devices=tuple(
            DevicePlan(device.name, length, 0.0, tokens)
            for device, length, tokens in zip(
                task.scenario.devices, made.draft_lengths, made.expected_tokens, strict=True
            )
        ),
        iterations=1,
    )


def _alone(task: _Task) -> Plan:
    """P2P-SPIN: one device is served, in a batch of one; the others wait and get nothing in this round."""
    scenario = task.scenario
    alone = as_problem(replace(scenario, devices=scenario.devices[:1]))
    problem = replace(as_problem(scenario), fixed_s=alone.fixed_s)
    device, length = baselines.single_device(problem)
    single = replace(scenario, devices=(scenario.devices[device],))
    part = as_problem(single)
    lengths = np.array([length], dtype=np.int64)
    made = assemble(single, part, "p2p", lengths, (lengths > 0).astype(np.float64))
    waiting = {d.name: DevicePlan(d.name, 0, 0.0, 0.0) for d in scenario.devices}
    waiting[made.devices[0].name] = made.devices[0]
    unmet = any((d.min_goodput_tokens_per_s or 0.0) > 0 for k, d in enumerate(scenario.devices) if k != device)
    status = "infeasible" if unmet else made.status
    return replace(made, status=status, devices=tuple(waiting[d.name] for d in scenario.devices))


_ROWS = (
    Policy("heterogeneous", "the exact optimum for each device", _best_sum, chooses_modes=True),
    Policy("algorithm1", "the paper's grid over (φ, λ), rounded", _algorithm1, splits_band=True),
    Policy("homogeneous", "the best common length", _homogeneous),
    Policy(
        "uniform-bandwidth",
        "the exact optimum for each device under equal bands",
        _under_equal_bands(baselines.uniform_bandwidth),
        equal_bands=True,
        splits_band=True,
    ),
    Policy("fixed", "8 for all", _under_equal_bands(baselines.fixed), equal_bands=True),
    Policy("p2p", "the best for the best single device, alone in the batch", _alone, runtime=False),
    Policy(
        "centralized",
        "the best common length, drafted by the server as well as by the devices",
        _centralized,
        runtime=False,
    ),
    Policy("fair", "maximise Σ w_k log(goodput_k)", _best_fair, fair=True, chooses_modes=True),
    Policy(
        "goodput-argmax",
        "the common length of greatest expected goodput under equal bands",
        _under_equal_bands(baselines.goodput_argmax),
        equal_bands=True,
        splits_band=True,
    ),
    Policy("plus-two-minus-one", "2 more after a draft that was accepted whole, else 1 fewer", None, equal_bands=True),
    Policy("plain", "0 for all: nobody drafts", _plain, runtime=False, devices_draft=False),
    Policy(
        "edge-drafts",
        "the best for each session, drafted by the edge's own drafter",
        _edge_drafts,
        runtime=False,
        devices_draft=False,
    ),
)
POLICY_TABLE: Mapping[str, Policy] = MappingProxyType({row.name: row for row in _ROWS})
"""All policies by name."""

POLICIES = tuple(row.name for row in _ROWS if row.devices_draft and row.choose is not None)
"""The paper's policies and their rivals: all that plan a round of drafts for a scenario."""
WITHOUT_DEVICES = tuple(row.name for row in _ROWS if not row.devices_draft)
"""Policies that need no device."""
RUNTIME_POLICIES = tuple(row.name for row in _ROWS if row.runtime)
"""Policies by which a running edge can serve everybody."""
REACTIVE = "plus-two-minus-one"
"""Plans from the result of the last round alone (`baselines.next_length`), so there is no plan of it for a scenario."""
