"""Proportional fairness in streams: the best rates for Σ w_k log goodput_k, and the weights that lead to them.

The goodputs that rates can give form a convex set (`exact.fluid`). At the optimum g* of a concave function the linear
one with its gradient there, Σ w_k goodput_k / g*_k, has its maximum too. So decisions by the weights w_k / g*_k
are fair. The method is that of Frank and Wolfe: solve the linear program for the gradient, and go a part of the way to
its answer. The goodputs are those of the model, so that luck does not move the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from multispin.control.edge import plain
from multispin.control.exact.fluid import fluid
from multispin.control.scenario import Scenario

STEPS = 4
"""Linear programs that one call solves."""
STEP = 0.25
"""Share of the way to the answer of each that is gone, once there are goodputs to begin with."""


def fairly_weighted(scenario: Scenario, before: Mapping[str, float] | None = None) -> tuple[Scenario, dict[str, float]]:
    """The scenario with the weights that are fair, and the goodputs g_k that they follow from, by device name.

    Args:
        scenario: the site as it is known.
        before: goodputs that were found before, by device name, to go on from; others begin with plain decoding
            [tokens/s]; default None.

    Raises:
        InputError: as in `fluid`.
    """
    devices, before = scenario.devices, before or {}
    weights = [device.weight for device in devices]
    alone = plain(scenario)
    goodputs = [
        before.get(each.name, tokens / alone.pass_s)
        for each, tokens in zip(devices, alone.expected_tokens, strict=True)
    ]
    free = [0.0] * len(devices)
    new = not all(device.name in before for device in devices)
    for turn in range(STEPS):
        rates = fluid(_weighted(scenario, fair_weights(weights, goodputs)), free).devices
        part = max(STEP, 2.0 / (turn + 3.0)) if new else STEP
        goodputs = [had + part * (each.tokens_per_s - had) for had, each in zip(goodputs, rates, strict=True)]
    names = [device.name for device in devices]
    return _weighted(scenario, fair_weights(weights, goodputs)), dict(zip(names, goodputs, strict=True))


def _weighted(scenario: Scenario, weights: list[float]) -> Scenario:
    return replace(
        scenario,
        devices=tuple(replace(device, weight=weight) for device, weight in zip(scenario.devices, weights, strict=True)),
    )


def fair_weights(weights: Sequence[float], tokens_per_s: Sequence[float]) -> list[float]:
    """Weights with which a small gain of Σ w_k · goodput_k is one of Σ w_k log goodput_k, in tokens.

    The gradient is w_k / goodput_k; it is scaled so that all together are worth what they get now.

    Args:
        weights: weights of the devices, w_k.
        tokens_per_s: recent goodput of each device, above 0 [tokens/s].
    """
    scale = sum(tokens_per_s) / sum(weights)
    return [weight * scale / rate for weight, rate in zip(weights, tokens_per_s, strict=True)]
