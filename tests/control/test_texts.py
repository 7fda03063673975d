"""What prompts and ends of texts leave of a decision's goodput."""

import random
from dataclasses import replace

import pytest

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification, decide
from multispin.control.texts import Texts, rates_of

SITE = Scenario(
    Cell(2e6, 16, 25, 0),
    Verification(0.075, 0.02, 0.001),
    tuple(Device(f"d{k}", 0.012, 3.0, 0.7 + 0.08 * k) for k in range(4)),
    EdgeDrafter(0.008, 0.0, 0.8),
)


def played(made, length, prompt, periods=60_000):
    """Tokens per second of each session, by playing its drafts with dice: a period for each prompt."""
    rng, rates = random.Random(1), []
    for device, choice in zip(SITE.devices, made.sessions, strict=True):
        rate = {"nobody": 0.0, "edge": SITE.edge_drafter.acceptance_rate, "device": device.acceptance_rate}
        alpha, written, left, texts = rate[choice.drafter], 0, 0, 0
        for _ in range(periods):
            if not left:
                left, texts = length, texts + 1
                continue
            count = 1
            while count <= choice.draft_length and rng.random() < alpha:
                count += 1
            written, left = written + min(count, left), left - min(count, left)
        rates.append((written / periods / made.period_s, texts / periods / made.period_s))
    texts_per_s = sum(texts for _, texts in rates)
    return [each / (1.0 + prompt * SITE.verifier.per_token_s * texts_per_s) for each, _ in rates]


@pytest.mark.parametrize("mode", ["plain", "edge", "rounds"])
def test_texts_that_are_played_make_what_is_promised(mode):
    """The standard deviation of 60,000 drafts' mean is below half a percent; long texts make renewal theory exact."""
    made = decide(SITE, mode=mode)
    promised = rates_of(made, SITE, Texts(150, 60))
    assert promised == pytest.approx(played(made, 150, 60), rel=0.02)
    for rate, choice in zip(promised, made.sessions, strict=True):
        assert 0.7 * choice.tokens_per_s < rate < choice.tokens_per_s


def test_endless_texts_have_what_was_decided():
    made = decide(SITE, mode="rounds")
    assert rates_of(made, SITE) == [choice.tokens_per_s for choice in made.sessions]
    assert rates_of(made, SITE, Texts(10**9)) == pytest.approx(rates_of(made, SITE), rel=1e-6)


def test_a_range_counts_as_its_mean_and_a_profile_as_its_curve():
    made = decide(SITE, mode="rounds")
    assert rates_of(made, SITE, Texts((64, 256), (16, 120))) == rates_of(made, SITE, Texts(160, 68))
    devices = [replace(d, acceptance_rate=None, acceptance_profile=(d.acceptance_rate,)) for d in SITE.devices]
    profiled = replace(SITE, devices=tuple(devices))
    assert rates_of(made, profiled, Texts(160)) == pytest.approx(rates_of(made, SITE, Texts(160)))
