"""The real round loop under a virtual clock, with simulated devices."""

from dataclasses import replace

import numpy as np
import pytest

from multispin.control import Cell, Device, Scenario, Verification, plan
from multispin.errors import InputError
from multispin.passes.plans import Member
from multispin.simulation.measures import measure
from multispin.simulation.setup import Behaviour, DeviceLife, Setup
from multispin.simulation.site import Site

SCENARIO = Scenario(
    Cell(bandwidth_hz=2e6, bits_per_token=4000, max_draft_length=12, min_draft_length=1),
    Verification(fixed_s=0.02, per_device_s=0.01),
    tuple(
        Device(f"d{k}", 0.005 + 0.002 * k, 2.0 + k, acceptance_rate=rate)
        for k, rate in enumerate((0.9, 0.8, 0.7, 0.5, 0.3))
    ),
)


def a_site(policy, seed, behaviour=None, knows=False, lives=(), scenario=SCENARIO):
    return Site(Setup(scenario, behaviour or Behaviour(), lives), policy, seed, knows)


def goodput(site):
    return sum(device.record.tokens for device in site.devices) / site.queue.now_s


def lives(**by_name):
    return tuple(by_name.get(device.name, DeviceLife()) for device in SCENARIO.devices)


@pytest.mark.long
@pytest.mark.parametrize("policy", ["heterogeneous", "homogeneous", "fixed", "uniform-bandwidth"])
def test_goodput_meets_the_formula_where_the_truth_is_known(policy):
    # Mean of 8 seeds within 4 of its own standard errors of tau (eq. 16); frames are whole bytes here as there.
    seen = []
    for seed in range(8):
        site = a_site(policy, seed, knows=True)
        site.run(150)
        seen.append(goodput(site))
    expected = plan(SCENARIO, policy).goodput_tokens_per_s
    error = np.std(seen, ddof=1) / np.sqrt(len(seen))
    assert abs(np.mean(seen) - expected) < 4 * error
    assert error < 0.02 * expected


@pytest.mark.parametrize("policy", ["heterogeneous", "homogeneous"])
def test_goodput_meets_the_formula_where_devices_send_one_after_the_other(policy):
    scenario = replace(SCENARIO, cell=replace(SCENARIO.cell, multiple_access="tdma"))
    seen = []
    for seed in range(8):
        site = a_site(policy, seed, knows=True, scenario=scenario)
        site.run(100)
        seen.append(goodput(site))
    expected = plan(scenario, policy).goodput_tokens_per_s
    assert abs(np.mean(seen) - expected) < 4 * np.std(seen, ddof=1) / np.sqrt(len(seen))
    assert 0 < measure(site).uplink_utilisation < 1


def test_what_is_learned_comes_close_to_what_is_known():
    known, learned = (a_site("heterogeneous", 1, knows=knows) for knows in (True, False))
    for site in (known, learned):
        site.run(300)
    assert goodput(learned) > 0.93 * goodput(known)


@pytest.mark.parametrize(
    ("behaviour", "what"),
    [
        (Behaviour(tokens_per_request=17), {}),
        (Behaviour(tokens_per_request=(3, 40), prompt_tokens=(1, 200), pause_s=0.3, slots=3), {}),
        (Behaviour(straggler_probability=0.2, straggler_delay_s=2.0), {}),
        (Behaviour(mean_stay_s=2.0, mean_away_s=1.0, arrivals_per_s=2.0, fading="rayleigh"), {}),
        (Behaviour(), {"d1": DeviceLife(lost_s=3.0), "d2": DeviceLife(arrives_s=1.0, leaves_s=4.0)}),
    ],
)
def test_every_drafted_token_is_accepted_rejected_dropped_or_still_on_its_way(behaviour, what):
    site = a_site("homogeneous", 3, behaviour, lives=lives(**what))
    site.run(200)
    for device in site.devices:
        record = device.record
        assert record.drafted == record.accepted + record.rejected + record.dropped + record.under_way
        assert 0 <= record.under_way <= 12
        assert record.under_way == 0 or device.number is not None
        assert record.tokens == sum(record.counts)
        assert record.drafted > 0


