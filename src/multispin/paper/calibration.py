"""Values that the paper does not print, chosen once for all figures: those that fit its numbers best, on a grid.

The misfit is the sum of (ln(ours / paper's))² over the numbers that are fitted. "Ours" is the ratio of two mean
goodputs over the realisations, the same estimate as in the report (`Reported.ours`). One p/N_0 serves both pairs. What
the fit leaves open is measured too: every grid point is weighed by how well it fits, and the spread of a number over
the grid under these weights is its calibration spread.

The server's drafting time decides Cen-SPIN's ratio and nothing else. So it is set by that ratio alone, and the two
Cen-SPIN numbers count in no misfit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from multispin.estimation.intervals import ratio_of_means
from multispin.paper.cell import PAIRS, REALISATIONS, SEEDS, Assumptions
from multispin.paper.reported import OUTLIER, REPORTED, Reported
from multispin.paper.trials import Setting, Trial, TrialResult, run_trials

Floats = NDArray[np.float64]

SNR_DB: tuple[float, ...] = tuple(float(value) for value in range(19, 28))
"""Grid of p/N_0 [dB]."""
DRAFT_GRID_S: tuple[float, ...] = tuple(value / 1e3 for value in range(4, 33, 2))
"""Grid of the mean T^S [s]."""
SERVER_DRAFT_S: tuple[float, ...] = tuple(value / 1e3 for value in range(2, 31))
"""Grid of the server's drafting time per device and token [s]."""
_BLOCKS = 2
_ORDERED = ("uniform-bandwidth", "homogeneous")


@dataclass(frozen=True)
class Fit:
    """The best grid point for a choice of numbers.

    Args:
        left_out: claims that were not fitted.
        chosen: assumptions by pair.
        misfit: root mean square of ln(ours / paper's) over the fitted numbers, Cen-SPIN's left out.
        residuals: ln(ours / paper's) by claim, of all numbers.
    """

    left_out: tuple[str, ...]
    chosen: Mapping[str, Assumptions]
    misfit: float
    residuals: Mapping[str, float]


@dataclass(frozen=True)
class Calibration:
    """Everything that `multispin reproduce --calibrate` prints.

    Args:
        used: the fit whose values are in use: all numbers but the outlier.
        all_numbers: the fit to all numbers.
        ratios: the fit without the two absolute goodputs.
        leave_one_out: the fit in use with each of its numbers left out in turn.
        spread: calibration spread, the standard deviation of ln(ours) over the weighted grid, by claim.
        order: least and greatest Uni-BW ÷ Homo over the whole grid, by pair.
    """

    used: Fit
    all_numbers: Fit
    ratios: Fit
    leave_one_out: tuple[Fit, ...]
    spread: Mapping[str, float]
    order: Mapping[str, tuple[float, float]]


