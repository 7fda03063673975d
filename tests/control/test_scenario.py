"""Validation, files, and what a refusal says."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from multispin.control import Cell, Device, Scenario, Verification, dump_scenario, load_scenario, parse_scenario
from multispin.control.goodput import expected_tokens, expected_tokens_table
from multispin.errors import InputError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "scenarios"
GOOD = """\
[cell]
bandwidth_hz = 10e6
bits_per_token = 31744
[verifier]
fixed_s = 0.02
per_device_s = 0.01
[[device]]
name = "a"
seconds_per_token = 0.01
spectral_efficiency = 7.2
acceptance_rate = 0.8
[[device]]
name = "b"
seconds_per_token = 0.02
spectral_efficiency = 3
acceptance_profile = [0.9, 0.7]
"""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seconds_per_token": math.nan}, "device 'a': seconds_per_token is nan; it must be a finite number > 0"),
        ({"seconds_per_token": -1}, "device 'a': seconds_per_token is -1; it must be > 0"),
        ({"spectral_efficiency": 0}, "device 'a': spectral_efficiency is 0; it must be > 0"),
        ({"acceptance_rate": 1.5}, r"device 'a': acceptance_rate is 1.5; it must be in \[0, 1\]"),
        ({"acceptance_rate": None}, "give either acceptance_rate or acceptance_profile"),
        ({"acceptance_profile": (0.5,)}, "give either acceptance_rate or acceptance_profile"),
        ({"acceptance_rate": None, "acceptance_profile": ()}, "must be a non-empty list"),
        ({"acceptance_rate": None, "acceptance_profile": (0.5, 2)}, "acceptance_profile at position 2 is 2"),
        ({"weight": math.inf}, "weight is inf; it must be a finite number >= 0"),
        ({"weight": "much"}, "weight is 'much'"),
        ({"min_goodput_tokens_per_s": -2}, "min_goodput_tokens_per_s is -2; it must be >= 0"),
        ({"max_draft_length": 2.5}, "max_draft_length is 2.5; it must be a whole number in"),
        ({"max_draft_length": 3, "min_draft_length": 4}, "min_draft_length 4 is above max_draft_length 3"),
        ({"bits_per_token": True}, "bits_per_token is True"),
        ({"name": ""}, "device.name is ''"),
    ],
)
def test_a_refused_device_says_field_value_and_range(values, message):
    good = {"name": "a", "seconds_per_token": 0.01, "spectral_efficiency": 5.0, "acceptance_rate": 0.8}
    Device(**good)
    with pytest.raises(InputError, match=message):
        Device(**(good | values))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cell(0, 100), "cell.bandwidth_hz is 0; it must be > 0"),
        (lambda: Cell(1e6, math.nan), "cell.bits_per_token is nan"),
        (lambda: Cell(1e6, 100, 3, 5), "min_draft_length 5 is above max_draft_length 3"),
        (lambda: Cell(1e6, 100, 10_000), r"cell.max_draft_length is 10000; it must be a whole number in \[0, 1024\]"),
        (lambda: Verification(-1, 0.1), "verifier.fixed_s is -1; it must be >= 0"),
        (lambda: Verification(0, 0), "are all 0; one of them must be positive"),
        (lambda: Verification(0.1, 0, padded=1), "verifier.padded is 1; it must be true or false"),
        (lambda: Scenario(Cell(1e6, 1), Verification(1, 0), ()), "there is no device"),
    ],
)
def test_a_refused_table_says_field_value_and_range(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_names_are_unique_and_some_weight_is_positive():
    a = Device("a", 0.01, 5, 0.8)
    with pytest.raises(InputError, match="the name is used twice"):
        Scenario(Cell(1e6, 1), Verification(1, 0), (a, a))
    with pytest.raises(InputError, match="weights are all 0"):
        Scenario(Cell(1e6, 1), Verification(1, 0), (dataclasses.replace(a, weight=0.0),))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("acceptance_rate = 0.8", "acceptance_rate = 1.8", "file.toml, line 11: device 'a': acceptance_rate is 1.8"),
        (
            "acceptance_rate = 0.8",
            "acceptance = 0.8",
            r"file.toml, line 11: unknown key 'acceptance' in \[\[device\]\]",
        ),
        (
            "spectral_efficiency = 3\n",
            "",
            "file.toml, line 12: device 'b': give either spectral_efficiency or snr_hz, and not both",
        ),
        ('name = "b"', 'name = "a"', "file.toml, line 13: device 'a': the name is used twice"),
        ("bandwidth_hz = 10e6", "bandwidth_hz = 0", "file.toml, line 2: cell.bandwidth_hz is 0"),
        ("bandwidth_hz = 10e6", "bandwidth_hz = nan", "file.toml, line 2: cell.bandwidth_hz is nan"),
        ("[verifier]", "[server]", r"file.toml, line 4: unknown table or key 'server'"),
        ("fixed_s = 0.02", "fixed_s = ", r"file.toml is not valid TOML: .*line 5"),
        ("acceptance_profile = [0.9, 0.7]", "acceptance_profile = [0.9, 7]", "line 16: device 'b': acceptance_profile"),
        ("[cell]", "[cell]\nmin_draft_length = 26", "line 2: cell: min_draft_length 26 is above max_draft_length 25"),
        ('name = "b"', 'name = "b"\nmin_draft_length = 30', "line 14: device 'b': min_draft_length 30 is above"),
    ],
)
def test_a_refused_file_says_where(old, new, message):
    parse_scenario(GOOD)
    assert old in GOOD
    with pytest.raises(InputError, match=message):
        parse_scenario(GOOD.replace(old, new), "file.toml")


def test_missing_tables_and_files(tmp_path):
    with pytest.raises(InputError, match=r"table \[cell\] is missing"):
        parse_scenario("")
    with pytest.raises(InputError, match="there is no device"):
        parse_scenario(GOOD[: GOOD.index("[[device]]")])
    with pytest.raises(InputError, match="devices are written"):
        parse_scenario(GOOD[: GOOD.index("[[device]]")] + "[device]\nname = 'a'\n")
    with pytest.raises(InputError, match=r"nothing\.toml cannot be read"):
        load_scenario(tmp_path / "nothing.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match="is not UTF-8"):
        load_scenario(tmp_path / "bytes.toml")


def test_files_come_back_equal(draw, tmp_path):
    random = np.random.default_rng(0)
    for _ in range(50):
        scenario = draw(random, 5, minimum=True)
        odd = dataclasses.replace(scenario.devices[0], name='quote " back \\ tab \t ü 漢')
        scenario = dataclasses.replace(scenario, devices=(odd, *scenario.devices[1:]))
        (tmp_path / "s.toml").write_text(dump_scenario(scenario), encoding="utf-8")
        assert load_scenario(tmp_path / "s.toml") == scenario


@pytest.mark.parametrize(
    "name", ["paper-llama", "paper-qwen", "followup-qwen", "modes-llama", "raspberry-classroom", "thousand-phones"]
)
def test_bundled_examples_load(name):
    assert load_scenario(EXAMPLES / f"{name}.toml").devices


def test_expected_tokens_are_the_sum_of_survival():
    assert float(expected_tokens(0.8, 4)) == pytest.approx(3.3616)
    assert expected_tokens([0, 1, 1 - 1e-14], 9) == pytest.approx([1, 10, 10])
    table = expected_tokens_table(np.full((9, 1), 0.8))
    assert table[:, 0] == pytest.approx(expected_tokens(0.8, np.arange(10)))
    # E[N] from the distribution of eq. 11: Pr(N = l) = α^(l−1)(1 − α), Pr(N = L + 1) = α^L.
    distribution = sum(n * 0.8 ** (n - 1) * 0.2 for n in range(1, 5)) + 5 * 0.8**4
    assert float(expected_tokens(0.8, 4)) == pytest.approx(distribution)
    profile = expected_tokens_table(np.array([[0.9], [0.5], [0.0], [1.0]]))
    assert profile[:, 0] == pytest.approx([1, 1.9, 2.35, 2.35, 2.35])


def test_what_only_a_simulation_reads_is_looked_past_and_named_where_a_plan_needs_more():
    keys = 'lost_s = 3.0\nacceptance_trace = "t.json"\n'
    timed = GOOD.replace("acceptance_rate", keys + "acceptance_rate") + "[simulation]\ntokens_per_request = 64\n"
    assert parse_scenario(timed) == parse_scenario(GOOD)
    with pytest.raises(InputError, match="line 12: acceptance_trace is for `multispin simulate` alone"):
        parse_scenario(timed.replace("acceptance_rate = 0.8\n", ""))
