"""The paper's claims, our results, and why the two differ: the rows of summary.json."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np

from multispin.estimation.intervals import Estimate, estimate, ratio_of_means, ratio_values
from multispin.paper.cell import CALIBRATED
from multispin.paper.experiments import Study, settings_of
from multispin.paper.reported import CALIBRATION_SPREAD, ORDER_RANGE, OUTLIER, PAPER_GOODPUT, REPORTED, Reported
from multispin.paper.schemes import TITLES
from multispin.paper.streaming import STREAMS
from multispin.paper.table import Table
from multispin.paper.theory import local_maxima
from multispin.paper.trials import Setting

CLOSE_SHARE = 0.1
"""Largest |ln(ours / paper's)| that is called close; a number is reproduced if it is close and in our interval."""
STREAM_AIMS: tuple[tuple[str, float, float], ...] = (("hete", 5e6, 1.4), ("hete", 10e6, 1.25), ("fixed", 5e6, 2.7))
"""Goals of streams of ids: a ratio to a scheme with the paper's payload, at a band [Hz]."""


class Agreement(StrEnum):
    """How our number stands to the paper's.

    A number of the paper is REPRODUCED if it lies in our interval and differs by at most `CLOSE_SHARE`; only the second
    is CLOSE, only the first is UNDECIDED. A statement in words is UNDECIDED if our interval holds the border.
    """

    REPRODUCED = "reproduced"
    CLOSE = "close"
    UNDECIDED = "undecided"
    MISSED = "not reproduced"
    NO_INTERVAL = "no interval"
    BEYOND = "beyond the paper"


@dataclass(frozen=True)
class Claim:
    """One row of summary.json.

    Args:
        claim: the claim, with the unit.
        paper: the paper's number, or its words where it gives none; None where only we claim it.
        ours: number of this reproduction.
        low: lower end of our 95 % interval over realisations; equal to `ours` where nothing is random,
            but if that is the worst of several cases, the least of them.
        high: upper end of the interval.
        verdict: how our number stands to the paper's.
        why: the cause, and the explanation of a difference.
    """

    claim: str
    paper: float | str | None
    ours: float
    low: float
    high: float
    verdict: Agreement
    why: str

    @property
    def finding(self) -> str:
        """The verdict and its reason, as readers see them."""
        return f"{self.verdict.capitalize()}: {self.why}"


def claims_of(study: Study, tables: Mapping[str, Table], figures: Collection[str]) -> list[Claim]:
    """All claims that the measured figures bear on."""
    made = [_number(study, number) for number in REPORTED if str(number.figure) in figures]
    for pair in ("llama", "qwen"):
        if "7" in figures:
            made.append(_shrinks(study, pair))
        if "6" in figures:
            made.append(_order(study, pair))
            made += _edge_alone(study, pair)
    if "3" in figures:
        made += _figure_3(tables["3"])
    if "4" in figures:
        made.append(_figure_4(tables["4"]))
    if "streams" in figures:
        made += [
            _streams(tables["streams"], pair, kind, *aim)
            for pair in ("llama", "qwen")
            for kind in ("streams-ids", "streams-least")
            for aim in STREAM_AIMS
        ]
    if any(figure in figures for figure in ("6", "7", "8")):
        made.append(_algorithm1(study, figures))
    return made


def summary_json(claims: Sequence[Claim]) -> str:
    """The claims as a JSON list; an interval that one realisation cannot have is null."""
    rows = [asdict(claim) | {"why": claim.finding} for claim in claims]
    for row in rows:
        row |= {key: None for key in ("low", "high") if not math.isfinite(row[key])}
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _number(study: Study, number: Reported) -> Claim:
    setting = Setting(number.pair, number.devices, number.bandwidth_hz)
    got = number.ours(lambda scheme: study.goodput(setting, scheme))
    if study.assumed == CALIBRATED:
        got = _widened(got, CALIBRATION_SPREAD.get(number.claim, 0.0))
    mean, low, high = (number.shown(value) for value in (got.mean, got.low, got.high))
    verdict, how = _compared(number, got)
    return Claim(
        number.claim, round(number.shown(number.value), 6), mean, low, high, verdict, f"{how} {_reason(number)}"
    )


def _widened(got: Estimate, spread: float) -> Estimate:
    """The estimate with an interval that includes what the calibration leaves open.

    Args:
        got: estimate at the calibrated values.
        spread: standard deviation of its logarithm over what else fits the paper.
    """
    half = math.hypot(got.high - got.mean, 1.96 * spread * got.mean)
    return Estimate(got.mean, got.mean - half, got.mean + half)


def _compared(number: Reported, got: Estimate) -> tuple[Agreement, str]:
    off = math.log(got.mean / number.value)
    inside = got.low <= number.value <= got.high
    close = abs(off) <= CLOSE_SHARE
    side = "above" if off > 0 else "below"
    how = f"we are {100 * abs(math.expm1(off)):.0f} % {side} it" + (
        ", as a ratio of goodputs" if number.percent else ""
    )
    if inside and close:
        return Agreement.REPRODUCED, "inside our interval."
    if inside:
        return Agreement.UNDECIDED, f"{how}, but our interval is so wide that it holds the paper's number."
    return Agreement.CLOSE if close else Agreement.MISSED, f"{how}."


def _reason(number: Reported) -> str:
    if number.claim == OUTLIER:
        return (
            "Not fitted. No p/N₀ and Tˢ give this goodput together with Qwen's gains over Fixed: slower devices would "
            "lower it, and the gains with it."
        )
    if number.baseline == "centralized":
        return (
            "The server's drafting time was set by this ratio alone, so the ratio is no evidence. It asks for a step "
            "that grows with K, as if the server drafted for one device after another."
        )
    if number.baseline == "p2p":
        return "A device drawn at random is served alone; the paper does not say which. Fitted."
    if number.baseline is None:
        return "Fitted. Absolute goodput depends on drafting time, radio and acceptance together."
    if number.figure == 8:
        return "Read as Hete over Fixed at 10 MHz; the paper does not name the baseline. Fitted."
    return "Fitted, with one p/N₀ for both pairs."


def _shrinks(study: Study, pair: str) -> Claim:
    narrow, wide = (
        ratio_values(study.goodput(setting, "heterogeneous"), study.goodput(setting, "fixed"))
        for setting in (Setting(pair, bandwidth_hz=5e6), Setting(pair, bandwidth_hz=20e6))
    )
    got = estimate(100.0 * (narrow - wide))
    verdict, how = _above(got, 0.0)
    name = f"Gain over Fixed at 5 MHz less that at 20 MHz, {pair.title()} [percentage points]"
    return Claim(name, "> 0 (the gain shrinks)", got.mean, got.low, got.high, verdict, how)


def _order(study: Study, pair: str) -> Claim:
    setting = Setting(pair)
    got = ratio_of_means(study.goodput(setting, "uniform-bandwidth"), study.goodput(setting, "homogeneous"))
    verdict, how = _above(got, 1.0)
    why = (
        f"{how} Not fitted, and no matter of calibration: over the whole grid of the search the ratio stays within "
        f"{ORDER_RANGE[pair][0]:.3f} … {ORDER_RANGE[pair][1]:.3f}. Equal bands give up compensation for weak channels, "
        "one common length gives up the spread of α; the two losses are nearly equal."
    )
    return Claim(f"Uni-BW ÷ Homo, {pair.title()}", "> 1", got.mean, got.low, got.high, verdict, why)


def _edge_alone(study: Study, pair: str) -> list[Claim]:
    """Goodput of the edge without the devices, which the paper does not compare with."""
    setting = Setting(pair)
    plain, best = (study.goodput(setting, scheme) for scheme in ("plain", "heterogeneous"))
    made = []
    for scheme, paper, why in (
        ("heterogeneous", PAPER_GOODPUT[pair, "heterogeneous"], "cooperation pays in this cell."),
        (
            "centralized",
            PAPER_GOODPUT[pair, "centralized"],
            "where this is below 1, the paper's drafting server is slower than one that does not draft.",
        ),
    ):
        got = ratio_of_means(study.goodput(setting, scheme), plain)
        name = f"{TITLES[scheme]} ÷ plain decoding, {pair.title()}"
        made.append(
            Claim(name, round(paper / float(plain.mean()), 2), got.mean, got.low, got.high, Agreement.BEYOND, why)
        )
    got = ratio_of_means(study.goodput(setting, "edge-drafts"), best)
    why = (
        "a drafter on the edge, as good as the devices' and as fast as their mean, with one step for the whole batch; "
        "it needs no uplink. The paper's Cen-SPIN asks for a step that takes K times the server's drafting time."
    )
    name = f"Edge drafts ÷ Hete, {pair.title()}"
    return [*made, Claim(name, None, got.mean, got.low, got.high, Agreement.BEYOND, why)]


def _streams(table: Table, pair: str, kind: str, base: str, band_hz: float, aim: float) -> Claim:
    """Streams of ids over rounds with the paper's payload."""
    part = table.where(pair=pair, scheme=kind, bandwidth_hz=band_hz)
    ours, low, high = (part.numbers(f"over_{base}{end}")[0] for end in ("", "_low", "_high"))
    acceptance = {
        "streams-ids": "α as for all other schemes, as where nothing is drawn, or where shared noise loses nothing",
        "streams-least": "the least acceptance that shared noise can have, α/(2 − α)",
    }[kind]
    why = f"our aim was {aim:g}, {'reached' if ours >= aim else 'missed'}. Simulated, all learned; {acceptance}."
    title = {"hete": TITLES["heterogeneous"], "fixed": TITLES["fixed"]}[base]
    name = f"{STREAMS[kind]} ÷ {title} at {band_hz / 1e6:g} MHz, {pair.title()}"
    return Claim(name, None, ours, low, high, Agreement.BEYOND, why)


def _above(got: Estimate, border: float) -> tuple[Agreement, str]:
    """Whether the paper is right in saying that a quantity lies above a border."""
    if not math.isfinite(got.low):
        return Agreement.NO_INTERVAL, "one realisation has none."
    if got.low > border:
        return Agreement.REPRODUCED, "the whole interval is above."
    if got.high < border:
        return Agreement.MISSED, "the whole interval is below."
    return Agreement.UNDECIDED, f"our interval holds {border:g}; the difference is smaller than the luck of the draw."


def _held(holds: bool) -> Agreement:
    return Agreement.REPRODUCED if holds else Agreement.MISSED


def _figure_3(table: Table) -> list[Claim]:
    made = []
    for pair in ("llama", "qwen"):
        part = table.where(pair=pair)
        tops = float(local_maxima(part.numbers("theory_tokens_per_s")))
        name = f"τ(L) on GSM8K: number of local maxima, {pair.title()}"
        why = "unimodal." if tops == 1 else "not unimodal."
        made.append(Claim(name, "1 (unimodal)", tops, tops, tops, _held(tops == 1), why))
    theory, counted = np.array(table.numbers("theory_tokens_per_s")), np.array(table.numbers("counted_tokens_per_s"))
    off = 100.0 * np.abs(counted / theory - 1.0)
    worst = float(off.max())
    why = (
        "largest difference over both pairs and all L, low and high are the smallest and the largest. Our points "
        "draw i.i.d. acceptance; the paper's come from real models, so ours test less."
    )
    name = "τ(L): simulated against formula [% off]"
    made.append(Claim(name, "≈ 0", worst, float(off.min()), worst, _held(worst < 5.0), why))
    return made


def _figure_4(table: Table) -> Claim:
    closed, whole = np.array(table.numbers("closed_form_length")), np.array(table.numbers("best_whole_length"))
    worst = float(np.abs(closed - whole).max())
    why = "the best whole length is a neighbour of L̃ everywhere."
    name = "Theorem 1: largest |L̃ − best whole L| [tokens]"
    return Claim(name, "< 1", worst, worst, worst, _held(worst < 1.0), why)


def _algorithm1(study: Study, figures: Collection[str]) -> Claim:
    settings = dict.fromkeys(
        setting for figure in ("6", "7", "8") if figure in figures for setting in settings_of(figure)
    )
    every = np.concatenate(
        [100.0 * (1.0 - study.goodput(s, "algorithm1") / study.goodput(s, "heterogeneous")) for s in settings]
    )
    why = (
        "the exact solver with a proven bound shows what Algorithm 1's rounding and grid (100 × 100, ours; the paper "
        "states none) cost. Mean, least and most over all points and realisations."
    )
    name = "Goodput that Algorithm 1 leaves to the exact optimum [%]"
    return Claim(name, None, float(every.mean()), float(every.min()), float(every.max()), Agreement.BEYOND, why)