def test_a_seed_determines_everything_and_another_changes_it():
    behaviour = Behaviour(
        tokens_per_request=(5, 50), prompt_tokens=(1, 90), fading="rayleigh", coherence_s=1.0, pause_s=0.1,
        straggler_probability=0.05, straggler_delay_s=1.0, mean_stay_s=3.0, mean_away_s=1.0,
    )  # fmt: skip
    runs = []
    for seed in (4, 4, 5):
        site = a_site("heterogeneous", seed, behaviour)
        site.run(60)
        runs.append((site.queue.now_s, [device.record.times_s for device in site.devices]))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(mean_stay_s=2.0, mean_away_s=1.0, round_overhead_s=1e12),
        Behaviour(mean_stay_s=1e-9, mean_away_s=1e-9),
    ],
)
def test_devices_that_come_and_go_during_an_endless_pass_are_refused(behaviour):
    site = a_site("homogeneous", 3, behaviour)
    with pytest.raises(InputError, match=r"devices came \d+ times while no pass ended"):
        site.run(200)


def test_a_lost_device_stops_nobody_else():
    site = a_site("homogeneous", 6, lives=lives(d4=DeviceLife(lost_s=2.0)))
    site.run(400)
    last = {device.truth.name: device.record.times_s[-1] for device in site.devices}
    assert last["d4"] <= 2.0
    assert min(time for name, time in last.items() if name != "d4") > 10.0


def test_a_lost_devices_slot_goes_to_who_waits_for_one():
    story = lives(d0=DeviceLife(lost_s=2.0), d4=DeviceLife(arrives_s=1.0))
    site = a_site("homogeneous", 6, Behaviour(slots=4), lives=story)
    site.run(200)
    grace_s = site.passes.limits.slot_grace_s
    assert 2.0 + grace_s < site.devices[4].record.times_s[0] < 2.0 + grace_s + 3.0


def test_devices_come_and_go_when_they_are_told_to():
    site = a_site("heterogeneous", 6, lives=lives(d0=DeviceLife(arrives_s=5.0), d1=DeviceLife(leaves_s=5.0)))
    site.run(150)
    times = {device.truth.name: device.record.times_s for device in site.devices}
    assert min(times["d0"]) > 5.0
    assert max(times["d1"]) <= 5.0
    assert site.devices[1].present_s(site.queue.now_s) == 5.0
    # A newcomer waits for the round under way; nobody's round is spoilt by it.
    around = np.diff([time for time in times["d2"] if 3.0 < time < 8.0])
    assert around.max() < 2 * np.median(around)


def test_who_leaves_comes_back_as_a_new_device():
    site = a_site("heterogeneous", 6, Behaviour(mean_stay_s=1.0, mean_away_s=1.0))
    site.run(200)
    share = sum(device.present_s(site.queue.now_s) for device in site.devices) / (5 * site.queue.now_s)
    assert 0.3 < share < 0.7
    assert len(site.passes.sessions) == sum(device.number is not None for device in site.devices)
    assert all(max(device.record.times_s) > 0.5 * site.queue.now_s for device in site.devices)


def test_a_site_that_everybody_has_left_comes_to_its_end():
    site = a_site("homogeneous", 6, lives=(DeviceLife(leaves_s=1.0),) * 5)
    site.run(1000)
    assert site.rounds < 50
    assert not site.passes.sessions


def test_arrivals_are_a_poisson_process():
    gaps_s = []
    for seed in range(200):
        site = a_site("fixed", seed, Behaviour(arrivals_per_s=2000.0))
        while any(device.number is None for device in site.devices):
            site.queue.step()
        gaps_s += list(np.diff([0.0, *sorted(device.record.arrived_s for device in site.devices)]))
    # 1,000 exponential gaps of mean 0.5 ms: within 4 standard errors.
    assert abs(np.mean(gaps_s) - 0.0005) < 4 * 0.0005 / np.sqrt(len(gaps_s))


def test_stragglers_miss_rounds_but_lose_no_text():
    late = a_site("homogeneous", 7, Behaviour(straggler_probability=0.1, straggler_delay_s=5.0))
    prompt = a_site("homogeneous", 7)
    for site in (late, prompt):
        site.run(200)
    verdicts = [len(device.record.times_s) for device in late.devices]
    assert max(verdicts) < 200  # everybody missed some
    assert all(len(d.session.generated) == d.record.tokens for d in late.devices)
    assert goodput(late) < goodput(prompt)


def test_requests_have_the_lengths_that_were_asked_for_and_wait_for_their_slots():
    site = a_site("homogeneous", 8, Behaviour(tokens_per_request=9))
    site.run(100)
    for device in site.devices:
        assert device.record.requests == len(device.record.first) - bool(device.session.generated)
        assert device.record.tokens == 9 * device.record.requests + len(device.session.generated)
    crowded = a_site("homogeneous", 8, Behaviour(tokens_per_request=9, slots=2))
    crowded.run(100)
    waits = [[d.record.gaps_s[i] for i in d.record.first] for s in (site, crowded) for d in s.devices]
    assert np.median(np.concatenate(waits[5:])) > 2 * np.median(np.concatenate(waits[:5]))
    assert goodput(crowded) < goodput(site)


