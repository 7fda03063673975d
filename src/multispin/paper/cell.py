"""The paper's cell: what it prints, what it leaves open as named assumptions, and random draws of both.

Knows the settings of arXiv 2606.04581, section VI. Does not know schemes, figures or what was reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification
from multispin.control.latency import verification_s
from multispin.radio import db_to_ratio, rayleigh_gain, spectral_efficiency

DEVICES = 20
"""K unless a figure sweeps it."""
BANDWIDTH_HZ = 10e6
"""B unless a figure sweeps it [Hz]."""
RETAINED = 1024
"""V̂, probabilities that are sent per drafted token (eq. 9)."""
PROBABILITY_BITS = 16
"""Q_B [bit]."""
LONGEST_DRAFT = 25
"""L_max [tokens]."""
REALISATIONS = 10
"""Draws of tasks, speeds and mean gains that the paper averages over. We take as many from each seed."""
SEEDS: tuple[int, ...] = (1, 2, 3, 4)
"""Seeds whose realisations are averaged, so that no number hangs on one seed."""
MOST_DEVICES = 24
"""Every realisation draws this many and a smaller cell takes the first, so that curves over K share their devices."""
_SPEED_SPREAD = (0.85, 1.15)
_MEAN_GAIN = (0.2, 0.5)


@dataclass(frozen=True)
class Pair:
    """A drafter and a target, as the paper measured them (arXiv 2606.04581, Table I and Fig. 5).

    Args:
        key: short name, in tables.
        title: both models, on figures.
        index_bits: ⌈log2 V⌉ [bit].
        acceptance: α by task, per token.
        fixed_s: T_fix of the verification on an A100 [s].
        per_device_s: T_lin [s per device in the batch].
    """

    key: str
    title: str
    index_bits: int
    acceptance: Mapping[str, float] = field(hash=False)
    fixed_s: float
    per_device_s: float

    @property
    def bits_per_token(self) -> int:
        """Q_tok = V̂ (Q_B + ⌈log2 V⌉) [bit] (eq. 9)."""
        return RETAINED * (PROBABILITY_BITS + self.index_bits)

    def verification_s(self, devices: int) -> float:
        """T_ver(K) = T_fix + K T_lin [s] (eq. 7)."""
        return verification_s(self.fixed_s, self.per_device_s, 0.0, devices, 0.0)


PAIRS: Mapping[str, Pair] = {
    "llama": Pair(
        "llama",
        "TinyLlama-1.1B → Llama-2-7B",
        15,
        {"MBPP+": 0.8582, "GSM8K": 0.7390, "MT-Bench": 0.7393, "SQuAD": 0.7126},
        0.02268,
        0.01272,
    ),
    "qwen": Pair(
        "qwen",
        "Qwen3.5-0.8B → Qwen3.5-27B",
        18,
        {"MBPP+": 0.8100, "GSM8K": 0.9340, "MT-Bench": 0.9318, "SQuAD": 0.9650},
        0.07507,
        0.01978,
    ),
}


@dataclass(frozen=True)
class Assumptions:
    """Values that the paper does not print, for one pair of models.

    Args:
        snr_db: p/N_0, transmit power over noise power before the channel gain [dB]; the same for both pairs.
        draft_s: mean of T_k^S, time of a drafted token on a device [s].
        server_draft_s: time of a drafted token on the server, per device [s]. A drafting step of Cen-SPIN takes K
            times this: no step that is shared by the whole batch would be as slow as the paper's numbers ask for.
    """

    snr_db: float
    draft_s: float
    server_draft_s: float

    def __str__(self) -> str:
        return (
            f"p/N₀ = {self.snr_db:g} dB, mean Tˢ = {1e3 * self.draft_s:g} ms, "
            f"server drafting {1e3 * self.server_draft_s:g} ms per device and token"
        )


CALIBRATED: Mapping[str, Assumptions] = {
    "llama": Assumptions(23.0, 0.018, 0.014),
    "qwen": Assumptions(23.0, 0.012, 0.008),
}
"""The grid point that fits the paper's numbers best, all but one outlier and both pairs at once (`calibration`).
`multispin reproduce --calibrate` prints it."""


@dataclass(frozen=True)
class Realisation:
    """One draw of a cell: who does what, how fast, and how well it is heard in each fading block.

    Args:
        task: index of the device's task in Table I, [K].
        speed: T_k^S over its mean, [K].
        mean_gain: H̄_k, [K].
        gain: H_k = |h_k|² in each block, [blocks, K].
    """

    task: NDArray[np.int64]
    speed: NDArray[np.float64]
    mean_gain: NDArray[np.float64]
    gain: NDArray[np.float64]


def realise(seed: int, index: int, blocks: int) -> Realisation:
    """Realisation `index` of `MOST_DEVICES` devices: tasks i.i.d., speeds U[0.85, 1.15], H̄ ~ U(0.2, 0.5), Rayleigh.

    The same for every pair, scheme, band and number of devices: whatever differs between curves is not luck.

    Source: arXiv 2606.04581, section VI.
    """
    generator = np.random.default_rng((seed, index))
    task = generator.integers(0, 4, MOST_DEVICES)
    speed = generator.uniform(*_SPEED_SPREAD, MOST_DEVICES)
    mean_gain = generator.uniform(*_MEAN_GAIN, MOST_DEVICES)
    return Realisation(task, speed, mean_gain, rayleigh_gain(mean_gain, generator, (blocks, MOST_DEVICES)))


def scenario(
    pair: Pair,
    assumed: Assumptions,
    drawn: Realisation,
    block: int,
    *,
    devices: int = DEVICES,
    bandwidth_hz: float = BANDWIDTH_HZ,
    bits_per_token: float | None = None,
    coupled: bool = False,
) -> Scenario:
    """The scenario that the controller sees in one fading block.

    The edge's own drafter, which the paper does not have, is as good as the devices' (α of the task, by rejection) and
    no faster than they are on average: one step for the whole batch takes the mean T^S. An A100 would be faster.

    Args:
        pair: pair of models.
        assumed: assumptions for what the paper leaves open.
        drawn: tasks, speeds and gains.
        block: number of the fading block.
        devices: K, at most `MOST_DEVICES`; default `DEVICES`.
        bandwidth_hz: uplink band, B [Hz]; default `BANDWIDTH_HZ`.
        bits_per_token: payload per drafted token [bit]; default None: the paper's Q_tok.
        coupled: whether acceptance is that of ids only under shared noise, default no: at least (1 − TV)/(1 + TV)
            where a rejection sampler has α = 1 − TV (Daliri, Musco, Suresh, arXiv 2408.07978), so α/(2 − α) is taken.
    """
    rates = list(pair.acceptance.values())
    efficiency = spectral_efficiency(db_to_ratio(assumed.snr_db), drawn.gain[block, :devices], 1.0)
    members = []
    for k in range(devices):
        alpha = rates[int(drawn.task[k])]
        members.append(
            Device(
                name=f"device-{k + 1:02d}",
                seconds_per_token=assumed.draft_s * float(drawn.speed[k]),
                spectral_efficiency=float(efficiency[k]),
                acceptance_rate=alpha / (2.0 - alpha) if coupled else alpha,
                edge_acceptance_rate=alpha,
            )
        )
    bits = pair.bits_per_token if bits_per_token is None else bits_per_token
    verifier = Verification(pair.fixed_s, pair.per_device_s, draft_seconds_per_token=devices * assumed.server_draft_s)
    edge_drafter = EdgeDrafter(fixed_s=assumed.draft_s, per_device_s=0.0, acceptance_rate=max(rates))
    return Scenario(Cell(bandwidth_hz, bits, LONGEST_DRAFT), verifier, tuple(members), edge_drafter)


def scenario_of_means(
    pair: Pair,
    assumed: Assumptions,
    drawn: Realisation,
    *,
    bandwidth_hz: float = BANDWIDTH_HZ,
    bits_per_token: float | None = None,
    coupled: bool = False,
) -> Scenario:
    """The cell at everybody's mean gain: what a simulation draws its fading around. Arguments as for `scenario`."""
    still = replace(drawn, gain=drawn.mean_gain[None])
    return scenario(pair, assumed, still, 0, bandwidth_hz=bandwidth_hz, bits_per_token=bits_per_token, coupled=coupled)
