"""The one entry point: a scenario and the name of a policy in, a plan for the next round out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multispin.control import baselines
from multispin.control.algorithm1 import algorithm1
from multispin.control.bandwidth import start_times
from multispin.control.exact.objective import LogGoodput, Objective, SumGoodput
from multispin.control.exact.search import Optimum, maximise
from multispin.control.goodput import Floats, Ints
from multispin.control.minimum import best_fraction, least_lengths
from multispin.control.problem import Problem, as_problem
from multispin.control.scenario import Device, Scenario
from multispin.control.uniform import homogeneous
from multispin.errors import InputError

POLICIES: tuple[str, ...] = (
    "heterogeneous",
    "algorithm1",
    "homogeneous",
    "uniform-bandwidth",
    "fixed",
    "p2p",
    "centralized",
    "fair",
    "goodput-argmax",
)

REACTIVE = "plus-two-minus-one"
"""Plans from what came of the last round alone (`baselines.next_length`), so there is no plan of it for a scenario."""
RUNTIME_POLICIES = (*(name for name in POLICIES if name not in ("p2p", "centralized")), REACTIVE)
"""Policies by which a running edge can serve everybody; the two others are for comparison on paper."""

BAND_SPLITTING = ("algorithm1", "uniform-bandwidth", "goodput-argmax")
"""Policies that have no meaning where devices send one after the other."""


@dataclass(frozen=True)
class DevicePlan:
    """What one device is to do.

    Args:
        name: the device.
        draft_length: L_k [tokens]; 0 is plain decoding, with no upload and no band.
        bandwidth_hz: B_k [Hz]; under TDMA the whole band for everybody who drafts.
        expected_tokens: E[N_k] of the round [tokens].
        mode: which of the device's modes; None if it has none.
        start_s: under TDMA, when it may begin to send, after the beginning of the round [s]; None otherwise.
    """

    name: str
    draft_length: int
    bandwidth_hz: float
    expected_tokens: float
    mode: str | None = None
    start_s: float | None = None


@dataclass(frozen=True)
class Plan:
    """What everybody is to do in the next round.

    Args:
        policy: which policy made it.
        status: "optimal": proven to be within the gap that was asked for; "feasible": nothing is proven;
            "infeasible": some device gets less than the `min_goodput_tokens_per_s` it asks for.
        goodput_tokens_per_s: Σ_k w_k E[N_k] / round_s.
        upper_bound_tokens_per_s: no choice of lengths and bands is better; None where the policy proves nothing.
        round_s: time of the round, φ + T_ver [s].
        devices: in the order of the scenario.
        iterations: candidates or search nodes that were examined.
    """

    policy: str
    status: str
    goodput_tokens_per_s: float
    upper_bound_tokens_per_s: float | None
    round_s: float
    devices: tuple[DevicePlan, ...]
    iterations: int


class InfeasibleError(InputError):
    """The devices' least goodputs cannot all be met. `best` gives each the largest common fraction of them."""

    def __init__(self, message: str, best: Plan) -> None:
        super().__init__(message)
        self.best = best


