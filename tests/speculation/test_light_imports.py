"""Which rooms load which libraries, tried in processes of their own."""

import importlib
import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "tokenizers", "scipy", "vllm", "matplotlib")
LIGHT_ROOMS = [
    "radio",
    "control",
    "speculation",
    "estimation",
    "protocol",
    "passes",
    "device",
    "edge",
    "models",
    "cli.main",
]


def loaded_after(*statements, watched=HEAVY):
    """Per statement, run one after the other in a fresh interpreter, the watched libraries that are loaded then."""
    script = "import json, sys\nfor statement in json.loads(sys.argv[1]):\n exec(statement, globals())\n "
    script += f"print(json.dumps([name for name in {watched!r} if name in sys.modules]))"
    command = [sys.executable, "-c", script, json.dumps(statements)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rooms_that_handle_no_tensors_load_no_heavy_library():
    loaded = loaded_after(*(f"import multispin.{room}" for room in LIGHT_ROOMS))
    assert dict(zip(LIGHT_ROOMS, loaded, strict=True)) == {room: [] for room in LIGHT_ROOMS}


def test_a_draft_without_a_model_goes_on_the_air_without_torch():
    steps = (
        "from multispin.speculation import *",
        "params, form = SamplingParams(temperature=0.7), DistributionFormat(50, 8)",
        "drafted, distributions = PromptLookupDrafter().draft_distributions([1, 2, 3, 1, 2], 2, params, form)",
        "packed = pack_draft(drafted, distributions, Rule.REJECTION_UP, form)",
        "assert unpack_draft(packed, 2, Rule.REJECTION_UP, form, 0, 5)[0] == drafted == [3, 1]",
    )
    assert loaded_after(*steps)[-1] == []


def test_a_name_of_models_loads_what_it_needs():
    """Torch, which takes seconds: here it is asked for and refused."""
    lacking = "import sys; sys.modules['torch'] = None; asked = None"
    steps = (
        f"{lacking}\ntry:\n from multispin.models import Verifier\nexcept ImportError as error:\n asked = error.name"
    )
    loaded_after(steps, "assert asked == 'torch', asked")


def test_help_of_a_command_waits_for_no_library_that_it_does_not_need():
    commands = ("device", "token", "plan", "serve", "demo", "advise", "simulate", "profile")
    watched = ("numpy", "asyncio", "highspy")
    loaded = loaded_after(*(f"import multispin.cli.{each}" for each in commands), watched=watched)
    assert loaded[:2] == [[], []]
    assert "highspy" not in loaded[-1]


@pytest.mark.parametrize("room", ["", ".models", ".speculation", ".protocol", ".control", ".passes"])
def test_every_public_name_of_a_room_that_loads_lazily_is_found(room):
    module = importlib.import_module(f"multispin{room}")
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        module.nothing_of_the_kind  # noqa: B018
