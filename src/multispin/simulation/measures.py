"""Results of a simulated run, in numbers with units."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multispin.simulation.site import Site


@dataclass(frozen=True)
class Measures:
    """One run.

    Attributes:
        goodput_tokens_per_s: tokens of text of all devices over the run's time [tokens/s].
        jain_index: (Σx)² / (n Σx²) of the devices' tokens per second: 1 when all get the same.
        device_tokens_per_s_p05: fifth percentile of the devices' tokens per second, each over the time
            that it was there.
        device_tokens_per_s_p50: median of the devices' goodputs [tokens/s].
        device_tokens_per_s_p95: 95th percentile of the same.
        time_to_first_token_s_p50: median time from the opening of a request to its first verdict [s]. It includes the
            wait for a slot, reading the prompt, and the first round.
        time_to_first_token_s_p95: 95th percentile of the same [s].
        time_per_token_s_p50: median time per later token [s]: time between two verdicts over the tokens that came.
        time_per_token_s_p95: 95th percentile of the same [s].
        time_per_token_s_p99: 99th percentile of the same [s].
        round_s: mean time of a round [s].
        server_utilisation: share of the time in which the server verifies.
        device_utilisation: share of the time present that the devices draft, on average.
        uplink_utilisation: share of band times time over which drafts travel.
        wasted_draft_fraction: share of the drafted tokens, answered or dropped, that was not accepted.
        dropped_draft_fraction: share of them that was never answered, or in a stream never verified.
        drafted_tokens: tokens drafted by all devices.
        text_tokens: tokens of text of all devices.
        requests_finished: requests that ended, of all devices.
        rounds: number of verified rounds.
        simulated_s: length of the run [s].

    """

    goodput_tokens_per_s: float
    jain_index: float
    device_tokens_per_s_p05: float
    device_tokens_per_s_p50: float
    device_tokens_per_s_p95: float
    time_to_first_token_s_p50: float
    time_to_first_token_s_p95: float
    time_per_token_s_p50: float
    time_per_token_s_p95: float
    time_per_token_s_p99: float
    round_s: float
    server_utilisation: float
    device_utilisation: float
    uplink_utilisation: float
    wasted_draft_fraction: float
    dropped_draft_fraction: float
    drafted_tokens: float
    text_tokens: float
    requests_finished: float
    rounds: float
    simulated_s: float


def measure(site: Site) -> Measures:
    """Results of a site so far. A figure without an observation is NaN."""
    now_s, cell = site.queue.now_s, site.setup.scenario.cell
    records = [device.record for device in site.devices]
    stays = np.array([device.present_s(now_s) for device in site.devices])
    tokens = np.array([record.tokens for record in records], dtype=np.float64)
    rates = tokens[stays > 0] / stays[stays > 0]
    drafting = np.array([record.drafted_s(now_s) for record in records])[stays > 0] / stays[stays > 0]
    waits, paces, weights = _times(site)
    drafted = sum(record.drafted for record in records)
    accepted = sum(record.accepted for record in records)
    dropped = sum(record.dropped + record.wasted for record in records)
    settled = drafted - sum(record.under_way for record in records)
    per_token = _percentiles(paces, (50, 95, 99), weights)
    first = _percentiles(waits, (50, 95))
    spread = _percentiles(rates, (5, 50, 95))
    return Measures(
        goodput_tokens_per_s=_ratio(float(tokens.sum()), now_s),
        jain_index=_ratio(float(rates.sum()) ** 2, len(rates) * float((rates**2).sum())),
        device_tokens_per_s_p05=spread[0],
        device_tokens_per_s_p50=spread[1],
        device_tokens_per_s_p95=spread[2],
        time_to_first_token_s_p50=first[0],
        time_to_first_token_s_p95=first[1],
        time_per_token_s_p50=per_token[0],
        time_per_token_s_p95=per_token[1],
        time_per_token_s_p99=per_token[2],
        round_s=_ratio(now_s, site.rounds),
        server_utilisation=_ratio(site.verifying_s, now_s),
        device_utilisation=_ratio(float(drafting.sum()), len(drafting)),
        uplink_utilisation=_ratio(sum(record.air_hz_s for record in records), cell.bandwidth_hz * now_s),
        wasted_draft_fraction=_ratio(settled - accepted, settled),
        dropped_draft_fraction=_ratio(dropped, settled),
        drafted_tokens=float(drafted),
        text_tokens=float(tokens.sum()),
        requests_finished=float(sum(record.requests for record in records)),
        rounds=float(site.rounds),
        simulated_s=now_s,
    )


def _times(site: Site) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Times to first tokens [s]; times per later token [s], and how many tokens each stands for."""
    waits, paces, weights = [np.empty(0)], [np.empty(0)], [np.empty(0)]
    for device in site.devices:
        record = device.record
        gaps, counts = np.asarray(record.gaps_s), np.asarray(record.counts, dtype=np.float64)
        later = np.ones(len(gaps), dtype=bool)
        later[np.asarray(record.first, dtype=np.int64)] = False
        waits.append(gaps[~later])
        paces.append(gaps[later] / counts[later])
        weights.append(counts[later])
    return np.concatenate(waits), np.concatenate(paces), np.concatenate(weights)


def _percentiles(
    values: NDArray[np.float64], at: tuple[int, ...], weights: NDArray[np.float64] | None = None
) -> list[float]:
    """Smallest values at or below which this many percent of the weight lie."""
    if len(values) == 0:
        return [float("nan")] * len(at)
    order = np.argsort(values, kind="stable")
    total = np.cumsum(np.ones(len(values)) if weights is None else weights[order])
    index = np.searchsorted(total, np.array(at) / 100.0 * total[-1] * (1.0 - 1e-12))
    return [float(value) for value in values[order][index]]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
