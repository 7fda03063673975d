"""A demo's processes, forked from one that has imported PyTorch or started anew: the same orders, the same ends."""

import asyncio
import os

import pytest

from multispin.demo.crew import DeviceSpec
from multispin.demo.processes import YIELDING, Crew
from multispin.errors import InputError

pytestmark = pytest.mark.processes

DEVICE = DeviceSpec("phone", "lookup", 0.01, 2.0, "yours", "one two one two", 5)


@pytest.mark.parametrize("forks", [True, False], ids=["forked", "anew"])
def test_devices_start_draft_and_end(tiny_folder, forks):
    started = {}

    async def scenario():
        crew = Crew([DEVICE], ("--target", tiny_folder, "--max-tokens", "8"), started.__setitem__, forks)
        try:
            await crew.start()
            found = await crew.time_drafting(4)
            sessions = {name: os.getsid(pid) for name, pid in started.items()}
            nicer = os.getpriority(os.PRIO_PROCESS, started["phone"]) - os.getpriority(os.PRIO_PROCESS, 0)
        finally:
            await crew.stop()
        return found, sessions, nicer

    found, sessions, nicer = asyncio.run(scenario())
    assert found["phone"] > 0.0
    assert nicer == min(YIELDING, 19 - os.getpriority(os.PRIO_PROCESS, 0))
    assert sessions == started  # Ctrl-C in this terminal does not reach them
    with pytest.raises(ProcessLookupError):
        os.kill(started["phone"], 0)


@pytest.mark.parametrize("forks", [True, False], ids=["forked", "anew"])
def test_what_a_process_says_before_it_ends_is_the_error(tiny_folder, forks):
    async def scenario():
        crew = Crew([DEVICE], ("--target", tiny_folder, "--top-p", "7"), lambda *_: None, forks)
        try:
            await crew.start()
        finally:
            await crew.stop()

    with pytest.raises(InputError, match="top_p"):
        asyncio.run(scenario())
