"""Decoding on the edge alone: plain batched decoding, and drafts of its own drafter.

No device drafts, so that nothing is uploaded and nobody waits for a link. A pass takes the drafting steps of the edge's
drafter and one verification of all sessions.
"""

from dataclasses import dataclass

import numpy as np

from multispin.control.goodput import Floats, Ints, Mask, expected_tokens_table
from multispin.control.scenario import Scenario
from multispin.errors import InputError

_STEPS = 50
"""Iterations on the price of time at most; three or four are usual."""
LEAST_OF_PLAIN = 0.95
"""Each session gets at least this share of what it would get if nobody drafted."""


@dataclass(frozen=True)
class EdgePass:
    """One pass in which no device drafts.

    Args:
        draft_lengths: tokens that the edge drafts for each session, 0 for a plain one.
        expected_tokens: E[N_k] of each session.
        pass_s: duration, drafting and verification [s].
        goodput_tokens_per_s: Σ w_k E[N_k] / pass_s.
        meets_minimum: whether each session gets its `min_goodput_tokens_per_s`.
    """

    draft_lengths: tuple[int, ...]
    expected_tokens: tuple[float, ...]
    pass_s: float
    goodput_tokens_per_s: float
    meets_minimum: bool


def plain(scenario: Scenario, tables: "EdgeTables | None" = None) -> EdgePass:
    """Plain batched decoding: each pass gives a token to every session. Example: 20 in 24 ms make 833 tokens/s.

    Args:
        scenario: the site as it is known.
        tables: the scenario's tables, if they have been made already; default None.
    """
    return _as_pass(tables or EdgeTables(scenario), np.zeros(len(scenario.devices), dtype=np.int64))


def edge_drafts(scenario: Scenario, *, fair: bool = False, tables: "EdgeTables | None" = None) -> EdgePass:
    """The edge's own drafter drafts for every session as much as is best.

    The paper's `centralized` is the special case of a common length and of a server that drafts as well as the devices.

    Args:
        scenario: the site as it is known.
        fair: maximise Σ w_k log goodput_k rather than Σ w_k goodput_k; default False.
        tables: the scenario's tables, if they have been made already; default None.

    Raises:
        InputError: the scenario has no edge drafter.
    """
    if scenario.edge_drafter is None:
        raise InputError("drafts of the edge need an edge drafter, which is not given: add the table [edge_drafter]")
    tables = tables or EdgeTables(scenario)
    return _as_pass(tables, tables.best_lengths(fair=fair))


class EdgeTables:
    """The sessions' gains from the edge's drafts, as arrays.

    Attributes:
        scenario: the site that they were made for.
        weight: weights of the sessions, w_k, [K].
        longest: longest draft of the edge for each session, [K]; 0 for all if the edge has no drafter.
        tokens: E[N_k] by draft length, [L_max + 1, K].
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        devices, drafter, longest = scenario.devices, scenario.edge_drafter, scenario.cell.max_draft_length
        self.weight = np.array([device.weight for device in devices], dtype=np.float64)
        rates = np.zeros(len(devices))
        self.longest = np.zeros(len(devices), dtype=np.int64)
        if drafter is not None:
            own = [(device.edge_acceptance_rate, device.edge_max_draft_length) for device in devices]
            rates[:] = [drafter.acceptance_rate if rate is None else rate for rate, _ in own]
            self.longest[:] = [longest if most is None else most for _, most in own]
        rows = int(self.longest.max())
        self.tokens = expected_tokens_table(np.broadcast_to(rates, (rows, len(devices))))

    def expected(self, lengths: Ints) -> Floats:
        """E[N_k] of a pass with these drafts, [K]."""
        return np.asarray(self.tokens[lengths, np.arange(len(lengths))])

    def pass_s(self, lengths: Ints, members: Mask | None = None) -> float:
        """Duration of one pass with these drafts of the edge: drafting, and one verification [s].

        Args:
            lengths: drafts of the edge [tokens], [K].
            members: sessions that are in the pass, [K]; None (default) for everybody.
        """
        drafter = self.scenario.edge_drafter
        values = (lengths if members is None else lengths[members]).tolist()
        drafting_s = 0.0 if drafter is None else drafter.draft_s(values)
        return drafting_s + self.scenario.verifier.verify_s(values)

    def best_lengths(self, *, fair: bool, members: Mask | None = None) -> Ints:
        """Drafts of the edge, [K], that are best for passes of these members, or of everybody, alone.

        The other sessions get the lengths that are best at the same prices.

        A step of the drafter is worth what all sessions gain by it less its time at the price of time, and a session
        takes part while its own gain is worth its own time. Gains fall from step to step, so at a given price the best
        drafts are the first steps that are worth something. The price is the goodput itself (Dinkelbach's iteration,
        which ends at the optimum), or Σw / time for `fair`, where each iteration improves and two are begun.

        Args:
            fair: maximise Σ w_k log goodput_k rather than Σ w_k goodput_k.
            members: sessions that are in the pass, [K]; None (default) for everybody.

        Returns: draft lengths [tokens], [K]; all 0 without an edge drafter.
        """
        drafter, verifier = self.scenario.edge_drafter, self.scenario.verifier
        nothing = np.zeros(len(self.weight), dtype=np.int64)
        if drafter is None:
            return nothing
        members = np.ones(len(nothing), dtype=bool) if members is None else members
        weight = np.where(members, self.weight, 0.0)
        more = np.diff((np.log(self.tokens) if fair else self.tokens) * self.weight, axis=0)
        rows = np.arange(1, len(self.tokens))[:, None]
        own_s = drafter.per_device_s + (0.0 if verifier.padded else verifier.per_token_s)
        step_s = drafter.fixed_s + (verifier.per_token_s * int(members.sum()) if verifier.padded else 0.0)
        best, best_score = nothing, -np.inf
        for lengths in (nothing, self.longest) if fair else (nothing,):
            for _ in range(_STEPS):
                tokens, time = self.expected(lengths), self.pass_s(lengths, members)
                goodput = float(weight @ tokens) / time
                score = float(weight @ np.log(tokens / time)) if fair else goodput
                if score > best_score:
                    best, best_score = lengths, score
                price = float(weight.sum()) / time if fair else goodput
                worth = np.where(rows <= self.longest, np.maximum(more - price * own_s, 0.0), 0.0)
                steps = int((worth[:, members].sum(axis=-1) > price * step_s).sum())
                before, lengths = lengths, (worth[:steps] > 0).sum(axis=0)
                if (before == lengths).all():
                    break
        return np.asarray(best)


def _as_pass(tables: EdgeTables, lengths: Ints) -> EdgePass:
    tokens, time = tables.expected(lengths), tables.pass_s(lengths)
    least = np.array([device.min_goodput_tokens_per_s or 0.0 for device in tables.scenario.devices])
    return EdgePass(
        draft_lengths=tuple(lengths.tolist()),
        expected_tokens=tuple(tokens.tolist()),
        pass_s=time,
        goodput_tokens_per_s=float(tables.weight @ tokens) / time,
        meets_minimum=bool((tokens >= least * time * (1.0 - 1e-12)).all()),
    )
