"""Figures 6, 7 and 8, and what lies beyond them: which points are measured, and the tables that follow."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from multispin.estimation.intervals import Estimate, estimate
from multispin.paper.cell import (
    BANDWIDTH_HZ,
    CALIBRATED,
    DEVICES,
    PAIRS,
    PROBABILITY_BITS,
    REALISATIONS,
    Assumptions,
    Pair,
)
from multispin.paper.measure import BEYOND, SCHEMES, Case, CaseResult, plan_cases
from multispin.paper.table import Table, Value

BANDWIDTHS_HZ: tuple[float, ...] = (5e6, 7.5e6, 10e6, 12.5e6, 15e6, 17.5e6, 20e6)
"""Fig. 7's horizontal axis [Hz]."""
SIZES: tuple[int, ...] = (10, 12, 14, 16, 18, 20, 22, 24)
"""Fig. 8's horizontal axis, K."""
PAYLOAD_BANDWIDTHS_HZ: tuple[float, ...] = (0.1e6, 0.3e6, 1e6, 3e6, 10e6, 20e6)
"""Bands over which payload modes are compared [Hz]."""
PAYLOADS: Mapping[str, str] = {
    "distribution": "whole law (the paper's)",
    "scalar": "id and one probability",
    "ids": "id only, shared noise",
}
"""What a device sends per drafted token."""
BLOCKS = 12
"""Fading blocks per realisation."""
_GOODPUT = ("goodput_tokens_per_s", "low", "high")
_RELATIVE = ("over_fixed", "over_fixed_low", "over_fixed_high")


@dataclass(frozen=True)
class Point:
    """Where goodput is measured: `cell.scenario`'s arguments, and the schemes to plan with."""

    pair: str
    devices: int = DEVICES
    bandwidth_hz: float = BANDWIDTH_HZ
    schemes: tuple[str, ...] = tuple(SCHEMES)
    bits_per_token: float | None = None
    coupled: bool = False


