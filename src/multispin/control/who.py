"""Who drafts for each session in the next passes: nobody, the edge, or the session's own device?

A *period* is what repeats. If no device drafts, a period is one pass: the edge's own drafter writes its drafts, if it
has any to write, and one verification takes in every session. Nobody waits for a link. If some devices draft, a period
is a device phase and one joint pass: the devices are granted their drafts, draft and upload them (D seconds, round trip
included), then one verification takes in everybody. While the devices are at work the edge need not idle: it may serve
the other sessions, which no device drafts for, in extra passes of their own.
"""

from dataclasses import dataclass, replace

import numpy as np

from multispin.control.goodput import Floats, Ints, token_table
from multispin.control.policies import InfeasibleError, Plan, plan
from multispin.control.scenario import Scenario
from multispin.errors import InputError

NOBODY, EDGE, DEVICE = "nobody", "edge", "device"
"""Who may draft for a session in a pass."""

MODES = ("plain", "edge", "rounds", "auto")
"""What a site may do: nobody drafts; only the edge's drafter does; every device does, as the policy plans; or whatever
is best, which may be a mixture."""


@dataclass(frozen=True)
class Choice:
    """What is decided for one session.

    Args:
        name: of the session's device in the scenario.
        drafter: `NOBODY`, `EDGE` or `DEVICE`.
        draft_length: tokens to draft for each pass; 0 for `NOBODY`.
        bandwidth_hz: band for the device's draft [Hz]; 0 unless the device drafts.
        expected_tokens: expected tokens of a period, extra passes included.
        tokens_per_s: expected_tokens / period_s.
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
    """Who drafts, and what that is expected to give.

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
        sessions: in the order of the scenario.
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
    mode: str = "auto",
    rounds: Plan | None = None,
) -> Decision:
    """Choose for every session who drafts how much. A pure function.

    The goodput that `policy` maximises decides: weights and least goodputs are those of the scenario's devices, and
    `fair` compares Σ w log(tokens/s).

    Args:
        scenario: what is known; `edge_drafter` None means that the edge cannot draft.
        policy: a policy of `POLICIES`; how lengths and bands follow when devices draft.
        mode: one of `MODES`; "auto" chooses among all.
        rounds: the policy's plan for all devices, if it has been made already, or for a policy that plans from what
            happened (`plan_for_lengths`); None makes it.

    Raises:
        InputError: the mode is unknown, or "edge" without an edge drafter.
    """
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if mode == "edge" and scenario.edge_drafter is None:
        raise InputError("mode 'edge' needs an edge drafter, which the scenario does not have ([edge_drafter])")
    sessions = _Sessions(scenario, fair=policy == "fair")
    found: list[Decision] = []
    if mode in ("plain", "auto"):
        found.append(sessions.decision("plain", policy, sessions.nothing()))
    if mode in ("edge", "auto") and scenario.edge_drafter is not None:
        found.append(sessions.decision("edge", policy, sessions.edge_lengths()))
    if mode in ("rounds", "auto"):
        found.append(_of_rounds(scenario, policy, rounds))
    best = max(found, key=sessions.rank)
    return replace(best, alternatives=tuple((each.kind, each.goodput_tokens_per_s) for each in found))


def _of_rounds(scenario: Scenario, policy: str, rounds: Plan | None) -> Decision:
    """The policy's plan as a decision; where least goodputs cannot be met, the plan that comes nearest."""
    if rounds is None:
        try:
            rounds = plan(scenario, policy)
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


