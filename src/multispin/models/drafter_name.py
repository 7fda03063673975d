"""The names of drafters, as every command takes them: parsed in one place, before anything is loaded.

lookup                    prompt lookup: copies what followed the newest few tokens before
none                      drafts nothing
small | medium | large    distilled from the embedded target; data of the package `multispin-drafters`
q3 … q8[:MODEL]           MODEL, by default the target, with its weights rounded to this many bits
FOLDER                    a drafter that `multispin distill` wrote
MODEL                     any model reference (see `references`)
"""

import re
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from pathlib import Path

from multispin.checks import shown
from multispin.errors import InputError
from multispin.models.references import INSTALL_EMBEDDED, embedded_is_installed, locate, there
from multispin.outside import user_path, whole_characters

SHIPPED = ("small", "medium", "large")
"""Distilled drafters of the embedded target, by size: the data of the package `multispin-drafters`."""
CARD_FILE = "drafter.json"
"""The file that makes a folder a distilled drafter."""
FEWEST_BITS, MOST_BITS = 3, 8


class DrafterKind(Enum):
    """The kinds of drafter that a name can stand for."""

    LOOKUP = "lookup"
    NONE = "none"
    ROUNDED = "rounded"
    DISTILLED = "distilled"
    MODEL = "model"


@dataclass(frozen=True)
class DrafterName:
    """A drafter's name, parsed.

    Attributes:
        text: the name as it was written.
        kind: the kind of drafter behind the name.
        reference: the model that drafts, for `rounded` and `model`; "" under `rounded` for the target itself.
        bits: bits of a rounded model's weights, 3 … 8; 0 for the other kinds.
        folder: folder of a distilled drafter; None for the other kinds.

    """

    text: str
    kind: DrafterKind
    reference: str = ""
    bits: int = 0
    folder: Path | None = None

    @property
    def needs_model(self) -> bool:
        """Whether it runs a language model."""
        return self.kind not in (DrafterKind.LOOKUP, DrafterKind.NONE)

    @classmethod
    def parse(cls, text: str) -> "DrafterName":
        """Parse a name; InputError if it cannot be one. Whether a model is there is for `check`."""
        if not isinstance(text, str | Path):
            raise InputError(f"a drafter's name is {shown(text)}; it must be text")
        text = str(text)
        if text in ("lookup", "none"):
            return cls(text, DrafterKind(text))
        if text in SHIPPED:
            return cls(text, DrafterKind.DISTILLED, folder=shipped_folder(text))
        if rounded := re.fullmatch(r"q(\d)(?::(.*))?", text, re.DOTALL):
            bits, reference = int(rounded[1]), rounded[2]
            if not FEWEST_BITS <= bits <= MOST_BITS:
                raise InputError(f"the drafter {text!r} asks for {bits} bits, outside {FEWEST_BITS} … {MOST_BITS}")
            if reference == "":
                raise InputError(f"the drafter {text!r} has no model after the colon: leave it out for the target")
            return cls(text, DrafterKind.ROUNDED, reference or "", bits)
        if not text:
            raise InputError("the drafter's name is empty: give a model, small, medium, large, lookup, none or q3 … q8")
        folder = user_path(whole_characters(text, f"the name of the drafter {text!r}"))
        if there(folder, text) and is_drafter(folder):
            return cls(text, DrafterKind.DISTILLED, folder=folder)
        return cls(text, DrafterKind.MODEL, text)

    def check(self) -> None:
        """InputError if it names a model that is not there; cheap, for before long work."""
        if self.reference:
            locate(self.reference)


def check_drafter_name(spec: str) -> None:
    """InputError if `spec` names no drafter, or one that is not there."""
    DrafterName.parse(spec).check()


def is_drafter(folder: Path) -> bool:
    """Whether a folder holds a distilled drafter."""
    return (folder / CARD_FILE).is_file()


def shipped_folder(name: str) -> Path:
    """The folder of a shipped drafter; InputError if the package that holds it is not installed."""
    try:
        return Path(str(resources.files("multispin_drafters"))) / name
    except ModuleNotFoundError:
        raise InputError(
            f"the drafter {name!r} is in a package of its own, which is not installed: "
            f"run `pip install ./packages/multispin-drafters` in a clone of multispin{_target_too()}"
        ) from None


def _target_too() -> str:
    """The end of a sentence that asks for the drafters: how to install their target, where it is missing as well."""
    if embedded_is_installed():
        return ""
    return f", and `{INSTALL_EMBEDDED}` for the embedded target, to which they belong"
