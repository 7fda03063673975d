"""The real round loop under a virtual clock, with simulated devices."""

import numpy as np
import pytest

from multispin.control import Cell, Device, Scenario, Verification, plan
from multispin.radio import BlockFadingChannel
from multispin.simulation.site import Behaviour, Site

SCENARIO = Scenario(
    Cell(bandwidth_hz=2e6, bits_per_token=4000, max_draft_length=12, min_draft_length=1),
    Verification(fixed_s=0.02, per_device_s=0.01),
    tuple(
        Device(f"d{k}", 0.005 + 0.002 * k, 2.0 + k, acceptance_rate=rate)
        for k, rate in enumerate((0.9, 0.8, 0.7, 0.5, 0.3))
    ),
)


def goodput(site):
    return sum(device.record.tokens for device in site.devices.values()) / site.queue.now_s


@pytest.mark.parametrize("policy", ["heterogeneous", "homogeneous", "fixed", "uniform-bandwidth"])
def test_goodput_meets_the_formula_where_the_truth_is_known(policy):
    # Mean of 8 seeds within 4 of its own standard errors of tau (eq. 16); frames are whole bytes here as there.
    seen = []
    for seed in range(8):
        site = Site(SCENARIO, policy, seed, knows=True)
        site.run(150)
        seen.append(goodput(site))
    expected = plan(SCENARIO, policy).goodput_tokens_per_s
    error = np.std(seen, ddof=1) / np.sqrt(len(seen))
    assert abs(np.mean(seen) - expected) < 4 * error
    assert error < 0.02 * expected


def test_what_is_learned_comes_close_to_what_is_known():
    known, learned = (Site(SCENARIO, "heterogeneous", 1, knows=knows) for knows in (True, False))
    for site in (known, learned):
        site.run(300)
    assert goodput(learned) > 0.93 * goodput(known)


def test_every_drafted_token_is_accepted_rejected_or_still_on_its_way():
    for behaviour in (
        Behaviour(tokens_per_request=17),
        Behaviour(straggler_probability=0.2, straggler_delay_s=2.0),
        Behaviour(losses_s=(("d1", 3.0),)),
    ):
        site = Site(SCENARIO, "homogeneous", 3, behaviour=behaviour)
        site.run(200)
        for device in site.devices.values():
            record = device.record
            under_way = record.drafted - record.accepted - record.rejected
            assert 0 <= under_way <= 12
            assert record.tokens == sum(count for _, count in record.token_times_s)


def test_a_seed_determines_everything_and_another_changes_it():
    runs = []
    for seed in (4, 4, 5):
        site = Site(SCENARIO, "heterogeneous", seed)
        site.run(60)
        runs.append((site.queue.now_s, [device.record.token_times_s for device in site.devices.values()]))
    assert runs[0] == runs[1] != runs[2]


def test_a_lost_device_stops_nobody_else():
    site = Site(SCENARIO, "homogeneous", 6, behaviour=Behaviour(losses_s=(("d4", 2.0),)))
    site.run(400)
    last = {device.truth.name: device.record.token_times_s[-1][0] for device in site.devices.values()}
    assert last["d4"] <= 2.0
    assert min(time for name, time in last.items() if name != "d4") > 10.0


def test_stragglers_miss_rounds_but_lose_no_text():
    late = Site(SCENARIO, "homogeneous", 7, behaviour=Behaviour(straggler_probability=0.1, straggler_delay_s=5.0))
    prompt = Site(SCENARIO, "homogeneous", 7)
    for site in (late, prompt):
        site.run(200)
    verdicts = [len(device.record.token_times_s) for device in late.devices.values()]
    assert max(verdicts) < 200  # everybody missed some
    assert all(
        d.session.committed[1:].count(0) + d.session.committed[1:].count(1) == d.record.tokens
        for d in late.devices.values()
    )
    assert goodput(late) < goodput(prompt)


def test_a_device_goes_on_with_its_next_request():
    site = Site(SCENARIO, "homogeneous", 8, behaviour=Behaviour(tokens_per_request=9))
    site.run(100)
    assert all(device.record.tokens > 50 for device in site.devices.values())


def test_acceptance_profiles_are_followed_position_by_position():
    device = Device("d", 0.01, 5.0, acceptance_profile=(1.0, 1.0, 0.0))
    scenario = Scenario(Cell(1e6, 100, 8, 8), Verification(0.02, 0.01), (device,))
    site = Site(scenario, "homogeneous", 9, knows=True)
    site.run(20)
    assert {count for _, count in next(iter(site.devices.values())).record.token_times_s} == {3}


def test_fading_changes_the_rate_from_round_to_round():
    channels = [BlockFadingChannel(0.3, 1.0, 0.01, np.random.default_rng(k)) for k in range(5)]
    site = Site(SCENARIO, "heterogeneous", 10, knows=True, channels=channels)
    site.run(30)
    times = [time for time, _ in next(iter(site.devices.values())).record.token_times_s]
    assert len({round(gap, 6) for gap in np.diff(times)}) > 20
