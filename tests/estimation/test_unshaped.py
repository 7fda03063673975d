"""Links that no band limits: what is measured of one must not take its band from plan to plan."""

import random

import pytest

from multispin.estimation import LinkEstimator, RoundTripEstimator
from multispin.estimation.link import MOST_EFFICIENCY
from multispin.passes import Controller, ControllerSettings, Member
from multispin.passes.beliefs import LearnedBeliefs
from multispin.passes.planning import LEAST_BAND, Planning

WHOLE_HZ = 2e5


@pytest.mark.parametrize("estimator", [LinkEstimator, RoundTripEstimator])
def test_no_band_shrinks_to_nothing_however_often_it_is_split_by_what_was_measured(estimator):
    """Frames take a fixed time, whatever band is granted; the band is split so that all should take equally long."""
    rng, times_s = random.Random(1), (0.001, 0.002, 0.004)
    links = [estimator(5.0) for _ in times_s]
    bands_hz = [WHOLE_HZ / 3] * 3
    for _ in range(300):
        for link, band_hz, time_s in zip(links, bands_hz, times_s, strict=True):
            bits = 176 + 16 * rng.randint(1, 8)
            link.observe(bits, band_hz, time_s * rng.uniform(0.9, 1.1))
        needs = [1.0 / link.spectral_efficiency for link in links]
        bands_hz = [WHOLE_HZ * need / sum(needs) for need in needs]
    # Every band still carries a usual frame, at the greatest efficiency that is believed, as soon as the slowest link.
    assert 248 / (MOST_EFFICIENCY * min(bands_hz)) < 1.1 * max(times_s)
    assert min(bands_hz) > 0.01 * WHOLE_HZ
    assert max(link.spectral_efficiency for link in links) <= MOST_EFFICIENCY * (1 + 1e-9)


@pytest.mark.parametrize("estimator", [LinkEstimator, RoundTripEstimator])
def test_a_link_that_claims_more_and_keeps_it_is_believed(estimator):
    link, rng = estimator(40.0), random.Random(1)
    for _ in range(60):
        bits = 176 + 16 * rng.randint(1, 60)
        link.observe(bits, 1e4, bits / (40.0 * 1e4))
    assert link.spectral_efficiency == pytest.approx(40.0, rel=0.1)


@pytest.mark.parametrize("policy", ["heterogeneous", "fair", "homogeneous"])
def test_in_rounds_nobodys_planned_band_shrinks_towards_nothing(policy):
    """Links take 2 ms whatever band is planned, but the last one's, which is as slow as it says."""
    control = Controller(ControllerSettings(policy, 2e4, 16, 16, frame_bits=176))
    token_s, rng = (0.002, 0.01, 0.02, 0.04), random.Random(1)
    for k in range(len(token_s)):
        control.beliefs.join(k, token_s[k], 5.0)
    for number in range(60):
        plan = control.plan([Member(k, 16) for k in range(len(token_s))], now_s=0.5 * number)
        drafting = [each for each in plan.sessions if each.draft_length]
        assert min(each.bandwidth_hz for each in drafting) >= LEAST_BAND * 2e4 / len(drafting) * (1 - 1e-9)
        assert sum(each.bandwidth_hz for each in drafting) <= 2e4 * (1 + 1e-9)
        for each in drafting:
            bits = 176 + 16 * each.draft_length
            air_s = bits / (5.0 * each.bandwidth_hz) if each.session == len(token_s) - 1 else 0.0
            drafting_s = each.draft_length * token_s[each.session]
            control.beliefs.observe_draft(
                each.session,
                each.draft_length,
                drafting_s,
                bits,
                each.bandwidth_hz,
                air_s + 0.002 * rng.uniform(0.9, 1.1),
            )
            control.observe_outcome(each.session, each.draft_length, each.draft_length * 7 // 10)
        control.beliefs.observe_verification(4, sum(each.draft_length + 1 for each in plan.sessions), 0.1)
    assert len(drafting) > 1


def test_a_plan_with_least_bands_says_how_long_it_takes():
    beliefs = LearnedBeliefs(16, 16)
    token_s, lengths = (0.002, 0.01, 0.02, 0.08), [4, 4, 4, 4]
    for k in range(len(lengths)):
        beliefs.join(k, token_s[k], 5.0)
    planning = Planning(ControllerSettings("heterogeneous", 2e4, 16, 16), beliefs, 0.0)
    _, plan = planning.with_lengths([Member(k, 16) for k in range(4)], lengths)
    bands_hz = [device.bandwidth_hz for device in plan.devices]
    assert sum(bands_hz) == pytest.approx(2e4)
    assert bands_hz[0] == pytest.approx(LEAST_BAND * 2e4 / 4)
    needed_s = [
        length * (taken_s + 16 / (5.0 * band_hz))
        for length, taken_s, band_hz in zip(lengths, token_s, bands_hz, strict=True)
    ]
    verify_s, verifier = planning.verify_s(dict(enumerate(lengths))), beliefs.verifier()
    assert verify_s == pytest.approx(verifier.fixed_s + 4 * verifier.per_device_s + (4 * 4 + 4) * verifier.per_token_s)
    assert plan.round_s == pytest.approx(max(needed_s) + verify_s)
    tokens = sum(device.expected_tokens for device in plan.devices)
    assert plan.goodput_tokens_per_s == pytest.approx(tokens / plan.round_s)
