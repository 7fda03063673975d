"""Data that comes with the package: prompts, example scenarios, and the recording that one of these uses.

The prompts were written for it: twelve in each of the paper's four task families.

The families stand in for the data sets of Table I of arXiv 2606.04581 (MBPP+, GSM8K, MT-Bench, SQuAD), so that
devices differ in how well their drafts are accepted. They share no text with them and measure no one's skill.
"""

import re
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path

from multispin.checks import SHOWN_NAME, shown
from multispin.errors import InputError

TASKS: tuple[str, ...] = ("code", "arithmetic", "dialogue", "reading")
MAX_PROMPT_CHARACTERS = 1000  # short, so that a small model reads a prompt in a moment


@dataclass(frozen=True)
class Prompt:
    """One user message, without chat template.

    Attributes:
        name: unique and short, to be shown in a table.
        task: one of `TASKS`.
        text: text of the user message.

    """

    name: str
    task: str
    text: str

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("name of a prompt is empty")
        if self.task not in TASKS:
            raise InputError(f"task = {self.task!r} of prompt {self.name!r} is none of {', '.join(TASKS)}")
        if not 0 < len(self.text.strip()) <= MAX_PROMPT_CHARACTERS:
            raise InputError(f"text of prompt {self.name!r} is empty or longer than {MAX_PROMPT_CHARACTERS} characters")


def scenario_path(name: str) -> Path:
    """The scenario file that a user names: a path, or the bare name of a bundled one, such as "paper-llama".

    Raises:
        InputError: a bare word that is neither.

    """
    with suppress(OSError):  # a name that is too long for a file
        if name and Path(name).exists():
            return Path(name)
    bundled = bundled_scenarios()
    if name not in bundled and re.fullmatch(r"[\w-]*", name):
        raise InputError(
            f"there is no scenario {shown(name, SHOWN_NAME)}: name one of {', '.join(bundled)}, or a scenario file"
        )
    return bundled.get(name, Path(name))


def bundled_scenarios() -> dict[str, Path]:
    """The scenarios and sites that come with the package, by name."""
    return _files("scenarios") | bundled_sites()


def bundled_sites() -> dict[str, Path]:
    """The sites that come with the package, by name: scenarios of real hardware that `multispin demo` can play."""
    return _files("sites")


def _files(folder: str) -> dict[str, Path]:
    place = Path(str(resources.files(__name__))) / folder
    return {path.stem: path for path in sorted(place.glob("*.toml"))}


def load_prompts() -> tuple[Prompt, ...]:
    """All bundled prompts, the families taking turns, so that any first few are a mixture."""
    source = resources.files(__name__).joinpath("prompts.toml").read_text(encoding="utf-8")
    return parse_prompts(source)


def parse_prompts(source: str) -> tuple[Prompt, ...]:
    """Prompts of a TOML text with one `[[prompt]]` table each (name, task, text), the families taking turns."""
    try:
        tables = tomllib.loads(source)["prompt"]
        prompts = [Prompt(**{key: value.strip() for key, value in table.items()}) for table in tables]
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the prompts are not a list of [[prompt]] tables of name, task and text: {error}") from error
    for field in ("name", "text"):
        seen: set[str] = set()
        for prompt in prompts:
            value = getattr(prompt, field)
            if value in seen:
                raise InputError(f"{field} = {value!r} belongs to two prompts")
            seen.add(value)
    families = [[prompt for prompt in prompts if prompt.task == task] for task in TASKS]
    return tuple(prompt for turn in zip_longest(*families) for prompt in turn if prompt is not None)
