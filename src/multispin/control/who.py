"""Who drafts for each session in the next passes: nobody, the edge, or the session's own device?

A *period* is what repeats. If no device drafts, a period is one pass: the edge's own drafter writes its drafts, if it
has any to write, and one verification takes in every session. Nobody waits for a link. If some devices draft, a period
is a device phase and one joint pass: the devices are granted their drafts, draft and upload them (D seconds, round trip
included), then one verification takes in everybody. While the devices are at work the edge need not idle: it may serve
the other sessions, which no device drafts for, in extra passes of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multispin.control.access import ACCESS
from multispin.control.edge import EdgePass, EdgeTables, edge_drafts, plain
from multispin.control.exact.search import MAX_EFFORT
from multispin.control.goodput import Ints, Mask
from multispin.control.latency import verification_s
from multispin.control.mixture import MixtureSearch
from multispin.control.plans import InfeasibleError, Plan, first_modes
from multispin.control.policies import Policy, plan, policy_named, rank
from multispin.control.problem import as_problem
from multispin.control.scenario import Scenario
from multispin.errors import InputError

NOBODY, EDGE, DEVICE = "nobody", "edge", "device"
"""Who may draft for a session in a pass."""

ROUND_MODES = ("plain", "edge", "rounds", "mixture")
"""Modes of a site in rounds: nobody drafts; only the edge's drafter does; every device does, as the policy plans; or
each session has the best of these."""
_ROUNDING = 1e-9
"""Relative shortfall of a least goodput that counts as met."""


def ways(modes: Sequence[str], policies: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of a mode and a policy that differ.

    A policy plans rounds and matters only where there are any; streams ask only whether it is `fair`.

    Args:
        modes: modes of `ROUND_MODES`, "streams" or "auto".
        policies: names of policies, at least one; the first stands for all where the policy does not matter.
    """
    of_streams = [*dict.fromkeys([policies[0], *["fair"] * ("fair" in policies)])]
    matters = {"rounds": policies, "mixture": policies, "streams": of_streams, "auto": of_streams}
    return [(mode, policy) for mode in modes for policy in matters.get(mode, policies[:1])]


@dataclass(frozen=True)
class Choice:
    """The decision for one session.

    Args:
        name: name of the session's device in the scenario.
        drafter: `NOBODY`, `EDGE` or `DEVICE`.
        draft_length: tokens to draft for each pass; 0 for `NOBODY`.
        bandwidth_hz: band for the device's draft [Hz]; 0 unless the device drafts.
        expected_tokens: expected tokens of a period, extra passes included.
        tokens_per_s: expected_tokens / period_s [tokens/s].
        mode: which of the device's modes it drafts in; None if it has none, or does not draft.
    """

    name: str
    drafter: str
    draft_length: int
    bandwidth_hz: float
    expected_tokens: float
    tokens_per_s: float
    mode: str | None = None


@dataclass(frozen=True)
class Decision:
    """The decision who drafts, and what it is expected to give.

    Args:
        policy: the policy whose objective was maximised.
        kind: "plain" (nobody drafts), "edge" (only the edge does), "rounds" (the policy's plan for all devices) or
            "mixed".
        status: "feasible", or "infeasible" if some session gets less than its `min_goodput_tokens_per_s`.
        goodput_tokens_per_s: Σ_k w_k · tokens of session k, per second.
        period_s: duration of a period [s].
        device_phase_s: longest time from a grant to the arrival of its draft, both delays included [s]; 0 if no device
            drafts.
        extra_passes: passes that the edge makes in the device phase for the sessions without device drafts.
        sessions: one decision per device, in the order of the scenario.
        alternatives: goodput of each kind that was considered [tokens/s], by kind.
    """

    policy: str
    kind: str
    status: str
    goodput_tokens_per_s: float
    period_s: float
    device_phase_s: float
    extra_passes: int
    sessions: tuple[Choice, ...]
    alternatives: tuple[tuple[str, float], ...] = ()