def test_a_prompt_takes_rounds_before_the_first_token():
    # 321 tokens in chunks of 64 need five batches, the newest one comes with the last chunk.
    site = a_site("homogeneous", 9, Behaviour(prompt_tokens=321), scenario=Scenario(
        SCENARIO.cell, SCENARIO.verifier, SCENARIO.devices[:1]))  # fmt: skip
    site.run(1)
    assert site.verifying_s == pytest.approx(5 * 0.03)
    assert site.devices[0].record.times_s[0] == pytest.approx(5 * 0.03)


def test_acceptance_profiles_are_followed_position_by_position():
    device = Device("d", 0.01, 5.0, acceptance_profile=(1.0, 1.0, 0.0))
    scenario = Scenario(Cell(1e6, 100, 8, 8), Verification(0.02, 0.01), (device,))
    site = a_site("homogeneous", 9, knows=True, scenario=scenario)
    site.run(20)
    assert set(site.devices[0].record.counts) == {3}


def test_fading_changes_the_rate_from_round_to_round():
    site = a_site("heterogeneous", 10, Behaviour(fading="rayleigh"), knows=True)
    site.run(30)
    assert len({round(gap, 6) for gap in np.diff(site.devices[0].record.times_s)}) > 20


def test_frames_overheads_and_a_last_text():
    """One device with known times: a round is draft, frame and tokens on the air, verification, overhead."""
    device = Device("only", 0.01, 2.0, acceptance_rate=0.0, max_draft_length=4, min_draft_length=4)
    scenario = Scenario(Cell(1000.0, 10, max_draft_length=4), Verification(0.05, 0.0), (device,))
    behaviour = Behaviour(tokens_per_request=7, texts=1, frame_bits=60, round_overhead_s=0.003)
    site = Site(Setup(scenario, behaviour), "fixed", 1, knows=True)
    site.run(1000)
    record = site.devices[0].record
    # Room shrinks towards the end: 4, 4, 4, 3, 2, 1, 0 drafted tokens, one of text each round.
    lengths = [4, 4, 4, 3, 2, 1]
    expected = sum(0.01 * n + (10 * n + 60) / 2000.0 for n in lengths) + 7 * (0.05 + 0.003)
    assert (record.requests, record.tokens) == (1, 7)
    assert site.devices[0].gone
    assert record.times_s[-1] == pytest.approx(expected)


def test_a_controller_that_knows_the_truth_knows_that_frames_have_a_fixed_part():
    """Without it bands are split for tokens alone: a quick device gets a sliver, and its frame holds everybody up."""
    devices = tuple(Device(f"d{k}", 0.005 * (1 + k), 3.0, acceptance_rate=0.8) for k in range(4))
    scenario = Scenario(Cell(2e4, 16, max_draft_length=8), Verification(0.1, 0.0), devices)
    site = Site(Setup(scenario, Behaviour(frame_bits=176)), "heterogeneous", 1, knows=True)
    site.run(10)
    begin_s = site.queue.now_s
    site.run(40)
    plan = site.passes.controller.plan([Member(number, 8) for number in site.passes.sessions], now_s=site.queue.now_s)
    assert (site.queue.now_s - begin_s) / 30 == pytest.approx(plan.round_s, rel=0.01)


@pytest.mark.parametrize("knows", [True, False])
def test_a_controller_that_learns_keeps_to_the_scenarios_draft_lengths_too(knows):
    """A slow device whose drafts are all wrong drafts nothing where it need not, and no device more than it may."""
    useless = replace(SCENARIO.devices[0], acceptance_rate=0.0, seconds_per_token=0.3)
    short = replace(SCENARIO.devices[1], max_draft_length=2)
    scenario = replace(SCENARIO, devices=(useless, short, *SCENARIO.devices[2:]))
    drafted = {}
    for least in (0, 1):
        cell = replace(scenario.cell, min_draft_length=least)
        site = a_site("heterogeneous", 1, knows=knows, scenario=replace(scenario, cell=cell))
        site.run(60)
        drafted[least] = [device.record.drafted / (site.rounds + 1) for device in site.devices]
    assert drafted[0][0] < 0.3
    assert drafted[1][0] > 0.9
    assert drafted[0][1] <= 2.0
    assert drafted[1][1] <= 2.0
    assert min(drafted[0][2:]) > 0.9
