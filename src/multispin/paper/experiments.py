"""Figures 6, 7 and 8, and two beyond the paper: the settings that each needs, and the tables made of their results."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from multispin.control.break_even import counted
from multispin.estimation.intervals import estimate, ratio_of_means, spread
from multispin.paper.cell import CALIBRATED, PAIRS, PROBABILITY_BITS, REALISATIONS, SEEDS, Assumptions
from multispin.paper.schemes import COMPARED, EDGE_ALONE, OTHER_SCHEMES
from multispin.paper.table import Table, TableValue
from multispin.paper.trials import Setting, Trial, TrialResult, run_trials

BANDWIDTHS_HZ: tuple[float, ...] = (5e6, 7.5e6, 10e6, 12.5e6, 15e6, 17.5e6, 20e6)
"""Fig. 7's horizontal axis [Hz]."""
SIZES: tuple[int, ...] = (10, 12, 14, 16, 18, 20, 22, 24)
"""Fig. 8's horizontal axis, K."""
PAYLOAD_BANDWIDTHS_HZ: tuple[float, ...] = (0.1e6, 0.3e6, 1e6, 3e6, 10e6, 20e6)
"""Bands over which payload modes are compared [Hz]."""
PAYLOADS: Mapping[str, str] = {
    "distribution": "whole distribution (the paper's)",
    "scalar": "id and one probability",
    "ids": "id only, shared noise",
}
"""Payload of a drafted token."""
BLOCKS = 3
"""Fading blocks per realisation."""
_GOODPUT = ("goodput_tokens_per_s", "low", "high")
_RELATIVE = tuple(f"over_{base}{end}" for base in ("fixed", "plain") for end in ("", "_low", "_high"))


