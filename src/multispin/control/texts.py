"""What prompts and ends of texts leave of a decision's goodput, which is that of endless texts.

A text of n tokens begins with the pass that reads the last of its prompt, and gets one token in it. So its session
loses E[N] − 1 tokens, and the pass takes longer by the time of the prompt's tokens. Its last draft is cut short: by
renewal theory n tokens need (n + O) / E[N] periods, with O = (E[N²] / E[N] − 1) / 2 the tokens that go to waste beyond
its end. So the session gets n / (n + O + E[N] − 1) of its rate. Pure functions.
"""

from dataclasses import dataclass

import numpy as np

from multispin.control.goodput import Floats
from multispin.control.scenario import Device, Scenario
from multispin.control.who import DEVICE, EDGE, Choice, Decision

Whole = int | tuple[int, int]
"""A number of tokens, or the least and greatest of a uniform draw."""


@dataclass(frozen=True)
class Texts:
    """The texts of a site.

    Args:
        tokens: length of a text [tokens], or [least, greatest].
        prompt_tokens: length of its prompt [tokens], or [least, greatest]; default 1.
    """

    tokens: Whole
    prompt_tokens: Whole = 1


def rates_of(made: Decision, scenario: Scenario, texts: Texts | None = None) -> list[float]:
    """Goodput of each session [tokens/s].

    Args:
        made: the decision, whose goodputs are those of endless texts.
        scenario: the scenario that it was made for.
        texts: the site's texts; default None: they are endless.
    """
    if texts is None:
        return [choice.tokens_per_s for choice in made.sessions]
    length = _mean(texts.tokens)
    rates = []
    for device, choice in zip(scenario.devices, made.sessions, strict=True):
        alive = _alive(device, choice, scenario)
        each = float(alive.sum())
        squared = float(((2.0 * np.arange(len(alive)) + 1.0) * alive).sum())
        rates.append(choice.tokens_per_s * length / (length + 0.5 * (squared / each - 1.0) + each - 1.0))
    prompt_s = sum(rates) / length * scenario.verifier.per_token_s * _mean(texts.prompt_tokens)  # of every second
    return [rate / (1.0 + prompt_s) for rate in rates]


def _alive(device: Device, choice: Choice, scenario: Scenario) -> Floats:
    """P(N > i) of the tokens N of a pass, i = 0 … draft length."""
    rate, profile = 0.0, None
    if choice.drafter == DEVICE:
        way = next((each for each in device.ways if each.name == choice.mode), device.ways[0])
        rate, profile = way.acceptance_rate or 0.0, way.acceptance_profile
    elif choice.drafter == EDGE and scenario.edge_drafter is not None:
        own = device.edge_acceptance_rate
        rate = scenario.edge_drafter.acceptance_rate if own is None else own
    steps = range(choice.draft_length)
    each = [profile[min(step, len(profile) - 1)] if profile else rate for step in steps]
    alive: Floats = np.cumprod(np.array([1.0, *each]))
    return alive


def _mean(tokens: Whole) -> float:
    return float(tokens) if isinstance(tokens, int) else 0.5 * (tokens[0] + tokens[1])
