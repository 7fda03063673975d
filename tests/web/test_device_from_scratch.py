"""The example of a device without multispin, which uses nothing but what docs/protocol.md says."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "device_from_scratch.py"


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_it_writes_the_targets_text(tiny, mode):
    if importlib.util.find_spec("multispin_wllama") is None:
        pytest.skip("multispin-wllama is not installed: there is no page whose answers a device reads (make web)")
    command = [sys.executable, "-I", EXAMPLE]
    tiny.run(tiny.is_written_by(command, "Count from one to twenty.", mode))