class _Sessions:
    """A scenario in numbers, as far as it matters to who drafts."""

    def __init__(self, scenario: Scenario, *, fair: bool) -> None:
        self.scenario = scenario
        self.fair = fair
        devices, drafter, longest = scenario.devices, scenario.edge_drafter, scenario.cell.max_draft_length
        self.weight = np.array([device.weight for device in devices])
        self.least = np.array([device.min_goodput_tokens_per_s or 0.0 for device in devices])
        self.edge_longest = np.array(
            [longest if d.edge_max_draft_length is None else d.edge_max_draft_length for d in devices], dtype=np.int64
        )
        rates = [0.0 if drafter is None else drafter.acceptance_rate] * len(devices)
        for k, device in enumerate(devices):
            if device.edge_acceptance_rate is not None:
                rates[k] = device.edge_acceptance_rate
        rows = int(self.edge_longest.max())
        self.edge_tokens = token_table(np.broadcast_to(np.array(rates, dtype=np.float64), (rows, len(devices))))

    def nothing(self) -> Ints:
        """No draft for anybody, [K]."""
        return np.zeros(len(self.weight), dtype=np.int64)

    def pass_s(self, edge_lengths: Ints) -> float:
        """Duration of a pass of everybody with these drafts of the edge, [K] [s]."""
        drafter = self.scenario.edge_drafter
        drafting = 0.0 if drafter is None else drafter.draft_s(edge_lengths.tolist())
        return drafting + self.scenario.verifier.verify_s(edge_lengths.tolist())

    def edge_lengths(self) -> Ints:
        """Drafts of the edge, [K], that are best if no device drafts.

        A step of the edge's drafter is worth what it gains for all sessions less its time, and so is each session's
        part in it. Gains fall from step to step, so at a given price of time those steps and parts are taken that are
        worth something. The price is the goodput itself (Dinkelbach's iteration), or Σw / time for `fair`.
        """
        drafter, verifier = self.scenario.edge_drafter, self.scenario.verifier
        assert drafter is not None
        gains = (np.log(self.edge_tokens) if self.fair else self.edge_tokens) * self.weight
        more = np.diff(gains, axis=0)
        rows = np.arange(1, len(gains))[:, None]
        own_s = drafter.per_device_s + (0.0 if verifier.padded else verifier.per_token_s)
        step_s = drafter.fixed_s + (verifier.per_token_s * len(self.weight) if verifier.padded else 0.0)
        best, score = self.nothing(), self.score(self.nothing())
        for lengths in (best, self.edge_longest):
            for _ in range(50):
                time = self.pass_s(lengths)
                price = float(self.weight.sum()) / time if self.fair else self.score(lengths)
                worth = np.where(rows <= self.edge_longest, np.maximum(more - price * own_s, 0.0), 0.0)
                steps = int((worth.sum(axis=-1) > price * step_s).sum())
                before, lengths = lengths, (worth[:steps] > 0).sum(axis=0)
                value = self.score(lengths)
                if value > score:
                    best, score = lengths, value
                if (before == lengths).all():
                    break
        return best

    def score(self, edge_lengths: Ints) -> float:
        """What is maximised, if no device drafts."""
        tokens, time = self.edge_expected(edge_lengths), self.pass_s(edge_lengths)
        return self.value(tokens / time)

    def value(self, rates: Floats) -> float:
        """What is maximised, of tokens per second [K]."""
        return float(self.weight @ (np.log(rates) if self.fair else rates))

    def rank(self, decision: Decision) -> tuple[float, float]:
        """Order of decisions: by how far all least goodputs are met, then by value."""
        rates = np.array([choice.tokens_per_s for choice in decision.sessions])
        asked = self.least > 0
        met = float((rates[asked] / self.least[asked]).min(initial=1.0))
        return (1.0 if met >= 1.0 - 1e-9 else met), self.value(rates)

    def edge_expected(self, edge_lengths: Ints) -> Floats:
        """E[N_k] of a pass with these drafts of the edge, [K]."""
        return np.asarray(self.edge_tokens[edge_lengths, np.arange(len(edge_lengths))])

    def decision(self, kind: str, policy: str, edge_lengths: Ints) -> Decision:
        """The decision in which no device drafts and the edge drafts so much."""
        tokens, time = self.edge_expected(edge_lengths), self.pass_s(edge_lengths)
        rates = tokens / time
        return Decision(
            policy=policy,
            kind=kind,
            status="feasible" if (rates >= self.least * (1.0 - 1e-9)).all() else "infeasible",
            goodput_tokens_per_s=float(self.weight @ rates),
            period_s=time,
            device_phase_s=0.0,
            extra_passes=0,
            sessions=tuple(
                Choice(device.name, EDGE if length else NOBODY, length, 0.0, expected, rate)
                for device, length, expected, rate in zip(
                    self.scenario.devices, edge_lengths.tolist(), tokens.tolist(), rates.tolist(), strict=True
                )
            ),
        )
