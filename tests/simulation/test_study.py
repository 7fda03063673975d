"""Scenario files with a life, sweeps, and many runs."""

import itertools
from dataclasses import replace

import pytest

from multispin.control import load_scenario
from multispin.errors import InputError
from multispin.simulation.measures import measure
from multispin.simulation.setup import Behaviour, DeviceLife, ScenarioFile
from multispin.simulation.site import Site
from multispin.simulation.study import (
    SimulatedRun,
    as_document,
    parse_sweep,
    points,
    results_of,
    run_all,
    runs_of,
    simulate,
)

TEXT = """\
[cell]
bandwidth_hz = 2e6
bits_per_token = 4000
max_draft_length = 8
[verifier]
fixed_s = 0.02
per_device_s = 0.01
[simulation]
tokens_per_request = [20, 40]
prompt_tokens = 5
[[device]]
name = "a"
seconds_per_token = 0.01
spectral_efficiency = 4
acceptance_trace = "a.json"
[[device]]
name = "b"
seconds_per_token = 0.02
spectral_efficiency = 3
acceptance_rate = 0.7
arrives_s = 1.5
efficiency_trace = "b.csv"
"""
TRACE = '{"format": "multispin-trace-1", "traces": [{"accepts": "1101"}, {"accepts": "1111"}]}'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(TEXT)
    (tmp_path / "a.json").write_text(TRACE)
    (tmp_path / "b.csv").write_text("0,3\n1,4\n")
    return path


def test_a_file_says_what_happens_over_time(file):
    setup = ScenarioFile(file).setup()
    assert setup.behaviour == Behaviour(tokens_per_request=(20, 40), prompt_tokens=5)
    first, second = setup.lives
    assert first.traces is not None
    assert setup.scenario.devices[0].acceptance_rate == pytest.approx(7 / 8)
    assert (second.arrives_s, second.link.spectral_efficiency) == (1.5, (3.0, 4.0))


def test_a_recording_is_followed_to_the_letter(file):
    setup = ScenarioFile(file).setup({"simulation.prompt_tokens": 1})
    alone = replace(setup, scenario=replace(setup.scenario, devices=setup.scenario.devices[:1]), lives=setup.lives[:1])
    site = Site(alone, "fixed", 1)
    site.run(40)
    record = site.devices[0].record
    # Three of four tokens are drafted, the last is the target's own: "1111" takes one round, "1101" two.
    bounds = [*record.first, len(record.counts)]
    texts = [list(record.counts[a:b]) for a, b in itertools.pairwise(bounds)]
    assert {tuple(text) for text in texts[:-1]} == {(4,), (3, 1)}


