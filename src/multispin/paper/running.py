"""Beyond the paper: its cell while it runs, in the simulator. What learning costs, and what late devices cost.

The figures of `experiments` plan with the truth and take τ of eq. 26. Here the edge's own loop runs for some rounds:
its controller begins with nobody's acceptance rate known, learns from every verdict, and waits for drafts that are
late no longer than its deadline allows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from multispin.control import Scenario
from multispin.estimation.intervals import Estimate, estimate
from multispin.paper.cell import PAIRS, Assumptions, Pair, realise, scenario_of_means
from multispin.paper.table import Table, Value

if TYPE_CHECKING:  # the simulator brings torch, which the figures of theory need not wait for
    from multispin.simulation.study import SimulatedRun

ROUNDS = 80
"""Rounds of one run, the first ones included, in which little is known."""
KNOWLEDGE = ("all", "all but acceptance", "nothing")
"""What the controller is told of the truth at every round; the rest it learns."""
CURVES: Mapping[tuple[str, str], str] = {
    ("heterogeneous", "all"): "Hete, all known",
    ("heterogeneous", "all but acceptance"): "Hete, acceptance learned",
    ("heterogeneous", "nothing"): "Hete, all learned",
    ("uniform-bandwidth", "nothing"): "Uni-BW, all learned",
    ("goodput-argmax", "nothing"): "Goodput argmax, all learned",
    ("plus-two-minus-one", "nothing"): "+2/−1",
    ("fixed", "nothing"): "Fixed BW&L",
}
"""Policy and what the controller knows, with what it is called on the figure."""
LATE_SHARES: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
"""Share of drafts that are late."""
LATE_S = 2.0
"""By so much: several rounds [s]."""
WAITS: Mapping[str, tuple[float, float]] = {
    "tight": (1.2, 0.1),
    "usual": (2.0, 0.5),
    "patient": (1000.0, 0.0),
}
"""Deadline as (factor on the planned time before verification, slack in s): the edge's own is "usual"."""


@dataclass(frozen=True)
class Course:
    """One curve's worth of runs: a pair, a policy and what happens, over all realisations."""

    pair: str
    policy: str
    knows: str
    late_share: float = 0.0
    wait: str = "usual"


def courses(figure: str) -> list[Course]:
    """The runs behind a figure."""
    if figure == "learning":
        return [Course(pair, policy, knows) for pair in PAIRS for policy, knows in CURVES]
    return [
        Course(pair, "heterogeneous", "all", share, wait) for pair in PAIRS for wait in WAITS for share in LATE_SHARES
    ]


def run_courses(
    figure: str,
    assumed: Mapping[str, Assumptions],
    seed: int,
    realisations: int,
    rounds: int = ROUNDS,
    processes: int = 1,
    progress: Callable[[float], None] = lambda _: None,
) -> Table:
    """Run a figure's courses and make its table.

    Args:
        figure: "learning" or "lateness".
        assumed: by pair.
        seed: of all draws.
        realisations: draws of tasks, speeds and mean gains; the same for every course.
        rounds: of each run.
        processes: to run on.
        progress: told how much is done, 0 … 1.

    """
    from multispin.simulation.study import run_all

    asked = courses(figure)
    runs = [_run(course, assumed, seed, index, rounds) for course in asked for index in range(realisations)]
    found = np.array([run.goodput_tokens_per_s for run in run_all(runs, processes, progress)])
    goodput = dict(zip(asked, found.reshape(len(asked), realisations), strict=True))
    note = (
        f"Mean and 95 % interval over {realisations} realisations of {rounds} rounds each, seed {seed}, in the "
        "simulator: the edge's own round loop under a virtual clock, K = 20, B = 10 MHz, fading drawn anew for every "
        "round. " + "; ".join(f"{pair}: {value}" for pair, value in assumed.items())
    )
    return _learning(asked, goodput, note) if figure == "learning" else _lateness(asked, goodput, note)


def _run(course: Course, assumed: Mapping[str, Assumptions], seed: int, index: int, rounds: int) -> "SimulatedRun":
    from multispin.simulation.setup import Behaviour, Setup
    from multispin.simulation.study import SimulatedRun

    factor, slack_s = WAITS[course.wait]
    behaviour = Behaviour(
        fading="rayleigh",
        straggler_probability=course.late_share,
        straggler_delay_s=LATE_S if course.late_share else 0.0,
        deadline_factor=factor,
        deadline_slack_s=slack_s,
    )
    truth = _truth(PAIRS[course.pair], assumed[course.pair], seed, index)
    return SimulatedRun(
        Setup(truth, behaviour),
        course.policy,
        seed * 1000 + index,
        rounds,
        knows=course.knows != "nothing",
        knows_acceptance=course.knows == "all",
    )


def _truth(pair: Pair, assumed: Assumptions, seed: int, index: int) -> Scenario:
    return scenario_of_means(pair, assumed, realise(seed, index, 1))


def _learning(asked: list[Course], goodput: Mapping[Course, np.ndarray[tuple[int, ...], np.dtype[np.float64]]],
              note: str) -> Table:  # fmt: skip
    rows: list[tuple[Value, ...]] = []
    for course in asked:
        known = goodput[Course(course.pair, "heterogeneous", "all")]
        values, ratio = estimate(goodput[course]), estimate(goodput[course] / known)
        name = CURVES[course.policy, course.knows]
        rows.append((course.pair, name, *_spread(values), *_spread(ratio)))
    return Table(
        "beyond-learning",
        "Beyond the paper: what it costs to learn everything while running",
        "In brackets: share of what full knowledge gives. The channel is known where it is, as in the paper, for each "
        "round; else learned from the uploads of earlier rounds. " + note,
        ("pair", "scheme", "goodput_tokens_per_s", "low", "high", "over_known", "over_known_low", "over_known_high"),
        tuple(rows),
    )


def _lateness(asked: list[Course], goodput: Mapping[Course, np.ndarray[tuple[int, ...], np.dtype[np.float64]]],
              note: str) -> Table:  # fmt: skip
    rows: list[tuple[Value, ...]] = [
        (course.pair, course.wait, course.late_share, *_spread(estimate(goodput[course]))) for course in asked
    ]
    return Table(
        "beyond-lateness",
        f"Beyond the paper: rounds with a deadline when drafts come {LATE_S:g} s late",
        "A draft that misses its batch joins the next one. "
        + "; ".join(f"{name}: {factor:g} × planned + {slack:g} s" for name, (factor, slack) in WAITS.items())
        + ". "
        + note,
        ("pair", "wait", "late_share", "goodput_tokens_per_s", "low", "high"),
        tuple(rows),
    )


def _spread(value: Estimate) -> tuple[float, float, float]:
    return value.mean, value.low, value.high
