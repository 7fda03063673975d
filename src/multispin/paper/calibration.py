"""What the paper does not print, chosen once: the least squared log ratio to all of its numbers at the same time.

For each p/N_0 (common to both pairs) the drafting times of each pair are searched for themselves; the p/N_0 with the
smallest sum over both pairs wins. Nothing is fitted per figure.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multispin.paper.cell import PAIRS, REALISATIONS, Assumptions
from multispin.paper.reported import REPORTED, Reported
from multispin.paper.trials import Setting, Trial, TrialResult, run_trials

SNR_DB: tuple[float, ...] = tuple(float(value) for value in range(18, 29))
"""Grid of p/N_0 [dB]."""
DRAFT_S: tuple[float, ...] = tuple(value / 1e3 for value in range(4, 41, 2))
"""Grid of the mean T^S [s]."""
SERVER_DRAFT_S: tuple[float, ...] = tuple(value / 1e3 for value in range(2, 41))
"""Grid of the server's drafting time per device and token [s]."""
_BLOCKS = 3


@dataclass(frozen=True)
class Fit:
    """The best point of the grid.

    Args:
        chosen: assumptions by pair.
        misfit: root mean square of ln(ours / paper's) over the numbers.
        residuals: ln(ours / paper's) by claim.
    """

    chosen: Mapping[str, Assumptions]
    misfit: float
    residuals: Mapping[str, float]


def calibrate(
    processes: int = 1,
    seed: int = 1,
    *,
    snr_db: tuple[float, ...] = SNR_DB,
    draft_s: tuple[float, ...] = DRAFT_S,
    server_draft_s: tuple[float, ...] = SERVER_DRAFT_S,
    realisations: int = REALISATIONS,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Mapping[str, Fit]:
    """Search the grid. "all" fits every number of the paper; "ratios" leaves out the two absolute goodputs.

    The first is what `cell.CALIBRATED` holds; the second shows how far the two absolute numbers pull.
    """
    search = _Search(seed, realisations)
    radio = [search.trial(r, Assumptions(s, d, 1.0), i) for r, s, d, i in search.over(snr_db, draft_s)]
    server = [search.trial(r, Assumptions(0.0, 1.0, c), i) for r, c, i in search.over_server(server_draft_s)]
    search.results = run_trials(radio + server, processes, progress)
    return {
        "all": _best(search, REPORTED, snr_db, draft_s, server_draft_s),
        "ratios": _best(search, tuple(r for r in REPORTED if r.baseline), snr_db, draft_s, server_draft_s),
    }


class _Search:
    """The measurements of a grid, and the residual of any number at any of its points."""

    def __init__(self, seed: int, realisations: int) -> None:
        self.seed = seed
        self.realisations = realisations
        self.results: Mapping[Trial, TrialResult] = {}

    def over(
        self, snr_db: tuple[float, ...], draft_s: tuple[float, ...]
    ) -> Iterator[tuple[Reported, float, float, int]]:
        return itertools.product(REPORTED, snr_db, draft_s, range(self.realisations))

    def over_server(self, server_draft_s: tuple[float, ...]) -> Iterator[tuple[Reported, float, int]]:
        central = [r for r in REPORTED if r.baseline == "centralized"]
        return itertools.product(central, server_draft_s, range(self.realisations))

    def trial(self, number: Reported, assumed: Assumptions, index: int) -> Trial:
        # Cen-SPIN uses nothing but the server's drafting time, the other schemes all but that.
        central = assumed.server_draft_s < 1.0
        schemes = ("centralized",) if central else ("heterogeneous", "fixed", "p2p")
        setting = Setting(number.pair, number.devices, number.bandwidth_hz, schemes)
        return Trial(setting, assumed, self.seed, index, _BLOCKS)

    def residual(self, number: Reported, assumed: Assumptions) -> float:
        def values(scheme: str) -> NDArray[np.float64]:
            if scheme == "centralized":
                used = Assumptions(0.0, 1.0, assumed.server_draft_s)
            else:
                used = Assumptions(assumed.snr_db, assumed.draft_s, 1.0)
            trials = [self.trial(number, used, index) for index in range(self.realisations)]
            return np.array([self.results[trial].goodput[scheme] for trial in trials])

        return number.residual(values)


def _best(
    search: _Search,
    numbers: tuple[Reported, ...],
    snr_db: tuple[float, ...],
    draft_s: tuple[float, ...],
    server_draft_s: tuple[float, ...],
) -> Fit:
    def squares(pair: str, assumed: Assumptions, central: bool) -> float:
        chosen = [n for n in numbers if n.pair == pair and (n.baseline == "centralized") == central]
        return sum(search.residual(n, assumed) ** 2 for n in chosen)

    def pair_at(pair: str, snr: float) -> tuple[float, Assumptions]:
        # The server's time enters only Cen-SPIN, so it is searched inside.
        best = (np.inf, Assumptions(snr, draft_s[0], server_draft_s[0]))
        for draft in draft_s:
            rest = squares(pair, Assumptions(snr, draft, 1.0), False)
            for server in server_draft_s:
                assumed = Assumptions(snr, draft, server)
                total = rest + squares(pair, assumed, True)
                if total < best[0]:
                    best = (total, assumed)
        return best

    trials = [{pair: pair_at(pair, snr) for pair in PAIRS} for snr in snr_db]
    winner = min(trials, key=lambda trial: sum(score for score, _ in trial.values()))
    chosen = {pair: assumed for pair, (_, assumed) in winner.items()}
    residuals = {n.claim: search.residual(n, chosen[n.pair]) for n in numbers}
    return Fit(chosen, float(np.sqrt(np.mean(np.square(list(residuals.values()))))), residuals)