def test_a_sweep_changes_tables_devices_and_their_number(file):
    changed = ScenarioFile(file).setup(
        {"cell.bandwidth_hz": 5, "simulation.prompt_tokens": 7, "device.seconds_per_token": 0.5, "devices": 1}
    )
    assert changed.scenario.cell.bandwidth_hz == 5
    assert changed.behaviour.prompt_tokens == 7
    assert [device.seconds_per_token for device in changed.scenario.devices] == [0.5]
    assert len(ScenarioFile(file).setup().scenario.devices) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell.bandwidth": 1}, "unknown key 'bandwidth'"),
        ({"cell.bandwidth_hz": -1}, "bandwidth_hz is -1"),
        ({"simulation.slots": 0}, "simulation.slots is 0"),
        ({"simulation.tokens": 0}, "unknown key 'tokens'"),
        ({"simulation.fading": "rician"}, "simulation.fading is 'rician'"),
        ({"simulation.tokens_per_request": [3, 1]}, "the first must not be above the second"),
        ({"simulation.tokens_per_request": [3]}, r"\[least, greatest\]"),
        ({"simulation.prompt_tokens": 0}, "simulation.prompt_tokens is 0"),
        ({"simulation.pause_s": float("nan")}, "simulation.pause_s is nan"),
        ({"simulation.straggler_probability": 1.5}, "simulation.straggler_probability is 1.5"),
        ({"simulation.mean_away_s": 3}, "mean_away_s"),
        ({"device.arrives_s": -1}, "device.arrives_s is -1"),
        ({"device.leaves_s": 0.2}, "device.leaves_s = 0.2 is before device.arrives_s = 1.5"),
        ({"device.acceptance_trace": 7}, "acceptance_trace is 7"),
        ({"device.acceptance_trace": ["a.json"]}, "acceptance_trace is \\['a.json'\\]"),
        ({"device.efficiency_trace": {"a": 1}}, "efficiency_trace is {'a': 1}"),
        ({"device.acceptance_trace": "no.json"}, "no.json cannot be read"),
        ({"device.max_draft_length": 64}, "over 63"),
        ({"devices": 3}, r"devices is 3; it must be a whole number in \[1, 2\]"),
        ({"colour": 3}, "'colour' is not a key that can be changed: name devices"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(changes, message, file):
    with pytest.raises(InputError, match=message):
        ScenarioFile(file).setup(changes)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("cell = 3", "cell.bandwidth_hz", r"cell must be a table, written \[cell\]"),
        ("device = [1, 2]", "device.acceptance_rate", r"device must be a table, written \[\[device\]\]"),
    ],
)
def test_a_value_of_what_is_no_table_is_refused(text, key, message, tmp_path):
    path = tmp_path / "site.toml"
    others = "[cell]\nbandwidth_hz = 1e6\nbits_per_token = 16\n[verifier]\nfixed_s = 0.1\nper_device_s = 0.1\n"
    rest = "" if text.startswith("cell") else others
    path.write_text(f"{text}\n{rest}")
    with pytest.raises(InputError, match=message):
        ScenarioFile(path).setup({key: 1.0})


def test_sweeps_are_ranges_or_lists():
    assert parse_sweep("cell.bandwidth_hz=5e6:20e6:4") == (
        "cell.bandwidth_hz",
        [5_000_000, 10_000_000, 15_000_000, 20_000_000],
    )
    assert parse_sweep("a=1:2:3") == ("a", [1, 1.5, 2])
    assert parse_sweep("simulation.fading=none,rayleigh") == ("simulation.fading", ["none", "rayleigh"])
    assert parse_sweep("verifier.padded=true,false") == ("verifier.padded", [True, False])
    assert points([("a", [1, 2]), ("b", [3])]) == [(("a", 1), ("b", 3)), (("a", 2), ("b", 3))]
    assert points([]) == [()]


@pytest.mark.parametrize(
    "text", ["", "a", "a=", "=1", "a=1:2", "a=1:2:0", "a=1:2:x", "a=x:2:3", "a=nan:1:2", "a=1:2:3:4"]
)
def test_a_sweep_that_makes_no_sense_is_refused(text):
    with pytest.raises(InputError, match=r"is not (KEY=FROM|FROM):TO:COUNT"):
        parse_sweep(text)


def test_a_key_swept_twice_or_too_many_points_are_refused():
    with pytest.raises(InputError, match="twice"):
        points([("a", [1]), ("a", [2])])
    with pytest.raises(InputError, match="more than"):
        points([("a", range(1000)), ("b", range(1000))])


def test_processes_change_nothing(file):
    scenario_file = ScenarioFile(file)
    grid = points([("cell.bandwidth_hz", [1_000_000, 2_000_000])])
    runs = runs_of(scenario_file, grid, ("homogeneous", "fixed"), (1, 2), 60, False)
    told = []
    alone, together = run_all(runs, 1), run_all(runs, 2, told.append)
    assert alone == together
    assert told[-1] == 1.0
    results = results_of(alone, grid, ("homogeneous", "fixed"), (1, 2))
    assert [(r.policy, r.point[0][1]) for r in results] == [
        ("homogeneous", 1_000_000), ("fixed", 1_000_000), ("homogeneous", 2_000_000), ("fixed", 2_000_000),
    ]  # fmt: skip
    assert results[1].runs == (alone[2], alone[3])
    document = as_document("x", 60, results, False)
    value = document["results"][0]["goodput_tokens_per_s"]
    assert value["low"] < value["mean"] < value["high"]


