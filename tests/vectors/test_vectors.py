"""The vectors for devices in other languages are what this package does, and the JavaScript client passes them."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
from tests.fuzz import javascript

from multispin.errors import InputError

CLIENTS = Path(__file__).resolve().parents[2] / "clients"


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_vectors", CLIENTS / "make_vectors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def node():
    """Path of node; skips where there is none, or only an older one."""
    try:
        return javascript.node()
    except InputError as error:
        pytest.skip(str(error))


def test_the_files_of_vectors_are_what_this_package_does(maker):
    found = maker.vectors()
    assert {path.name for path in maker.FOLDER.iterdir()} == found.keys()
    for name, values in found.items():
        written = json.loads((maker.FOLDER / name).read_text(encoding="utf-8"))
        assert written == json.loads(maker.as_text(values)), f"{name}: run python clients/make_vectors.py"


def test_the_javascript_client_passes_its_tests_and_the_vectors():
    done = subprocess.run([node(), "--test"], cwd=CLIENTS / "js", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "\n# pass 0\n" not in done.stdout
    assert "a whole text, greedy" in done.stdout
