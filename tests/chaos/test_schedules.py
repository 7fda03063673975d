"""A short form of `make chaos`: four of its schedules, one for each mode."""

import importlib.util
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("schedules", Path(__file__).with_name("schedules.py"))
schedules = importlib.util.module_from_spec(spec)
sys.modules["schedules"] = schedules
spec.loader.exec_module(schedules)


@pytest.mark.processes
@pytest.mark.parametrize("seed", [4, 5, 6, 7])
def test_every_surviving_text_is_the_undisturbed_one(seed):
    assert "reconnections" in schedules.play(seed)


@pytest.mark.processes
def test_a_target_that_forgets_a_token_is_caught(monkeypatch):
    monkeypatch.setattr(schedules, "undisturbed", lambda prompt, count: [1] * count)
    with pytest.raises(AssertionError, match="differs"):
        schedules.play(6)