def plan(
    scenario: Scenario,
    policy: str = "heterogeneous",
    *,
    relative_gap: float = 1e-3,
    warm_start: Plan | None = None,
) -> Plan:
    """Choose every device's draft length and share of the band for the next round. A pure function.

    Args:
        scenario: what is known.
        policy: one of `POLICIES`.
        relative_gap: for `heterogeneous` and `fair`, how far the proven bound may be above the answer; up to 32
            devices always get the optimum, to 1e-10.
        warm_start: an earlier plan for (nearly) the same devices; only makes the search quicker.

    Raises:
        InfeasibleError: `heterogeneous` or `fair` cannot meet the devices' least goodputs. Other policies know of
            no such constraint: their plan says "infeasible" in `status` if it breaks one.
        InputError: the policy is unknown or does not fit the multiple access, or `centralized` lacks
            `verifier.draft_seconds_per_token`, or devices with least goodputs are to choose between modes.
    """
    if policy not in POLICIES:
        raise InputError(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
    if not 0 <= relative_gap < 1:
        raise InputError(f"relative_gap is {relative_gap!r}; it must be in [0, 1)")
    if scenario.cell.multiple_access == "tdma" and policy in BAND_SPLITTING:
        raise InputError(f"policy {policy!r} is about splitting the band, which multiple_access = 'tdma' does not")
    if policy not in ("heterogeneous", "fair"):
        scenario = _first_modes(scenario)
    problem = as_problem(scenario)
    if policy == "heterogeneous":
        return _exact(scenario, problem, policy, SumGoodput(problem), relative_gap, warm_start)
    if policy == "fair":
        return _exact(scenario, problem, policy, LogGoodput(problem), relative_gap, warm_start)
    if policy == "p2p":
        return _alone(scenario)
    if policy == "centralized":
        step_s = scenario.verifier.draft_seconds_per_token
        if step_s is None:
            raise InputError("policy 'centralized' needs verifier.draft_seconds_per_token, which is not given")
        # Nothing goes up, so nothing of it is refused.
        problem = replace(problem, after_s=None)
        lengths = baselines.centralized(problem, step_s)
        time = float(lengths.max()) * step_s + float(problem.verification_s(lengths))
        return _assemble(scenario, problem, policy, lengths, np.zeros(problem.size), round_s=time)
    if policy == "algorithm1":
        lengths, tried = algorithm1(problem)
        return _assemble(scenario, problem, policy, lengths, problem.shares(lengths), iterations=tried)
    if policy == "homogeneous":
        lengths = homogeneous(problem)
        return _assemble(scenario, problem, policy, lengths, problem.shares(lengths))
    choose = {
        "fixed": baselines.fixed,
        "uniform-bandwidth": baselines.uniform_bandwidth,
        "goodput-argmax": baselines.goodput_argmax,
    }[policy]
    lengths = choose(problem)
    return _assemble(scenario, problem, policy, lengths, baselines.equal_shares(problem, lengths))


def plan_for_lengths(
    scenario: Scenario, draft_lengths: Sequence[int], *, policy: str = "given", equal_bands: bool = False
) -> Plan:
    """The plan that follows from given draft lengths, clipped to each device's limits.

    For policies that choose lengths elsewhere, such as `next_length` in a simulator. A device with modes is in its
    first one.

    Args:
        scenario: what is known.
        draft_lengths: L_k [tokens], one per device.
        policy: the name to put on the plan.
        equal_bands: B/K for each device instead of the best split (Lemma 3); no difference under TDMA.
    """
    scenario = _first_modes(scenario)
    problem = as_problem(scenario)
    if len(draft_lengths) != problem.size:
        raise InputError(f"draft_lengths has {len(draft_lengths)} values; it must have {problem.size}, one per device")
    lengths = np.clip(np.asarray(draft_lengths, dtype=np.int64), problem.shortest, problem.longest)
    shares = baselines.equal_shares(problem, lengths) if equal_bands else problem.shares(lengths)
    return _assemble(scenario, problem, policy, lengths, shares)


def _exact(
    scenario: Scenario,
    problem: Problem,
    policy: str,
    objective: Objective,
    relative_gap: float,
    warm_start: Plan | None,
) -> Plan:
    if problem.constrained and problem.mode_upload_s is not None:
        raise InputError(
            "min_goodput_tokens_per_s cannot be kept where a device chooses between modes; drop one of both"
        )
    shortest = least_lengths(problem) if problem.constrained else problem.shortest
    if shortest is None:
        raise _infeasible(scenario, problem, policy)
    found: Optimum = maximise(
        problem, objective, shortest, relative_gap=relative_gap, warm_start=_earlier(warm_start, scenario, problem)
    )
    made = _assemble(scenario, problem, policy, found.lengths, problem.shares(found.lengths))
    bound = None
    if policy == "heterogeneous":
        # Room for the rounding of the plan's own figures, so that the bound is never below them.
        bound = max(found.bound, made.goodput_tokens_per_s) * (1.0 + 1e-13)
    status = "optimal" if found.proved and made.status != "infeasible" else made.status
    return replace(made, status=status, upper_bound_tokens_per_s=bound, iterations=found.nodes)


def _infeasible(scenario: Scenario, problem: Problem, policy: str) -> InfeasibleError:
    fraction, lengths = best_fraction(problem)
    best = _assemble(scenario, problem, policy, lengths, problem.shares(lengths))
    need = problem.minimum_goodput
    with np.errstate(divide="ignore"):
        reach = problem.expected(lengths) / best.round_s / np.where(need > 0, need, 0.0)
    worst = int(np.argmin(reach))
    got = problem.expected(lengths)[worst] / best.round_s
    return InfeasibleError(
        f"min_goodput_tokens_per_s is infeasible for all devices together, the best possible is "
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


def _first_modes(scenario: Scenario) -> Scenario:
    """The scenario for policies that choose no modes: each device has its first one."""
    if not any(device.modes for device in scenario.devices):
        return scenario
    return replace(scenario, devices=tuple(replace(d, modes=d.modes[:1]) for d in scenario.devices))


def _alone(scenario: Scenario) -> Plan:
    """P2P-SPIN: one device is served, in a batch of one; the others wait and get nothing in this round."""
    alone = as_problem(replace(scenario, devices=scenario.devices[:1]))
    problem = replace(as_problem(scenario), fixed_s=alone.fixed_s)
    device, length = baselines.single_device(problem)
    single = replace(scenario, devices=(scenario.devices[device],))
    part = as_problem(single)
    lengths = np.array([length], dtype=np.int64)
    made = _assemble(single, part, "p2p", lengths, (lengths > 0).astype(np.float64))
    waiting = {d.name: DevicePlan(d.name, 0, 0.0, 0.0) for d in scenario.devices}
    waiting[made.devices[0].name] = made.devices[0]
    unmet = any((d.min_goodput_tokens_per_s or 0.0) > 0 for k, d in enumerate(scenario.devices) if k != device)
    status = "infeasible" if unmet else made.status
    return replace(made, status=status, devices=tuple(waiting[d.name] for d in scenario.devices))


def _assemble(
    scenario: Scenario,
    problem: Problem,
    policy: str,
    lengths: Ints,
    shares: Floats,
    *,
    round_s: float | None = None,
    iterations: int = 1,
) -> Plan:
    """The plan of options [K] and band shares [K]; its round time follows from them unless it is given."""
    start: list[float] | list[None] = [None] * problem.size
    if problem.tdma:
        shares = np.where(shares > 0, 1.0, 0.0)
        ready = problem.drafted(lengths) * problem.seconds_per_token
        if round_s is None:
            round_s = float(problem.round_s(lengths))
        start = start_times(ready, problem.upload_time(lengths, shares)).tolist()
    if round_s is None:
        busy = problem.busy_s(problem.drafted(lengths))
        draft = float((busy + problem.upload_time(lengths, shares)).max())
        round_s = draft + float(problem.verification_s(lengths))
    expected = problem.expected(lengths)
    bands = shares * scenario.cell.bandwidth_hz
    devices: Sequence[Device] = scenario.devices
    modes = [
        device.modes[option // problem.reach].name if device.modes else None
        for device, option in zip(devices, lengths.tolist(), strict=True)
    ]
    return Plan(
        policy=policy,
        status="feasible" if bool(problem.meets_minimum(lengths, np.asarray(round_s))) else "infeasible",
        goodput_tokens_per_s=float(expected @ problem.weight) / round_s,
        upper_bound_tokens_per_s=None,
        round_s=round_s,
        devices=tuple(
            DevicePlan(device.name, length, band, tokens, mode, begin if band else None)
            for device, length, band, tokens, mode, begin in zip(
                devices,
                problem.drafted(lengths).tolist(),
                bands.tolist(),
                expected.tolist(),
                modes,
                start,
                strict=True,
            )
        ),
        iterations=iterations,
    )