@dataclass
class Study:
    """The results of all settings under one set of assumptions and draws. Each trial is run once.

    Args:
        seeds: seeds of the draws.
        realisations: draws of tasks, speeds and mean gains from each seed.
        blocks: fading blocks in each realisation.
        assumed: assumptions by pair.
        results: results of the settings that were run so far.
    """

    seeds: tuple[int, ...] = SEEDS
    realisations: int = REALISATIONS
    blocks: int = BLOCKS
    assumed: Mapping[str, Assumptions] = field(default_factory=lambda: CALIBRATED)
    results: dict[Trial, TrialResult] = field(default_factory=dict)

    def run(
        self,
        settings: Iterable[Setting],
        processes: int = 1,
        progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        """Run the trials of these settings that have not been run yet; `progress` is called with (done, all)."""
        trials = [trial for setting in settings for trial in self._trials(setting) if trial not in self.results]
        self.results.update(run_trials(trials, processes, progress))

    def goodput(self, setting: Setting, scheme: str) -> NDArray[np.float64]:
        """Goodput of each realisation [tokens/s]."""
        return np.array([self.results[trial].goodput[scheme] for trial in self._trials(setting)])

    def jain(self, setting: Setting, scheme: str) -> NDArray[np.float64]:
        """Jain's index of each realisation."""
        return np.array([self.results[trial].jain[scheme] for trial in self._trials(setting)])

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
        drawn, blocks = counted(len(self.draws), "realisation"), counted(self.blocks, "fading block")
        return (
            f"Mean and 95 % interval over {drawn} ({self.realisations} of each seed in "
            f"{', '.join(map(str, self.seeds))}) of {blocks}; H̄ ~ U(0.2, 0.5), Rayleigh; V̂ = 1024, "
            "Q_B = 16. Assumed (calibrated once, all figures together; what the calibration leaves open is not in the "
            f"intervals): {common}; {own}. Edge drafts: a drafter on the edge, as good as the devices' and as fast as "
            "their mean, one step for the whole batch."
        )

    @property
    def draws(self) -> list[tuple[int, int]]:
        """(Seed, index) of every realisation."""
        return [(seed, index) for seed in self.seeds for index in range(self.realisations)]

    def _trials(self, setting: Setting) -> list[Trial]:
        assumed = self.assumed[setting.pair]
        return [Trial(setting, assumed, seed, index, self.blocks) for seed, index in self.draws]


def settings_of(figure: str) -> list[Setting]:
    """The settings that a figure needs; none for figures 3 to 5."""
    if figure == "6":
        return [Setting(pair) for pair in PAIRS]
    if figure == "7":
        return [Setting(pair, bandwidth_hz=band) for pair in PAIRS for band in BANDWIDTHS_HZ]
    if figure == "8":
        return [Setting(pair, devices=size) for pair in PAIRS for size in SIZES]
    if figure == "payload":
        return [_payload(pair, mode, band) for pair in PAIRS for mode in PAYLOADS for band in PAYLOAD_BANDWIDTHS_HZ]
    if figure == "fairness":
        return [_fairness(pair) for pair in PAIRS]
    return []


def table_of(figure: str, study: Study) -> Table:
    """The table of a figure whose settings have been run."""
    if figure == "payload":
        return _payload_table(study)
    if figure == "fairness":
        return _fairness_table(study)
    title = {
        "6": "Sum goodput of the schemes, K = 20, B = 10 MHz",
        "7": "Sum goodput over the shared band, K = 20",
        "8": "Sum goodput over the number of devices, B = 10 MHz",
    }[figure]
    rows: list[tuple[TableValue, ...]] = []
    for setting in settings_of(figure):
        for scheme in setting.schemes:
            values = study.goodput(setting, scheme)
            over = [ratio_of_means(values, study.goodput(setting, base)).less(1.0) for base in ("fixed", "plain")]
            where = (setting.pair, scheme, setting.devices, setting.bandwidth_hz)
            rows.append((*where, *spread(estimate(values), *over)))
    columns = ("pair", "scheme", "devices", "bandwidth_hz", *_GOODPUT, *_RELATIVE)
    return Table(f"fig-{figure}", title, study.note, columns, tuple(rows))


def _payload(pair: str, mode: str, band: float) -> Setting:
    bits = {
        "distribution": None,
        "scalar": float(PAIRS[pair].index_bits + PROBABILITY_BITS),
        "ids": float(PAIRS[pair].index_bits),
    }[mode]
    schemes = ("heterogeneous", "uniform-bandwidth", *EDGE_ALONE)
    return Setting(pair, bandwidth_hz=band, schemes=schemes, bits_per_token=bits, coupled=mode == "ids")


def _payload_table(study: Study) -> Table:
    rows: list[tuple[TableValue, ...]] = []
    for setting in settings_of("payload"):
        for scheme in setting.schemes:
            bits = setting.bits_per_token or PAIRS[setting.pair].bits_per_token
            values = estimate(study.goodput(setting, scheme))
            rows.append((setting.pair, _mode(setting), scheme, bits, setting.bandwidth_hz, *spread(values)))
    return Table(
        "beyond-payload",
        "Beyond the paper: what is sent per drafted token, K = 20",
        "Whole distribution 31,744 bit per token (Qwen 34,816); id and probability 31 (34), arXiv 2608.29618, its one "
        "distribution per rejection goes down, and the downlink is neglected as in the paper; "
        "id only 15 (18), arXiv 2408.07978, acceptance taken at its lower bound α/(2 − α). " + study.note,
        ("pair", "payload", "scheme", "bits_per_token", "bandwidth_hz", *_GOODPUT),
        tuple(rows),
    )


def _mode(setting: Setting) -> str:
    if setting.bits_per_token is None:
        return "distribution"
    return "ids" if setting.coupled else "scalar"


def _fairness(pair: str) -> Setting:
    return Setting(
        pair, schemes=(*(scheme for scheme in COMPARED if scheme not in ("p2p", "centralized")), *OTHER_SCHEMES)
    )


def _fairness_table(study: Study) -> Table:
    rows: list[tuple[TableValue, ...]] = []
    for setting in settings_of("fairness"):
        for scheme in setting.schemes:
            values, jain = estimate(study.goodput(setting, scheme)), estimate(study.jain(setting, scheme))
            rows.append((setting.pair, scheme, *spread(values), jain.mean, jain.low, jain.high))
    return Table(
        "beyond-fairness",
        "Beyond the paper: goodput against fairness, and a practitioner's rule, K = 20, B = 10 MHz",
        "Jain's index of the devices' mean tokens/s over the blocks of a realisation, 1 when all get the same. "
        + study.note,
        ("pair", "scheme", *_GOODPUT, "jain_index", "jain_low", "jain_high"),
        tuple(rows),
    )
