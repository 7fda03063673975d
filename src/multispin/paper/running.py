"""Beyond the paper: its cell while it runs, in the simulator. What learning costs, and what late devices cost.

The figures of `experiments` plan with the truth and take the goodput from eq. 26. Here the edge's own round loop runs
for some rounds. Its controller begins without knowing anybody's acceptance rate, learns from every verdict, and waits
for late drafts no longer than its deadline allows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multispin.control import Scenario
from multispin.control.break_even import counted
from multispin.estimation.intervals import estimate, ratio_of_means, spread
from multispin.paper.cell import PAIRS, Assumptions, realise, scenario_of_means
from multispin.paper.schemes import EDGE_ALONE, TITLES
from multispin.paper.table import Table, TableValue
from multispin.paper.trials import edge_alone
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.study import SimulatedRun, run_all

Floats = NDArray[np.float64]

ROUNDS = 80
"""Rounds of one run. The first ones count too, although little is known in them."""
RUN_REALISATIONS = 3
"""Realisations of each seed: a run is some 80 times as dear as a plan."""
LEARNERS: Mapping[tuple[str, str], str] = {
    ("heterogeneous", "all"): "Hete, all known",
    ("heterogeneous", "all but acceptance"): "Hete, acceptance learned",
    ("heterogeneous", "nothing"): "Hete, all learned",
    ("uniform-bandwidth", "nothing"): "Uni-BW, all learned",
    ("goodput-argmax", "nothing"): "Goodput argmax, all learned",
    ("plus-two-minus-one", "nothing"): "+2/−1",
    ("fixed", "nothing"): "Fixed BW&L",
}
"""Policy and what the controller is told of the truth in every round (it learns the rest); title on the figure."""
LATE_SHARES: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
"""Share of the drafts that are late."""
LATE_S = 2.0
"""Delay of a late draft, several rounds long [s]."""
DEADLINE_LIMITS: Mapping[str, tuple[float, float]] = {
    "chosen": (2.0, 0.5),
    "tight": (1.2, 0.1),
    "usual": (2.0, 0.5),
    "patient": (1000.0, 0.0),
}
"""Deadlines as (factor on the planned time before verification, slack [s]). "chosen" is the edge's own way: the
deadline with the best goodput by what it has seen, at most that late. The others are always as late as that."""


@dataclass(frozen=True)
class Case:
    """One bar or one point of a curve: a pair, a policy and what happens to it.

    Args:
        pair: key of the models in `cell.PAIRS`.
        policy: the edge's policy.
        knows: knowledge of the controller: "all", "all but acceptance" or "nothing".
        late_share: share of drafts that are late.
        wait: which deadline of `DEADLINE_LIMITS`.
    """

    pair: str
    policy: str
    knows: str
    late_share: float = 0.0
    wait: str = "chosen"


def cases_of(figure: str) -> list[Case]:
    """The cases of a figure, "learning" or "lateness"."""
    if figure == "learning":
        return [Case(pair, policy, knows) for pair in PAIRS for policy, knows in LEARNERS]
    return [
        Case(pair, "heterogeneous", "all", share, wait)
        for pair in PAIRS
        for wait in DEADLINE_LIMITS
        for share in LATE_SHARES
    ]


def run_cases(
    figure: str,
    cases: Sequence[Case],
    assumed: Mapping[str, Assumptions],
    draws: Sequence[tuple[int, int]],
    rounds: int = ROUNDS,
    processes: int = 1,
    progress: Callable[[float], None] = lambda _: None,
) -> Table:
    """Simulate cases of a figure and make its table.

    Args:
        figure: "learning" or "lateness".
        cases: the cases to simulate; `cases_of(figure)` for the whole figure.
        assumed: assumptions by pair.
        draws: (seed, index) of each realisation; the same for every case.
        rounds: rounds of each run; default `ROUNDS`.
        processes: number of processes to run on; default 1.
        progress: function of the share that is done, 0 … 1; default nothing.

    """
    runs = [run_of(case, assumed, seed, index, rounds) for case in cases for seed, index in draws]
    found = np.array([run.goodput_tokens_per_s for run in run_all(runs, processes, progress)])
    goodput = dict(zip(cases, found.reshape(len(cases), len(draws)), strict=True))
    drawn = counted(len(draws), "realisation")
    note = (
        f"Mean and 95 % interval over {drawn} of {rounds} rounds each, in the simulator: the edge's "
        "own round loop under a virtual clock, K = 20, B = 10 MHz, fading drawn again for every round. Plain decoding "
        "and edge drafts are computed, not simulated: no device drafts there, so nobody can be late. "
        + "; ".join(f"{pair}: {value}" for pair, value in assumed.items())
    )
    alone = {
        (pair, scheme): np.array([edge_alone(_truth(pair, assumed, *draw), scheme).sum() for draw in draws])
        for pair in dict.fromkeys(case.pair for case in cases)
        for scheme in EDGE_ALONE
    }
    return _learning(goodput, alone, note) if figure == "learning" else _lateness(goodput, alone, note)


def _truth(pair: str, assumed: Mapping[str, Assumptions], seed: int, index: int) -> Scenario:
    return scenario_of_means(PAIRS[pair], assumed[pair], realise(seed, index, 1))


def run_of(case: Case, assumed: Mapping[str, Assumptions], seed: int, index: int, rounds: int) -> SimulatedRun:
    """The simulation of a case in one realisation of the cell: what `simulate` takes."""
    factor, slack_s = DEADLINE_LIMITS[case.wait]
    behaviour = Behaviour(
        fading="rayleigh",
        straggler_probability=case.late_share,
        straggler_delay_s=LATE_S if case.late_share else 0.0,
        deadline_factor=factor,
        deadline_slack_s=slack_s,
        choose_deadline=case.wait == "chosen",
    )
    truth = _truth(case.pair, assumed, seed, index)
    return SimulatedRun(
        Setup(truth, behaviour),
        case.policy,
        seed * 1000 + index,
        rounds,
        knows=case.knows != "nothing",
        knows_acceptance=case.knows == "all",
    )


def _learning(goodput: Mapping[Case, Floats], alone: Mapping[tuple[str, str], Floats], note: str) -> Table:
    bars = {(case.pair, LEARNERS[case.policy, case.knows]): found for case, found in goodput.items()}
    bars |= {(pair, TITLES[scheme]): found for (pair, scheme), found in alone.items()}
    rows: list[tuple[TableValue, ...]] = []
    for (pair, title), found in bars.items():
        known = goodput[Case(pair, "heterogeneous", "all")]
        rows.append((pair, title, *spread(estimate(found)), *spread(ratio_of_means(found, known))))
    return Table(
        "beyond-learning",
        "Beyond the paper: what it costs to learn everything while running",
        "In brackets: share of what full knowledge gives. The channel is known where it is, as in the paper, for each "
        "round; else learned from the uploads of earlier rounds. " + note,
        ("pair", "scheme", "goodput_tokens_per_s", "low", "high", "over_known", "over_known_low", "over_known_high"),
        tuple(rows),
    )


def _lateness(goodput: Mapping[Case, Floats], alone: Mapping[tuple[str, str], Floats], note: str) -> Table:
    rows: list[tuple[TableValue, ...]] = [
        (case.pair, case.wait, case.late_share, *spread(estimate(found))) for case, found in goodput.items()
    ]
    factor, slack_s = DEADLINE_LIMITS["chosen"]
    shares = dict.fromkeys(case.late_share for case in goodput)
    rows += [
        (pair, scheme, share, *spread(estimate(found))) for (pair, scheme), found in alone.items() for share in shares
    ]
    return Table(
        "beyond-lateness",
        f"Beyond the paper: rounds with a deadline when drafts come {LATE_S:g} s late",
        "A draft that misses its batch joins the next one. The edge chooses the deadline with the best goodput by what "
        f"it has seen, at most {factor:g} × planned + {slack_s:g} s. " + note,
        ("pair", "wait", "late_share", "goodput_tokens_per_s", "low", "high"),
        tuple(rows),
    )