def decide(
    scenario: Scenario,
    policy: str = "heterogeneous",
    *,
    mode: str = "mixture",
    rounds: Plan | None = None,
    warm_start: Decision | None = None,
    max_effort: float = MAX_EFFORT,
) -> Decision:
    """Choose for every session who drafts how much. A pure function.

    The goodput that `policy` maximises decides: weights and least goodputs are those of the scenario's devices, and
    `fair` compares Σ w log(tokens/s).

    Args:
        scenario: the site as it is known; `edge_drafter` None means that the edge cannot draft.
        policy: a policy of `POLICIES`; how lengths and bands follow when devices draft; default "heterogeneous".
        mode: one of `ROUND_MODES`; "mixture" (default) chooses among all.
        rounds: the policy's plan for all devices, if it has been made already, or for a policy that plans from what
            happened (`plan_for_lengths`); default None, which makes it.
        warm_start: an earlier decision for nearly the same sessions. The search then begins near it, which is much
            quicker and may find less. Default None.
        max_effort: bound on the work of each plan, as in `plan`; default `MAX_EFFORT`.

    Raises:
        InputError: the mode is unknown, or "edge" without an edge drafter.
    """
    if mode not in ROUND_MODES:
        raise InputError(f"mode is {mode!r}; it must be one of {', '.join(ROUND_MODES)}")
    if mode == "edge" and scenario.edge_drafter is None:
        raise InputError("mode 'edge' needs an edge drafter, which the scenario does not have ([edge_drafter])")
    row = policy_named(policy)
    tables = EdgeTables(scenario)
    found: list[Decision] = []
    if mode in ("plain", "mixture"):
        found.append(_of_pass(scenario, policy, "plain", plain(scenario, tables)))
    if mode == "edge" or (mode == "mixture" and scenario.edge_drafter is not None):
        found.append(_of_pass(scenario, policy, "edge", edge_drafts(scenario, fair=row.fair, tables=tables)))
    if mode in ("rounds", "mixture"):
        found.append(_of_rounds(scenario, policy, rounds, max_effort))
    best = max(found, key=lambda decision: _rank(scenario, row, decision))
    if mode == "mixture" and ACCESS[scenario.cell.multiple_access].splits_band and len(found) > 1:
        mixed = _of_mixture(scenario, row, found, warm_start, tables)
        found.append(mixed)
        least = _rank(scenario, row, best)
        if _rank(scenario, row, mixed) > (least[0], least[1] + _ROUNDING * abs(least[1])):
            best = mixed
    return replace(best, alternatives=tuple((each.kind, each.goodput_tokens_per_s) for each in found))


def _of_mixture(
    scenario: Scenario, row: Policy, pure: Sequence[Decision], warm_start: Decision | None, tables: EdgeTables
) -> Decision:
    """The best mixture that is found, with the devices' lengths and bands by the policy's own rule."""
    first = first_modes(scenario)
    problem = as_problem(first)
    starts = [_lengths(decision, scenario) for decision in pure]
    warm = warm_start is not None and {each.name for each in warm_start.sessions} >= {d.name for d in scenario.devices}
    if warm_start is not None and warm:
        starts.append(_lengths(warm_start, scenario))
    search = MixtureSearch(first, problem, fair=row.fair, edge=tables)
    starts = [(np.where(own <= problem.longest, own, 0), np.minimum(edge, search.edge.longest)) for own, edge in starts]
    made = search.search(starts, warm=warm)
    drafting = made.lengths > 0
    if not row.chooses_modes and drafting.any():
        # Policies that choose no length for each device: the mixture decides who drafts, the policy how much.
        lengths = np.where(drafting, _by_policy(first, row, drafting, pure[-1]), 0)
        search = MixtureSearch(first, problem, fair=row.fair, equal_bands=row.equal_bands, edge=tables)
        search.offer(lengths[None], made.edge_lengths[None])
        assert search.best is not None
        made, drafting = search.best, search.best.lengths > 0
    shares = problem.shares(made.lengths)
    if row.equal_bands:
        shares = np.where(drafting, 1.0 / max(int(drafting.sum()), 1), 0.0)
    rates = made.tokens / made.period_s
    met = rates >= problem.minimum_goodput * (1.0 - _ROUNDING)
    others = int((~drafting).sum())
    alone = "edge" if made.edge_lengths.any() else "plain"
    together = made.extra_passes > 0 or bool(made.edge_lengths.any())
    return Decision(
        policy=row.name,
        kind=alone if others == len(drafting) else "mixed" if others and together else "rounds",
        status="feasible" if met.all() else "infeasible",
        goodput_tokens_per_s=float(problem.weight @ rates),
        period_s=made.period_s,
        device_phase_s=made.phase_s,
        extra_passes=made.extra_passes,
        sessions=tuple(
            Choice(
                device.name,
                DEVICE if own else EDGE if edge else NOBODY,
                own or edge,
                share * scenario.cell.bandwidth_hz,
                tokens,
                tokens / made.period_s,
                device.modes[0].name if own and device.modes else None,
            )
            for device, own, edge, share, tokens in zip(
                first.devices,
                made.lengths.tolist(),
                made.edge_lengths.tolist(),
                shares.tolist(),
                made.tokens.tolist(),
                strict=True,
            )
        ),
    )