@dataclass
class Study:
    """Points measured under one set of assumptions and seeds; each is measured once.

    Args:
        seed: of all draws.
        realisations: how many.
        blocks: fading blocks in each.
        assumed: by pair.
    """

    seed: int = 1
    realisations: int = REALISATIONS
    blocks: int = BLOCKS
    assumed: Mapping[str, Assumptions] = field(default_factory=lambda: CALIBRATED)
    outcomes: dict[Case, CaseResult] = field(default_factory=dict)

    def plan_points(
        self,
        points: Iterable[Point],
        processes: int = 1,
        progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        """Measure what is not measured yet."""
        cases = [case for point in points for case in self._cases(point) if case not in self.outcomes]
        self.outcomes.update(plan_cases(cases, processes, progress))

    def goodput(self, point: Point, scheme: str) -> NDArray[np.float64]:
        """Goodput per realisation [tokens/s]."""
        return np.array([self.outcomes[case].goodput[scheme] for case in self._cases(point)])

    def jain(self, point: Point, scheme: str) -> NDArray[np.float64]:
        """Jain's index per realisation."""
        return np.array([self.outcomes[case].jain[scheme] for case in self._cases(point)])

    @property
    def note(self) -> str:
        """Settings and assumptions, for figures."""
        snr = {value.snr_db for value in self.assumed.values()}
        common = f"p/N₀ = {'/'.join(f'{value:g}' for value in sorted(snr))} dB"
        own = "; ".join(
            f"{key.title()} mean Tˢ {1e3 * value.draft_s:g} ms, server drafting {1e3 * value.server_draft_s:g} ms "
            "per device and token"
            for key, value in self.assumed.items()
        )
        return (
            f"Mean and 95 % interval over {self.realisations} realisations of {self.blocks} fading blocks, seed "
            f"{self.seed}; H̄ ~ U(0.2, 0.5), Rayleigh; V̂ = 1024, Q_B = 16. Assumed (calibrated once, all figures "
            f"together): {common}; {own}"
        )

    def _cases(self, point: Point) -> list[Case]:
        return [
            Case(
                point.pair,
                self.assumed[point.pair],
                self.seed,
                index,
                self.blocks,
                point.schemes,
                point.devices,
                point.bandwidth_hz,
                point.bits_per_token,
                point.coupled,
            )
            for index in range(self.realisations)
        ]


def points_of(figure: str) -> list[Point]:
    """The points that a figure needs; none for the figures of theory."""
    if figure == "6":
        return [Point(pair) for pair in PAIRS]
    if figure == "7":
        return [Point(pair, bandwidth_hz=band) for pair in PAIRS for band in BANDWIDTHS_HZ]
    if figure == "8":
        return [Point(pair, devices=size) for pair in PAIRS for size in SIZES]
    if figure == "payload":
        return [_payload(pair, mode, band) for pair in PAIRS for mode in PAYLOADS for band in PAYLOAD_BANDWIDTHS_HZ]
    if figure == "fairness":
        return [_fairness(pair) for pair in PAIRS]
    return []


def table_of(figure: str, study: Study) -> Table:
    """The table of a figure whose points are measured."""
    if figure == "payload":
        return _payload_table(study)
    if figure == "fairness":
        return _fairness_table(study)
    title = {
        "6": "Sum goodput of the schemes, K = 20, B = 10 MHz",
        "7": "Sum goodput over the shared band, K = 20",
        "8": "Sum goodput over the number of devices, B = 10 MHz",
    }[figure]
    rows: list[tuple[Value, ...]] = []
    for point in points_of(figure):
        for scheme in point.schemes:
            values = study.goodput(point, scheme)
            ratio = estimate(values / study.goodput(point, "fixed") - 1.0)
            rows.append((point.pair, scheme, point.devices, point.bandwidth_hz, *_spread(estimate(values), ratio)))
    columns = ("pair", "scheme", "devices", "bandwidth_hz", *_GOODPUT, *_RELATIVE)
    return Table(f"fig-{figure}", title, study.note, columns, tuple(rows))


def _payload(pair: str, mode: str, band: float) -> Point:
    bits = {
        "distribution": None,
        "scalar": float(PAIRS[pair].index_bits + PROBABILITY_BITS),
        "ids": float(PAIRS[pair].index_bits),
    }[mode]
    schemes = ("heterogeneous", "uniform-bandwidth")
    return Point(pair, bandwidth_hz=band, schemes=schemes, bits_per_token=bits, coupled=mode == "ids")


def _payload_table(study: Study) -> Table:
    rows: list[tuple[Value, ...]] = []
    for point in points_of("payload"):
        for scheme in point.schemes:
            bits = _bits(PAIRS[point.pair], point)
            values = estimate(study.goodput(point, scheme))
            rows.append((point.pair, _mode(point), scheme, bits, point.bandwidth_hz, *_spread(values)))
    return Table(
        "beyond-payload",
        "Beyond the paper: what is sent per drafted token, K = 20",
        "Whole law 31,744 bit per token (Qwen 34,816); id and probability 31 (34), arXiv 2608.29618, its one "
        "law per rejection goes down, and the downlink is neglected as in the paper; "
        "id only 15 (18), arXiv 2408.07978, acceptance taken at its lower bound α/(2 − α). " + study.note,
        ("pair", "payload", "scheme", "bits_per_token", "bandwidth_hz", *_GOODPUT),
        tuple(rows),
    )


def _mode(point: Point) -> str:
    if point.bits_per_token is None:
        return "distribution"
    return "ids" if point.coupled else "scalar"


def _bits(pair: Pair, point: Point) -> float:
    return pair.bits_per_token if point.bits_per_token is None else point.bits_per_token


def _fairness(pair: str) -> Point:
    return Point(pair, schemes=(*(scheme for scheme in SCHEMES if scheme not in ("p2p", "centralized")), *BEYOND))


def _fairness_table(study: Study) -> Table:
    rows: list[tuple[Value, ...]] = []
    for point in points_of("fairness"):
        for scheme in point.schemes:
            values, jain = estimate(study.goodput(point, scheme)), estimate(study.jain(point, scheme))
            rows.append((point.pair, scheme, *_spread(values), jain.mean, jain.low, jain.high))
    return Table(
        "beyond-fairness",
        "Beyond the paper: goodput against fairness, and a practitioner's rule, K = 20, B = 10 MHz",
        "Jain's index of the devices' mean tokens/s over the blocks of a realisation, 1 when all get the same. "
        + study.note,
        ("pair", "scheme", *_GOODPUT, "jain_index", "jain_low", "jain_high"),
        tuple(rows),
    )


def _spread(*estimates: Estimate) -> tuple[float, ...]:
    return tuple(value for one in estimates for value in (one.mean, one.low, one.high))
