"""The numbers that arXiv 2606.04581 reports, each with the point of the experiment where it is read.

Fig. 8's percentages are taken as the gain of Hete over Fixed BW&L at 10 MHz: the paper gives them beside that curve
and does not name the baseline.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multispin.estimation.intervals import Estimate, estimate, ratio_of_means
from multispin.paper.cell import BANDWIDTH_HZ, DEVICES

Values = Callable[[str], NDArray[np.float64]]
"""Goodput per realisation of a scheme at one point [tokens/s]."""


@dataclass(frozen=True)
class Reported:
    """One number of the paper.

    Args:
        figure: where the paper shows it.
        pair: pair of models, as "llama".
        claim: the claim, with the unit.
        value: the number, as a ratio of goodputs (1.88 for +88 %) or a goodput [tokens/s].
        baseline: scheme in the denominator; None for the goodput itself.
        devices: K of the point.
        bandwidth_hz: B of the point [Hz].
        percent: whether the paper words it as a gain in percent.
    """

    figure: int
    pair: str
    claim: str
    value: float
    baseline: str | None
    devices: int = DEVICES
    bandwidth_hz: float = BANDWIDTH_HZ
    percent: bool = False

    @property
    def counts(self) -> bool:
        """Whether it says anything about p/N_0 and T^S: Cen-SPIN's ratios have a free value of their own."""
        return self.baseline != "centralized"

    def ours(self, values: Values) -> Estimate:
        """The same quantity in our model: the mean goodput of Hete, or its ratio to the baseline's mean goodput."""
        top = values("heterogeneous")
        return estimate(top) if self.baseline is None else ratio_of_means(top, values(self.baseline))

    def shown(self, ratio: float) -> float:
        """The quantity in the paper's wording: percent of gain where it says so."""
        return 100.0 * (ratio - 1.0) if self.percent else ratio

    def residual(self, values: Values) -> float:
        """ln(ours / paper's)."""
        return math.log(self.ours(values).mean / self.value)


def _gain(figure: int, pair: str, where: str, value: float, devices: int, bandwidth_hz: float) -> Reported:
    claim = f"Hete over Fixed BW&L at {where}, {pair.title()} [%]"
    return Reported(figure, pair, claim, value, "fixed", devices, bandwidth_hz, percent=True)


REPORTED: tuple[Reported, ...] = (
    Reported(6, "llama", "Goodput of Hete, Llama [tokens/s]", 145.0, None),
    Reported(6, "qwen", "Goodput of Hete, Qwen [tokens/s]", 153.0, None),
    Reported(6, "llama", "Hete ÷ Cen-SPIN, Llama", 2.5, "centralized"),
    Reported(6, "qwen", "Hete ÷ Cen-SPIN, Qwen", 3.0, "centralized"),
    Reported(6, "llama", "Hete ÷ P2P-SPIN, Llama", 4.6, "p2p"),
    _gain(7, "llama", "5 MHz", 1.88, DEVICES, 5e6),
    _gain(7, "qwen", "5 MHz", 1.88, DEVICES, 5e6),
    _gain(8, "llama", "K = 10", 1.21, 10, BANDWIDTH_HZ),
    _gain(8, "llama", "K = 24", 1.67, 24, BANDWIDTH_HZ),
    _gain(8, "qwen", "K = 10", 1.29, 10, BANDWIDTH_HZ),
    _gain(8, "qwen", "K = 24", 1.80, 24, BANDWIDTH_HZ),
)
"""Every number that the paper prints about goodput; 80 stands for its "80+", 3.0 for its "about 3"."""

OUTLIER = "Goodput of Hete, Qwen [tokens/s]"
"""The one number that no assumption reconciles with the others. It is not fitted; `calibration` shows what it does."""

PAPER_GOODPUT: Mapping[tuple[str, str], float] = {
    ("llama", "heterogeneous"): 145.0,
    ("llama", "centralized"): 145.0 / 2.5,
    ("llama", "p2p"): 145.0 / 4.6,
    ("qwen", "heterogeneous"): 153.0,
    ("qwen", "centralized"): 153.0 / 3.0,
}
"""Fig. 6's bars as far as the text gives them [tokens/s]."""

CALIBRATION_SPREAD: Mapping[str, float] = {
    "Goodput of Hete, Llama [tokens/s]": 0.060,
    "Goodput of Hete, Qwen [tokens/s]": 0.120,
    "Hete ÷ P2P-SPIN, Llama": 0.054,
    "Hete over Fixed BW&L at 5 MHz, Llama [%]": 0.062,
    "Hete over Fixed BW&L at 5 MHz, Qwen [%]": 0.049,
    "Hete over Fixed BW&L at K = 10, Llama [%]": 0.034,
    "Hete over Fixed BW&L at K = 24, Llama [%]": 0.053,
    "Hete over Fixed BW&L at K = 10, Qwen [%]": 0.053,
    "Hete over Fixed BW&L at K = 24, Qwen [%]": 0.051,
}
"""The calibration's uncertainty: standard deviation of ln(ours), by claim (`multispin reproduce --calibrate`)."""
ORDER_RANGE: Mapping[str, tuple[float, float]] = {"llama": (0.972, 0.999), "qwen": (1.000, 1.070)}
"""Least and greatest Uni-BW ÷ Homo over the grid of the calibration, by pair (`reproduce --calibrate`)."""