def calibrate(
    processes: int = 1,
    seeds: Sequence[int] = SEEDS,
    *,
    snr_db: tuple[float, ...] = SNR_DB,
    draft_s: tuple[float, ...] = DRAFT_GRID_S,
    server_draft_s: tuple[float, ...] = SERVER_DRAFT_S,
    realisations: int = REALISATIONS,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Calibration:
    """Search the grid.

    Args:
        processes: number of processes to run on; default 1.
        seeds: seeds of the draws; default `SEEDS`.
        snr_db: grid of p/N_0 [dB]; default `SNR_DB`.
        draft_s: grid of the mean T^S [s], for each pair; default `DRAFT_GRID_S`.
        server_draft_s: grid of the server's drafting time per device and token [s], for each pair; default
            `SERVER_DRAFT_S`.
        realisations: realisations of each seed; default `REALISATIONS`.
        progress: function of (trials done, all trials); default nothing.
    """
    grid = _Grid(snr_db, draft_s, server_draft_s, [(seed, index) for seed in seeds for index in range(realisations)])
    grid.fill(processes, progress)
    used = [number for number in REPORTED if number.claim != OUTLIER]
    ratios = [number for number in REPORTED if number.baseline is not None]
    return Calibration(
        used=grid.fit(used),
        all_numbers=grid.fit(REPORTED),
        ratios=grid.fit(ratios),
        leave_one_out=tuple(grid.fit([n for n in used if n is not number]) for number in used if number.counts),
        spread=grid.spread(used),
        order={pair: grid.order(pair) for pair in PAIRS},
    )


class _Grid:
    """The mean goodputs behind every number at every point of the grid."""

    def __init__(
        self,
        snr_db: tuple[float, ...],
        draft_s: tuple[float, ...],
        server_draft_s: tuple[float, ...],
        draws: Sequence[tuple[int, int]],
    ) -> None:
        self.snr_db, self.draft_s, self.server_draft_s = snr_db, draft_s, server_draft_s
        self._draws = draws
        self._results: Mapping[Trial, TrialResult] = {}

    def fill(self, processes: int, progress: Callable[[int, int], None]) -> None:
        """Plan everything that the fits look at."""
        wanted = [(_setting(n, scheme), scheme) for n in REPORTED for scheme in ("heterogeneous", n.baseline) if scheme]
        wanted += [(_alone(Setting(pair), scheme), scheme) for pair in PAIRS for scheme in _ORDERED]
        server = [_of_server(seconds) for seconds in self.server_draft_s]
        radio = [_of_radio(snr, draft) for snr in self.snr_db for draft in self.draft_s]
        trials = [
            trial
            for setting, scheme in wanted
            for assumed in (server if scheme == "centralized" else radio)
            for trial in self._trials(setting, assumed)
        ]
        self._results = run_trials(trials, processes, progress)

    def fit(self, numbers: Sequence[Reported]) -> Fit:
        """The point of the grid that fits these numbers best."""
        squares = {pair: self._squares(pair, numbers) for pair in PAIRS}
        snr = int(sum(each.min(axis=1) for each in squares.values()).argmin())
        chosen = {}
        for pair, each in squares.items():
            draft_s = self.draft_s[int(each[snr].argmin())]
            chosen[pair] = Assumptions(self.snr_db[snr], draft_s, self._server_draft_s(pair, self.snr_db[snr], draft_s))
        residuals = {number.claim: self._residual(number, chosen[number.pair]) for number in REPORTED}
        counted = [residuals[number.claim] for number in numbers if number.counts]
        left_out = tuple(number.claim for number in REPORTED if number not in numbers)
        return Fit(left_out, chosen, float(np.sqrt(np.mean(np.square(counted)))), residuals)

    def spread(self, numbers: Sequence[Reported]) -> Mapping[str, float]:
        """Standard deviation of ln(ours) over the grid, each point weighed by how well it fits these numbers.

        The weight is the likelihood of the paper's numbers if each is off by a normal error of one unknown size, which
        is integrated out: S^(-n/2) for a sum of squares S over n numbers (Jeffreys' prior on the size).
        """
        first, second = PAIRS
        squares = self._squares(first, numbers)[:, :, None] + self._squares(second, numbers)[:, None, :]
        weight = squares ** (-0.5 * sum(number.counts for number in numbers))
        weight /= weight.sum()
        by_pair = {first: weight.sum(axis=2), second: weight.sum(axis=1)}
        found = {}
        for number in REPORTED:
            if number.counts:
                values, own = self._residuals(number), by_pair[number.pair]
                mean = float((own * values).sum())
                found[number.claim] = float(np.sqrt((own * (values - mean) ** 2).sum()))
        return found

    def order(self, pair: str) -> tuple[float, float]:
        """Least and greatest Uni-BW ÷ Homo over the grid."""
        ratios = []
        for snr in self.snr_db:
            for draft in self.draft_s:
                upper, lower = (self._values(_alone(Setting(pair), s), _of_radio(snr, draft), s) for s in _ORDERED)
                ratios.append(ratio_of_means(upper, lower).mean)
        return min(ratios), max(ratios)

    def _squares(self, pair: str, numbers: Sequence[Reported]) -> Floats:
        """Sum of squared residuals of a pair's numbers, [p/N_0, T^S]."""
        total: Floats = np.zeros((len(self.snr_db), len(self.draft_s)))
        for number in numbers:
            if number.pair == pair and number.counts:
                total += self._residuals(number) ** 2
        return total

    def _residuals(self, number: Reported) -> Floats:
        """ln(ours / paper's) of a number over the grid, [p/N_0, T^S]."""
        return np.array([[self._residual(number, _of_radio(s, d)) for d in self.draft_s] for s in self.snr_db])

    def _server_draft_s(self, pair: str, snr: float, draft: float) -> float:
        """The server's drafting time that comes nearest to the one ratio that it decides [s]."""
        (number,) = (n for n in REPORTED if n.pair == pair and n.baseline == "centralized")
        return min(self.server_draft_s, key=lambda s: abs(self._residual(number, Assumptions(snr, draft, s))))

    def _residual(self, number: Reported, assumed: Assumptions) -> float:
        return number.residual(lambda scheme: self._values(_setting(number, scheme), assumed, scheme))

    def _values(self, setting: Setting, assumed: Assumptions, scheme: str) -> Floats:
        central = scheme == "centralized"
        used = _of_server(assumed.server_draft_s) if central else _of_radio(assumed.snr_db, assumed.draft_s)
        return np.array([self._results[trial].goodput[scheme] for trial in self._trials(setting, used)])

    def _trials(self, setting: Setting, assumed: Assumptions) -> list[Trial]:
        return [Trial(setting, assumed, seed, index, _BLOCKS) for seed, index in self._draws]


def _setting(number: Reported, scheme: str) -> Setting:
    return _alone(Setting(number.pair, number.devices, number.bandwidth_hz), scheme)


def _alone(setting: Setting, scheme: str) -> Setting:
    return replace(setting, schemes=(scheme,))


def _of_radio(snr_db: float, draft_s: float) -> Assumptions:
    """Assumptions for every scheme except Cen-SPIN: only that one depends on the server's drafting time."""
    return Assumptions(snr_db, draft_s, 1.0)


def _of_server(server_draft_s: float) -> Assumptions:
    """Assumptions for Cen-SPIN, which depends on nothing else."""
    return Assumptions(0.0, 1.0, server_draft_s)
