"""Training prompts: templates of each task family, with words and numbers filled in."""

import re
import tomllib
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from multispin.data import TASKS

_SLOT = re.compile(r"\{(?:(\d+)-(\d+)|(\w+))\}")


def training_prompts(count: int, generator: np.random.Generator) -> list[str]:
    """Draw prompts, the task families taking turns.

    Args:
        count: number of prompts.
        generator: chooses templates, words and numbers.

    Returns:
        User messages, without chat template. Repetitions are possible, and rare: the templates make some millions.

    """
    source = _templates()
    words: dict[str, list[str]] = source["words"]

    def fill(match: re.Match[str]) -> str:
        low, high, name = match.groups()
        if name is None:
            return str(generator.integers(int(low), int(high) + 1))
        return words[name][generator.integers(len(words[name]))]

    prompts = []
    for k in range(count):
        templates: list[str] = source["templates"][TASKS[k % len(TASKS)]]
        prompts.append(_SLOT.sub(fill, templates[generator.integers(len(templates))]).strip())
    return prompts


@cache
def _templates() -> dict[str, Any]:
    return tomllib.loads(resources.files("multispin.data").joinpath("templates.toml").read_text(encoding="utf-8"))
