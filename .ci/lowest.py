"""Print the lowest versions that pyproject.toml declares, as constraints for pip: `make test-lowest` uses it."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in [
    *project["dependencies"],
    *(each for name, requirements in extras.items() if name not in ("dev", "vllm") for each in requirements),
]:
    if (found := re.fullmatch(r"([\w-]+)>=([\d.]+)(,.*)?", requirement)) is not None:
        print(f"{found[1]}=={found[2]}")
