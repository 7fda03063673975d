"""The device of the JavaScript client's README, from an empty folder to a real edge."""

import asyncio
import importlib.util
import os
import re
from pathlib import Path

import pytest
from tests.fuzz import javascript
from tests.web.site import SECRET

from multispin.errors import InputError
from multispin.models import decode_alone
from multispin.protocol.events import Connected
from multispin.speculation import SamplingParams

pytestmark = [pytest.mark.embedded, pytest.mark.processes]

PACKAGE = Path(__file__).resolve().parents[2] / "clients" / "js"
QUESTION = "Count from one to twenty."


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_the_device_of_its_readme_writes_the_targets_text(target, tmp_path, mode):
    try:
        node = javascript.node()
    except InputError as error:
        pytest.skip(str(error))
    if importlib.util.find_spec("multispin_wllama") is None:
        pytest.skip("multispin-wllama is not installed: there is no page whose answers a device reads (make web)")
    (program,) = re.findall(
        r"Write this to `device\.mjs`:\n\n```js\n(.*?)```", (PACKAGE / "README.md").read_text(), re.S
    )
    (tmp_path / "device.mjs").write_text(program)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "multispin-device").symlink_to(PACKAGE)  # as npm install does with a folder

    async def scenario():
        async with target.edge(mode=mode) as edge:
            command = [node, "--experimental-websocket", "device.mjs", edge.address, QUESTION]
            pipe = asyncio.subprocess.PIPE
            environment = {**os.environ, "MULTISPIN_CREDENTIAL": SECRET}
            ran = await asyncio.create_subprocess_exec(
                *command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe
            )
            said, errors = await asyncio.wait_for(ran.communicate(), 120)
            assert ran.returncode == 0, errors.decode()
            prompt = target.tokenizer.encode_chat(QUESTION)
            own = decode_alone(target.model, prompt, SamplingParams(), 64, target.tokenizer.stop_ids)
            assert said.decode().strip() == target.tokenizer.decode(own).strip()
            assert [event.drafter for event in edge.events if isinstance(event, Connected)] == ["copies"]
            devices = [device for event in edge.events for device in getattr(event, "devices", ())]
            assert sum(device.drafted for device in devices) > 0

    target.run(scenario())
