"""What a simulated drafter gets right: independent chances, and recordings."""

import json
from pathlib import Path

import numpy as np
import pytest

from multispin.control.goodput import expected_tokens
from multispin.errors import InputError
from multispin.estimation.traces import Trace, Traces, load_traces, save_traces
from multispin.simulation.acceptance import IndependentAcceptance, TraceAcceptance
from multispin.simulation.setup import ScenarioFile


def recorded(*accepts):
    return Traces("t", "d", 0.0, tuple(Trace("p", "code", text) for text in accepts))


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 1.0])
def test_right_tokens_follow_the_geometric_distribution(rate):
    luck = IndependentAcceptance([rate], np.random.default_rng(1))
    counts = np.bincount([luck.right(0, 6) for _ in range(20_000)], minlength=7) / 20_000
    distribution = np.array([rate**n * (1 - rate) for n in range(6)] + [rate**6])
    # Each frequency within 4.5 standard errors.
    assert np.all(np.abs(counts - distribution) <= 4.5 * np.sqrt(distribution * (1 - distribution) / 20_000))
    assert np.dot(counts, np.arange(1, 8)) == pytest.approx(float(expected_tokens(rate, 6)), abs=0.08)


def test_a_profile_gives_every_position_its_own_chance():
    luck = IndependentAcceptance([1.0, 0.5, 0.0], np.random.default_rng(2))
    counts = np.bincount([luck.right(0, 8) for _ in range(20_000)], minlength=3) / 20_000
    assert counts[1] == pytest.approx(0.5, abs=4.5 * 0.5 / np.sqrt(20_000))
    assert counts[1] + counts[2] == 1.0


def test_longer_drafts_extend_the_last_chance():
    luck = IndependentAcceptance([1.0], np.random.default_rng(3))
    assert [luck.right(0, length) for length in (2, 0, 40)] == [2, 0, 40]


def test_a_recording_is_walked_along_and_goes_on_with_its_next_text():
    traces = recorded("1101", "0", "111")
    walk = TraceAcceptance(traces, np.random.default_rng(0))
    lengths = [walk.next_text() for _ in range(6)]
    assert sorted(lengths[:3]) == [1, 3, 4]
    assert lengths[3:] == lengths[:3]
    while walk.next_text() != 4:
        pass
    assert [walk.right(0, n) for n in (0, 1, 2, 3, 9)] == [0, 1, 2, 2, 2]
    assert walk.right(2, 5) == 0
    assert walk.right(3, 5) == 1  # what lies beyond the end of the text is never right
    assert walk.right(4, 5) == 0


def test_the_rate_of_a_recording_is_its_share_of_right_tokens():
    assert Traces(
        "t", "d", 0.0, tuple(Trace("p", "code", accepts) for accepts in ("1101", "0", "111"))
    ).rate == pytest.approx(6 / 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "is not a recording"),
        ('{"format": "other"}', "is not a recording"),
        ('{"format": "multispin-trace-1"}', '"traces" must be a list'),
        ('{"format": "multispin-trace-1", "traces": []}', '"traces" is empty'),
        ('{"format": "multispin-trace-1", "traces": [{"accepts": "012"}]}', "trace 0 must be a text of 0 and 1"),
        ('{"format": "multispin-trace-1", "traces": [{"accepts": ""}]}', "trace 0 must be"),
        ('{"format": "multispin-trace-1", "temperature": "hot", "traces": [{"accepts": "1"}]}', "temperature"),
    ],
)
def test_a_damaged_recording_is_refused_with_its_name(text, message, tmp_path):
    file = tmp_path / "trace.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_traces(file)
    assert "trace.json" in str(caught.value)


def test_a_recording_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "trace.json"
    document = {
        "format": "multispin-trace-1",
        "target": "large",
        "drafter": "small",
        "temperature": 0.7,
        "traces": [{"prompt": "Hi", "task": "chat", "accepts": "110"}, {"prompt": "x", "task": "y", "accepts": "1"}],
    }
    save_traces(file, "large", "small", 0.7, (Trace("Hi", "chat", "110"), Trace("x", "y", "1"), Trace("z", "y", "")))
    assert json.loads(file.read_text()) == document  # a text without a position is left out
    assert load_traces(file) == Traces("large", "small", 0.7, (Trace("Hi", "chat", "110"), Trace("x", "y", "1")))


def test_the_example_is_a_recording():
    example = Path(__file__).resolve().parents[2] / "examples" / "scenarios" / "recorded.toml"
    setup = ScenarioFile(example).setup()
    assert all(life.traces is not None and len(life.traces.texts) == 8 for life in setup.lives)
    assert 0.4 < setup.scenario.devices[0].acceptance_rate < 0.7
