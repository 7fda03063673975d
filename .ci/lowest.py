"""Print the lowest versions that pyproject.toml declares, as constraints for pip: `make test-lowest` uses it."""

import re
import tomllib
from pathlib import Path

EXTRAS = ("models", "figures", "ray")

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"] + [r for e in EXTRAS for r in project["optional-dependencies"][e]]:
    name, lowest = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,.*)?", requirement).groups()
    print(f"{name}=={lowest}")
