"""Figures 3, 4 and 5: the uniform draft length in theory, its optimum, and the verification latency."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from multispin.control import Scenario, plan, plan_for_lengths
from multispin.control.goodput import expected_tokens
from multispin.control.uniform import stationary_length
from multispin.paper.cell import LONGEST_DRAFT, PAIRS, Assumptions, Pair, realise, scenario
from multispin.paper.schemes import EDGE_ALONE
from multispin.paper.table import Table, TableValue
from multispin.paper.trials import edge_alone

TASK = "GSM8K"
"""All devices work on this in Fig. 3 and 4, so that α is common, as Theorem 1 asks."""
COUNTED_ROUNDS = 400
"""Rounds of Monte Carlo per draft length."""
LENGTHS = range(1, LONGEST_DRAFT + 1)


def figure_3(assumed: Mapping[str, Assumptions], seed: int, rounds: int = COUNTED_ROUNDS) -> Table:
    """τ(L) for a common draft length under Lemma 1's bands: the formula, and tokens counted in simulated rounds.

    The paper's empirical points come from real models. Ours draw every token's acceptance as Bernoulli(α), so they
    test the formula and the counting, not the assumption that acceptance is i.i.d.

    Source: arXiv 2606.04581, eq. 12, 16, Lemma 1, Theorem 1 and Fig. 3.
    """
    rows: list[tuple[TableValue, ...]] = []
    for pair in PAIRS.values():
        seen = _alike(pair, assumed[pair.key], seed)
        best = plan(seen, "homogeneous").devices[0].draft_length
        alone = [float(edge_alone(seen, scheme).sum()) for scheme in EDGE_ALONE]
        generator = np.random.default_rng((seed, pair.index_bits))
        for length in LENGTHS:
            made = plan_for_lengths(seen, [length] * len(seen.devices))
            accepted = generator.random((rounds, len(seen.devices), length)) < pair.acceptance[TASK]
            tokens = 1 + np.cumprod(accepted, axis=-1).sum(axis=-1)
            counted = tokens.sum(axis=-1) / made.round_s
            half = 1.96 * float(counted.std(ddof=1)) / math.sqrt(rounds)
            mean = float(counted.mean())
            theory = made.goodput_tokens_per_s
            rows.append((pair.key, length, theory, mean, mean - half, mean + half, length == best, *alone))
    return Table(
        "fig-3",
        "Sum goodput over a common draft length is unimodal, and counted tokens follow the formula",
        f"K = 20, 10 MHz, all devices on {TASK}, Lemma 1 bands, one fading block; {rounds} simulated rounds per point "
        f"with i.i.d. acceptance. Assumed: {_drafting(assumed)}",
        (
            *("pair", "draft_length", "theory_tokens_per_s", "counted_tokens_per_s", "low", "high", "optimum"),
            *("plain_tokens_per_s", "edge_drafts_tokens_per_s"),
        ),
        tuple(rows),
    )


def figure_4(assumed: Mapping[str, Assumptions], seed: int) -> Table:
    """L* of Theorem 1 over T_ver, ϑ and α about the working point of Fig. 3, and the best whole length by trial.

    Source: arXiv 2606.04581, Theorem 1, eq. 23 and 24, and Fig. 4.
    """
    rows: list[tuple[TableValue, ...]] = []
    for pair in PAIRS.values():
        seen = _alike(pair, assumed[pair.key], seed)
        t_ver = pair.verification_s(len(seen.devices))
        theta = plan_for_lengths(seen, [1] * len(seen.devices)).round_s - t_ver
        alpha = pair.acceptance[TASK]
        sweeps = {
            "verification_s": [(alpha, value, theta) for value in np.linspace(0.02, 1.0, 50)],
            "token_latency_s": [(alpha, t_ver, value) for value in np.linspace(0.005, 0.1, 50)],
            "acceptance_rate": [(value, t_ver, theta) for value in np.linspace(0.3, 0.98, 50)],
        }
        for swept, points in sweeps.items():
            for a, t, per_token in points:
                values = {"verification_s": t, "token_latency_s": per_token, "acceptance_rate": a}
                # As in `stationary_length`, L = 0 says that drafting more than one token does not pay.
                real = max(1.0, stationary_length(float(a), float(t / per_token)))
                rows.append((pair.key, swept, float(values[swept]), real, _by_trial(a, t, per_token)))
    return Table(
        "fig-4",
        "The best common draft length grows with T_ver and α, and falls with the latency ϑ of a token",
        f"Theorem 1 about K = 20, 10 MHz, {TASK} (T_ver(20) and α of the pair, ϑ of one fading block); dots: best "
        f"whole length by trying L = 1…100. Assumed: {_drafting(assumed)}",
        ("pair", "swept", "value", "closed_form_length", "best_whole_length"),
        tuple(rows),
    )


def figure_5() -> Table:
    """T_ver(K) = T_fix + K T_lin with the paper's fitted coefficients; measured there for K = 1…16.

    Source: arXiv 2606.04581, eq. 7 and Fig. 5.
    """
    rows = [
        (pair.key, devices, pair.verification_s(devices), devices <= 16)
        for pair in PAIRS.values()
        for devices in range(1, 25)
    ]
    return Table(
        "fig-5",
        "Verification latency is affine in the batch size",
        "The paper's own fits on an A100 (K = 1…16; dashed beyond, where its experiments use them up to K = 24). "
        "These coefficients are the paper's; nothing is measured here.",
        ("pair", "devices", "verification_s", "fitted_range"),
        tuple(rows),
    )


def local_maxima(values: list[float]) -> int:
    """How many rises followed by a fall a curve has, an end that is the top counted; 1 is unimodal."""
    signs = [1, *(1 if b > a else -1 for a, b in itertools.pairwise(values)), -1]
    return sum(1 for a, b in itertools.pairwise(signs) if a > 0 > b)


def _alike(pair: Pair, assumed: Assumptions, seed: int) -> Scenario:
    seen = scenario(pair, assumed, realise(seed, 0, 1), 0)
    alpha = pair.acceptance[TASK]
    devices = tuple(replace(device, acceptance_rate=alpha, edge_acceptance_rate=alpha) for device in seen.devices)
    return replace(seen, devices=devices)


def _by_trial(alpha: float, verification_s: float, token_latency_s: float) -> int:
    lengths = np.arange(1, 101)
    return int(lengths[np.argmax(expected_tokens(alpha, lengths) / (lengths * token_latency_s + verification_s))])


def _drafting(assumed: Mapping[str, Assumptions]) -> str:
    return "; ".join(
        f"{key.title()} p/N₀ {value.snr_db:g} dB, mean Tˢ {1e3 * value.draft_s:g} ms" for key, value in assumed.items()
    )