def _lengths(decision: Decision, scenario: Scenario) -> tuple[Ints, Ints]:
    """Drafts of the devices and of the edge in a decision, [K] each, in the scenario's order."""
    chosen = {choice.name: choice for choice in decision.sessions}
    every = [chosen[device.name] for device in scenario.devices]
    devices = np.array([choice.draft_length if choice.drafter == DEVICE else 0 for choice in every], dtype=np.int64)
    edge = np.array([choice.draft_length if choice.drafter == EDGE else 0 for choice in every], dtype=np.int64)
    return devices, edge


def _by_policy(scenario: Scenario, row: Policy, drafting: Mask, rounds: Decision) -> Ints:
    """Lengths that a policy gives to the devices that draft, [K]; what it gives to the others means nothing."""
    lengths = _lengths(rounds, scenario)[0]
    if row.choose is None:
        return lengths
    others, verifier = int((~drafting).sum()), scenario.verifier
    joint = verification_s(verifier.fixed_s, verifier.per_device_s, verifier.per_token_s, others, float(others))
    part = replace(
        scenario,
        verifier=replace(verifier, fixed_s=joint),
        devices=tuple(device for device, drafts in zip(scenario.devices, drafting, strict=True) if drafts),
    )
    made = plan(part, row.name)
    lengths[drafting] = [device.draft_length for device in made.devices]
    return lengths


def _rank(scenario: Scenario, row: Policy, decision: Decision) -> tuple[float, float]:
    """Order of decisions."""
    return rank(scenario, row, [choice.tokens_per_s for choice in decision.sessions])


def _of_pass(scenario: Scenario, policy: str, kind: str, made: EdgePass) -> Decision:
    """A pass of everybody without devices' drafts, as a decision."""
    return Decision(
        policy=policy,
        kind=kind,
        status="feasible" if made.meets_minimum else "infeasible",
        goodput_tokens_per_s=made.goodput_tokens_per_s,
        period_s=made.pass_s,
        device_phase_s=0.0,
        extra_passes=0,
        sessions=tuple(
            Choice(device.name, EDGE if length else NOBODY, length, 0.0, tokens, tokens / made.pass_s)
            for device, length, tokens in zip(scenario.devices, made.draft_lengths, made.expected_tokens, strict=True)
        ),
    )


def _of_rounds(scenario: Scenario, policy: str, rounds: Plan | None, max_effort: float) -> Decision:
    """The policy's plan as a decision; where least goodputs cannot be met, the plan that comes nearest."""
    if rounds is None:
        try:
            rounds = plan(scenario, policy, max_effort=max_effort)
        except InfeasibleError as error:
            rounds = error.best
    verifier, lengths = scenario.verifier, [device.draft_length for device in rounds.devices]
    chosen = tuple(
        Choice(
            device.name,
            DEVICE if device.draft_length else NOBODY,
            device.draft_length,
            device.bandwidth_hz,
            device.expected_tokens,
            device.expected_tokens / rounds.round_s,
            device.mode if device.draft_length else None,
        )
        for device in rounds.devices
    )
    return Decision(
        policy=policy,
        kind="rounds",
        status="infeasible" if rounds.status == "infeasible" else "feasible",
        goodput_tokens_per_s=rounds.goodput_tokens_per_s,
        period_s=rounds.round_s,
        device_phase_s=max(0.0, rounds.round_s - verifier.verify_s(lengths)),
        extra_passes=0,
        sessions=chosen,
    )
