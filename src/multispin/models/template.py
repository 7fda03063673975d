"""Writes chats with a model's chat template, which is a program from outside: its time, memory and output are bounded.

A template runs in a separate process, which is killed if it takes too long. The process is kept for the next text.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multispin.errors import InputError, require

TEMPLATE_TIMEOUT_S = 10.0
"""Longest time of a template [s]; usual ones take a millisecond."""
START_S = 60.0
"""Longest time for starting the process that runs templates [s]; it takes half a second on an idle machine."""
TEMPLATE_MEMORY_BYTES = 2**29
"""Most memory of the process that runs templates [bytes]."""
MOST_CHARACTERS = 2**22
"""Longest text that a template may write [characters], far more than any session holds."""
_SCRIPT = Path(__file__).with_name("template_process.py")


class TemplateProcess:
    """The process that runs templates, for all threads of this one. It starts when it is first asked.

    Args:
        most_s: longest time of a template [s]; default `TEMPLATE_TIMEOUT_S`.

    """

    def __init__(self, most_s: float = TEMPLATE_TIMEOUT_S) -> None:
        self.most_s = most_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, question: Mapping[str, Any]) -> dict[str, str]:
        """The answer to a question; {"slow": ""} or {"large": ""} if there is none."""
        with self._lock:
            process = self._running()
            line, slow = _line(process, json.dumps(question) + "\n", self.most_s)
            if line.endswith("\n"):
                answer: dict[str, str] = json.loads(line)
                return answer
            _end(process)
            self._process = None
            return {"slow" if slow else "large": ""}

    def close(self) -> None:
        """End the process; the next question starts another one."""
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                _end(self._process)
            self._process = None

    def _running(self) -> "subprocess.Popen[str]":
        """The process; a new one where there is none, or only that of the process that this one was forked from."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            command = [sys.executable, "-P", str(_SCRIPT), str(TEMPLATE_MEMORY_BYTES), str(MOST_CHARACTERS)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                encoding="utf-8",
            )  # fmt: skip
            self._owner = os.getpid()
            _line(self._process, "", START_S)  # its first line says that it is ready
        return self._process


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill a process, and close its pipes."""
    process.kill()
    with contextlib.suppress(OSError), process:  # a question that it did not read
        pass


def _line(process: "subprocess.Popen[str]", said: str, most_s: float) -> tuple[str, bool]:
    """A process's answer, and whether it was killed because it had none by `most_s`; "" if there is no answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    ended = threading.Timer(most_s, process.kill)
    ended.start()
    try:
        process.stdin.write(said)
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError:  # it is gone
        line = ""
    finally:
        slow = not ended.is_alive()
        ended.cancel()
    return line, slow


SHARED = TemplateProcess()
"""The default process."""
atexit.register(SHARED.close)


def render(template: str, variables: Mapping[str, Any], process: TemplateProcess = SHARED) -> str:
    """The text that a chat template writes.

    Args:
        template: Jinja source, with the additions that templates on the hub rely on.
        variables: variables that it may use, as values of JSON.
        process: the process that runs it; by default one for all.

    Raises:
        InputError: the template is damaged, refuses these variables, or takes too much time, memory or text.

    """
    require("jinja2")
    answer = process.ask({"template": template, "variables": dict(variables)})
    match answer:
        case {"text": text}:
            return text
        case {"damaged": why}:
            raise InputError(f"the model's chat template is damaged: {why}")
        case {"refused": why}:
            raise InputError(f"the model's chat template refuses these messages: {why}")
        case {"slow": _}:
            raise InputError(f"the model's chat template does not end within {process.most_s:g} s")
    raise InputError(
        f"the model's chat template takes more than {TEMPLATE_MEMORY_BYTES >> 20} MiB, or writes more than "
        f"{MOST_CHARACTERS} characters"
    )
