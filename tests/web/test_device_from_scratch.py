"""The example of a device without multispin, which uses nothing but what docs/protocol.md says."""

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import pytest
from tests.web.site import SECRET

from multispin.models import decode_alone
from multispin.protocol.events import Connected
from multispin.speculation import SamplingParams

pytestmark = [pytest.mark.embedded, pytest.mark.processes]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "device_from_scratch.py"
QUESTION = "Count from one to twenty."


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_it_writes_the_targets_text(target, tmp_path, mode):
    if importlib.util.find_spec("multispin_wllama") is None:
        pytest.skip("multispin-wllama is not installed: there is no page whose answers a device reads (make web)")

    async def scenario():
        async with target.edge(mode=mode) as edge:
            pipe = asyncio.subprocess.PIPE
            environment = {**os.environ, "MULTISPIN_CREDENTIAL": SECRET}
            command = [sys.executable, "-I", EXAMPLE, edge.address, QUESTION]
            ran = await asyncio.create_subprocess_exec(*command, env=environment, stdout=pipe, stderr=pipe)
            said, errors = await asyncio.wait_for(ran.communicate(), 120)
            assert ran.returncode == 0, errors.decode()
            prompt = target.tokenizer.encode_chat(QUESTION)
            own = decode_alone(target.model, prompt, SamplingParams(), 64, target.tokenizer.stop_ids)
            assert said.decode().strip() == target.tokenizer.decode(own).strip()
            assert [event.drafter for event in edge.events if isinstance(event, Connected)] == ["copies"]
            devices = [device for event in edge.events for device in getattr(event, "devices", ())]
            assert sum(device.drafted for device in devices) > 0

    target.run(scenario())
