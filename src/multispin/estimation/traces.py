"""Traces of a real drafter's accepted tokens, position by position: one format to record and replay them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multispin.errors import InputError
from multispin.outside import json_value, read_file

TRACE_FORMAT = "multispin-trace-1"


@dataclass(frozen=True)
class Trace:
    """A drafter along one text of the target.

    Attributes:
        prompt: name of the prompt, or its text.
        task: task family of the prompt.
        accepts: one character per position of the text: "1" if the drafter, given the target's text before it,
            proposes exactly the target's token there, else "0".

    """

    prompt: str
    task: str
    accepts: str


@dataclass(frozen=True)
class Traces:
    """A drafter along several texts of one target.

    Attributes:
        target: reference of the target.
        drafter: name of the drafter.
        temperature: temperature at which the target wrote.
        texts: one trace per text.

    """

    target: str
    drafter: str
    temperature: float
    texts: tuple[Trace, ...]

    @property
    def rate(self) -> float:
        """Share of positions at which the drafter is right: the α of an independent drafter as good as this one."""
        accepts = [text.accepts for text in self.texts]
        return sum(text.count("1") for text in accepts) / sum(map(len, accepts))


def traces_document(target: str, drafter: str, temperature: float, texts: Sequence[Trace]) -> dict[str, Any]:
    """The contents of a trace file, ready for JSON.

    Args:
        target: reference of the target.
        drafter: name of the drafter.
        temperature: temperature at which the target wrote.
        texts: one trace per text; those without a position are left out.
    """
    return {
        "format": TRACE_FORMAT,
        "target": target,
        "drafter": drafter,
        "temperature": temperature,
        "traces": [{"prompt": t.prompt, "task": t.task, "accepts": t.accepts} for t in texts if t.accepts],
    }


def save_traces(path: Path, target: str, drafter: str, temperature: float, texts: Sequence[Trace]) -> None:
    """Write a trace file, over one that is there.

    Args:
        path: file to write.
        target: reference of the target.
        drafter: name of the drafter.
        temperature: temperature at which the target wrote.
        texts: one trace per text; those without a position are left out.
    """
    document = traces_document(target, drafter, temperature, texts)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load_traces(path: Path) -> Traces:
    """Read a trace file.

    Args:
        path: file to read, in the format `TRACE_FORMAT`.

    Raises:
        InputError: the file cannot be read or is no such recording; it names the file and what is wrong with it.
    """
    document = json_value(read_file(path), str(path))
    if not isinstance(document, dict) or document.get("format") != TRACE_FORMAT:
        raise InputError(f'{path} is not a recording of acceptances, whose "format" is "{TRACE_FORMAT}"')
    found = document.get("traces")
    if not isinstance(found, list):
        raise InputError(f'{path}: "traces" must be a list of texts')
    texts = []
    for index, text in enumerate(found):
        accepts = text.get("accepts") if isinstance(text, dict) else None
        if not isinstance(accepts, str) or not accepts or set(accepts) - {"0", "1"}:
            raise InputError(f'{path}: "accepts" of trace {index} must be a text of 0 and 1, not empty')
        texts.append(Trace(str(text.get("prompt", "")), str(text.get("task", "")), accepts))
    if not texts:
        raise InputError(f'{path}: "traces" is empty; at least one is needed')
    try:
        temperature = float(document.get("temperature", 0.0))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f'{path}: "temperature" must be a number') from error
    return Traces(str(document.get("target", "")), str(document.get("drafter", "")), temperature, tuple(texts))
