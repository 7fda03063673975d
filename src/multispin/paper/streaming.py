"""Beyond the paper: its cell in streams, in which devices draft on while they are verified.

The paper's schemes are planned with the truth, as in figures 6 to 8. Streams have no formula: the edge's own scheduler
runs in the simulator, begins without knowing anybody, and learns everything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from multispin.control.break_even import counted
from multispin.control.frames import FRAME_BITS
from multispin.estimation.intervals import estimate, ratio_of_means, spread
from multispin.paper.cell import PAIRS, Assumptions, realise, scenario_of_means
from multispin.paper.experiments import Study
from multispin.paper.table import Table, TableValue
from multispin.paper.trials import Setting
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.study import SimulatedRun, run_all

Floats = NDArray[np.float64]

BANDS_HZ: tuple[float, ...] = (5e6, 10e6)
"""Bands that are compared [Hz]."""
SCHEMES_BESIDE_STREAMS: tuple[str, ...] = ("plain", "p2p", "centralized", "fixed", "heterogeneous", "edge-drafts")
"""Schemes beside streams."""
STREAMS: Mapping[str, str] = {
    "streams-payload": "Streams, the paper's payload",
    "streams-least": "Streams of ids, least acceptance",
    "streams-ids": "Streams of ids, same acceptance",
}
"""A device's payload in a stream, and the acceptance rate with it: α as everywhere, or with ids only at least
α/(2 − α)."""
PASSES_PER_ROUND = 2
"""A pass of streams takes in fewer devices than a round, so runs of this many times as many are about as long."""


@dataclass(frozen=True)
class StreamCase:
    """One bar: a pair, a kind of streams and the band.

    Args:
        pair: key of the models in `cell.PAIRS`.
        kind: one of `STREAMS`.
        bandwidth_hz: B, shared band [Hz].
    """

    pair: str
    kind: str
    bandwidth_hz: float


CASES: tuple[StreamCase, ...] = tuple(
    StreamCase(pair, kind, band) for pair in PAIRS for kind in STREAMS for band in BANDS_HZ
)
"""All bars of streams."""


def planned_settings() -> list[Setting]:
    """The settings that a `Study` must have run before `run_streams`; figure 7 has the same."""
    return [Setting(pair, bandwidth_hz=band) for pair in PAIRS for band in BANDS_HZ]


def run_streams(
    study: Study,
    draws: Sequence[tuple[int, int]],
    rounds: int,
    processes: int = 1,
    progress: Callable[[float], None] = lambda _: None,
    cases: Sequence[StreamCase] = CASES,
) -> Table:
    """Simulate streams, and put them beside the schemes of the study in one table.

    Args:
        study: study that has run `planned_settings()`.
        draws: (seed, index) of the realisations to compare in, of those of the study.
        rounds: length of a run; `PASSES_PER_ROUND` passes each.
        processes: number of processes to run on; default 1.
        progress: function of the share that is done, 0 … 1; default nothing.
        cases: the cases to simulate; default `CASES`.
    """
    runs = [_run(case, study.assumed, seed, index, rounds) for case in cases for seed, index in draws]
    found = np.array([run.goodput_tokens_per_s for run in run_all(runs, processes, progress)])
    goodput: dict[tuple[str, str, float], Floats] = {}
    chosen = [study.draws.index(draw) for draw in draws]
    for pair in dict.fromkeys(case.pair for case in cases):
        for scheme in SCHEMES_BESIDE_STREAMS:
            for band in BANDS_HZ:
                goodput[pair, scheme, band] = study.goodput(Setting(pair, bandwidth_hz=band), scheme)[chosen]
    for case, values in zip(cases, found.reshape(len(cases), len(draws)), strict=True):
        goodput[case.pair, case.kind, case.bandwidth_hz] = values
    rows: list[tuple[TableValue, ...]] = []
    for (pair, scheme, band), values in goodput.items():
        over = [ratio_of_means(values, goodput[pair, base, band]) for base in ("heterogeneous", "fixed")]
        rows.append((pair, scheme, band, *spread(estimate(values), *over)))
    passes = PASSES_PER_ROUND * rounds
    drawn = counted(len(draws), "realisation")
    note = (
        f"Mean and 95 % interval over {drawn}, K = 20. Streams: simulated, {passes} passes of the "
        "edge's own scheduler, which learns everything, the first passes included; fading drawn again for every frame; "
        "the paper's payload is drafted in grants. "
        "All others: planned with the truth, eq. 26, the paper's payload. Ids only: 15 (Llama) and 18 (Qwen) bit per "
        "token and 176 per frame; acceptance is at least α/(2 − α) (arXiv 2408.07978) and at most about α, that of a "
        "rejection sampler. No edge drafter takes part in streams. In brackets: times Hete in the same band. "
        + "; ".join(f"{pair}: {value}" for pair, value in study.assumed.items())
    )
    return Table(
        "beyond-streams",
        "Beyond the paper: devices that draft on while they are verified",
        note,
        (
            *("pair", "scheme", "bandwidth_hz", "goodput_tokens_per_s", "low", "high"),
            *(f"over_{base}{end}" for base in ("hete", "fixed") for end in ("", "_low", "_high")),
        ),
        tuple(rows),
    )


def _run(case: StreamCase, assumed: Mapping[str, Assumptions], seed: int, index: int, rounds: int) -> SimulatedRun:
    pair, ids = PAIRS[case.pair], case.kind != "streams-payload"
    truth = scenario_of_means(
        pair,
        assumed[case.pair],
        realise(seed, index, 1),
        bandwidth_hz=case.bandwidth_hz,
        bits_per_token=float(pair.index_bits) if ids else None,
        coupled=case.kind == "streams-least",
    )
    behaviour = Behaviour(fading="rayleigh", distributions=not ids, frame_bits=FRAME_BITS)
    setup = Setup(replace(truth, edge_drafter=None), behaviour)
    return SimulatedRun(
        setup, "heterogeneous", seed * 1000 + index, PASSES_PER_ROUND * rounds, knows=False, mode="streams"
    )
