"""Probes of many devices together cost no more than a fixed share of the goodput, however long they take."""

import random

import pytest
from tests.passes.test_streams import RandomTarget
from tests.passes.test_streams import Site as StreamSite

from multispin.control import Cell, Device, Scenario, Verification
from multispin.passes import Controller, ControllerSettings
from multispin.passes.plans import DEVICE, NOBODY, Member, RoundPlan, SessionPlan
from multispin.passes.probing import COST_SHARE, PROBE_SHARE, Probes
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site
from multispin.speculation import Rule, SamplingParams


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize(("devices", "lost"), [(1, 0.1), (8, 0.1), (8, 0.5), (60, 0.1)])
def test_what_probes_cost_everybody_is_bounded(devices, lost, renewed):
    rng, probes, now_s, lost_s = random.Random(devices), Probes(), 0.0, 0.0
    usual_s = {key: rng.uniform(0.2, 1.0) for key in range(devices)}
    ends_s: dict[int, float] = {}
    from_s = 600.0  # the first few of each have been
    while now_s < 2000.0:
        for key in [key for key, end_s in ends_s.items() if end_s <= now_s]:
            probes.end(key, now_s)
            if renewed:  # with every text
                probes.renew(key)
            del ends_s[key]
        for key in range(devices):
            if probes.due(key, now_s):
                probes.begin(key, now_s, lost)
                ends_s[key] = now_s + usual_s[key]
        now_s += 0.1
        lost_s += lost * 0.1 * len(ends_s) * (now_s > from_s)
    assert lost_s <= 1.25 * COST_SHARE * (now_s - from_s)
    if devices == 60:  # who is many uses what there is
        assert lost_s >= 0.5 * COST_SHARE * (now_s - from_s)


def test_a_dear_probe_keeps_no_cheap_one_waiting():
    probes = Probes()
    for key, took_s in ((1, 10.0), (2, 0.1)):
        now_s = 0.0
        for _ in range(8):
            probes.begin(key, now_s, 0.5)
            probes.end(key, now_s + took_s)
            now_s = probes.due_since_s(key)
    probes.begin(2, now_s, 0.5)
    probes.end(2, now_s + 0.1)
    assert probes.due(2, now_s + 0.1 + 2 * 0.5 * 0.1 / COST_SHARE + 0.1 / PROBE_SHARE)


def test_a_token_that_leaves_no_room_for_a_draft_is_no_probe():
    site = StreamSite(engine=RandomTarget(2))
    number = site.join("d", 1, rule=Rule.REJECTION, params=SamplingParams(1.0), retained=20)
    site.run()
    assert site.phones[number].session.finish
    assert site.passes.controller.chooser.probes.due(number, site.queue.now_s)


def test_a_device_that_is_too_slow_for_a_probe_gets_its_text_from_the_edge_alone():
    site = StreamSite(engine=RandomTarget(2))
    number = site.join("d", 20, token_s=20.0, rule=Rule.REJECTION, params=SamplingParams(1.0), retained=20)
    site.run(10.0)
    assert site.phones[number].session.finish


def test_a_probe_that_takes_a_part_of_the_band_makes_nobody_late():
    controller = Controller(ControllerSettings("heterogeneous", 1e6, 7, 8, mode="mixture"))
    for session in (1, 2):
        controller.beliefs.join(session, 0.01, 5.0)
    drafts, rides = SessionPlan(1, 4, 1e6, DEVICE), SessionPlan(2, 0, 0.0, NOBODY)
    made = controller.chooser.with_trials(
        RoundPlan((drafts, rides), 0.2, 10.0, phase_s=0.1), [Member(1, 8), Member(2, 8)], 0.0
    )
    assert made.sessions[1].probe is not None
    narrower = made.sessions[0].bandwidth_hz / drafts.bandwidth_hz
    assert narrower < 1.0
    assert made.phase_s >= 0.1 / narrower
    assert made.round_s - made.phase_s == pytest.approx(0.1)


def test_a_device_that_says_it_is_too_slow_keeps_no_other_from_being_tried():
    controller = Controller(ControllerSettings("heterogeneous", 1e6, 7, 8, mode="mixture"))
    for session, token_s in ((1, 3600.0), (2, 0.01)):
        controller.beliefs.join(session, token_s, 5.0)
    plan = RoundPlan((SessionPlan(1, 0, 0.0, NOBODY), SessionPlan(2, 0, 0.0, NOBODY)), 0.2, 10.0)
    made = controller.chooser.with_trials(plan, [Member(1, 8), Member(2, 8)], 0.0)
    assert [each.probe is not None for each in made.sessions] == [False, True]


def test_probes_of_an_idle_site_leave_band_for_the_next_plans_drafts():
    # The first pass reads the prompts of most: by that one, a pass is believed to be much shorter than it is.
    devices = tuple(Device(f"d{k}", 0.006, 3.0, 0.8) for k in range(20))
    scenario = Scenario(Cell(2e6, 16, min_draft_length=0), Verification(0.023, 0.0127), devices)
    behaviour = Behaviour(prompt_tokens=60, frame_bits=176, prefill_tokens_per_round=1000, prefill_share=1e3)
    site = Site(Setup(scenario, behaviour), "heterogeneous", 1)
    site.run(20)
    accepted = sum(device.record.accepted for device in site.devices)
    site.run(25)
    assert sum(device.record.accepted for device in site.devices) > accepted + 5 * 20
