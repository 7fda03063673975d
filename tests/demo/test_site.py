"""Sites: how they are read, who takes part, and how much slower they are played."""

import os
from dataclasses import replace

import pytest

from multispin.control import decide
from multispin.data import bundled_sites
from multispin.demo.site import DRAFT_S, LLAMA_CPP_DRAFT_S, SITE, DemoSite, read_site, site_crew, slow_enough
from multispin.errors import InputError
from multispin.passes import Limits


@pytest.fixture
def scenario():
    return read_site("a100-27b")


def test_every_bundled_site_can_be_played():
    for name in bundled_sites():
        scenario = read_site(name)
        assert DemoSite(name, scenario, 3.0).verification.fixed_s == pytest.approx(3 * scenario.verifier.fixed_s)
        assert scenario.edge_drafter is not None
        assert all(spec.drafter in DRAFT_S for spec in site_crew(scenario, True, (), (), 0))


@pytest.mark.parametrize(("slower", "pace"), [(1.0, "in real time"), (2.5, "2.5 times slower than real time")])
def test_how_fast_a_site_is_played_is_said_in_words(scenario, slower, pace):
    assert DemoSite("here", scenario, slower).pace == pace


@pytest.mark.parametrize("name", [SITE, "a100-27b"])
def test_by_their_own_numbers_devices_pay_at_the_usual_sites_and_do_not_at_the_h100(name):
    usual, h100 = decide(read_site(name)), decide(read_site("h100-7b"))
    assert "device" in {session.drafter for session in usual.sessions}
    by_kind = dict(usual.alternatives)
    assert by_kind["rounds"] > by_kind["edge"] > by_kind["plain"]
    assert {session.drafter for session in h100.sessions} == {"edge"}


def test_the_crew_has_the_devices_of_the_site_with_drafters_by_their_skill(scenario):
    weak = replace(scenario.devices[1], acceptance_rate=0.6)
    scenario = replace(scenario, devices=(scenario.devices[0], weak, replace(weak, acceptance_rate=0.3, name="c")))
    crew = site_crew(scenario, True, (), (), 0)
    assert [spec.drafter for spec in crew] == ["large", "medium", "small"]
    assert [spec.name for spec in crew] == ["laptop-1", "laptop-2", "c"]
    assert [spec.delay_s for spec in crew] == [0.003] * 3
    assert [spec.seconds_per_token for spec in crew] == [d.seconds_per_token for d in scenario.devices]
    assert {spec.drafter for spec in site_crew(scenario, False, (), (), 0)} == {"q8"}
    named = site_crew(scenario, True, ("q4", "lookup"), ("Hello",), 0)
    assert [(spec.drafter, spec.prompt) for spec in named] == [("q4", "Hello"), ("lookup", "Hello"), ("q4", "Hello")]


def test_a_site_is_played_as_slowly_as_its_slowest_device_or_its_engine_needs(scenario, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    crew = site_crew(scenario, True, (), (), 0)
    quick = {spec.name: spec.seconds_per_token / 100 for spec in crew}
    least = slow_enough(scenario, crew, quick)
    assert least >= 1.0
    slow = quick | {crew[2].name: 7.0 * crew[2].seconds_per_token}
    assert slow_enough(scenario, crew, slow) == 8.0  # 7 and a tenth more, in halves
    quicker = replace(scenario, verifier=replace(scenario.verifier, fixed_s=1e-3, per_device_s=0.0))
    assert slow_enough(quicker, crew, quick) > least
    busy = {spec.name: 3 * sum(DRAFT_S[s.drafter] for s in crew) for spec in crew}  # other work on the machine
    assert slow_enough(quicker, crew, busy) > slow_enough(quicker, crew, quick)


def test_streams_are_played_so_slowly_that_drafters_and_engine_fit_beside_each_other(scenario, monkeypatch):
    crew, found = site_crew(scenario, True, (), (), 0), {}
    for cores in (2, 64):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        wall_s = max(sum(LLAMA_CPP_DRAFT_S[s.drafter] for s in crew) / cores, LLAMA_CPP_DRAFT_S["large"])
        times = {spec.name: wall_s for spec in crew}
        found[cores] = [slow_enough(scenario, crew, times, LLAMA_CPP_DRAFT_S, streams) for streams in (False, True)]
    assert found[2][1] > found[2][0]  # four drafters and the engine on two cores at the same time
    assert found[64][1] == found[64][0]


def test_the_edge_is_told_the_slowed_down_site(scenario):
    site = DemoSite("x", scenario, 2.0)
    told = site.serve(edge_drafts=False)
    options = dict(zip(told[::2][:6], told[1::2][:6], strict=True))
    assert options == {
        "--bandwidth-hz": str(scenario.cell.bandwidth_hz / 2),
        "--max-draft-length": "16",
        "--deadline-slack-s": str(2 * Limits.deadline_slack_s),
        "--longest-wait-s": str(2 * Limits.longest_wait_s),
        "--prefill-tokens-per-round": "4096",
        "--prefill-share": "100",
    }
    assert told[-4:] == ("--emulated-verification-s", str(2 * 0.07507), str(2 * 0.01978), "0.0")
    assert site.serve(edge_drafts=True) == ("--emulated-edge-draft-s", str(2 * 0.008), "0.0", *told)


def test_what_cannot_be_played_is_refused(scenario):
    with pytest.raises(InputError, match="no site 'nowhere': give one of a100-27b, a100-7b"):
        read_site("nowhere")
    padded = replace(scenario, verifier=replace(scenario.verifier, padded=True))
    with pytest.raises(InputError, match="padded"):
        DemoSite("x", padded, 1.0)
    with pytest.raises(InputError, match="it must be 1 to 1000"):
        DemoSite("x", scenario, 0.5)
    near = tuple(replace(each, delay_s=0.0) for each in scenario.devices)
    turns = replace(scenario, devices=near, cell=replace(scenario.cell, multiple_access="tdma"))
    with pytest.raises(InputError, match="tdma"):
        DemoSite("x", turns, 1.0)
    bare = replace(scenario, devices=(replace(scenario.devices[0], spectral_efficiency=None, snr_hz=1e6),))
    with pytest.raises(InputError, match="needs the key spectral_efficiency"):
        site_crew(bare, True, (), (), 0)


def test_what_a_running_edge_has_no_setting_for_is_named(scenario):
    assert DemoSite("x", scenario, 1.0).unplayed == ()
    first, *others = scenario.devices
    wanted = replace(first, weight=2.0, min_goodput_tokens_per_s=1.0, max_draft_length=0, min_draft_length=0)
    site = DemoSite("x", replace(scenario, devices=(wanted, *others)), 1.0)
    assert site.unplayed == ("weight", "min_goodput_tokens_per_s")


def test_a_device_that_drafts_nothing_has_no_drafter(scenario):
    first, *others = scenario.devices
    silent = replace(scenario, devices=(replace(first, max_draft_length=0, min_draft_length=0), *others))
    assert [spec.drafter for spec in site_crew(silent, True, ("q4",), (), 0)] == ["none", *["q4"] * len(others)]


def test_no_draft_is_longer_than_the_protocol_allows(scenario):
    long = DemoSite("x", replace(scenario, cell=replace(scenario.cell, max_draft_length=100)), 1.0)
    told = long.serve(edge_drafts=False)
    assert told[told.index("--max-draft-length") + 1] == "63"
