"""A short form of `make soak`."""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

if not Path("/proc/self/statm").exists():
    pytest.skip("memory and descriptors are read from /proc", allow_module_level=True)

spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
soak = importlib.util.module_from_spec(spec)
sys.modules["soak"] = soak
spec.loader.exec_module(soak)


def test_nothing_grows_while_devices_come_and_go():
    assert "none wrong" in asyncio.run(soak.soak(10.0, 4))


def test_growth_is_seen(monkeypatch):
    looks = iter([(2**30, 10, 4), (2**30 + 2**28, 10, 4)])
    monkeypatch.setattr(soak, "counted", lambda: next(looks))
    with pytest.raises(AssertionError, match="memory grew"):
        asyncio.run(soak.soak(0.5, 1))