def test_modes_stand_beside_policies_which_matter_only_where_there_are_rounds(file):
    scenario_file = ScenarioFile(file)
    modes, policies = ("plain", "auto", "rounds", "mixture"), ("homogeneous", "fixed")
    runs = runs_of(scenario_file, [()], policies, (1, 2), 15, False, modes=modes)
    asked = [(run.mode, run.policy) for run in runs[::2]]
    assert asked == [
        *((mode, "homogeneous") for mode in modes[:2]),
        *((mode, policy) for mode in modes[2:] for policy in policies),
    ]
    measured = [object()] * len(runs)
    results = results_of(measured, [()], policies, (1, 2), modes)
    assert [(result.mode, result.policy) for result in results] == asked
    assert [result.label for result in results] == [
        *("plain", "auto", *policies),
        *("mixture, homogeneous", "mixture, fixed"),
    ]
    with pytest.raises(InputError, match="mode 'edge' needs a drafter of the edge's own"):
        runs_of(scenario_file, [()], policies, (1,), 15, False, modes=("edge",))


def test_measures_add_up(file):
    setup = ScenarioFile(file).setup()
    site = Site(setup, "homogeneous", 3)
    site.run(60)
    found = measure(site)
    records = [device.record for device in site.devices]
    assert found == simulate(SimulatedRun(setup, "homogeneous", 3, 60, False))
    assert found.text_tokens == sum(record.tokens for record in records)
    assert found.goodput_tokens_per_s == pytest.approx(found.text_tokens / found.simulated_s)
    assert found.rounds == 60
    shares = (found.server_utilisation, found.device_utilisation, found.uplink_utilisation, found.wasted_draft_fraction)
    assert all(0 < share < 1 for share in shares)
    assert found.time_per_token_s_p50 <= found.time_per_token_s_p95 <= found.time_per_token_s_p99
    assert 0.5 <= found.jain_index <= 1
    assert found.wasted_draft_fraction > found.dropped_draft_fraction == 0


@pytest.mark.parametrize("mode", ["rounds", "streams"])
@pytest.mark.parametrize("leaves_s", [None, 1.0])
def test_a_draft_counts_as_far_as_it_has_come(file, mode, leaves_s):
    # A device that is at its first token when it leaves, or when the run ends, has drafted all the time and no longer.
    setup = ScenarioFile(file).setup({"device.seconds_per_token": 100.0})
    alone = replace(setup.scenario, devices=setup.scenario.devices[:1])
    site = Site(replace(setup, scenario=alone, lives=(DeviceLife(leaves_s=leaves_s),)), "fixed", 1, mode=mode)
    site.run(3)
    assert site.devices[0].record.drafted > 0
    assert 0.5 < measure(site).device_utilisation < 1.0 + 1e-9


def test_what_never_happened_is_no_number(file):
    keys = {"simulation.prompt_tokens": 100_000, "device.arrives_s": 0.0, "device.leaves_s": 0.2}
    setup = ScenarioFile(file).setup(keys)
    found = simulate(SimulatedRun(setup, "fixed", 1, 10, False))
    assert found.time_to_first_token_s_p50 != found.time_to_first_token_s_p50
    assert found.text_tokens == 0
    assert as_document("x", 10, results_of([found], [()], ("fixed",), (1,)), False)["results"][0][
        "time_to_first_token_s_p50"
    ] == {"mean": None, "low": None, "high": None}


def test_a_life_is_not_needed(tmp_path):
    path = tmp_path / "plain.toml"
    path.write_text(TEXT.replace('acceptance_trace = "a.json"', "acceptance_rate = 0.5").split("arrives_s")[0].replace(
        "[simulation]\ntokens_per_request = [20, 40]\nprompt_tokens = 5\n", ""))  # fmt: skip
    setup = ScenarioFile(path).setup()
    assert setup.scenario == load_scenario(path)
    assert setup.lives == (DeviceLife(), DeviceLife())
