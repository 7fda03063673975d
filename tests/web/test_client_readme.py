"""The device of the JavaScript client's README, from an empty folder to a real edge."""

import importlib.util
import re
from pathlib import Path

import pytest
from tests.fuzz import javascript

from multispin.errors import InputError

pytestmark = pytest.mark.processes

PACKAGE = Path(__file__).resolve().parents[2] / "clients" / "js"


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_the_device_of_its_readme_writes_the_targets_text(tiny, tmp_path, mode):
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

    command = [node, "--experimental-websocket", "device.mjs"]
    tiny.run(tiny.is_written_by(command, "Count from one to twenty.", mode, tmp_path))
