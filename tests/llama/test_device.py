"""A device without torch and transformers, with a real edge (`make device-llama`).

The device lives in this environment; MULTISPIN names the command that serves, in another one.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from tests.edge_process import EXPECTED, QUESTION, running_edge

MOST_MEMORY_KIB = 300 * 1024


@pytest.fixture(scope="module")
def edge():
    """The address of a running edge."""
    with running_edge() as port:
        yield f"ws://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """Runs a device in whose cache nothing of an earlier run, or of another environment, is found.

    Gives its last event, and the most memory that it had [KiB].
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    code = (
        "import resource, sys; from multispin.cli.main import run; code = run(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); "
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules); sys.exit(code)"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, "device", *arguments, "--json"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=480, env=environment)
        assert ran.returncode == 0, ran.stderr
        *_, done, memory = ran.stdout.splitlines()
        return json.loads(done), int(memory)

    return run


def test_this_environment_has_no_torch():
    assert not [name for name in ("torch", "transformers", "tokenizers") if importlib.util.find_spec(name)]


@pytest.mark.parametrize("draft", ["small", "embedded", "q8", "lookup", "none"])
def test_a_device_writes_the_targets_text(edge, device, draft):
    done, _ = device(edge, "--draft", draft, "--prompt", QUESTION, "--max-tokens", "12")
    assert done["text"] == EXPECTED
    assert (done["accepted"] > 0) == (draft not in ("lookup", "none"))


@pytest.mark.parametrize("draft", ["small", "embedded"])
def test_it_fits_a_small_machine(edge, device, draft):
    device(edge, "--draft", draft, "--prompt", QUESTION, "--max-tokens", "2")  # makes the file
    _, memory = device(edge, "--draft", draft, "--prompt", QUESTION, "--max-tokens", "12", "--temperature", "0.8")
    assert memory < MOST_MEMORY_KIB


def test_what_needs_torch_is_one_sentence():
    ran = subprocess.run(
        [sys.executable, "-m", "multispin", "device", "--draft", "q4", "--prompt", "x"], capture_output=True, text=True
    )
    *loading, sentence = ran.stderr.splitlines()
    assert ran.returncode == 2
    assert loading in ([], ["multispin: loading q4"])  # told where it takes long
    assert "pip install '.[models]'" in sentence
